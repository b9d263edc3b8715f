"""Scores of a set of trajectories: likelihood of actions, dynamics error, distance to real windows, coverage."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from jaxpgd.dataset import in_own_units, state_entries
from jaxpgd.experiment.stages.prepare import Prepared
from jaxpgd.metrics.distances import coverage, sliced_wasserstein
from jaxpgd.metrics.dynamics_error import action_log_likelihood, dynamics_error, steps_taken, terminal_rate
from jaxpgd.simulators.resimulation import has_simulator, make_simulator
from jaxpgd.tokens import saturated
from jaxpgd.training.windows import Windows
from jaxpgd.types import Policy, Trajectory

COVERAGE_NEIGHBOURS = 5


def score_trajectories(
    trajectory: Trajectory,
    policy: Policy | None,
    prepared: Prepared,
    real: np.ndarray | None,
    key: Array,
    behaviour: Policy | None = None,
) -> dict[str, Any]:
    """Quality of N trajectories; `real` [M, T * D] are held-out windows as flat normalised tokens (None: no distances).

    Rewards of the trajectories are as learned, errors of rewards in the dataset's own units. Actions are scored under the
    target `policy` and under the `behaviour` policy where these are known.
    """
    windows, info = prepared.windows, prepared.dataset.info
    tokens = flat_tokens(windows, trajectory)
    row: dict[str, Any] = {}
    if policy is not None:
        row["log_likelihood"], row["log_likelihood_se"], _ = action_log_likelihood(policy, trajectory)
    row |= {
        "terminal_rate": terminal_rate(trajectory),
        "saturated_actions": float(np.asarray(saturated(trajectory.action))[steps_taken(trajectory)].mean()),
    }
    if real is not None and tokens.shape[1] == real.shape[1]:
        row |= _distances(key, tokens, real)
        if min(len(real), len(tokens)) > COVERAGE_NEIGHBOURS:
            row |= coverage(key, real, tokens, k=COVERAGE_NEIGHBOURS)
            states = [_states(windows, x) for x in (real, tokens)]
            row["state_coverage"] = coverage(key, *states, k=COVERAGE_NEIGHBOURS)["coverage"]
    if behaviour is not None:
        row["behaviour_log_likelihood"], row["behaviour_log_likelihood_se"], _ = action_log_likelihood(behaviour, trajectory)
    if has_simulator(info):
        std = np.asarray(windows.unit.std[windows.unit.obs])
        error = dynamics_error(in_own_units(info, trajectory), make_simulator(info).step, std, state_entries(info))
        row |= {
            "dynamics_error": error["rms"],
            "dynamics_error_se": error["standard_error"],
            "dynamics_error_by_step": error["by_step"],
            "persistence_error": error["persistence"],
            "reward_error": error["reward_rms"],
            "surviving_reward_error": error["surviving_reward_rms"],
            "terminal_agreement": error["terminal_agreement"],
        }
    return row


def real_windows(windows: Windows, starts: np.ndarray) -> Trajectory:
    """Windows [N, T] of the dataset as a host trajectory."""
    return jax.tree.map(np.asarray, jax.vmap(windows.gather)(jnp.asarray(starts)))


def window_terminal_rate(windows: Windows) -> float:
    """Share of training windows that end in a terminal."""
    ends = windows.ends(windows.train)
    steps = windows.length if ends is None else ends.steps
    return float((windows.transitions.discount[windows.train + steps - 1] == 0).mean())


def flat_tokens(windows: Windows, trajectory: Trajectory) -> np.ndarray:
    """Normalised tokens [N, T * D] of trajectories [N, T]."""
    tokens = np.asarray(windows.unit.encode(trajectory))
    return tokens.reshape(len(tokens), tokens.shape[1] * tokens.shape[2])


def _states(windows: Windows, tokens: np.ndarray) -> np.ndarray:
    """The states [N, T * O] of flat tokens."""
    steps = tokens.reshape(len(tokens), -1, windows.unit.token_dim)
    return np.ascontiguousarray(steps[..., windows.unit.obs]).reshape(len(tokens), -1)


def reference_distances(windows: Windows, key: Array, count: int) -> dict[str, Any]:
    """What real windows measure among themselves: two disjoint random halves, and training against held-out windows.

    Of a single training window there are no halves.
    """
    rng = np.random.default_rng(0)
    train = rng.permutation(np.asarray(windows.train))
    size = min(count, len(train) // 2)
    halves = [flat_tokens(windows, real_windows(windows, part)) for part in (train[:size], train[size : 2 * size])]
    held_out = flat_tokens(windows, real_windows(windows, rng.permutation(np.asarray(windows.validation))[:count]))
    if size == 0:
        return {"halves": {}, "held_out": {}, "windows": 0}
    return {
        "halves": _distances(key, halves[0], halves[1]),
        "held_out": _distances(key, halves[0], held_out),
        "windows": size,
    }


def _distances(key: Array, x: np.ndarray, y: np.ndarray) -> dict[str, float]:
    """Both orders: the first is steadier, the second gives weight to rare windows such as those with a terminal."""
    return {f"sliced_wasserstein_{order}": sliced_wasserstein(key, x, y, order=order) for order in (1, 2)}
