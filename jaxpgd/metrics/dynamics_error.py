"""Metrics of synthetic trajectories: dynamics error against true steps, likelihood of their actions, terminal rate."""

from collections.abc import Callable

import chex
import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from jaxpgd.errors import check
from jaxpgd.types import Policy, Trajectory, until_terminal

# True steps: obs [K, O], action [K, A] in [-1, 1] -> next_obs [K, O], reward [K], terminated [K] bool.
Step = Callable[[np.ndarray, np.ndarray], tuple[np.ndarray, np.ndarray, np.ndarray]]


def steps_taken(trajectory: Trajectory) -> np.ndarray:
    """Which steps [..., T] come before or at the end of a trajectory, bool: its first terminal, or the last before padding.

    A rollout that is cut ends in the step that is not trusted: its state is known, where it leads and its reward are not.
    """
    return np.asarray(until_terminal(jnp.asarray(trajectory.mask) & (jnp.asarray(trajectory.discount) > 0)))


def terminal_rate(trajectory: Trajectory) -> float:
    """The share of trajectories [N, T] that end in a terminal."""
    return float((np.asarray(trajectory.discount) == 0).any(axis=-1).mean())


def dynamics_error(
    trajectory: Trajectory, step: Step, obs_std: np.ndarray, entries: np.ndarray | None = None
) -> dict[str, np.ndarray | float]:
    """One-step error of trajectories [N, T] against true steps (dynamics error; PGD, arXiv 2404.06356, section 5).

    Every valid step is replayed alone with `step`, from the trajectory's own observation and action, so that errors do not
    accumulate. `obs_std` [O] is the data's standard deviation (1 for constant entries). `entries` selects entries of the
    observation (default: all). Errors of observations are root mean squares over standardised entries. Keys:

    - `rms` and `standard_error`, its standard error over trajectories; `median`, over steps;
    - `by_step` [T - 1] ([T] if `last_obs` is known) and `per_trajectory` [N]; NaN without a valid step;
    - `persistence`, `persistence_by_step`, `persistence_per_trajectory`: the errors of s' = s on the same steps;
    - `reward_rms`, in reward units, over all valid steps, and `surviving_reward_rms`, over those of trajectories without a
      terminal. Rewards of falls are the hardest to predict: the latter compares models that fall more or less often;
    - `terminal_agreement`: the share of valid steps at which simulator and trajectory agree on whether the episode ends;
    - `steps`: the number of steps in `rms`.

    Raises InputError if `obs_std` does not fit.
    """
    chex.assert_rank([trajectory.obs, trajectory.action], 3)
    chex.assert_equal_shape([trajectory.reward, trajectory.discount, trajectory.mask])
    chex.assert_equal_shape_prefix([trajectory.obs, trajectory.action, trajectory.reward], 2)
    obs, std = np.asarray(trajectory.obs, np.float64), np.asarray(obs_std, np.float64)
    check(std.shape == obs.shape[-1:] and bool((std > 0).all()), "obs_std", std.tolist(),
          f"{obs.shape[-1]} numbers above 0")  # fmt: skip
    mask = np.asarray(trajectory.mask, bool)
    predicted, reward, ends = _replay(trajectory, step, mask)
    chosen = slice(None) if entries is None else entries
    discount = np.asarray(trajectory.discount)
    states = obs if trajectory.last_obs is None else np.append(obs, np.asarray(trajectory.last_obs)[:, None], axis=1)
    scaled = (states / std)[..., chosen]
    steps = states.shape[1] - 1  # those that lead to a state
    valid = mask[:, :steps] & (discount[:, :steps] > 0)  # the observation after a terminal need not be its next state
    error = _squares((predicted / std)[:, :steps, chosen], scaled[:, 1:], valid)
    stay = _squares(scaled[:, :steps], scaled[:, 1:], valid)
    return {
        **_summary(error, valid, ""),
        "median": float(np.sqrt(np.median(error[valid]))) if valid.any() else np.nan,
        **_summary(stay, valid, "persistence"),
        "reward_rms": _rms(reward - np.asarray(trajectory.reward), mask),
        "surviving_reward_rms": _rms(reward - np.asarray(trajectory.reward), mask & (discount > 0).all(axis=1, keepdims=True)),
        "terminal_agreement": float(np.mean(ends[mask] == (discount[mask] == 0))) if mask.any() else np.nan,
        "steps": int(valid.sum()),
    }


def _replay(trajectory: Trajectory, step: Step, mask: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """True next observations [N, T, O], rewards and ends [N, T] at the steps of `mask`. Zeros elsewhere."""
    next_obs = np.zeros(trajectory.obs.shape)
    reward, ends = np.zeros(mask.shape), np.zeros(mask.shape, bool)
    next_obs[mask], reward[mask], ends[mask] = step(np.asarray(trajectory.obs)[mask], np.asarray(trajectory.action)[mask])
    return next_obs, reward, ends


def _rms(error: np.ndarray, mask: np.ndarray) -> float:
    return float(np.sqrt(np.mean(error[mask] ** 2))) if mask.any() else float("nan")


def _squares(a: np.ndarray, b: np.ndarray, valid: np.ndarray) -> np.ndarray:
    """Mean square over entries [N, steps], zero outside `valid`."""
    return np.where(valid, np.mean((a - b) ** 2, axis=-1), 0.0)


def _summary(squares: np.ndarray, valid: np.ndarray, prefix: str) -> dict[str, np.ndarray | float]:
    total, number = squares.sum(axis=1), valid.sum(axis=1)
    mean = total.sum() / number.sum() if number.sum() else np.nan
    rms = float(np.sqrt(mean))
    with np.errstate(invalid="ignore"):  # 0 / 0 where no step counts
        by_step = np.sqrt(squares.sum(axis=0) / valid.sum(axis=0))
        per_trajectory = np.sqrt(total / number)
    name = prefix + "_" if prefix else ""
    summary: dict[str, np.ndarray | float] = {
        prefix or "rms": rms, name + "by_step": by_step, name + "per_trajectory": per_trajectory,
    }  # fmt: skip
    if not prefix:
        # the standard error of the square root of a ratio of sums, by the delta method
        summary["standard_error"] = ratio_standard_error(total, number) / (2 * rms) if rms > 0 else 0.0
    return summary


def ratio_standard_error(total: np.ndarray, number: np.ndarray) -> float:
    """Standard error of sum(total) / sum(number) over N independent groups, [N] each, to first order. NaN for one group."""
    chex.assert_equal_shape([total, number])
    if len(total) < 2 or not number.sum():
        return float("nan")
    residual = total - total.sum() / number.sum() * number
    return float(np.sqrt(len(total) / (len(total) - 1) * np.sum(residual**2)) / number.sum())


@jax.jit
def _log_probs(policy: Policy, obs: Array, action: Array) -> Array:
    return jax.vmap(jax.vmap(policy.log_prob))(obs, action)


def action_log_likelihood(policy: Policy, trajectory: Trajectory) -> tuple[float, float, np.ndarray]:
    """Log-likelihood of the actions of trajectories [N, T] under a policy, in nats per action (all A entries together).

    Steps after the end of a trajectory do not count. Returns the mean over actions, its standard error over trajectories, and
    the mean of each trajectory [N].
    """
    chex.assert_rank([trajectory.obs, trajectory.action], 3)
    values = np.asarray(_log_probs(policy, jnp.asarray(trajectory.obs), jnp.asarray(trajectory.action)), np.float64)
    valid = steps_taken(trajectory)
    total, number = np.where(valid, values, 0.0).sum(axis=1), valid.sum(axis=1)
    return float(total.sum() / number.sum()), ratio_standard_error(total, number), total / number
