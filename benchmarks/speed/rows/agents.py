"""Rows of agents inside the training loop, many seeds as one program, and rows of the official way."""

import dataclasses
import functools
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from benchmarks.speed import agents
from benchmarks.speed.bounds import H100, agent_work
from benchmarks.speed.rows.base import Args, Program, Row, Sizes, about, carry
from jaxpgd.agents import iql, td3_bc
from jaxpgd.training.agent import AgentState
from jaxpgd.types import Agent

AGENTS = {"td3_bc": td3_bc, "iql": iql}


def replay_of(sizes: Sizes, seeds: int) -> int:
    """Trajectories in the replay of each seed: as in a run, or the power of two of which two copies fit into `sizes.memory`."""
    each = sizes.window * (4 * (sizes.obs_dim + sizes.action_dim + 3) + 1)
    return min(sizes.trajectories, 2 ** int(math.log2(sizes.memory / (2 * seeds * each))))


@functools.cache
def data_of(size: agents.Size) -> Any:
    """Real transitions."""
    return agents.make_data(jax.random.key(0), size)


def agent_size(sizes: Sizes, seeds: int = 1, updates: int = 1) -> agents.Size:
    """The sizes in the form of the suite `agents`."""
    return agents.Size(
        transitions=sizes.transitions, obs_dim=sizes.obs_dim, action_dim=sizes.action_dim, trajectories=replay_of(sizes, seeds),
        window=sizes.window, seeds=seeds, hidden=sizes.hidden, updates=updates,
        batch=sizes.batch, synthetic=sizes.synthetic,
    )  # fmt: skip


@functools.cache
def agent_state(agent: Agent[Any], size: agents.Size) -> AgentState:
    """A fresh agent with a full replay."""
    make = lambda key, data: agents.start(key, agent, data, agents.make_replay(key, size))
    return jax.jit(make)(jax.random.key(0), data_of(size))


@functools.partial(jax.jit, static_argnames="seeds")
def spread(state: AgentState, seeds: int) -> AgentState:
    """Copies of an agent for `seeds` seeds, which differ only in their keys."""
    key, rest = state.key, state.replace(key=None)  # type: ignore[attr-defined]
    if seeds > 1:
        key, rest = jax.random.split(key, seeds), jax.tree.map(lambda x: jnp.broadcast_to(x, (seeds, *x.shape)), rest)
    return jax.tree.map(jnp.copy, rest).replace(key=jax.random.clone(key))


@functools.partial(jax.jit, static_argnames="size", donate_argnums=0)
def update_seeds(states: AgentState, agent: Agent[Any], data: Any, size: agents.Size) -> Any:
    """`size.updates` updates of all seeds, as one program."""
    return (agents.scan_updates if size.seeds == 1 else agents.scan_seeds)(states, agent, data, size)


def agent_row(sizes: Sizes, name: str, seeds: int, precision: str = "tensorfloat32") -> Row:
    """Updates of all seeds in one program, inside the training loop."""
    agent = AGENTS[name](action_dim=sizes.action_dim, hidden=sizes.hidden)
    work = agent_work(agent, agent_size(sizes), precision, seeds)
    updates = about(1.0, seeds * work.bound(H100)[1], min(32, sizes.most), sizes.most)
    size = agent_size(sizes, seeds, updates)

    def build(units: int) -> Program:
        single = dataclasses.replace(size, seeds=1, updates=1)
        data, state = data_of(single), agent_state(agent, single)
        return Program(update_seeds, lambda: (spread(state, seeds), agent, data), {"size": size}, carry)

    label = lambda n: f"{name}, {n} seed" + ("s" if n > 1 else "")
    return Row(
        label(seeds) + ("" if precision == "tensorfloat32" else f", {precision}"), "agents", "update", work, seeds * updates,
        build, precision, compiling=15, baseline=f"official {name}", single=label(sizes.seeds[0]),
        details={"agent": name, "seeds": seeds, "replay_trajectories": size.trajectories},
    )  # fmt: skip


def official_agent(sizes: Sizes, name: str) -> Row:
    """One jitted call per update from a Python loop, which draws both parts of a batch without replacement."""
    agent, size = AGENTS[name](action_dim=sizes.action_dim, hidden=sizes.hidden), agent_size(sizes)

    def build(units: int) -> Program:
        def turn(call: Callable[..., Any], args: Args) -> Args:
            _, agent, state, *rest = args
            for i in range(units):
                state, metrics = call(jax.random.key(i), agent, state, *rest)
                float(metrics["critic_loss"])
            return (args[0], agent, state, *rest)

        data, state = data_of(size), agent_state(agent, size)
        args = lambda: (jax.random.key(0), agent, state.agent, data, state.replay)
        return Program(agents.loop_update, args, {"size": size}, turn, looped=True, single=True)

    work = agent_work(agent, size, "tensorfloat32")
    return Row(
        f"official {name}", "official", "update", work, min(sizes.most, 64), build, compiling=15, details={"agent": name}
    )
