"""Environment steps per second of policy evaluation in Gymnasium, with one process and with one per usable core.

The policy is a random tanh network with two hidden layers, of the size of trained ones. Hopper does not terminate on a fall, so
episodes have full length, like those of good policies. The first evaluation starts the workers and is not timed;
`start_seconds` is what starting them costs. Rates are those of the fastest repeat, because noise only slows a run down.
"""

import dataclasses
import itertools
import time
from typing import Any

import gymnasium
import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.timing import header, matmul_peak
from jaxpgd.dataset import DatasetInfo
from jaxpgd.simulators.returns import Returns, evaluate
from jaxpgd.simulators.vector import usable_cores
from jaxpgd.simulators.workers import stop_workers
from jaxpgd.types import Policy, PyTree


@dataclasses.dataclass(frozen=True)
class Size:
    """Sizes of the measurement."""

    env_id: str = "Hopper-v5"  # registered with Gymnasium, with flat observations and actions
    kwargs: tuple[tuple[str, Any], ...] = (("terminate_when_unhealthy", False),)
    seeds: int = 8
    episodes: int = 10
    horizon: int = 300
    hidden: int = 256
    processes: tuple[int, ...] = ()  # by default one, and one for each usable core
    repeats: int = 3


def _mode(params: PyTree, obs: jax.Array) -> jax.Array:
    for weights in params:
        obs = jnp.tanh(obs @ weights)
    return obs


def setup(size: Size) -> tuple[Policy, DatasetInfo]:
    """Policies [S] with random weights, and the environment they act in."""
    spec = dataclasses.replace(gymnasium.spec(size.env_id), kwargs=gymnasium.spec(size.env_id).kwargs | dict(size.kwargs))
    env = gymnasium.make(spec)
    space, obs_dim = env.action_space, gymnasium.spaces.flatdim(env.observation_space)
    env.close()
    assert isinstance(space, gymnasium.spaces.Box)
    low, high = (tuple(np.asarray(bound, float).tolist()) for bound in (space.low, space.high))
    info = DatasetInfo(size.env_id, "npz", low, high, size.env_id, env_spec=spec.to_json())
    widths, key = (obs_dim, size.hidden, size.hidden, len(low)), jax.random.key(0)
    params = tuple(
        jax.random.normal(jax.random.fold_in(key, i), (size.seeds, a, b)) / np.sqrt(a)
        for i, (a, b) in enumerate(itertools.pairwise(widths))
    )
    return Policy(params=params, sample_fn=lambda p, k, o: _mode(p, o), mode_fn=_mode), info


def run(size: Size | None = None) -> dict[str, Any]:
    """One row per number of processes; `of_one` is its rate over that of the first row."""
    size, peak = size or Size(), matmul_peak()
    policy, info = setup(size)

    def timed(processes: int) -> tuple[float, Returns]:
        began = time.perf_counter()
        found = evaluate(jax.random.key(1), policy, info, episodes=size.episodes, horizon=size.horizon, processes=processes)
        return time.perf_counter() - began, found

    timed(1)  # compiles the policy
    counts = size.processes or tuple(dict.fromkeys((1, usable_cores())))
    cold, found = dict[int, float](), dict[int, Returns]()
    seconds: dict[int, list[float]] = {count: [] for count in counts}
    for count in counts:
        stop_workers()
        cold[count], found[count] = timed(count)
    for _ in range(size.repeats):
        for count in counts:
            seconds[count].append(timed(count)[0])
    stop_workers()
    first, steps = counts[0], int(found[counts[0]].lengths.sum())
    equal = lambda a, b: all(np.asarray(x).tobytes() == np.asarray(y).tobytes() for x, y in zip(a, b, strict=True))
    rows = [
        {
            "processes": count,
            "steps_per_second": steps / min(seconds[count]),
            "of_one": min(seconds[first]) / min(seconds[count]),
            "spread_percent": 100 * (max(seconds[count]) / min(seconds[count]) - 1),
            "start_seconds": cold[count] - min(seconds[count]),
            "bit_equal": equal((found[first].returns, found[first].lengths), (found[count].returns, found[count].lengths)),
        }
        for count in counts
    ]
    return header("evaluation", size, peak) | {"steps": steps, "rows": rows}
