"""How good synthetic trajectories are: agreement with the simulator, likelihood of their actions, terminals."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from jaxpgd.errors import check
from jaxpgd.types import Policy, Trajectory, until_terminal

# true step: obs [K, O], action [K, A] in [-1, 1] -> next_obs [K, O], reward [K], terminated [K] bool
Step = Callable[[np.ndarray, np.ndarray], tuple[np.ndarray, np.ndarray, np.ndarray]]


def steps_taken(trajectory: Trajectory) -> np.ndarray:
    """Steps [..., T] up to and including the first terminal, or the last step of its own where a trajectory ends before T."""
    return np.asarray(until_terminal(jnp.asarray(trajectory.mask) & (jnp.asarray(trajectory.discount) > 0)))


def terminal_rate(trajectory: Trajectory) -> float:
    """Share of trajectories [N, T] that end in a terminal."""
    return float((np.asarray(trajectory.discount) == 0).any(axis=-1).mean())


def dynamics_error(
    trajectory: Trajectory, step: Step, obs_std: np.ndarray, entries: np.ndarray | None = None
) -> dict[str, np.ndarray | float]:
    """One-step error of trajectories [N, T] against the simulator: root mean squares over standardised state entries.

    Every usable step is replayed alone, from the trajectory's own observation and action, so errors do not add up.
    `obs_std` [O] is the data's standard deviation (constant entries: 1), `entries` the entries that count (default all).
    Keys: `rms`; `standard_error` of it over trajectories; `by_step` [T - 1], or [T] where `last_obs` is known,
    and `per_trajectory` [N] (NaN where no step counts); the same two with `persistence` for the error of s' = s on the same
    steps, and `persistence` itself;
    `reward_rms` in reward units over all usable steps, `surviving_reward_rms` over those of trajectories without a terminal
    (falls, whose rewards are the hardest, count for nothing there: it compares models that make them more or less often);
    `steps` counted; `terminal_agreement`, the share of usable steps at
    which the simulator ends the episode exactly where the trajectory does.
    (PGD, arXiv 2404.06356, section 5: dynamics error.) Raises InputError where `obs_std` does not fit.
    """
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
    counted = mask[:, :steps] & (discount[:, :steps] > 0)  # what follows a terminal need not be its next state
    error = _squares((predicted / std)[:, :steps, chosen], scaled[:, 1:], counted)
    stay = _squares(scaled[:, :steps], scaled[:, 1:], counted)
    return {
        **_summary(error, counted, ""),
        **_summary(stay, counted, "persistence"),
        "reward_rms": _rms(reward - np.asarray(trajectory.reward), mask),
        "surviving_reward_rms": _rms(reward - np.asarray(trajectory.reward), mask & (discount > 0).all(axis=1, keepdims=True)),
        "terminal_agreement": float(np.mean(ends[mask] == (discount[mask] == 0))) if mask.any() else np.nan,
        "steps": int(counted.sum()),
    }


def _replay(trajectory: Trajectory, step: Step, mask: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Simulated next observation [N, T, O], reward and end [N, T] where `mask`, zeros elsewhere."""
    next_obs = np.zeros(trajectory.obs.shape)
    reward, ends = np.zeros(mask.shape), np.zeros(mask.shape, bool)
    next_obs[mask], reward[mask], ends[mask] = step(np.asarray(trajectory.obs)[mask], np.asarray(trajectory.action)[mask])
    return next_obs, reward, ends


def _rms(error: np.ndarray, mask: np.ndarray) -> float:
    return float(np.sqrt(np.mean(error[mask] ** 2))) if mask.any() else float("nan")


def _squares(a: np.ndarray, b: np.ndarray, counted: np.ndarray) -> np.ndarray:
    """Mean square over entries [N, steps], zero where not counted."""
    return np.where(counted, np.mean((a - b) ** 2, axis=-1), 0.0)


def _summary(squares: np.ndarray, counted: np.ndarray, prefix: str) -> dict[str, np.ndarray | float]:
    total, number = squares.sum(axis=1), counted.sum(axis=1)
    mean = total.sum() / number.sum() if number.sum() else np.nan
    rms = float(np.sqrt(mean))
    with np.errstate(invalid="ignore"):  # 0 / 0 where no step counts
        by_step = np.sqrt(squares.sum(axis=0) / counted.sum(axis=0))
        per_trajectory = np.sqrt(total / number)
    name = prefix + "_" if prefix else ""
    summary: dict[str, np.ndarray | float] = {
        prefix or "rms": rms, name + "by_step": by_step, name + "per_trajectory": per_trajectory,
    }  # fmt: skip
    if not prefix:
        # a ratio of sums, its square root taken: the delta method twice
        summary["standard_error"] = ratio_standard_error(total, number) / (2 * rms) if rms > 0 else 0.0
    return summary


def ratio_standard_error(total: np.ndarray, number: np.ndarray) -> float:
    """Standard error of sum(total) / sum(number) over N independent groups [N], to first order. NaN for one group."""
    if len(total) < 2 or not number.sum():
        return float("nan")
    residual = total - total.sum() / number.sum() * number
    return float(np.sqrt(len(total) / (len(total) - 1) * np.sum(residual**2)) / number.sum())


@jax.jit
def _log_probs(policy: Policy, obs: Array, action: Array) -> Array:
    return jax.vmap(jax.vmap(policy.log_prob))(obs, action)


def action_log_likelihood(policy: Policy, trajectory: Trajectory) -> tuple[float, float, np.ndarray]:
    """Log-likelihood under one policy of the actions of trajectories [N, T], in nats per action (all A entries together).

    All steps up to and including the first terminal count. Returns the mean per action, its standard error over
    trajectories, and each trajectory's own mean [N].
    """
    values = np.asarray(_log_probs(policy, jnp.asarray(trajectory.obs), jnp.asarray(trajectory.action)), np.float64)
    counted = steps_taken(trajectory)
    total, number = np.where(counted, values, 0.0).sum(axis=1), counted.sum(axis=1)
    return float(total.sum() / number.sum()), ratio_standard_error(total, number), total / number
