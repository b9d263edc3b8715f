"""Probability of improvement and performance profiles against known numbers and theory."""

import numpy as np
import pytest
from scipy import stats

from jaxpgd.errors import InputError
from jaxpgd.metrics.comparison import performance_profile, probability_of_improvement


def test_ties_count_one_half():
    x, y = np.array([1.0, 2.0, 2.0]), np.array([2.0, 0.0])
    result = probability_of_improvement({"a": x}, {"a": y})
    assert result.probability.value == pytest.approx(4 / 6)  # 1 > 0, twice 2 > 0, twice 2 = 2
    assert result.probability.value == pytest.approx(stats.mannwhitneyu(x, y).statistic / 6)
    assert result.runs == {"a": (3, 2)} and result.unit == "seeds"


def test_tasks_are_matched_by_name_and_weigh_the_same():
    x = {"a": np.array([1.0, 2.0]), "b": np.array([0.0, 0.0, 1.0, 1.0])}
    y = {"b": np.array([2.0, 3.0]), "a": np.array([0.0, 0.5])}
    result = probability_of_improvement(x, y)
    assert result.by_task == {"a": 1.0, "b": 0.0} and result.probability.value == 0.5
    # each task is decided in every resample
    np.testing.assert_allclose([result.probability.low, result.probability.high], 0.5)


def test_the_interval_is_that_of_the_rank_statistic_with_independent_runs():
    x = np.random.default_rng(0).normal(size=200)
    result = probability_of_improvement({"a": x}, {"a": x.copy()}).probability
    error = np.sqrt((2 * 200 + 1) / (12 * 200**2))  # of U / (m n) where X and Y have one distribution
    # the same scores on both sides: resampled together, they would leave no width
    np.testing.assert_allclose([result.low, result.high], 0.5 + np.array([-1.96, 1.96]) * error, atol=0.2 * error)


def test_only_the_order_of_scores_counts():
    rng = np.random.default_rng(1)
    x, y = rng.normal(0.3, 1, (6, 3)), rng.normal(0, 1, (5, 3))
    base, moved = probability_of_improvement(x, y), probability_of_improvement(np.exp(2 * x + 1), np.exp(2 * y + 1))
    assert base == moved
    mirrored = probability_of_improvement(-x, -y).probability
    np.testing.assert_allclose(
        [mirrored.value, mirrored.low, mirrored.high],
        [1 - base.probability.value, 1 - base.probability.high, 1 - base.probability.low],
    )
    assert probability_of_improvement(y, x).probability.value == pytest.approx(1 - base.probability.value)


def test_one_run_on_either_side_leaves_no_interval():
    for x, y in (([1.0], [0.0, 2.0]), ([0.0, 2.0], [1.0])):
        result = probability_of_improvement({"a": np.array(x)}, {"a": np.array(y)})
        assert result.unit == "none" and result.probability.value == 0.5 and np.isnan(result.probability.low)


def test_tasks_that_differ_are_refused():
    with pytest.raises(InputError, match="tasks of x"):
        probability_of_improvement({"a": np.zeros(2)}, {"b": np.zeros(2)})
    with pytest.raises(InputError, match=r"y\['a'\].*finite"):
        probability_of_improvement({"a": np.zeros(2)}, {"a": np.array([np.inf, 0.0])})


def test_profile_of_known_numbers():
    scores = {"a": np.array([4.0, 1.0, 3.0, 2.0]), "b": np.array([2.0, 2.0])}
    profile = performance_profile(scores, np.array([0.0, 2.0, 3.5, 4.0]))
    np.testing.assert_allclose(profile.fraction, [1.0, 0.25, 0.125, 0.0])  # strictly above, tasks of equal weight
    np.testing.assert_allclose((profile.low[0], profile.high[0], profile.low[3], profile.high[3]), (1.0, 1.0, 0.0, 0.0))
    # 2 of 4 runs of a are above 2: resampled 0 to 4 of them, 0 with probability 1/16, in half the weight
    assert (profile.low[1], profile.high[1]) == (0.0, 0.5)
    assert profile.runs == {"a": 4, "b": 2}


def test_profile_bands_are_binomial():
    runs = 2000
    scores = {"a": np.arange(runs) / runs}
    profile = performance_profile(scores, np.array([0.1, 0.5, 0.8]), resamples=4000)
    error = np.sqrt(profile.fraction * (1 - profile.fraction) / runs)
    np.testing.assert_allclose(profile.fraction, [0.9, 0.5, 0.2], atol=1 / runs)
    np.testing.assert_allclose((profile.low - profile.fraction) / error, -1.96, atol=0.2)
    np.testing.assert_allclose((profile.high - profile.fraction) / error, 1.96, atol=0.2)


def test_profile_moves_with_its_scores():
    rng = np.random.default_rng(2)
    scores, thresholds = rng.normal(size=(5, 3)), np.linspace(-2, 2, 9)
    base, moved = performance_profile(scores, thresholds), performance_profile(4 * scores + 8, 4 * thresholds + 8)
    for name in ("fraction", "low", "high"):
        np.testing.assert_array_equal(getattr(base, name), getattr(moved, name))


def test_profile_of_one_run_has_no_band_and_bad_thresholds_are_refused():
    profile = performance_profile({"a": np.array([1.0]), "b": np.array([1.0, 2.0])}, np.array([1.5, 3.0]))
    assert profile.unit == "none" and np.isnan(profile.low).all() and np.isnan(profile.high).all()
    np.testing.assert_allclose(profile.fraction, [0.25, 0.0])
    for bad in (np.zeros(0), np.zeros((2, 2)), np.array([np.nan])):
        with pytest.raises(InputError, match="thresholds"):
            performance_profile({"a": np.zeros(2)}, bad)
