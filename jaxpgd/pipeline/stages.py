"""The stages of a run. Each reads what earlier stages left in the run directory and skips itself when it is done."""

import json
import time
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxpgd.data.scores import normalized_score
from jaxpgd.errors import InputError, check
from jaxpgd.evaluation.returns import evaluate
from jaxpgd.pipeline.drive import drive, over_seeds
from jaxpgd.pipeline.parts import Prepared, build_agent, build_experience, stage_key
from jaxpgd.pipeline.run_directory import RunDirectory, open_run
from jaxpgd.settings import Config
from jaxpgd.synthesis.diffusion import TrajectoryDenoiser
from jaxpgd.training.agent import AgentState, agent_program
from jaxpgd.training.denoiser import denoiser_program, trained_denoiser
from jaxpgd.types import Policy


def needs_denoiser(config: Config) -> bool:
    """Whether any arm uses synthetic data."""
    return any(arm != "real" for arm in config.arms)


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


def agent_stage(run: RunDirectory, prepared: Prepared, denoiser: TrajectoryDenoiser | None, arm: str) -> Policy:
    """Train the agents of an arm, all seeds at once; returns their policies, with a leading seed axis [S]."""
    config, dataset = run.config, prepared.dataset
    stage = f"agent-{arm}"
    agent = build_agent(config, dataset)
    experience = build_experience(config, dataset, denoiser, arm)
    program = over_seeds(agent_program(agent, config.agent, config.synthesis), config.seeds)
    key = stage_key(config, "agent")  # the same for all arms: seed i starts from the same agent in each

    def after_chunk(done: int, state: AgentState) -> dict[str, Any]:
        every = config.evaluation.every // config.agent.updates_per_chunk
        if every == 0 or done % every:
            return {}
        key_return = jax.random.fold_in(stage_key(config, "intermediate"), done)
        episodes = config.evaluation.intermediate_episodes
        found = evaluate(key_return, jax.vmap(agent.policy)(state.agent), dataset.info, episodes=episodes)
        return {"returns": found.returns.mean(-1)}

    state = drive(run, stage, key, program, experience, unit="updates", note="critic_loss", after_chunk=after_chunk)
    return jax.vmap(agent.policy)(state.agent)


def returns_stage(run: RunDirectory, prepared: Prepared, policies: dict[str, Policy]) -> dict[str, Any]:
    """Evaluate every arm's final policies in the environment; results by arm."""
    if run.is_done("returns"):
        stored: dict[str, Any] = run.read_json("returns.json")
        return stored
    config, info, began = run.config, prepared.dataset.info, time.monotonic()
    results: dict[str, Any] = {}
    for arm, policy in policies.items():
        found = evaluate(stage_key(config, "returns"), policy, info, episodes=config.evaluation.episodes)
        returns = np.asarray(found.returns)
        score, label = normalized_score(info, returns)
        results[arm] = {"returns": returns, "lengths": np.asarray(found.lengths), "score": score, "score_label": label}
        print(
            f"returns, {arm}: mean {returns.mean():.4g} over {returns.shape[0]} seeds x {returns.shape[1]} episodes", flush=True
        )
    run.write_json("returns.json", results)
    run.finish("returns", {"seconds": time.monotonic() - began})
    return json.loads((run.path / "returns.json").read_text())  # type: ignore[no-any-return]


def seed_policy(policies: Policy, seed: int) -> Policy:
    """The policy of one seed of a batch of them."""
    return jax.tree.map(lambda x: jnp.asarray(x)[seed], policies)


def policy_of(run: RunDirectory, prepared: Prepared, denoiser: TrajectoryDenoiser | None, name: str) -> Policy:
    """The policy that a name says: "ARM" or "ARM:SEED" of this run. Raises InputError where it is unknown or untrained."""
    arm, _, number = name.partition(":")
    check(arm in run.config.arms, "policy", name, f"one of {', '.join(run.config.arms)}, with :SEED")
    check(number == "" or number.isdigit(), "policy", name, "ARM:SEED with a whole number as SEED")
    seed = int(number or 0)
    check(seed < run.config.seeds, "policy", name, f"a seed below {run.config.seeds}")
    run.require(f"agent-{arm}", f"jaxpgd train-agent {Path(run.path)}")
    return seed_policy(agent_stage(run, prepared, denoiser, arm), seed)
