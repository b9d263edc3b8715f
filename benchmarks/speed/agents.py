"""Agent updates per second inside the training loop, against a loop that works like the official one.

Ours: `jaxpgd.training.agent.update_many`, whole intervals in one scan. Each batch is drawn with replacement: 240 of 256 from a
replay of synthetic trajectories, the rest from a million real transitions. Baseline: one jitted call per update from a Python
loop, which draws both parts without replacement (`jax.random.choice(replace=False)`) and so permutes all transitions.
"""

import dataclasses
import functools
import itertools
import statistics
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

from benchmarks.timing import header, matmul_peak, measure, row, time_calls
from jaxpgd.agents import iql, td3_bc
from jaxpgd.experiment.run.peak_memory import peak_memory
from jaxpgd.parallel import map_seeds
from jaxpgd.synthesis.replay import Replay, init_replay
from jaxpgd.training.agent import AgentState, update_many
from jaxpgd.training.experience import Experience
from jaxpgd.types import Agent, Trajectory, Transition


@dataclasses.dataclass(frozen=True)
class Size:
    """Sizes of the measurement; the defaults are HalfCheetah's."""

    transitions: int = 1_000_000
    obs_dim: int = 17
    action_dim: int = 6
    batch: int = 256
    synthetic: int = 240  # transitions of the batch
    trajectories: int = 8192  # in the replay
    window: int = 32
    seeds: int = 8
    hidden: tuple[int, ...] = (256, 256)
    updates: int = 128  # per scan
    baseline_updates: int = 3  # per repeat
    repeats: int = 9


@functools.partial(jax.jit, static_argnames="size")
def make_data(key: Array, size: Size) -> Transition:
    """Random transitions [size.transitions]."""
    keys = jax.random.split(key, 4)
    n, o, a = size.transitions, size.obs_dim, size.action_dim
    return Transition(
        obs=jax.random.normal(keys[0], (n, o)),
        action=jax.random.uniform(keys[1], (n, a), minval=-1.0),
        reward=jax.random.normal(keys[2], (n,)),
        discount=jnp.ones(n),
        next_obs=jax.random.normal(keys[3], (n, o)),
    )


@functools.partial(jax.jit, static_argnames="size")
def make_replay(key: Array, size: Size) -> Replay:
    """A full replay of random trajectories, in which every step but the last is valid."""
    flat = make_data(key, dataclasses.replace(size, transitions=size.trajectories * size.window))
    shape = (size.trajectories, size.window)
    parts = jax.tree.map(lambda x: x.reshape(*shape, *x.shape[1:]), flat)
    mask = jnp.ones(shape, bool).at[:, -1].set(False)
    return init_replay(Trajectory(parts.obs, parts.action, parts.reward, parts.discount, mask))


@functools.partial(jax.jit, static_argnames="size")
def scan_updates(state: AgentState, agent: Agent[Any], data: Transition, size: Size) -> tuple[AgentState, Any]:
    """`size.updates` updates in one program; returns the state and the mean of its metrics."""
    return update_many(state, Experience(data), agent, size.batch, size.synthetic, size.updates)


@functools.partial(jax.jit, static_argnames="size")
def scan_seeds(states: AgentState, agent: Agent[Any], data: Transition, size: Size) -> tuple[AgentState, Any]:
    """`scan_updates` for the states [S] of several seeds, as one program."""
    return map_seeds(lambda state: scan_updates(state, agent, data, size), states)


@functools.partial(jax.jit, static_argnames="size")
def loop_update(key: Array, agent: Agent[Any], state: Any, data: Transition, replay: Replay, size: Size) -> tuple[Any, Any]:
    """One update with both parts of its batches drawn without replacement."""
    key_real, key_synthetic, key_update = jax.random.split(key, 3)
    n_real, n_synthetic = agent.batches * (size.batch - size.synthetic), agent.batches * size.synthetic
    index = jax.random.choice(key_real, size.transitions, (n_real,), replace=False)
    steps = jax.random.choice(key_synthetic, replay.valid.shape[0], (n_synthetic,), replace=False)
    row, step = jnp.divmod(steps, size.window)
    t = replay.trajectory
    following = jnp.minimum(step + 1, size.window - 1)
    parts = Transition(t.obs[row, step], t.action[row, step], t.reward[row, step], t.discount[row, step], t.obs[row, following])
    join = lambda a, b: jnp.concatenate([x.reshape(agent.batches, -1, *x.shape[1:]) for x in (a, b)], axis=1)
    return agent.update(key_update, state, jax.tree.map(lambda x, synthetic: join(x[index], synthetic), data, parts))


def baseline_rate(agent: Agent[Any], state: AgentState, data: Transition, size: Size) -> float:
    """Updates per second of the Python loop (median over repeats)."""

    def loop() -> Any:
        current = state.agent
        for i in range(size.baseline_updates):
            current, metrics = loop_update(jax.random.key(i), agent, current, data, state.replay, size)
            float(metrics["critic_loss"])  # the official loop logs its metrics
        return current

    jax.block_until_ready(loop())
    return size.baseline_updates / statistics.median(time_calls(loop, max(1, size.repeats // 4)))


def update_flops(agent: Agent[Any], size: Size) -> float:
    """FLOPs of one update: 2 per weight and example forward, 4 backward (2 if only the gradient of the input is needed).

    Counts matrix products only. TD3+BC: per critic step one target actor and two target critics forward, two critics forward
    and backward; then the actor and one critic. IQL: two target critics forward, the value network three times forward and
    once backward, actor and critics forward and backward.
    """
    widths = size.hidden
    body = sum(a * b for a, b in itertools.pairwise(widths))
    critic = (size.obs_dim + size.action_dim) * widths[0] + body + widths[-1]
    actor = size.obs_dim * widths[0] + body + widths[-1] * size.action_dim
    value = size.obs_dim * widths[0] + body + widths[-1]
    if agent.name == "td3_bc":
        return size.batch * (agent.batches * (2 * actor + 4 * critic + 12 * critic) + 6 * actor + 4 * critic)
    return size.batch * (4 * critic + 10 * value + 6 * actor + 12 * critic)


def start(key: Array, agent: Agent[Any], data: Transition, replay: Replay) -> AgentState:
    """A fresh agent with a full replay."""
    key_agent, key = jax.random.split(key)
    return AgentState(agent.init(key_agent, jax.tree.map(lambda x: x[0], data)), replay, key)


def measure_agent(agent: Agent[Any], data: Transition, replay: Replay, size: Size) -> dict[str, Any]:
    """The rate of one agent, that of the baseline, and their ratio."""
    state = start(jax.random.key(0), agent, data, replay)
    timing = measure(
        lambda state, agent, data: scan_updates(state, agent, data, size), state, agent, data,
        repeats=size.repeats, peak=matmul_peak,
    )  # fmt: skip
    found = row(timing, size.updates, flops=update_flops(agent, size))
    baseline = baseline_rate(agent, state, data, size)
    critic_steps = {"critic_steps_per_second": agent.batches * found["rate"]} if agent.batches > 1 else {}
    return {"agent": agent.name} | found | critic_steps | {"baseline_rate": baseline, "ratio": found["rate"] / baseline}


def measure_seeds(agent: Agent[Any], data: Transition, replay: Replay, size: Size) -> dict[str, Any]:
    """The cost of several seeds in one program over that of as many single runs, and the difference of their losses."""
    keys = jax.random.split(jax.random.key(0), size.seeds)
    singles = [start(key, agent, data, replay) for key in keys]
    states = jax.tree.map(lambda *x: jnp.stack(x), *singles)
    sized = dataclasses.replace(size, updates=max(1, size.updates // 2))
    one = measure(lambda s, a, d: scan_updates(s, a, d, sized), singles[0], agent, data, repeats=max(1, size.repeats // 2))
    many = measure(lambda s, a, d: scan_seeds(s, a, d, sized), states, agent, data, repeats=max(1, size.repeats // 2))
    short = dataclasses.replace(size, updates=min(size.updates, 10))
    alone = [float(scan_updates(s, agent, data, short)[1]["critic_loss"]) for s in singles]
    together = jax.device_get(scan_seeds(states, agent, data, short)[1]["critic_loss"])
    apart = max(abs(a - float(b)) / abs(a) for a, b in zip(alone, together, strict=True))
    return {
        "agent": f"{agent.name}, {size.seeds} seeds", "seeds": size.seeds,
        **row(many, size.seeds * sized.updates), "single_rate": sized.updates / one.median_seconds,
        "cost_of_seeds_over_singles": many.median_seconds / (size.seeds * one.median_seconds),
        "largest_relative_difference_of_losses": apart,
    }  # fmt: skip


def run(size: Size | None = None) -> dict[str, Any]:
    """Measure TD3+BC and IQL in updates per second, and several seeds of one program against single runs.

    An update of TD3+BC is one actor step and two critic steps (TD3 with a policy delay of two).
    """
    size, peak = size or Size(), matmul_peak()
    data = jax.block_until_ready(make_data(jax.random.key(0), size))
    replay = jax.block_until_ready(make_replay(jax.random.key(1), size))
    agents = [make(action_dim=size.action_dim, hidden=size.hidden) for make in (td3_bc, iql)]
    rows = [measure_agent(agent, data, replay, size) for agent in agents]
    rows += [measure_seeds(agent, data, replay, size) for agent in agents]
    return header("agents", size, peak) | {"rows": rows, "peak_memory_bytes": peak_memory()}
