"""The parts that a config names, made from it: dataset, agent, experience of an arm. Nothing here trains or writes."""

import dataclasses
import zlib

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct
from jax import Array

from jaxpgd.agents import make_agent
from jaxpgd.dataset import Dataset, to_device
from jaxpgd.datasets import load
from jaxpgd.datasets.load import LOADED_BY
from jaxpgd.envs.builtin import builtin_environment
from jaxpgd.envs.point2d import behaviour_policy, target_policy
from jaxpgd.experiment.config import Config
from jaxpgd.experiment.precision import set_precision
from jaxpgd.experiment.run.logs import require_wandb
from jaxpgd.simulators.behaviour import fitting_actor
from jaxpgd.simulators.environments import is_builtin, require_environment, with_environment
from jaxpgd.simulators.returns import steps_of
from jaxpgd.synthesis.diffusion import DiffusionSynthesizer, TrajectoryDenoiser, make_synthesizer
from jaxpgd.synthesis.dydiff import StateDenoiser, make_dydiff
from jaxpgd.synthesis.filters import make_filter
from jaxpgd.synthesis.world_model import make_world_model_synthesizer
from jaxpgd.training.agent import Experience
from jaxpgd.training.denoiser import Windows, prepare_windows
from jaxpgd.types import Agent, Policy, Synthesizer
from jaxpgd.windows import Coverage, coverage, split_episodes
from jaxpgd.world_model.model import WorldModel


@struct.dataclass
class Prepared:
    """The dataset on the device and its windows."""

    dataset: Dataset
    windows: Windows


@struct.dataclass
class Models:
    """What a run trains besides agents; None where no arm needs it."""

    denoiser: TrajectoryDenoiser | None = None
    world: WorldModel | None = None
    states: StateDenoiser | None = None


def prepare(config: Config) -> Prepared:
    """Load and check everything that a run needs before any compute, which is set to the run's precision. Raises InputError."""
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


def window_coverage(config: Config, prepared: Prepared, windows: Windows) -> Coverage:
    """What of the training episodes is inside the training windows."""
    episodes, _ = split_episodes(prepared.dataset, config.data.validation_fraction, config.seed)
    return coverage(prepared.dataset, np.asarray(windows.train), windows.length, episodes)


def stage_key(config: Config, name: str) -> Array:
    """The random key of a stage: a function of the config's seed and the stage's name alone."""
    return jax.random.fold_in(jax.random.key(config.seed), zlib.crc32(name.encode()) & 0x7FFFFFFF)


def build_agent(config: Config, dataset: Dataset) -> Agent:
    """The agent of a config for a dataset, with its observation statistics where it normalises."""
    section = getattr(config.agent, config.agent.kind)
    mean = std = None
    if config.agent.normalise_obs:
        obs = np.asarray(dataset.obs, np.float64)
        mean, std = jnp.asarray(obs.mean(0), jnp.float32), jnp.asarray(obs.std(0), jnp.float32)
    return make_agent(config.agent.kind, section, dataset.action_dim, obs_mean=mean, obs_std=std)


def build_synthesizer(config: Config, denoiser: TrajectoryDenoiser, *, guided: bool, steps: int = 0) -> DiffusionSynthesizer:
    """The synthesizer of a config; `steps` replaces the number of sampler steps where it is above 0."""
    sampler = dataclasses.replace(config.sampler, steps=steps or config.sampler.steps)
    guidance = config.guidance if guided else None
    return make_synthesizer(denoiser, sampler, guidance, length=config.synthesis.length)


def arm_synthesizer(config: Config, models: Models, arm: str) -> Synthesizer:
    """The synthesizer of any arm but `real`, from the models that it needs."""
    length = config.synthesis.length
    if arm in ("unguided", "guided"):
        assert models.denoiser is not None
        return build_synthesizer(config, models.denoiser, guided=arm == "guided")
    assert models.world is not None
    if arm == "world_model":
        return make_world_model_synthesizer(models.world, config.synthesis.world_model, length=length or config.data.window)
    assert models.states is not None
    return make_dydiff(models.world, models.states, config.synthesis.dydiff, config.sampler, length=length)


def build_experience(config: Config, dataset: Dataset, models: Models, arm: str) -> Experience:
    """Where the agents of an arm get their batches from."""
    if arm == "real":
        return Experience(dataset.transitions())
    synthesizer = arm_synthesizer(config, models, arm)
    first = None
    if arm == "guided" and config.synthesis.first_unguided:
        first = arm_synthesizer(config, models, "unguided")
    return Experience(dataset.transitions(), synthesizer, first, make_filter(config.synthesis.filter))


def known_target(dataset: Dataset) -> Policy | None:
    """The target policy that a built-in environment comes with, if any."""
    if not is_builtin(dataset.info):
        return None
    return target_policy(builtin_environment(dataset.info.env_id))


def known_behaviour(config: Config, dataset: Dataset) -> Policy | None:
    """The policy that collected the data: the actor that the config names, or a built-in environment's; else None."""
    if config.evaluation.behaviour:
        return fitting_actor(config.evaluation.behaviour, dataset.obs_dim, dataset.action_dim, "evaluation.behaviour")
    if not is_builtin(dataset.info):
        return None
    return behaviour_policy(builtin_environment(dataset.info.env_id))
