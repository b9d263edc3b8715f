"""Comparison of rollouts: every metric against an answer worked out by hand."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxpgd.errors import InputError
from jaxpgd.metrics.rollout_comparison import compare_rollouts, crossing, paired_crossing
from jaxpgd.types import Policy, Trajectory, valid_steps

KEY = jax.random.key(0)
# log-density = -|action - obs|
POLICY = Policy(params=jnp.zeros(1), sample_fn=lambda p, k, o: o, mode_fn=lambda p, o: o,
                log_prob_fn=lambda p, o, a, v: -jnp.abs(a[0] - o[0]))  # fmt: skip


def trajectory(obs, reward=None, discount=None, action=None):
    """obs [N, T] or [N, T, O]; rewards and actions 0 unless given."""
    obs = np.asarray(obs, np.float64)
    obs = obs[..., None] if obs.ndim == 2 else obs
    shape = obs.shape[:2]
    reward, action = (np.zeros(shape) if x is None else np.asarray(x, np.float64) for x in (reward, action))
    discount = np.ones(shape) if discount is None else np.asarray(discount, np.float64)
    mask = np.asarray(valid_steps(jnp.asarray(discount)))
    return Trajectory(obs=obs, action=action[..., None], reward=reward, discount=discount, mask=mask)


def compare(truth, synthetic, std=None, **options):
    std = np.ones(truth.obs.shape[-1]) if std is None else np.asarray(std)
    return compare_rollouts(KEY, truth, synthetic, POLICY, std, **options)


def test_state_error_is_the_standardised_root_mean_square():
    truth = np.zeros((2, 3, 2))
    made = truth.copy()
    made[0, 1] = [1, 0]  # in standard deviations 0.5 and 0: mean square 1 / 8
    made[:, 2] = [[2, 6], [0, 4]]  # 1 and 1.5, 0 and 1: mean squares 13 / 8 and 1 / 2
    result = compare(trajectory(truth), trajectory(made), [2.0, 4.0])
    np.testing.assert_allclose(result["state_error"], np.sqrt([0, 1 / 16, 17 / 16]))
    # the mean of two squares a, b has the standard error |a - b| / 2; its root that, divided by twice the root
    np.testing.assert_allclose(result["state_error_se"], [0, 1 / 16 / (2 / 4), 9 / 16 / (2 * np.sqrt(17 / 16))])


def test_only_the_named_entries_count():
    made = np.zeros((3, 2, 2))
    made[:, 1] = [3, 99]
    result = compare(trajectory(np.zeros((3, 2, 2))), trajectory(made), entries=np.array([0]))
    np.testing.assert_allclose(result["state_error"], [0, 3])
    np.testing.assert_allclose(result["state_distance"], [0, 3])  # one feature: directions are +1 or -1


def test_a_step_counts_where_both_are_alive_and_two_are_needed():
    # the first truth ends at step 1, so that its step 2 is no state; the last synthetic one ends at step 0
    truth = trajectory(np.zeros((4, 4)), discount=[[1, 0, 1, 1], [1, 1, 0, 1], [1, 1, 1, 1], [1, 1, 1, 1]])
    made = trajectory([[0, 1, 50, 50], [0, 2, 3, 50], [0, 3, 4, 5], [0, 50, 50, 50]],
                      discount=[[1, 1, 1, 1], [1, 1, 1, 1], [1, 1, 1, 1], [0, 1, 1, 1]])  # fmt: skip
    result = compare(truth, made)
    np.testing.assert_allclose(result["state_error"], [0, np.sqrt(14 / 3), np.sqrt(25 / 2), np.nan])
    assert np.isnan(result["state_error_se"]).tolist() == [False, False, False, True]
    np.testing.assert_allclose(result["true_alive"], [1, 1, 3 / 4, 2 / 4])
    np.testing.assert_allclose(result["alive"], [1, 3 / 4, 3 / 4, 3 / 4])
    assert (result["true_terminal_rate"], result["terminal_rate"]) == (0.5, 0.25)
    for name in ("state_error", "state_distance"):
        np.testing.assert_equal(result[f"{name}_last"], result[name][-1])


def test_the_error_of_whole_rollouts_weighs_steps_alike_and_takes_a_trajectory_as_one():
    truth = trajectory(np.zeros((3, 4)), discount=[[1, 0, 1, 1], [1, 1, 0, 1], [1, 1, 1, 1]])
    result = compare(truth, trajectory([[0, 1, 50, 50], [0, 2, 3, 50], [0, 3, 4, 5]]))
    # sums of squares 1, 13, 50 of 1, 2, 3 steps
    mean = 64 / 6
    np.testing.assert_allclose(result["state_error_rms"], np.sqrt(mean))
    squared = 3 / 2 * ((1 - mean) ** 2 + (13 - 2 * mean) ** 2 + (50 - 3 * mean) ** 2)
    np.testing.assert_allclose(result["state_error_rms_se"], np.sqrt(squared) / 6 / (2 * np.sqrt(mean)))
    np.testing.assert_allclose(result["state_distance_mean"], np.mean(result["state_distance"][1:3]))


def test_whole_rollouts_without_an_error_and_without_a_step():
    same = trajectory(np.zeros((3, 2)))
    assert [compare(same, same)[k] for k in ("state_error_rms", "state_error_rms_se", "state_distance_mean")] == [0, 0, 0]
    ended = trajectory(np.zeros((3, 2)), discount=np.zeros((3, 2)))
    assert np.isnan([compare(ended, ended)[k] for k in ("state_error_rms", "state_error_rms_se", "state_distance_mean")]).all()


def test_state_distance_compares_the_sets_that_are_alive():
    # in one dimension: mean distance of the sorted states; at step 1 {0, 10} and {11, 1} are matched in order
    truth = trajectory([[0, 0, 0, 0], [4, 10, 10, 0]], discount=[[1, 1, 1, 1], [1, 1, 0, 1]])
    made = trajectory([[4, 11, 2, 0], [0, 1, 77, 0]], discount=[[1, 1, 1, 1], [1, 0, 1, 1]])
    distance = compare(truth, made, [2.0])["state_distance"]
    np.testing.assert_allclose(distance, [0, 0.5, np.nan, np.nan], atol=1e-6)


def test_samples_of_a_random_truth_stand_for_it_in_the_distance_alone():
    truth, made = trajectory([[0, 0], [0, 0]]), trajectory([[0, 1], [0, 3]])
    samples = trajectory([[0, 1], [0, 3], [0, 1], [0, 3]])
    result = compare(truth, made, samples=samples)
    np.testing.assert_allclose(result["state_distance"], [0, 0], atol=1e-6)
    np.testing.assert_allclose(compare(truth, made)["state_distance"], [0, 2], atol=1e-6)
    np.testing.assert_allclose(result["state_error"], [0, np.sqrt(5)])


def test_return_errors_count_rewards_up_to_the_terminal():
    truth = trajectory(np.zeros((3, 3)), [[1, 1, 1], [2, 2, 99], [0, 0, 0]], [[1, 1, 1], [1, 0, 1], [1, 1, 1]])
    made = trajectory(np.zeros((3, 3)), [[1, 99, 99], [3, 3, 1], [0, 0, -1]], [[0, 1, 1], [1, 1, 1], [1, 1, 0]])
    result = compare(truth, made)  # returns 3, 4, 0 and 1, 7, -1: differences -2, 3, -1
    assert result["return_error"] == pytest.approx(2) and result["return_bias"] == pytest.approx(0)
    assert result["return_error_se"] == pytest.approx(1 / np.sqrt(3))
    assert result["return_bias_se"] == pytest.approx(np.sqrt(7) / np.sqrt(3))


def test_likelihood_is_that_of_synthetic_actions_before_their_end():
    truth = trajectory(np.zeros((2, 3)), action=np.full((2, 3), 9))
    made = trajectory(np.zeros((2, 3)), action=[[1, 2, 3], [4, 5, 100]], discount=[[1, 1, 1], [1, 0, 1]])
    result = compare(truth, made)
    assert result["policy_log_likelihood"] == pytest.approx(-15 / 5)
    assert result["policy_log_likelihood_se"] == pytest.approx(np.sqrt(2 * (3**2 + 3**2)) / 5)
    silent = compare_rollouts(KEY, truth, made, POLICY.replace(log_prob_fn=None), np.ones(1))
    assert np.isnan(silent["policy_log_likelihood"]) and np.isnan(silent["policy_log_likelihood_se"])


def test_the_standard_error_is_the_spread_of_repeated_estimates():
    rng = np.random.default_rng(0)
    truth = trajectory(np.zeros((50, 2)))
    results = [compare(truth, trajectory(rng.normal(size=(50, 2))), projections=1) for _ in range(200)]
    estimates = np.array([r["state_error"][1] for r in results])
    # the spread of 200 estimates is known to 1 / sqrt(400) = 5 %
    assert np.mean([r["state_error_se"][1] for r in results]) == pytest.approx(estimates.std(), rel=0.2)


def test_shapes_that_do_not_fit_are_refused():
    truth = trajectory(np.zeros((2, 3)))
    for made, options, field in [
        (trajectory(np.zeros((2, 4))), {}, "synthetic.obs"),
        (trajectory(np.zeros((3, 3))), {}, "synthetic.obs"),
        (truth, {"std": [0.0]}, "obs_std"),
        (truth, {"std": [1.0, 1.0]}, "obs_std"),
        (truth, {"samples": trajectory(np.zeros((5, 4)))}, "samples.obs"),
    ]:
        with pytest.raises(InputError, match=field):
            compare(truth, made, **options)


def test_crossing_is_the_first_step_of_the_last_stretch_below():
    steps, b = np.arange(5), np.full(5, 2.0)
    nan = np.nan
    for a, want in [
        ([1, 3, 1, 1, 1], 2), ([1, 1, 1, 1, 1], 0), ([3, 3, 3, 3, 1], 4), ([1, 1, 1, 1, 3], None), ([3, 2, 1, 1, 1], 2),
        ([3, nan, 1, nan, 1], 2), ([3, 1, 1, nan, nan], 1), ([nan] * 5, None), ([nan, 1, nan, 1, 1], 1),
    ]:  # fmt: skip
        assert crossing(steps, np.array(a, float), b) == want, a
    assert crossing(np.array([0.5, 1.5]), np.array([3.0, 1.0]), np.array([2.0, nan])) is None
    assert crossing(np.array([0.5, 1.5]), np.array([3.0, 1.0]), np.array([2.0, 2.0])) == 1.5
    with pytest.raises(InputError, match="one length"):
        crossing(steps, np.ones(4), b)


def test_paired_crossing_counts_rollouts_alive_in_both_and_their_spread():
    nan = np.nan
    a = np.array([[3.0, 1.0, 1.0], [3.0, 3.0, 1.0], [3.0, nan, nan]])
    b = np.array([[2.0, 2.0, 2.0], [2.0, 3.0, 3.0], [0.0, 0.0, 0.0]])  # its third rollout does not count after step 0
    assert paired_crossing(a, b) == 1  # differences (1, 1, 3), (-1, 0), (-1, -2): means 5/3, -1/2, -3/2
    assert paired_crossing(a, b, 2.0) == 2  # standard errors 1/2 and 1/2: -1/2 + 1 is above 0, -3/2 + 1 below
    assert paired_crossing(a, b, 4.0) is None
    assert paired_crossing(b, b) is None
