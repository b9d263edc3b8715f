"""Policy selection against enumeration and closed forms."""

import itertools

import numpy as np
import pytest
from scipy import stats

from jaxpgd.errors import InputError
from jaxpgd.metrics.policy_selection import expected_best, policy_selection, within_budget


def enumerated(returns: np.ndarray, k: int, episodes: int) -> float:
    """Expected true return over every order of k candidates and every sequence of episodes; the first of equals wins."""
    truth, recorded = returns.mean(axis=1), range(returns.shape[1])
    found = []
    for order in itertools.permutations(range(len(returns)), k):
        for drawn in itertools.product(itertools.product(recorded, repeat=episodes), repeat=k):
            measured = [returns[c, list(d)].mean() for c, d in zip(order, drawn, strict=True)]
            found.append(truth[order[int(np.argmax(measured))]])
    return float(np.mean(found))


def test_expected_best_of_known_numbers_and_of_all_subsets():
    np.testing.assert_allclose(expected_best(np.array([4.0, 1.0, 2.0])), [7 / 3, 10 / 3, 4.0])
    values = np.random.default_rng(0).normal(size=7)
    subsets = [np.mean([max(s) for s in itertools.combinations(values, k)]) for k in range(1, 8)]
    np.testing.assert_allclose(expected_best(values), subsets)


def test_expected_best_of_many_is_that_of_the_uniform_distribution():
    count = 2000
    best = expected_best(np.arange(1, count + 1.0))
    k = np.arange(1, count + 1)
    np.testing.assert_allclose(best, k * (count + 1) / (k + 1), rtol=1e-9)  # maximum of k of 1 ... C


@pytest.mark.parametrize("episodes", [1, 2])
def test_noisy_selection_is_that_of_enumeration(episodes):
    returns = np.array([[0.0, 6.0], [2.0, 2.0], [1.0, 4.0]])  # ties among the measured means
    result = policy_selection(returns, episodes=episodes, draws=40_000)
    exact = np.array([enumerated(returns, k, episodes) for k in (1, 2, 3)])
    assert (np.abs(result.value - exact) < 4 * result.value_se).all() and (result.value_se < 0.01).all()
    assert (result.best, result.candidates, result.episodes) == (3.0, 3, episodes)
    np.testing.assert_allclose(result.regret, 3.0 - result.value)
    np.testing.assert_array_equal(result.evaluations, episodes * np.array([1, 2, 3]))
    np.testing.assert_allclose(result.noiseless, [7.5 / 3, (3 + 3 + 2.5) / 3, 3.0])


def test_two_normal_candidates_are_told_apart_as_often_as_theory_says():
    noise = stats.norm.ppf((np.arange(4000) + 0.5) / 4000)
    result = policy_selection(np.stack([noise, noise + 0.5]), episodes=8, draws=40_000)
    right = stats.norm.cdf(0.5 / np.sqrt(2 / 8))
    assert abs(result.value[1] - 0.5 * right) < 4 * result.value_se[1]
    np.testing.assert_allclose(result.value_se[1], 0.5 * np.sqrt(right * (1 - right) / 40_000), rtol=0.05)


def test_without_noise_the_closed_form_is_reached():
    truth = np.array([3.0, -1.0, 0.5, 2.0, 10.0])
    result = policy_selection(np.repeat(truth[:, None], 2, axis=1))
    assert (np.abs(result.value - result.noiseless) < 4 * result.value_se + 1e-9).all()
    np.testing.assert_allclose((result.value[-1], result.regret[-1], result.value_se[-1]), (10.0, 0.0, 0.0), atol=1e-12)


def test_equal_measurements_are_decided_at_random_and_true_returns_may_be_given():
    result = policy_selection(np.zeros((2, 3)), values=np.array([0.0, 1.0]))
    assert abs(result.value[1] - 0.5) < 4 * result.value_se[1] and result.best == 1.0


def test_shift_and_scale_carry_over():
    returns = np.random.default_rng(1).normal(size=(4, 10))
    base, moved = policy_selection(returns, episodes=3), policy_selection(5 * returns + 1000, episodes=3)
    np.testing.assert_allclose(moved.value, 5 * base.value + 1000)
    np.testing.assert_allclose(moved.regret, 5 * base.regret, atol=1e-8)
    np.testing.assert_allclose(moved.value_se, 5 * base.value_se, rtol=1e-6)


def test_a_budget_buys_the_largest_number_of_candidates():
    result = policy_selection(np.random.default_rng(2).normal(size=(4, 6)), episodes=3)
    bought = within_budget(result, np.array([3, 5, 6, 12, 100]))
    np.testing.assert_array_equal(bought.evaluated, [1, 1, 2, 4, 4])
    np.testing.assert_array_equal(bought.evaluations, [3, 3, 6, 12, 12])
    np.testing.assert_array_equal(bought.regret, result.regret[[0, 0, 1, 3, 3]])
    with pytest.raises(InputError, match="budgets"):
        within_budget(result, np.array([2]))


def test_large_evaluations_are_drawn_in_blocks():
    returns = np.random.default_rng(3).normal(size=(3, 5))
    result = policy_selection(returns, episodes=300_000, draws=4)  # one draw at a time
    assert result.value[-1] == pytest.approx(result.best)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"returns": np.zeros((0, 3))}, "returns"),
        ({"returns": np.zeros(3)}, "returns"),
        ({"returns": np.array([[1.0, np.nan]])}, "finite"),
        ({"returns": np.zeros((3, 1))}, "expected_best"),
        ({"returns": np.zeros((3, 2)), "values": np.zeros(2)}, "values"),
        ({"returns": np.zeros((3, 2)), "values": np.array([0.0, 1.0, np.inf])}, "values"),
        ({"returns": np.zeros((3, 2)), "episodes": 0}, "episodes"),
    ],
)
def test_bad_input_is_refused(options, message):
    with pytest.raises(InputError, match=message):
        policy_selection(**options)
