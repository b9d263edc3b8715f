"""Train: the first stages of a run, the models that its arms need. `load` reads what they leave, without training."""

import sys
from typing import Any

import numpy as np

from jaxpgd.experiment.config import Config
from jaxpgd.experiment.needs import NEEDS, needs
from jaxpgd.experiment.run.directory import ClaimedRun
from jaxpgd.experiment.run.driver import drive
from jaxpgd.experiment.run.out_of_memory import explained
from jaxpgd.experiment.stages.batch_size import decide_batch_size
from jaxpgd.experiment.stages.build import Models
from jaxpgd.experiment.stages.load import (
    finished,
    load_behaviour,
    load_state_denoiser,
    load_trajectory_denoiser,
    load_world_model,
)
from jaxpgd.experiment.stages.model_programs import (
    Trained,
    Training,
    behaviour_training,
    denoiser_training,
    state_denoiser_training,
    termination_rule,
    world_model_training,
)
from jaxpgd.experiment.stages.model_source import model_source
from jaxpgd.experiment.stages.prepare import Prepared, prepare_state_windows, window_coverage
from jaxpgd.parallel import is_writer
from jaxpgd.synthesis.diffusion import TrajectoryDenoiser, check_ends
from jaxpgd.synthesis.dydiff import StateDenoiser
from jaxpgd.training.windows import Windows
from jaxpgd.windows import low_coverage
from jaxpgd.world_model.behaviour import Behaviour
from jaxpgd.world_model.data import informative
from jaxpgd.world_model.model import WorldModel


def check_models(config: Config, prepared: Prepared) -> None:
    """Raise InputError for what is known to be wrong before anything is trained."""
    for stage in NEEDS:
        model_source(config, stage)
    if "guided" in config.arms:
        check_ends(config.guidance, prepared.windows.left is not None)
    if needs(config, "world-model"):
        termination_rule(config, prepared.dataset.info)
        informative(prepared.dataset.transitions(), config.world_model)
    if needs(config, "state-denoiser"):
        prepare_state_windows(config, prepared)


def train_models(run: ClaimedRun, prepared: Prepared) -> Models:
    """Train, continue or read every model that the run's arms need, and decide the batch size of sampling."""
    config = run.config
    models = Models(
        denoiser=train_denoiser(run, prepared) if needs(config, "denoiser") else None,
        world=train_world_model(run, prepared) if needs(config, "world-model") else None,
    )
    if needs(config, "state-denoiser"):
        behaviour = train_behaviour(run, prepared) if needs(config, "behaviour") else None
        states = train_state_denoiser(run, prepared, behaviour, models.world)
        models = models.replace(states=states)  # type: ignore[attr-defined]
    decide_batch_size(run, models)
    return models


@explained
def train_denoiser(run: ClaimedRun, prepared: Prepared) -> TrajectoryDenoiser:
    """Train or continue the trajectory denoiser. One that is trained, here or in a run of `models_from`, is only read."""
    if source := model_source(run.config, "denoiser"):
        return load_trajectory_denoiser(source, prepared)
    _warn_of_coverage(run, "denoiser", prepared, prepared.windows, "data.window")
    _warn_of_no_validation(run, "denoiser", prepared.windows)
    return _train(run, denoiser_training(run.config, prepared), note="validation_loss", score=_validation)


@explained
def train_world_model(run: ClaimedRun, prepared: Prepared) -> WorldModel:
    """Train or continue the one-step world model. One that is trained, here or in a run of `models_from`, is only read."""
    if source := model_source(run.config, "world-model"):
        return load_world_model(source, prepared)
    return _train(run, world_model_training(run.config, prepared), unit="epochs", note="state_loss")


@explained
def train_behaviour(run: ClaimedRun, prepared: Prepared) -> Behaviour:
    """Train or continue the behaviour's mean. One that is trained is only read, as above."""
    if source := model_source(run.config, "behaviour"):
        return load_behaviour(source, prepared)
    return _train(run, behaviour_training(run.config, prepared), unit="epochs", note="behaviour_loss")


@explained
def train_state_denoiser(
    run: ClaimedRun, prepared: Prepared, behaviour: Behaviour | None = None, world: WorldModel | None = None
) -> StateDenoiser:
    """Train or continue DyDiff's denoiser of states. One that is trained is only read, as above.

    One that is given innovations is trained with a behaviour and, to be anchored, with a world model; where they are not
    given, they are read from the runs of `models_from`.
    """
    if source := model_source(run.config, "state-denoiser"):
        return load_state_denoiser(source, prepared)
    if needs(run.config, "behaviour"):
        if trained := finished(run, state_denoiser_training(run.config, prepared)):  # needs no anchors, which take long
            return trained
        behaviour = behaviour or train_behaviour(run, prepared)
        world = world or train_world_model(run, prepared)
    training = state_denoiser_training(run.config, prepared, behaviour, world)
    _warn_of_coverage(run, training.stage, prepared, training.data, "synthesis.dydiff.window or data.window")  # type: ignore[arg-type]
    _warn_of_no_validation(run, training.stage, training.data)  # type: ignore[arg-type]
    return _train(run, training, note="validation_loss", score=_validation)


def _train(run: ClaimedRun, training: Training[Trained], **how: Any) -> Trained:
    return training.trained(drive(run, training.stage, training.key, training.program, training.data, **how))


def _warn_of_coverage(run: ClaimedRun, stage: str, prepared: Prepared, windows: Windows, setting: str) -> None:
    """Warn, where a stage is about to be trained, of windows that leave most of the data out."""
    covered = window_coverage(run.config, prepared, windows)
    if covered.low and is_writer() and not run.is_done(stage):
        print(f"warning: stage {stage!r} of {run.path}: training windows of {windows.length} steps cover {covered}; "
              f"{low_coverage(prepared.dataset, windows.length, run.config.data.pad_short, setting)}",
              file=sys.stderr, flush=True)  # fmt: skip


def _warn_of_no_validation(run: ClaimedRun, stage: str, windows: Windows) -> None:
    """Warn, where a stage is about to be trained, of held-out episodes without a window: then training windows stand in."""
    none = run.config.data.validation_fraction > 0 and np.array_equal(windows.train, windows.validation)
    if none and is_writer() and not run.is_done(stage):
        print(f"warning: stage {stage!r} of {run.path}: no episode is held out, or none with a window: the validation loss and "
              "distances to held-out windows are those to training windows", file=sys.stderr, flush=True)  # fmt: skip


def _validation(row: dict[str, Any]) -> float:
    return -float(row["validation_loss"])
