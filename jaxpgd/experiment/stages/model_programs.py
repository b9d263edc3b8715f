"""How each model is trained: its program, data and key, as pure functions of config and data. Nothing trains or reads here."""

import dataclasses
from collections.abc import Callable
from typing import Any, Generic, TypeVar

import jax
from jax import Array

from jaxpgd.dataset import DatasetInfo, obs_slices
from jaxpgd.experiment.config import Config
from jaxpgd.experiment.needs import clones
from jaxpgd.experiment.stages.prepare import Prepared, prepare_state_windows, prepare_world_model_data, stage_key
from jaxpgd.simulators.environments import environment_kwargs
from jaxpgd.synthesis.diffusion import TrajectoryDenoiser
from jaxpgd.synthesis.dydiff import StateDenoiser
from jaxpgd.training.behaviour import behaviour_program, trained_behaviour
from jaxpgd.training.denoiser import denoiser_program, trained_denoiser
from jaxpgd.training.innovation_windows import abstract_windows, innovation_windows
from jaxpgd.training.program import Program
from jaxpgd.training.state_denoiser import state_denoiser_program, trained_state_denoiser
from jaxpgd.training.windows import state_windows
from jaxpgd.training.world_model import trained_world_model, world_model_program
from jaxpgd.types import PyTree
from jaxpgd.world_model.behaviour import Behaviour
from jaxpgd.world_model.model import Terminates, WorldModel
from jaxpgd.world_model.termination import termination

Trained = TypeVar("Trained")
WORLD_MODEL_KEY = "dynamics"  # names the random key of the world model: another name is another model


@dataclasses.dataclass(frozen=True)
class Training(Generic[Trained]):
    """A stage that trains: its name in the run directory, its program with data and key, what its final state makes."""

    stage: str
    program: Program[Any]
    data: PyTree
    key: Array
    trained: Callable[[Any], Trained]  # the model, or the policies, of a final state


def denoiser_training(config: Config, prepared: Prepared) -> Training[TrajectoryDenoiser]:
    """Of the trajectory denoiser."""
    windows = prepared.windows
    program = denoiser_program(windows, config.denoiser, skip=config.health.skip_updates > 0)
    trained = lambda state: trained_denoiser(state, windows)
    return Training("denoiser", program, windows, stage_key(config, "denoiser"), trained)


def world_model_training(config: Config, prepared: Prepared) -> Training[WorldModel]:
    """Of the one-step world model."""
    rule = termination_rule(config, prepared.dataset.info)
    data = prepare_world_model_data(config, prepared)
    program = world_model_program(data, config.world_model, rule, skip=config.health.skip_updates > 0)
    trained = lambda state: trained_world_model(state, data, config.world_model, rule)
    return Training("world-model", program, data, stage_key(config, WORLD_MODEL_KEY), trained)


def behaviour_training(config: Config, prepared: Prepared) -> Training[Behaviour]:
    """Of the behaviour's mean, which innovations are taken against."""
    data, own = prepare_world_model_data(config, prepared), config.synthesis.dydiff.behaviour
    program = behaviour_program(data, own, skip=config.health.skip_updates > 0)
    trained = lambda state: trained_behaviour(state, data, own)
    return Training("behaviour", program, data, stage_key(config, "behaviour"), trained)


def state_denoiser_training(
    config: Config, prepared: Prepared, behaviour: Behaviour | None = None, world: WorldModel | None = None
) -> Training[StateDenoiser]:
    """Of DyDiff's denoiser of states, with the models that it is given innovations by.

    Without these models the data of a denoiser that needs them are shapes alone, enough to read a checkpoint that holds them.
    """
    conditions, scaled = config.synthesis.dydiff.conditions, config.synthesis.dydiff.scaled_conditions
    windows = prepare_state_windows(config, prepared)
    if clones(config) and behaviour is not None:
        assert world is not None or config.synthesis.dydiff.conditioning == "innovations"
        windows = innovation_windows(windows, behaviour, world if config.synthesis.dydiff.conditioning == "anchored" else None)
    elif clones(config):
        windows = abstract_windows(
            windows, config.synthesis.dydiff.conditioning, _abstract(behaviour_training(config, prepared)),
            _abstract(world_model_training(config, prepared)),
        )  # fmt: skip
    windows = state_windows(windows, conditions, scaled=scaled)
    program = state_denoiser_program(windows, config.denoiser, skip=config.health.skip_updates > 0)
    trained = lambda state: trained_state_denoiser(state, windows, conditions)
    return Training("state-denoiser", program, windows, stage_key(config, "state-denoiser"), trained)


def _abstract(training: Training[Trained]) -> Trained:
    """The shapes of what a stage trains."""
    state = jax.eval_shape(training.program.init, training.key, training.data)
    made: Trained = jax.eval_shape(training.trained, state)
    return made


def termination_rule(config: Config, info: DatasetInfo) -> Terminates | None:
    """The terminal rule of a config for a dataset's environment; None: a classifier is learned. Raises InputError."""
    kwargs: dict[str, Any] = environment_kwargs(info)
    return termination(config.world_model.termination, info.env_id, kwargs, obs_slices(info))
