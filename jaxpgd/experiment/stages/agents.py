"""The stages of a run. Each reads what earlier stages left in the run directory and skips itself when it is done."""

import dataclasses
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from jaxpgd.agents import replace_hypers
from jaxpgd.dataset import DatasetInfo, own_reward
from jaxpgd.datasets.scores import normalized_score, score_column
from jaxpgd.errors import check
from jaxpgd.experiment.config import Config
from jaxpgd.experiment.run.directory import RunDirectory
from jaxpgd.experiment.run.driver import BeforeChunk, drive, over_seeds
from jaxpgd.experiment.run.memory import fitting
from jaxpgd.experiment.run.progress import evaluation_progress
from jaxpgd.experiment.stages.calibration import calibrate
from jaxpgd.experiment.stages.parts import Models, Prepared, build_agent, build_experience, stage_key
from jaxpgd.experiment.sweep import COEFFICIENT, read_sweep
from jaxpgd.parallel import broadcast
from jaxpgd.simulators.behaviour import fitting_actor
from jaxpgd.simulators.returns import evaluate
from jaxpgd.synthesis.diffusion import DiffusionSynthesizer
from jaxpgd.training.agent import AgentState, Experience, agent_program, make_schedule
from jaxpgd.training.health import LOST
from jaxpgd.training.program import Program
from jaxpgd.training.sources import Sources, join_sources, sources_program
from jaxpgd.types import Agent, Metrics, Policy, PyTree

JOINT = "agents"  # the stage that trains the agents of all arms as one program


@fitting
def agent_stage(run: RunDirectory, prepared: Prepared, models: Models, arm: str) -> Policy:
    """Train the agents of an arm, all settings and seeds at once.

    Returns their policies, with a leading axis [settings * seeds], the seeds of a setting together.
    """
    config, dataset = run.config, prepared.dataset
    agent = build_agent(config, dataset)
    experience = build_experience(config, dataset, models, arm)
    schedule = make_schedule(config.agent, config.synthesis)
    most, times = config.guidance.coefficient, config.guidance.max_dynamics_error

    def choose(done: int, state: Callable[[], AgentState], data: Experience) -> tuple[Experience, dict[str, Any]]:
        if not schedule.due(done):
            return data, {}
        key_choice = jax.random.fold_in(stage_key(config, "calibration"), done)
        synthesizer, policies = cast(DiffusionSynthesizer, data.synthesizer), jax.vmap(agent.policy)(state().agent)
        coefficient, found = calibrate(key_choice, synthesizer, policies, prepared, most, times)
        coefficient = broadcast(coefficient)
        fixed = synthesizer.with_coefficient(jnp.asarray(coefficient, jnp.float32))
        return data.replace(synthesizer=fixed), found  # type: ignore[attr-defined]

    before = choose if arm == "guided" and times > 0 else None
    return _trained(run, f"agent-{arm}", prepared, agent, population(config, agent, arm), experience, before)


@fitting
def sources_stage(run: RunDirectory, prepared: Prepared, models: Models) -> dict[str, Policy]:
    """Train the agents of all arms of a run as one program; their policies [seeds] by arm.

    Raises InputError where the run sweeps over settings, or where the dynamics error chooses coefficients.
    """
    config = run.config
    check(not config.sweep, "sweep", list(config.sweep), "nothing where all arms are one program")
    times = config.guidance.max_dynamics_error
    check(times == 0, "guidance.max_dynamics_error", times, "0 where all arms are one program")
    agent = build_agent(config, prepared.dataset)
    policies = _trained(run, JOINT, prepared, agent, joint_program(config, agent), joint_data(config, prepared, models), None)
    return by_arm(config, policies)


def joint_program(config: Config, agent: Agent) -> Program[AgentState]:
    """The training program of every seed of every arm."""
    skip = config.health.skip_updates > 0
    return sources_program(agent, config.agent, config.synthesis, config.arms, config.seeds, skip=skip)


def joint_data(config: Config, prepared: Prepared, models: Models) -> Sources:
    """What `joint_program` trains on."""
    return join_sources([build_experience(config, prepared.dataset, models, arm) for arm in config.arms])


def by_arm(config: Config, policies: Policy) -> dict[str, Policy]:
    """The policies [arms * seeds] of one program for all arms as [seeds] by arm."""
    part = lambda i: jax.tree.map(lambda x: x[i * config.seeds : (i + 1) * config.seeds], policies)
    return {arm: part(i) for i, arm in enumerate(config.arms)}


def _trained(
    run: RunDirectory,
    stage: str,
    prepared: Prepared,
    agent: Agent,
    program: Program[AgentState],
    data: PyTree,
    before_chunk: BeforeChunk | None,
) -> Policy:
    """The policies of a program of agents that is run, or resumed, as a stage."""
    config, dataset = run.config, prepared.dataset
    program = in_reported_units(program, dataset.info)
    key = stage_key(config, "agent")  # the same for all arms: seed i starts from the same agent in each

    def after_chunk(done: int, state: Callable[[], AgentState]) -> dict[str, Any]:
        every = config.evaluation.every // config.agent.updates_per_chunk
        if every == 0 or done % every:
            return {}
        key_return = jax.random.fold_in(stage_key(config, "intermediate"), done)
        policies, own = jax.vmap(agent.policy)(state().agent), config.evaluation
        label = f"{stage}, evaluation at {done * config.agent.updates_per_chunk} updates"
        with evaluation_progress(label) as watch:
            found = evaluate(key_return, policies, dataset.info, episodes=own.intermediate_episodes,
                             horizon=own.max_steps or None, processes=own.processes, watch=watch)  # fmt: skip
        return {"returns": found.returns.mean(-1)}

    state = drive(
        run, stage, key, program, data, unit="updates", note="critic_loss", after_chunk=after_chunk, before_chunk=before_chunk,
        score=_mean_return,
    )  # fmt: skip
    return jax.vmap(agent.policy)(state.agent)


def in_reported_units(program: Program[AgentState], info: DatasetInfo) -> Program[AgentState]:
    """The same program, whose metrics tell the mean synthetic reward in the dataset's own units; 0 where there is none."""
    if info.rewards_as_stored:
        return program

    def chunk(state: AgentState, data: PyTree, index: Array) -> tuple[AgentState, Metrics]:
        state, metrics = program.chunk(state, data, index)
        if "synthetic_reward" in metrics:
            own = own_reward(info, metrics["synthetic_reward"])
            metrics = metrics | {"synthetic_reward": jnp.where(metrics["synthetic_transitions"] > 0, own, 0.0)}
        return state, metrics

    return dataclasses.replace(program, chunk=chunk)


def _mean_return(row: dict[str, Any]) -> float | None:
    """Over seeds, where the chunk ended with an evaluation; seeds that are lost do not count."""
    returns = np.asarray(row.get("returns", ()), np.float64)
    returns = returns[np.isfinite(returns) & ~np.asarray(row.get(LOST, np.zeros(returns.shape, bool)))]
    return float(returns.mean()) if returns.size else None


def population(config: Config, agent: Agent, arm: str) -> Program[AgentState]:
    """The training program of every seed of every setting that the config sweeps over, as far as they concern an arm."""
    settings = read_sweep(config, arm).settings
    names = list(settings[0])
    skip = config.health.skip_updates > 0
    columns = {name: jnp.asarray([setting[name] for setting in settings], jnp.float32) for name in names}

    def make(setting: dict[str, Array]) -> Program[AgentState]:
        own = {name.partition(".")[2]: value for name, value in setting.items() if name != COEFFICIENT}
        hypers = replace_hypers(agent.hypers, **own) if own else None
        return agent_program(agent, config.agent, config.synthesis, hypers, setting.get(COEFFICIENT), skip=skip)

    return over_seeds(make, columns, len(settings), config.seeds)


def by_setting(config: Config, arm: str, policies: Policy) -> dict[str, Policy]:
    """The policies [settings * seeds] of an arm as [seeds] by row of results: the arm, or the arm with a setting."""
    sweep = read_sweep(config, arm)
    parts = [
        jax.tree.map(lambda x, i=i: x[i * config.seeds : (i + 1) * config.seeds], policies) for i in range(len(sweep.settings))
    ]
    return {", ".join(filter(None, (arm, sweep.label(i)))): part for i, part in enumerate(parts)}


def lost_seeds(run: RunDirectory) -> dict[str, np.ndarray]:
    """Which seeds [seeds] of every row of results were left behind in training."""
    rows: dict[str, np.ndarray] = {}
    if run.is_done(JOINT):
        lost = np.zeros(run.config.seeds * len(run.config.arms), bool)
        lost[run.facts(JOINT).get(LOST, [])] = True
        return cast(dict[str, np.ndarray], by_arm(run.config, cast(Policy, lost)))
    for arm in run.config.arms:
        lost = np.zeros(run.config.seeds * len(read_sweep(run.config, arm).settings), bool)
        lost[run.facts(f"agent-{arm}").get(LOST, []) if run.is_done(f"agent-{arm}") else []] = True
        rows |= cast(dict[str, np.ndarray], by_setting(run.config, arm, cast(Policy, lost)))
    return rows


def returns_stage(run: RunDirectory, prepared: Prepared, policies: dict[str, Policy]) -> dict[str, Any]:
    """Evaluate every arm's final policies in the environment; results by arm."""
    if run.is_done("returns"):
        stored: dict[str, Any] = run.read_json("returns.json")
        return stored
    config, info, began = run.config, prepared.dataset.info, time.monotonic()
    results: dict[str, Any] = {}
    lost = lost_seeds(run)
    for arm, policy in policies.items():
        own = config.evaluation
        with evaluation_progress(f"returns, {arm}") as watch:
            found = evaluate(stage_key(config, "returns"), policy, info, episodes=own.episodes,
                             horizon=own.max_steps or None, processes=own.processes, watch=watch)  # fmt: skip
        returns = np.array(found.returns)
        returns[lost[arm]] = np.nan  # whatever the last sound or unsound parameters reach, these seeds have not been trained
        score, label = normalized_score(info, returns, found.successes)
        label += f"; episodes of at most {own.max_steps} steps" if own.max_steps else ""
        if score is not None:
            score[lost[arm]] = np.nan  # successes, too
        results[arm] = {
            "returns": returns, "lengths": np.asarray(found.lengths), "successes": found.successes,
            "score": score, "score_label": label, "score_column": score_column(info),
        }  # fmt: skip
        sound = returns[np.isfinite(returns).all(1)]
        mean = (
            f"mean {sound.mean():.4g} over {sound.shape[0]} seeds x {sound.shape[1]} episodes"
            if sound.size
            else "no sound seed"
        )
        print(f"returns, {arm}: {mean}", flush=True)
    run.write_json("returns.json", results)
    run.finish("returns", {"seconds": time.monotonic() - began})
    return run.read_json("returns.json")  # type: ignore[no-any-return]


def seed_policy(policies: Policy, seed: int) -> Policy:
    """The policy of one seed of a batch of them."""
    return jax.tree.map(lambda x: jnp.asarray(x)[seed], policies)


def chosen_policy(run: RunDirectory, prepared: Prepared, models: Models, name: str, actor: str) -> tuple[Policy, str]:
    """The policy "ARM[:SEED]" of a run, or the actor of an npz file where one is named, and what it is. Raises InputError."""
    check(not (name and actor), "--policy, --actor", (name, actor), "one of them")
    if actor:
        policy = fitting_actor(actor, prepared.dataset.obs_dim, prepared.dataset.action_dim)
        return policy, f"the actor {Path(actor).name}"
    return policy_of(run, prepared, models, name), f"{name} of {run.path}"


def agent_number(name: str) -> int:
    """SEED of a name "ARM[:SEED]"."""
    number = name.partition(" of ")[0].partition(":")[2]
    return int(number) if number.isdigit() else 0


def policy_of(run: RunDirectory, prepared: Prepared, models: Models, name: str) -> Policy:
    """The policy that a name says: "ARM" or "ARM:SEED" of this run. Raises InputError where it is unknown or untrained.

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
    return seed_policy(agent_stage(run, prepared, models, arm), seed)
