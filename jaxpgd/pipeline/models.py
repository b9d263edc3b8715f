"""The stages that train what synthesizers need: trajectory denoiser, world model, state denoiser."""

import dataclasses
from typing import Any

import jax

from jaxpgd.data.dataset import DatasetInfo
from jaxpgd.dynamics.termination import termination
from jaxpgd.dynamics.world_model import Terminates, WorldModel
from jaxpgd.errors import InputError, check
from jaxpgd.evaluation.environments import environment_kwargs
from jaxpgd.evaluation.simulators import obs_slices
from jaxpgd.parallel import of_first
from jaxpgd.pipeline.drive import drive
from jaxpgd.pipeline.fidelity import settle_sampler
from jaxpgd.pipeline.parts import Models, Prepared, prepare, prepare_state_windows, stage_key
from jaxpgd.pipeline.run_directory import RunDirectory, open_run
from jaxpgd.settings import Config
from jaxpgd.sweep import read_sweep
from jaxpgd.synthesis.diffusion import TrajectoryDenoiser
from jaxpgd.synthesis.dydiff import StateDenoiser
from jaxpgd.synthesis.memory import fitting_batch
from jaxpgd.training.denoiser import denoiser_program, state_windows, trained_denoiser, trained_state_denoiser
from jaxpgd.training.dynamics import dynamics_program, informative, prepare_dynamics, trained_dynamics

# which arms need which model
NEEDS: dict[str, tuple[str, ...]] = {
    "denoiser": ("unguided", "guided"),
    "dynamics": ("dydiff", "world_model"),
    "state-denoiser": ("dydiff",),
}


def needs(config: Config, stage: str) -> bool:
    """Whether any arm uses the model of a stage of `NEEDS`."""
    return any(arm in NEEDS[stage] for arm in config.arms)


def check_models(config: Config, prepared: Prepared) -> None:
    """Raise InputError for what is known to be wrong before anything is trained."""
    if config.denoiser_from:
        borrowed_denoiser(config, prepared)
    if needs(config, "dynamics"):
        termination_of(config, prepared.dataset.info)
        informative(prepared.dataset.transitions(), config.dynamics)
    if needs(config, "state-denoiser"):
        prepare_state_windows(config, prepared)


def models_stage(run: RunDirectory, prepared: Prepared, *, settle: bool = True) -> Models:
    """Train, continue or read every model that the run's arms need; `settle` a sampler "auto" of `run.config` as well."""
    config = run.config
    models = Models(
        denoiser=denoiser_stage(run, prepared) if needs(config, "denoiser") else None,
        world=dynamics_stage(run, prepared) if needs(config, "dynamics") else None,
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
        size = int(of_first(min(found)))
        run.config = dataclasses.replace(config, sampler=dataclasses.replace(config.sampler, batch_size=size))


def require_models(run: RunDirectory) -> None:
    """Raise InputError unless every model that the run's arms need is trained."""
    for stage in NEEDS:
        borrowed = stage == "denoiser" and run.config.denoiser_from
        if needs(run.config, stage) and not borrowed:
            run.require(stage, f"jaxpgd run {run.path / 'config.toml'} --resume")


def load_denoiser(path: str) -> TrajectoryDenoiser:
    """The trained trajectory denoiser of a run directory. Raises InputError where it is absent or not finished."""
    run = open_run(path)
    require_models(run)
    check(needs(run.config, "denoiser"), "run", path, "a run with a trajectory denoiser (an arm unguided or guided)")
    return denoiser_stage(run, prepare(run.config))


def denoiser_stage(run: RunDirectory, prepared: Prepared) -> TrajectoryDenoiser:
    """Train the denoiser, or take it from this run's checkpoint or from the run that `denoiser_from` names."""
    config = run.config
    if config.denoiser_from:
        return borrowed_denoiser(config, prepared)
    return _own_denoiser(run, prepared, train=True)


def _own_denoiser(run: RunDirectory, prepared: Prepared, *, train: bool) -> TrajectoryDenoiser:
    program = denoiser_program(prepared.windows, run.config.denoiser)
    key = stage_key(run.config, "denoiser")
    if not train:
        run.require("denoiser", f"jaxpgd run {run.path / 'config.toml'} --resume")
    state = drive(run, "denoiser", key, program, prepared.windows, note="validation_loss")
    return trained_denoiser(state, prepared.windows, run.config.denoiser)


def borrowed_denoiser(config: Config, prepared: Prepared) -> TrajectoryDenoiser:
    """The trained denoiser of the run that `denoiser_from` names. Raises InputError unless seed, data and network agree."""
    lender = open_run(config.denoiser_from)
    if config.seed != lender.config.seed:  # it decides which episodes are held out, and so the token statistics
        raise InputError(
            f"seed = {config.seed}: expected {lender.config.seed}, as in denoiser_from = {config.denoiser_from!r}."
        )
    for section in ("data", "denoiser"):
        mine, theirs = getattr(config, section), getattr(lender.config, section)
        for name, value in vars(mine).items():
            other = getattr(theirs, name)
            if value != other:
                raise InputError(
                    f"{section}.{name} = {value!r}: expected {other!r}, as in denoiser_from = {config.denoiser_from!r}."
                )
    if lender.config.denoiser_from:
        return borrowed_denoiser(lender.config, prepared)
    return _own_denoiser(lender, prepared, train=False)


def termination_of(config: Config, info: DatasetInfo) -> Terminates | None:
    """The terminal rule of a config for a dataset's environment; None: a classifier is learned. Raises InputError."""
    kwargs: dict[str, Any] = environment_kwargs(info)
    return termination(config.dynamics.termination, info.env_id, kwargs, obs_slices(info))


def dynamics_stage(run: RunDirectory, prepared: Prepared) -> WorldModel:
    """Train the one-step world model, or take it from this run's checkpoint."""
    config, info = run.config, prepared.dataset.info
    rule = termination_of(config, info)
    data = prepare_dynamics(prepared.dataset.transitions(), config.dynamics, seed=config.seed)
    program = dynamics_program(data, config.dynamics, rule)
    state = drive(run, "dynamics", stage_key(config, "dynamics"), program, data, unit="epochs", note="state_loss")
    return trained_dynamics(state, data, config.dynamics, rule)


def state_denoiser_stage(run: RunDirectory, prepared: Prepared) -> StateDenoiser:
    """Train DyDiff's denoiser of states given actions, or take it from this run's checkpoint."""
    config = run.config
    conditions = config.synthesis.dydiff.conditions
    windows = state_windows(prepare_state_windows(config, prepared), conditions)
    program = denoiser_program(windows, config.denoiser)
    key = stage_key(config, "state-denoiser")
    state = drive(run, "state-denoiser", key, program, windows, note="validation_loss")
    return trained_state_denoiser(state, windows, config.denoiser, conditions)
