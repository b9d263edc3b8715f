"""Trajectory metrics against errors put in by hand."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxpgd.dataset import DatasetInfo, state_entries
from jaxpgd.errors import InputError
from jaxpgd.metrics.dynamics_error import (
    action_log_likelihood,
    dynamics_error,
    ratio_standard_error,
    steps_taken,
    terminal_rate,
)
from jaxpgd.types import Policy, Trajectory, valid_steps


class Shift:
    """s' = s + a (scalar action on every entry), reward = a, ends where the first entry passes 10."""

    def step(self, obs, action):
        moved = obs + action
        return moved, action[:, 0], moved[:, 0] > 10


def trajectory(obs, action, reward=None, discount=None):
    obs, action = np.asarray(obs, np.float64), np.asarray(action, np.float64)[..., None]
    discount = np.ones(obs.shape[:2]) if discount is None else np.asarray(discount, np.float64)
    reward = action[..., 0] if reward is None else np.asarray(reward)
    return Trajectory(
        obs=obs, action=action, reward=reward, discount=discount, mask=np.asarray(valid_steps(jnp.asarray(discount)))
    )


def test_errors_by_step_by_trajectory_and_of_persistence():
    # the second trajectory is 0.3 off in its second step, in one of two entries with standard deviations 1 and 3
    exact = [[[0, 0], [1, 1], [2, 2]], [[0, 0], [1, 1], [2, 2.3]]]
    result = dynamics_error(trajectory(exact, np.ones((2, 3))), Shift().step, np.array([1.0, 3.0]))
    square = 0.1**2 / 2
    assert result["rms"] == pytest.approx(np.sqrt(square / 4)) and result["median"] == 0.0  # three steps of four are exact
    np.testing.assert_allclose(result["by_step"], [0, np.sqrt(square / 2)], atol=1e-12)
    np.testing.assert_allclose(result["per_trajectory"], [0, np.sqrt(square / 2)], atol=1e-12)
    stay = np.array([[1 + 1 / 9, 1 + 1 / 9], [1 + 1 / 9, 1 + (1.3 / 3) ** 2]]) / 2
    assert result["persistence"] == pytest.approx(np.sqrt(stay.mean()))
    np.testing.assert_allclose(result["persistence_by_step"], np.sqrt(stay.mean(axis=0)))
    assert (result["steps"], result["reward_rms"], result["terminal_agreement"]) == (4, 0.0, 1.0)


def test_only_the_named_entries_count():
    result = dynamics_error(trajectory([[[0, 0], [1, 99]]], np.ones((1, 2))), Shift().step, np.ones(2), np.array([0]))
    assert result["rms"] == 0.0 and result["persistence"] == 1.0


def test_nothing_after_a_terminal_counts_and_its_next_state_is_not_one():
    # the terminal step itself and what follows hold rubbish states; the terminal's reward is 0.5 off
    made = trajectory([[[8.0], [9.5], [77.0], [-5.0]]], [[1.5, 1, 1, 1]], [[1.5, 1.5, 9, 9]], [[1, 0, 1, 1]])
    result = dynamics_error(made, Shift().step, np.ones(1))
    assert result["rms"] == 0.0 and result["steps"] == 1
    assert result["reward_rms"] == pytest.approx(np.sqrt(0.25 / 2))
    assert result["terminal_agreement"] == 1.0
    assert np.isnan(result["by_step"][1:]).all()


def test_the_last_step_counts_where_it_is_known_to_lead():
    made = trajectory([[[0.0], [1.0]], [[0.0], [1.0]]], np.ones((2, 2)))
    known = dataclasses.replace(made, mask=np.ones((2, 2), bool), last_obs=np.array([[2.0], [2.5]]))
    result = dynamics_error(known, Shift().step, np.ones(1))
    np.testing.assert_allclose(result["by_step"], [0, np.sqrt(0.25 / 2)])
    assert result["steps"] == 4 and dynamics_error(made, Shift().step, np.ones(1))["steps"] == 2
    one = jax.tree.map(lambda x: x[:, -1:] if x.ndim > 1 and x.shape[1] == 2 else x, known)
    one = dataclasses.replace(one, last_obs=known.last_obs)
    assert dynamics_error(one, Shift().step, np.ones(1))["rms"] == pytest.approx(np.sqrt(0.25 / 2))


def test_a_terminal_that_the_simulator_does_not_see_is_disagreement():
    made = trajectory([[[0.0], [1.0]]], np.ones((1, 2)), discount=[[1, 0]])
    assert dynamics_error(made, Shift().step, np.ones(1))["terminal_agreement"] == 0.5


def test_the_standard_error_is_the_spread_of_repeated_estimates():
    rng = np.random.default_rng(0)
    estimates, errors = [], []
    for _ in range(200):
        obs = np.zeros((100, 5, 1))
        obs[:, 1:] = rng.normal(size=(100, 4, 1)) * rng.uniform(0.5, 1.5, (100, 1, 1))
        result = dynamics_error(trajectory(obs, np.zeros((100, 5))), Still().step, np.ones(1))
        estimates.append(result["rms"])
        errors.append(result["standard_error"])
    # the spread of 200 estimates is known to 1 / sqrt(400) = 5 %
    assert np.mean(errors) == pytest.approx(np.std(estimates), rel=0.2)


class Still:
    """The next state is always 0."""

    def step(self, obs, action):
        return np.zeros_like(obs), action[:, 0], np.zeros(len(obs), bool)


def test_a_wrong_scale_is_refused():
    for std in (np.ones(3), np.zeros(1)):
        with pytest.raises(InputError, match="obs_std"):
            dynamics_error(trajectory([[[0.0], [1.0]]], np.ones((1, 2))), Shift().step, std)


def test_ratio_standard_error_of_equal_groups_is_that_of_the_mean():
    values = np.array([1.0, 4.0, 2.0, 7.0])
    want = values.std(ddof=1) / 2
    assert ratio_standard_error(values * 5, np.full(4, 5)) == pytest.approx(want)
    assert np.isnan(ratio_standard_error(values[:1], np.ones(1)))


def test_log_likelihood_counts_steps_up_to_the_first_terminal():
    # log-density = -|action - obs|: known values 0, 1, 2 ... by construction
    policy = Policy(params=jnp.zeros(1), sample_fn=lambda p, k, o: o, mode_fn=lambda p, o: o,
                    log_prob_fn=lambda p, o, a, v: -jnp.abs(a[0] - o[0]))  # fmt: skip
    made = trajectory(np.zeros((2, 3, 1)), [[1, 2, 3], [4, 5, 100]], discount=[[1, 1, 1], [1, 0, 1]])
    mean, error, each = action_log_likelihood(policy, made)
    np.testing.assert_allclose(each, [-2.0, -4.5])
    assert mean == pytest.approx(-15 / 5)
    residual = np.array([-6 + 9, -9 + 6])
    assert error == pytest.approx(np.sqrt(2 * np.sum(residual**2)) / 5)


def test_steps_and_terminal_rate():
    made = trajectory(np.zeros((3, 3, 1)), np.zeros((3, 3)), discount=[[1, 1, 1], [1, 0, 1], [1, 1, 0]])
    np.testing.assert_array_equal(steps_taken(made), [[1, 1, 1], [1, 1, 0], [1, 1, 1]])
    assert terminal_rate(made) == pytest.approx(2 / 3)


def test_state_entries_of_goal_and_plain_environments():
    base = {"name": "x", "source": "npz", "action_low": (-1.0,), "action_high": (1.0,)}
    goal = DatasetInfo(**base, obs_keys=("achieved_goal", "desired_goal", "observation"), obs_sizes=(2, 2, 4))
    np.testing.assert_array_equal(state_entries(goal), [4, 5, 6, 7])
    assert state_entries(DatasetInfo(**base)) is None
