"""Prepare: load and check what a run needs before any compute. The dataset, its windows, the keys of stages."""

import dataclasses
import zlib

import jax
import numpy as np
from flax import struct
from jax import Array

from jaxpgd.dataset import Dataset, to_device
from jaxpgd.datasets import load
from jaxpgd.datasets.load import LOADED_BY
from jaxpgd.experiment.config import Config
from jaxpgd.experiment.precision import set_precision
from jaxpgd.experiment.run.logs import require_wandb
from jaxpgd.experiment.stages.known_policies import known_behaviour
from jaxpgd.simulators.environments import require_environment, with_environment
from jaxpgd.simulators.returns import steps_of
from jaxpgd.training.windows import Windows, prepare_windows
from jaxpgd.windows import Coverage, coverage, held_out_steps, split_episodes
from jaxpgd.world_model.data import WorldModelData, prepare_transitions


@struct.dataclass
class Prepared:
    """The dataset on the device and its windows."""

    dataset: Dataset
    windows: Windows


def prepare(config: Config) -> Prepared:
    """The dataset of a config and its windows; compute is set to the run's precision. Raises InputError."""
    set_precision(config.matmul_precision)
    require_wandb(config.wandb_project)
    rules = {name: getattr(config.data, name) for name in LOADED_BY}
    dataset = load(config.data.name, episodes=config.data.episodes, seed=config.seed, **rules)
    if config.data.env_id:
        dataset = dataclasses.replace(dataset, info=with_environment(dataset.info, config.data.env_id))
    require_environment(dataset.info, dataset.obs_dim)
    known_behaviour(config, dataset)  # a file that cannot be read shows now, not after training
    dataset = to_device(dataset)
    return Prepared(dataset, prepare_windows(dataset, config.data, seed=config.seed))


def require_steps(config: Config, dataset: Dataset) -> None:
    """Raise InputError where nothing would end the episodes of an evaluation. For the start of what evaluates."""
    steps_of(dataset.info, config.evaluation.max_steps, "evaluation.max_steps")


def prepare_state_windows(config: Config, prepared: Prepared) -> Windows:
    """Windows of DyDiff's state denoiser, which may be longer than those of the trajectory denoiser. Raises InputError."""
    length = config.synthesis.dydiff.window
    if length in (0, config.data.window):
        return prepared.windows
    return prepare_windows(prepared.dataset, dataclasses.replace(config.data, window=length), seed=config.seed)


def prepare_world_model_data(config: Config, prepared: Prepared) -> WorldModelData:
    """Transitions of the world model. It holds out whole episodes, those that the denoiser's validation loss is measured on.

    Where no episode is held out of the denoiser's training, `world_model.holdout` of them are; where `holdout_by` says so or
    the dataset has a single episode, single transitions. Raises InputError as `prepare_transitions`.
    """
    own, dataset = config.world_model, prepared.dataset
    fraction = config.data.validation_fraction or own.holdout
    held_out = held_out_steps(dataset, fraction, config.seed) if own.holdout_by == "episodes" else None
    return prepare_transitions(dataset.transitions(), own, held_out=held_out, seed=config.seed)


def window_coverage(config: Config, prepared: Prepared, windows: Windows) -> Coverage:
    """What of the training episodes is inside the training windows."""
    episodes, _ = split_episodes(prepared.dataset, config.data.validation_fraction, config.seed)
    return coverage(prepared.dataset, np.asarray(windows.train), windows.length, episodes)


def stage_key(config: Config, name: str) -> Array:
    """The random key of a stage: a function of the config's seed and the stage's name alone."""
    return jax.random.fold_in(jax.random.key(config.seed), zlib.crc32(name.encode()) & 0x7FFFFFFF)
