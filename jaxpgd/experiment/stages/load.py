"""Load: trained models and policies, from the checkpoints of a run. Nothing here trains, and the driver has no part in it."""

from pathlib import Path
from typing import NamedTuple, TypeVar

import jax
import jax.numpy as jnp

from jaxpgd.errors import InputError, check
from jaxpgd.experiment.config import Config
from jaxpgd.experiment.needs import needs
from jaxpgd.experiment.run.checkpoints import CheckpointReader
from jaxpgd.experiment.run.view import RunView, open_run
from jaxpgd.experiment.stages.agent_programs import agent_training
from jaxpgd.experiment.stages.batch_size import with_models
from jaxpgd.experiment.stages.build import Models
from jaxpgd.experiment.stages.known_policies import known_target
from jaxpgd.experiment.stages.model_programs import (
    Training,
    behaviour_training,
    denoiser_training,
    state_denoiser_training,
    world_model_training,
)
from jaxpgd.experiment.stages.model_source import model_source, require_models
from jaxpgd.experiment.stages.prepare import Prepared, prepare
from jaxpgd.experiment.sweep import read_sweep
from jaxpgd.parallel import check_same_across_hosts
from jaxpgd.simulators.stored_actor import actor_for
from jaxpgd.synthesis.diffusion import TrajectoryDenoiser
from jaxpgd.synthesis.dydiff import StateDenoiser
from jaxpgd.types import Policy
from jaxpgd.world_model.behaviour import Behaviour
from jaxpgd.world_model.model import WorldModel

Trained = TypeVar("Trained")


class LoadedRun(NamedTuple):
    """A run with its data and models; `config` is the effective one (`run.resolved`)."""

    run: RunView
    config: Config
    prepared: Prepared
    models: Models


def open_trained(path: str, *, denoiser: bool = False, argument: str = "RUN") -> RunView:
    """A run whose models are all trained, with `denoiser` one that has a trajectory denoiser. Raises InputError."""
    run = open_run(path)
    has = not denoiser or needs(run.config, "denoiser")
    check(has, argument, path, "a run with a trajectory denoiser (an arm unguided or guided)")
    require_models(run)
    return run


def load_run(run: RunView) -> LoadedRun:
    """The data and models of a run. Raises InputError."""
    prepared = prepare(run.config)
    models = load_models(run, prepared)
    return LoadedRun(run, with_models(run, models), prepared, models)


def load_models(run: RunView, prepared: Prepared) -> Models:
    """Every model that the run's arms need, from this run or from a run of `models_from`. Raises InputError."""
    source = lambda stage: (model_source(run.config, stage) or run) if needs(run.config, stage) else None
    denoiser, world, states = source("denoiser"), source("world-model"), source("state-denoiser")
    return Models(
        denoiser=load_trajectory_denoiser(denoiser, prepared) if denoiser else None,
        world=load_world_model(world, prepared) if world else None,
        states=load_state_denoiser(states, prepared) if states else None,
    )


def load_denoiser(path: str, *, best: bool = False) -> TrajectoryDenoiser:
    """The trained trajectory denoiser of a run directory: the last one, or of those saved the one of least validation loss.

    Raises InputError where it is absent or not finished.
    """
    run = open_trained(path, denoiser=True, argument="run")
    return load_trajectory_denoiser(model_source(run.config, "denoiser") or run, prepare(run.config), best=best)


def load_trajectory_denoiser(run: RunView, prepared: Prepared, *, best: bool = False) -> TrajectoryDenoiser:
    """The trained trajectory denoiser of the run that trained it, for data that are there already. Raises InputError."""
    return load_trained(run, denoiser_training(run.config, prepared), best=best)


def load_world_model(run: RunView, prepared: Prepared) -> WorldModel:
    """The trained world model of the run that trained it. Raises InputError."""
    return load_trained(run, world_model_training(run.config, prepared))


def load_behaviour(run: RunView, prepared: Prepared) -> Behaviour:
    """The trained mean of the behaviour, of the run that trained it. Raises InputError."""
    return load_trained(run, behaviour_training(run.config, prepared))


def load_state_denoiser(run: RunView, prepared: Prepared) -> StateDenoiser:
    """The trained denoiser of states, of DyDiff, of the run that trained it. Raises InputError."""
    return load_trained(run, state_denoiser_training(run.config, prepared))


def load_policies(run: RunView, prepared: Prepared, models: Models, arm: str) -> Policy:
    """The trained policies of an arm, with a leading axis [settings * seeds]. Raises InputError."""
    return load_trained(run, agent_training(with_models(run, models), prepared, models, arm)).policy


def load_policy(run: RunView, prepared: Prepared, models: Models, name: str) -> Policy:
    """The policy of a name: "ARM" or "ARM:SEED" of this run. Raises InputError where it is unknown or untrained.

    Where the run sweeps over settings, SEED counts through all of them, the seeds of a setting together.
    """
    arm, _, number = name.partition(":")
    check(arm in run.config.arms, "policy", name, f"one of {', '.join(run.config.arms)}, with :SEED")
    check(number == "" or number.isdigit(), "policy", name, "ARM:SEED with a whole number as SEED")
    seed = int(number or 0)
    count = run.config.seeds * len(read_sweep(run.config, arm).settings)
    check(seed < count, "policy", name, f"a seed below {count}")
    trained = [arm for arm in run.config.arms if run.is_done(f"agent-{arm}")]
    hint = f" (trained so far: {', '.join(trained)})" if trained else ""
    run.require(f"agent-{arm}", f"jaxpgd train-agent {Path(run.path)} --arm {arm}", hint)
    return seed_policy(load_policies(run, prepared, models, arm), seed)


def chosen_policy(loaded: LoadedRun, name: str, actor: str) -> tuple[Policy, str]:
    """The policy "ARM[:SEED]" of a run, or the actor of an npz file where one is named, and what it is. Raises InputError."""
    check(not (name and actor), "--policy, --actor", (name, actor), "one of them")
    run, _, prepared, models = loaded
    if actor:
        policy = actor_for(actor, prepared.dataset.obs_dim, prepared.dataset.action_dim)
        return policy, f"the actor {Path(actor).name}"
    return load_policy(run, prepared, models, name), f"{name} of {run.path}"


def target_or_chosen(loaded: LoadedRun, name: str, actor: str) -> tuple[Policy, str]:
    """`chosen_policy`; where neither is named a built-in environment's target policy, else the agent of the last arm."""
    known = known_target(loaded.prepared.dataset)
    if known is not None and not name and not actor:
        return known, "the environment's target policy"
    return chosen_policy(loaded, name or ("" if actor else loaded.config.arms[-1]), actor)


def seed_policy(policies: Policy, seed: int) -> Policy:
    """The policy of one seed of a batch of them."""
    return jax.tree.map(lambda x: jnp.asarray(x)[seed], policies)


def agent_number(name: str) -> int:
    """SEED of a name "ARM[:SEED]"."""
    number = name.partition(" of ")[0].partition(":")[2]
    return int(number) if number.isdigit() else 0


def load_trained(run: RunView, training: Training[Trained], *, best: bool = False) -> Trained:
    """What a finished stage has trained, from its last checkpoint, or with `best` from the one of the highest score.

    Raises InputError where it is not finished, or that checkpoint cannot be read.
    """
    found = finished(run, training, best=best)
    if found is None:
        raise InputError(
            f"run = {str(run.path)!r}: the last checkpoint of its stage {training.stage!r} cannot be read. Continue that run "
            f"with `jaxpgd run {run.path / 'config.toml'} --resume` first."
        )
    return found


def finished(run: RunView, training: Training[Trained], *, best: bool = False) -> Trained | None:
    """As `load_trained`; None where it raises."""
    store: CheckpointReader = run.checkpoints(training.stage)
    target = jax.eval_shape(training.program.init, training.key, training.data)
    found = store.restore_best(target) if best else store.restore(target)
    complete = found is not None and run.is_done(training.stage) and (best or found[1] == training.program.chunks)
    check_same_across_hosts(
        found[1] + 1 if found is not None and complete else 0, f"{training.stage}: what was saved, by process"
    )
    return training.trained(found[0]) if found is not None and complete else None
