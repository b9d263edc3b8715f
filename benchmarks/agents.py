"""Agent updates a second, batch sampling included, against a loop that works as the official one does.

Ours: uniform draws with replacement, whole intervals in one scan. Baseline: one jitted call per update from a Python loop, each
drawing its transitions without replacement (`jax.random.choice(replace=False)`), which permutes the whole dataset.
"""

import dataclasses
import functools
import itertools
import statistics
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

from benchmarks.timing import describe_device, matmul_peak, measure, time_calls
from jaxpgd.agents import iql, td3_bc
from jaxpgd.types import Agent, Transition


@dataclasses.dataclass(frozen=True)
class Size:
    """Sizes of the measurement; the defaults are HalfCheetah's."""

    transitions: int = 1_000_000
    obs_dim: int = 17
    action_dim: int = 6
    batch: int = 256
    hidden: tuple[int, ...] = (256, 256)
    updates: int = 300  # per scan
    baseline_updates: int = 3  # per repeat
    repeats: int = 5


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


def _gather(agent: Agent[Any], data: Transition, index: Array) -> Transition:
    index = index.reshape(agent.batches, -1)
    return jax.tree.map(lambda x: x[index], data)


@functools.partial(jax.jit, static_argnames="size")
def scan_updates(key: Array, agent: Agent[Any], state: Any, data: Transition, size: Size) -> tuple[Any, Any]:
    """`size.updates` updates in one program; returns the state and the metrics of each."""

    def step(state: Any, key: Array) -> tuple[Any, Any]:
        draw, update = jax.random.split(key)
        index = jax.random.randint(draw, (agent.batches * size.batch,), 0, size.transitions)
        return agent.update(update, state, _gather(agent, data, index))

    return jax.lax.scan(step, state, jax.random.split(key, size.updates))


@functools.partial(jax.jit, static_argnames="size")
def loop_update(key: Array, agent: Agent[Any], state: Any, data: Transition, size: Size) -> tuple[Any, Any]:
    """One update with a draw without replacement from all transitions."""
    draw, update = jax.random.split(key)
    index = jax.random.choice(draw, size.transitions, (agent.batches * size.batch,), replace=False)
    return agent.update(update, state, _gather(agent, data, index))


def baseline_rate(agent: Agent[Any], state: Any, data: Transition, size: Size) -> float:
    """Updates a second of the Python loop (median of the repeats)."""

    def loop() -> Any:
        current = state
        for i in range(size.baseline_updates):
            current, metrics = loop_update(jax.random.key(i), agent, current, data, size)
            float(metrics["critic_loss"])  # the official loop hands metrics to its logger
        return current

    jax.block_until_ready(loop())
    return size.baseline_updates / statistics.median(time_calls(loop, max(1, size.repeats // 2)))


def update_flops(agent: Agent[Any], size: Size) -> float:
    """Arithmetic of one update: 2 per weight and example forward, 4 backward (2 where only the input's gradient is needed).

    Counts matrix products only. TD3+BC: per critic step a target actor and two target critics forward, two critics forward and
    backward; then the actor and one critic. IQL: two target critics, the value three times forward and once backward, actor
    and critics forward and backward.
    """
    widths = size.hidden
    body = sum(a * b for a, b in itertools.pairwise(widths))
    critic = (size.obs_dim + size.action_dim) * widths[0] + body + widths[-1]
    actor = size.obs_dim * widths[0] + body + widths[-1] * size.action_dim
    value = size.obs_dim * widths[0] + body + widths[-1]
    if agent.name == "td3_bc":
        return size.batch * (agent.batches * (2 * actor + 4 * critic + 12 * critic) + 6 * actor + 4 * critic)
    return size.batch * (4 * critic + 10 * value + 6 * actor + 12 * critic)


def measure_agent(agent: Agent[Any], data: Transition, size: Size) -> dict[str, float]:
    """Rates of one agent, ours and the baseline's, and their ratio."""
    example = jax.tree.map(lambda x: x[0], data)
    state = agent.init(jax.random.key(0), example)
    timing = measure(
        lambda key, agent, state, data: scan_updates(key, agent, state, data, size),
        jax.random.key(1), agent, state, data, repeats=size.repeats,
    )  # fmt: skip
    rate, baseline = size.updates / timing.median_seconds, baseline_rate(agent, state, data, size)
    return {
        "updates_per_second": rate,
        "spread_percent": 100 * timing.spread_seconds / timing.median_seconds,
        "compile_seconds": timing.compile_seconds,
        "baseline_updates_per_second": baseline,
        "ratio": rate / baseline,
        "gflops": rate * update_flops(agent, size) / 1e9,
    }


def run(size: Size | None = None) -> dict[str, Any]:
    """Measure TD3+BC (two critic updates each) and IQL. Rates are updates a second."""
    size = size or Size()
    data = jax.block_until_ready(make_data(jax.random.key(0), size))
    results: dict[str, Any] = {"device": describe_device(), "size": dataclasses.asdict(size), "matmul_gflops": matmul_peak()}
    results["td3_bc"] = measure_agent(td3_bc(action_dim=size.action_dim, hidden=size.hidden), data, size)
    results["iql"] = measure_agent(iql(action_dim=size.action_dim, hidden=size.hidden), data, size)
    for name in ("td3_bc", "iql"):
        results[name]["matmul_share"] = results[name]["gflops"] / results["matmul_gflops"]
    return results
