"""Synthetic trajectories compared step by step with true rollouts of their policy from the same observations."""

from typing import Any

import chex
import jax
import numpy as np

from jaxpgd.errors import check
from jaxpgd.metrics.distances import sliced_wasserstein
from jaxpgd.metrics.dynamics_error import action_log_likelihood, ratio_standard_error, steps_taken, terminal_rate
from jaxpgd.types import Policy, Trajectory

Comparison = dict[str, Any]


def compare_rollouts(
    key: jax.Array,
    truth: Trajectory,
    synthetic: Trajectory,
    policy: Policy,
    obs_std: np.ndarray,
    *,
    entries: np.ndarray | None = None,
    samples: Trajectory | None = None,
    projections: int = 256,
) -> Comparison:
    """Errors of synthetic trajectories [N, T] against true ones [N, T]. Row n of both starts from the same observation.

    States are divided by `obs_std` [O], the data's standard deviation (1 for constant entries). `entries` selects entries of
    the observation (default: all). A trajectory has ended at step t if its terminal came before t. Rows that sample different
    actions diverge for that reason alone: to measure the errors of a model, let the policy's mode act in both.
    For a stochastic environment, `truth` can be its noise-free rollout and `samples` [M, T] true rollouts with noise, which
    then replace the truth in `state_distance`. Keys, about the synthetic trajectories unless stated:

    - `state_error` [T] and `state_error_se` [T]: root mean square difference of the states at step t, over the trajectories
      that have ended in neither, and its standard error;
    - `state_error_rms` and `state_error_rms_se`: the root mean square difference over all steps after the start, and its
      standard error, with steps of one trajectory as one cluster;
    - `alive` and `true_alive` [T]: the shares of trajectories that have not ended;
    - `squares` [N, T]: mean square differences, NaN where either has ended (for `paired_crossing`);
    - `state_distance` [T]: sliced Wasserstein-1 distance between the states at step t, in standard deviations, along the same
      random directions at every step. Two samples of one distribution do not give 0 (see `sliced_wasserstein`);
    - `state_distance_mean`: its mean over the steps after the start;
    - `state_error_last`, `state_distance_last`: both at the last step;
    - `return_error` and `return_error_se`: mean absolute difference of the undiscounted returns;
    - `return_bias` and `return_bias_se`: mean difference of the returns, above 0 if synthetic returns are too high;
    - `policy_log_likelihood` and `policy_log_likelihood_se`: of the actions, in nats per action (NaN for a policy without
      density);
    - `terminal_rate` and `true_terminal_rate`: the shares of trajectories that end in a terminal.

    Values at steps with fewer than 2 trajectories are NaN. Raises InputError if shapes do not fit.
    """
    _check_shapes(truth, synthetic, samples, obs_std)
    squares = state_squares(truth, synthetic, obs_std, entries)
    error, error_se = root_mean(squares)
    alive = [steps_taken(t) for t in (truth, synthetic)]
    reference = truth if samples is None else samples
    states = [_states(t, obs_std, entries) for t in (reference, synthetic)]
    distance = _state_distance(key, states[0], steps_taken(reference), states[1], alive[1], projections)
    likelihood, likelihood_se = np.nan, np.nan
    if policy.log_prob_fn is not None:
        likelihood, likelihood_se, _ = action_log_likelihood(policy, synthetic)
    return {
        "state_error": error,
        "state_error_se": error_se,
        **_over_all_steps(squares, distance),
        "squares": squares,
        "alive": alive[1].mean(axis=0),
        "true_alive": alive[0].mean(axis=0),
        "state_distance": distance,
        "state_error_last": float(error[-1]),
        "state_distance_last": float(distance[-1]),
        **_return_errors(truth, synthetic),
        "policy_log_likelihood": likelihood,
        "policy_log_likelihood_se": likelihood_se,
        "terminal_rate": terminal_rate(synthetic),
        "true_terminal_rate": terminal_rate(truth),
    }


def state_squares(
    truth: Trajectory, synthetic: Trajectory, obs_std: np.ndarray, entries: np.ndarray | None = None
) -> np.ndarray:
    """Mean square differences [N, T] of the standardised states, NaN from the step after the end of either on.

    Of true steps under the actions of a synthetic trajectory, from its first state (`simulators.rollout.replay_actions`), they
    are its open-loop error: errors of its dynamics add up.
    """
    alive = steps_taken(truth) & steps_taken(synthetic)
    difference = _states(truth, obs_std, entries) - _states(synthetic, obs_std, entries)
    return np.where(alive, np.mean(difference**2, axis=-1), np.nan)


def _check_shapes(truth: Trajectory, synthetic: Trajectory, samples: Trajectory | None, obs_std: np.ndarray) -> None:
    shape, std = np.shape(truth.obs), np.asarray(obs_std)
    check(len(shape) == 3 and shape == np.shape(synthetic.obs), "truth.obs, synthetic.obs", (shape, np.shape(synthetic.obs)),
          "the same shape [N, T, O]", "Compare trajectories of one length, from the same start observations.")  # fmt: skip
    check(std.shape == shape[-1:] and bool((std > 0).all()), "obs_std", std.tolist(), f"{shape[-1]} numbers above 0")
    if samples is not None:
        check(
            np.shape(samples.obs)[1:] == shape[1:], "samples.obs", np.shape(samples.obs), f"shape [M, {shape[1]}, {shape[2]}]"
        )


def _states(trajectory: Trajectory, obs_std: np.ndarray, entries: np.ndarray | None) -> np.ndarray:
    """Standardised states [N, T, entries]."""
    scaled = np.asarray(trajectory.obs, np.float64) / np.asarray(obs_std, np.float64)
    return scaled if entries is None else scaled[..., entries]


def root_mean(squares: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Square root of the mean [T] of squares [N, T] over trajectories, and its standard error [T].

    Squares that are NaN do not count; where fewer than 2 are left both are NaN.
    """
    error, error_se = np.full((2, squares.shape[1]), np.nan)
    for t in np.flatnonzero((~np.isnan(squares)).sum(axis=0) >= 2):
        values = squares[~np.isnan(squares[:, t]), t]
        error[t] = np.sqrt(values.mean())
        # the standard error of the square root of a mean, by the delta method
        error_se[t] = ratio_standard_error(values, np.ones(len(values))) / (2 * error[t]) if error[t] > 0 else 0.0
    return error, error_se


def _over_all_steps(squares: np.ndarray, distance: np.ndarray) -> dict[str, float]:
    """`state_error_rms`, its standard error and `state_distance_mean` of squares [N, T] and distance [T]; NaN of one step."""
    counts, sums = (~np.isnan(squares[:, 1:])).sum(axis=1), np.nansum(squares[:, 1:], axis=1)
    rms, rms_se = np.nan, np.nan
    if counts.any():
        rms = float(np.sqrt(sums.sum() / counts.sum()))
        # the standard error of the square root of a ratio, by the delta method
        rms_se = ratio_standard_error(sums, counts) / (2 * rms) if rms > 0 else 0.0
    later = distance[1:][~np.isnan(distance[1:])]
    mean = float(later.mean()) if len(later) else np.nan
    return {"state_error_rms": rms, "state_error_rms_se": rms_se, "state_distance_mean": mean}


def _state_distance(
    key: jax.Array, x: np.ndarray, alive_x: np.ndarray, y: np.ndarray, alive_y: np.ndarray, projections: int
) -> np.ndarray:
    """Distance [T] between states x [M, T, F] and y [N, T, F] of the trajectories that have not ended."""
    distance = np.full(x.shape[1], np.nan)
    for t in np.flatnonzero((alive_x.sum(axis=0) >= 2) & (alive_y.sum(axis=0) >= 2)):
        distance[t] = sliced_wasserstein(key, x[alive_x[:, t], t], y[alive_y[:, t], t], projections=projections)
    return distance


def _return_errors(truth: Trajectory, synthetic: Trajectory) -> dict[str, float]:
    difference = _returns(synthetic) - _returns(truth)
    errors = {}
    for name, values in (("return_error", np.abs(difference)), ("return_bias", difference)):
        errors[name] = float(values.mean())
        errors[name + "_se"] = ratio_standard_error(values, np.ones(len(values)))
    return errors


def _returns(trajectory: Trajectory) -> np.ndarray:
    """Undiscounted returns [N] up to the end of each trajectory."""
    return np.asarray(np.where(steps_taken(trajectory), np.asarray(trajectory.reward, np.float64), 0.0).sum(axis=1))


def paired_crossing(a: np.ndarray, b: np.ndarray, errors: float = 0.0) -> int | None:
    """The first step from which the mean of squares a [N, T] stays below that of b [N, T] by over `errors` standard errors.

    Only trajectories without NaN in either count, so that a method gains nothing by ending bad rollouts early. The standard
    error is that of their mean difference. Steps with fewer than 2 trajectories are ignored. None if a does not end below b.
    """
    chex.assert_rank([a, b], 2)
    chex.assert_equal_shape([a, b])
    difference = np.asarray(a) - np.asarray(b)
    mean, error = np.full((2, difference.shape[1]), np.nan)
    for t in np.flatnonzero((~np.isnan(difference)).sum(axis=0) >= 2):
        values = difference[~np.isnan(difference[:, t]), t]
        mean[t], error[t] = values.mean(), values.std(ddof=1) / np.sqrt(len(values))
    step = crossing(np.arange(difference.shape[1]), mean + errors * error, np.zeros(difference.shape[1]))
    return None if step is None else int(step)


def crossing(steps: np.ndarray, a: np.ndarray, b: np.ndarray) -> int | float | None:
    """The first of `steps` [K] from which curve a [K] stays below curve b [K]. None if a does not end below b.

    Steps at which either curve is NaN are ignored. Raises InputError if lengths differ.
    """
    steps, a, b = (np.asarray(x) for x in (steps, a, b))
    check(
        steps.shape == a.shape == b.shape and steps.ndim == 1, "steps, a, b", (steps.shape, a.shape, b.shape), "one length [K]"
    )
    known = ~(np.isnan(a) | np.isnan(b))
    steps, below = steps[known], (a < b)[known]
    first = len(below) - int(np.cumprod(below[::-1]).sum())  # where the trailing run of steps below starts
    step: int | float | None = steps[first].item() if first < len(steps) else None
    return step
