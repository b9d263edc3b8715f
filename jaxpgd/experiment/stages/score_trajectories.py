"""Scores of a set of trajectories: likelihood of actions, errors in the simulator, what tells them from real windows."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from jaxpgd.dataset import in_own_units, state_entries
from jaxpgd.experiment.config import Config
from jaxpgd.experiment.stages.prepare import Prepared
from jaxpgd.metrics.distances import coverage, sliced_wasserstein
from jaxpgd.metrics.dynamics_error import action_log_likelihood, dynamics_error, steps_taken, terminal_rate
from jaxpgd.metrics.rollout_comparison import root_mean, state_squares
from jaxpgd.metrics.two_sample import classifier_test, window_features
from jaxpgd.options import get
from jaxpgd.simulators.resimulation import KnownSimulator, has_simulator, make_simulator
from jaxpgd.simulators.rollout import replay_actions
from jaxpgd.tokens import saturated
from jaxpgd.training.windows import Windows
from jaxpgd.types import Policy, Trajectory

COVERAGE_NEIGHBOURS = 5
OPEN_LOOP_STEPS = (4, 8, 16, 31)  # after which open-loop errors are reported, where trajectories are so long
_GAMMA = 0.99  # of agents without a discount factor


def score_trajectories(
    trajectory: Trajectory,
    policy: Policy | None,
    prepared: Prepared,
    real: np.ndarray | None,
    key: Array,
    behaviour: Policy | None = None,
    told_from: Trajectory | None = None,
) -> dict[str, Any]:
    """Quality of N trajectories; `real` [M, T * D] are held-out windows as flat normalised tokens (None: no distances).

    Rewards of the trajectories are as learned, errors of rewards in the dataset's own units. Actions are scored under the
    target `policy` and under the `behaviour` policy where these are known. A classifier is trained to tell the trajectories
    from the windows `told_from` [M, T], where there are such windows.
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
    if told_from is not None and told_from.reward.shape[1] == trajectory.reward.shape[1]:
        row |= classifier_test(key, *(window_features(t) for t in (told_from, trajectory)))
    if behaviour is not None:
        row["behaviour_log_likelihood"], row["behaviour_log_likelihood_se"], _ = action_log_likelihood(behaviour, trajectory)
    if has_simulator(info):
        std, simulator = np.asarray(windows.unit.std[windows.unit.obs]), make_simulator(info)
        error = dynamics_error(in_own_units(info, trajectory), simulator.step, std, state_entries(info))
        row |= {
            "dynamics_error": error["rms"],
            "dynamics_error_se": error["standard_error"],
            "dynamics_error_by_step": error["by_step"],
            "persistence_error": error["persistence"],
            "reward_error": error["reward_rms"],
            "surviving_reward_error": error["surviving_reward_rms"],
            "terminal_agreement": error["terminal_agreement"],
            "dynamics_error_median": error["median"],
        }
        open_loop, open_loop_se = root_mean(open_loop_squares(simulator, prepared, trajectory))
        for k in OPEN_LOOP_STEPS:
            if k < len(open_loop):
                row |= {f"open_loop_error_{k}": float(open_loop[k]), f"open_loop_error_{k}_se": float(open_loop_se[k])}
    return row


def open_loop_squares(simulator: KnownSimulator, prepared: Prepared, trajectory: Trajectory) -> np.ndarray:
    """Mean square errors [N, T] of the states of trajectories [N, T], from their first on under their actions in a row.

    In standard deviations of the data; NaN from the step after a terminal of the trajectory or of the simulator on.
    """
    windows = prepared.windows
    truth = replay_actions(simulator, np.asarray(trajectory.obs)[:, 0], np.asarray(trajectory.action))
    std = np.asarray(windows.unit.std[windows.unit.obs])
    return state_squares(truth, trajectory, std, state_entries(prepared.dataset.info))


def told_from_training(key: Array, windows: Windows, held_out: Trajectory) -> dict[str, float]:
    """How well a classifier tells held-out windows [M, T] from as many of training: what it finds among real windows."""
    key, key_train = jax.random.split(key)
    train = np.sort(jax.random.permutation(key_train, windows.train)[: len(held_out.reward)])
    return classifier_test(key, *(window_features(t) for t in (real_windows(windows, train), held_out)))


def discount_factor(config: Config) -> float:
    """Gamma of the config's agent, for returns of windows."""
    return float(getattr(get(config, f"agent.{config.agent.kind}"), "gamma", _GAMMA))


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
