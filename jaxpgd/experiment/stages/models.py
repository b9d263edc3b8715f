"""The stages that train what synthesizers need: trajectory denoiser, world model, state denoiser."""

import dataclasses
import sys
from typing import Any

import jax

from jaxpgd.dataset import DatasetInfo, obs_slices
from jaxpgd.datasets.load import LOADED_BY
from jaxpgd.errors import check
from jaxpgd.experiment.config import Config
from jaxpgd.experiment.run.directory import RunDirectory, open_run
from jaxpgd.experiment.run.driver import drive
from jaxpgd.experiment.run.memory import explained, remembered, with_batch
from jaxpgd.experiment.stages.fidelity import settle_sampler
from jaxpgd.experiment.stages.parts import Models, Prepared, prepare, prepare_state_windows, stage_key, window_coverage
from jaxpgd.experiment.sweep import read_sweep
from jaxpgd.options import get
from jaxpgd.parallel import broadcast, is_writer
from jaxpgd.simulators.environments import environment_kwargs
from jaxpgd.synthesis.diffusion import TrajectoryDenoiser, check_ends
from jaxpgd.synthesis.dydiff import StateDenoiser
from jaxpgd.synthesis.memory import fitting_batch
from jaxpgd.training.denoiser import Windows, denoiser_program, state_windows, trained_denoiser, trained_state_denoiser
from jaxpgd.training.world_model import trained_world_model, world_model_program
from jaxpgd.windows import low_coverage
from jaxpgd.world_model.data import informative, prepare_transitions
from jaxpgd.world_model.model import Terminates, WorldModel
from jaxpgd.world_model.termination import termination

WORLD_MODEL_KEY = "dynamics"  # names the random key of the world model: another name is another model

# which arms need which model
NEEDS: dict[str, tuple[str, ...]] = {
    "denoiser": ("unguided", "guided"),
    "world-model": ("dydiff", "world_model"),
    "state-denoiser": ("dydiff",),
}

# the settings that decide what each model becomes; the seed decides which episodes are held out as well
DECIDED_BY: dict[str, tuple[str, ...]] = {
    "denoiser": ("seed", "matmul_precision", "data", "denoiser"),
    "world-model": (
        "seed", "matmul_precision", "data.name", "data.env_id", "data.episodes", *(f"data.{name}" for name in LOADED_BY),
        "world_model",
    ),
    "state-denoiser": (
        "seed", "matmul_precision", "data", "denoiser", "synthesis.dydiff.window", "synthesis.dydiff.conditions",
        "synthesis.dydiff.scaled_conditions",
    ),
}  # fmt: skip


def needs(config: Config, stage: str) -> bool:
    """Whether any arm uses the model of a stage of `NEEDS`."""
    return any(arm in NEEDS[stage] for arm in config.arms)


def check_models(config: Config, prepared: Prepared) -> None:
    """Raise InputError for what is known to be wrong before anything is trained."""
    for stage in NEEDS:
        lender(config, stage)
    if "guided" in config.arms:
        check_ends(config.guidance, prepared.windows.left is not None)
    if needs(config, "world-model"):
        termination_of(config, prepared.dataset.info)
        informative(prepared.dataset.transitions(), config.world_model)
    if needs(config, "state-denoiser"):
        prepare_state_windows(config, prepared)


def models_stage(run: RunDirectory, prepared: Prepared, *, settle: bool = True) -> Models:
    """Train, continue or read every model that the run's arms need; `settle` a sampler "auto" of `run.config` as well."""
    config = run.config
    models = Models(
        denoiser=denoiser_stage(run, prepared) if needs(config, "denoiser") else None,
        world=world_model_stage(run, prepared) if needs(config, "world-model") else None,
        states=state_denoiser_stage(run, prepared) if needs(config, "state-denoiser") else None,
    )
    settle_batch(run, models)
    if settle and models.denoiser is not None:
        settle_sampler(run, prepared, models.denoiser)
    return models


def settle_batch(run: RunDirectory, models: Models) -> None:
    """Put a number in place of `sampler.batch_size` 0 in the config of an open run: the same for every process and stage."""
    config = run.config
    if config.sampler.batch_size > 0:
        run.config = with_batch(config, remembered(run, config.sampler.batch_size))
        return
    agents = -(-config.seeds * len(read_sweep(config).settings) // len(jax.devices()))  # at once on one device
    found = []
    if models.denoiser is not None:
        through = "guided" in config.arms and config.guidance.kind != "published"
        shape = (config.synthesis.length or models.denoiser.length, models.denoiser.codec.token_dim)
        found.append(fitting_batch(models.denoiser.denoise, shape, guided=through, agents=agents))
    if models.states is not None:
        codec = models.states.codec
        shape = (config.synthesis.length or models.states.length, codec.obs_dim + codec.action_dim)
        found.append(fitting_batch(models.states.denoise, shape, guided=False, agents=agents))
    if found:
        run.config = with_batch(config, int(broadcast(remembered(run, min(found)))))


def require_models(run: RunDirectory) -> None:
    """Raise InputError unless every model that the run's arms need is trained."""
    for stage in NEEDS:
        if needs(run.config, stage) and lender(run.config, stage) is None:
            run.require(stage, f"jaxpgd run {run.path / 'config.toml'} --resume")


def load_denoiser(path: str, *, best: bool = False) -> TrajectoryDenoiser:
    """The trained trajectory denoiser of a run directory: the last one, or of those saved the one of least validation loss.

    Raises InputError where it is absent or not finished.
    """
    run = open_run(path)
    require_models(run)
    check(needs(run.config, "denoiser"), "run", path, "a run with a trajectory denoiser (an arm unguided or guided)")
    prepared = prepare(run.config)
    if not best:
        return denoiser_stage(run, prepared)
    run = lender(run.config, "denoiser") or run
    program = denoiser_program(prepared.windows, run.config.denoiser)
    found = run.checkpoints("denoiser").restore_best(jax.eval_shape(program.init, jax.random.key(0), prepared.windows))
    assert found is not None  # a finished stage has checkpoints
    return trained_denoiser(found[0], prepared.windows, run.config.denoiser)


def lender(config: Config, stage: str) -> RunDirectory | None:
    """The run that lends the model of a stage: the first of `models_from` that has one. None: it is trained here, if at all.

    Raises InputError where that stage is not finished in any of them, or their settings of the model are others.
    """
    if not needs(config, stage):
        return None
    able = [run for run in map(open_run, config.models_from) if needs(run.config, stage)]
    for run in able:
        deeper = lender(run.config, stage)
        if deeper is None and not run.is_done(stage):
            continue
        for name in (each for part in DECIDED_BY[stage] for each in _names(config, part)):
            mine, theirs = decided(config, name), decided(run.config, name)
            check(mine == theirs, name, mine, f"{theirs!r}, as in models_from = {str(run.path)!r}")
        return deeper or run
    for run in able:
        run.require(stage, f"jaxpgd run {run.path / 'config.toml'} --resume")
    return None


def decided(config: Config, name: str) -> Any:
    """What a setting comes to in the training of models: a denoiser sees clean conditions where only sampling churns them."""
    value = get(config, name)
    return "clean" if name == "synthesis.dydiff.conditions" and value == "churned" else value


def _names(config: Config, part: str) -> list[str]:
    """The settings of a section, or the one setting of that name."""
    value = get(config, part)
    return [f"{part}.{name}" for name in vars(value)] if dataclasses.is_dataclass(value) else [part]


@explained
def denoiser_stage(run: RunDirectory, prepared: Prepared) -> TrajectoryDenoiser:
    """Train the denoiser, or take it from this run's checkpoint or from a run of `models_from`."""
    run = lender(run.config, "denoiser") or run
    config = run.config
    _say_coverage(run, "denoiser", prepared, prepared.windows, "data.window")
    program = denoiser_program(prepared.windows, config.denoiser, skip=config.health.skip_updates > 0)
    key = stage_key(config, "denoiser")
    state = drive(run, "denoiser", key, program, prepared.windows, note="validation_loss", score=_validation)
    return trained_denoiser(state, prepared.windows, config.denoiser)


def _say_coverage(run: RunDirectory, stage: str, prepared: Prepared, windows: Windows, setting: str) -> None:
    """Warn, where a stage is about to be trained, of windows that leave most of the data out."""
    covered = window_coverage(run.config, prepared, windows)
    if covered.low and is_writer() and not run.is_done(stage):
        print(f"warning: stage {stage!r} of {run.path}: training windows of {windows.length} steps cover {covered}; "
              f"{low_coverage(prepared.dataset, windows.length, run.config.data.pad_short, setting)}",
              file=sys.stderr, flush=True)  # fmt: skip


def _validation(row: dict[str, Any]) -> float:
    return -float(row["validation_loss"])


def termination_of(config: Config, info: DatasetInfo) -> Terminates | None:
    """The terminal rule of a config for a dataset's environment; None: a classifier is learned. Raises InputError."""
    kwargs: dict[str, Any] = environment_kwargs(info)
    return termination(config.world_model.termination, info.env_id, kwargs, obs_slices(info))


@explained
def world_model_stage(run: RunDirectory, prepared: Prepared) -> WorldModel:
    """Train the one-step world model, or take it from this run's checkpoint or from a run of `models_from`."""
    run = lender(run.config, "world-model") or run
    config, info = run.config, prepared.dataset.info
    rule = termination_of(config, info)
    data = prepare_transitions(prepared.dataset.transitions(), config.world_model, seed=config.seed)
    program = world_model_program(data, config.world_model, rule, skip=config.health.skip_updates > 0)
    state = drive(run, "world-model", stage_key(config, WORLD_MODEL_KEY), program, data, unit="epochs", note="state_loss")
    return trained_world_model(state, data, config.world_model, rule)


@explained
def state_denoiser_stage(run: RunDirectory, prepared: Prepared) -> StateDenoiser:
    """Train DyDiff's denoiser of states given actions, or take it from this run's checkpoint or from a run of `models_from`."""
    run = lender(run.config, "state-denoiser") or run
    config = run.config
    conditions, scaled = config.synthesis.dydiff.conditions, config.synthesis.dydiff.scaled_conditions
    windows = state_windows(prepare_state_windows(config, prepared), conditions, scaled=scaled)
    _say_coverage(run, "state-denoiser", prepared, windows, "synthesis.dydiff.window or data.window")
    program = denoiser_program(windows, config.denoiser, skip=config.health.skip_updates > 0)
    key = stage_key(config, "state-denoiser")
    state = drive(run, "state-denoiser", key, program, windows, note="validation_loss", score=_validation)
    return trained_state_denoiser(state, windows, config.denoiser, conditions)
