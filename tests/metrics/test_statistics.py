"""Summaries against closed forms."""

import warnings

import numpy as np
import pytest

from jaxpgd.errors import InputError
from jaxpgd.metrics.statistics import interquartile_mean, power_law, standard_error, summarise


def test_interquartile_mean_drops_the_outer_quarters():
    assert interquartile_mean(np.array([100.0, 1, 2, 3, 4, 5, 6, -100])) == 3.5
    assert interquartile_mean(np.array([1.0, 2, 3])) == 2  # a quarter of three is rounded down: nothing dropped


def test_a_seed_counts_by_its_mean():
    summary = summarise(np.array([[0.0, 2.0], [4.0, 4.0], [9.0, 11.0], [0.0, 0.0]]))
    assert (summary.mean, summary.iqm) == (3.75, 2.5)
    assert (summary.seeds, summary.episodes, summary.unit) == (4, 2, "seeds")


def test_the_interval_is_that_of_the_normal_approximation_for_many_seeds():
    values = np.random.default_rng(0).normal(10.0, 2.0, 400)
    summary = summarise(values)
    error = standard_error(values)
    # 9999 resamples place a 2.5 % quantile within about 0.05 standard errors
    np.testing.assert_allclose(
        [summary.mean_low, summary.mean_high], values.mean() + np.array([-1.96, 1.96]) * error, atol=0.2 * error
    )
    wide = summarise(values, confidence=0.99)
    assert wide.mean_low < summary.mean_low and wide.mean_high > summary.mean_high
    assert summary.iqm_low < summary.iqm < summary.iqm_high


def test_two_seeds_span_their_means():
    summary = summarise(np.array([1.0, 3.0]))
    assert (summary.mean_low, summary.mean_high) == (1.0, 3.0)


def test_one_seed_gives_intervals_over_episodes_and_one_score_none():
    summary = summarise(np.array([[1.0, 2.0, 3.0, 4.0]]))
    assert summary.unit == "episodes" and summary.mean_low < 2.5 < summary.mean_high
    single = summarise(np.array([7.0]))
    assert (single.mean, single.iqm, single.unit) == (7.0, 7.0, "none") and np.isnan(single.mean_low)


def test_identical_scores_give_a_point_without_warnings():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        summary = summarise(np.full((4, 3), 5.0))
    assert (summary.mean_low, summary.mean_high, summary.iqm_low, summary.iqm_high) == (5.0, 5.0, 5.0, 5.0)


def test_bad_scores_are_refused():
    for bad in (np.zeros((0, 3)), np.array([1.0, np.nan]), np.zeros((2, 2, 2))):
        with pytest.raises(InputError, match="scores"):
            summarise(bad)


def test_standard_error():
    assert standard_error(np.array([1.0, 3.0, np.nan])) == 1.0  # sd sqrt(2), over sqrt(2)
    assert np.isnan(standard_error(np.array([1.0])))


def test_a_power_law_is_found_exactly_and_its_error_is_that_of_the_line():
    x = np.array([1.0, 2.0, 4.0, 8.0])
    law = power_law(x, 3 * x**-0.2)
    assert (law.exponent, law.factor, law.points) == (pytest.approx(-0.2), pytest.approx(3.0), 4)
    assert law.standard_error == pytest.approx(0.0, abs=1e-9)
    np.testing.assert_allclose(law(np.array([16.0])), 3 * 16**-0.2)
    # on log2 x = 0, 1, 2, 3 residuals e (1, -1, -1, 1) leave the line as it is: error sqrt(4 e^2 / 2 / 5) in log y
    e = 0.1 * np.log(2)
    bent = power_law(x, 3 * x**-0.2 * np.exp(e * np.array([1.0, -1.0, -1.0, 1.0])))
    assert (bent.exponent, bent.standard_error) == (pytest.approx(-0.2), pytest.approx(0.1 * np.sqrt(2 / 5)))
    assert np.isnan(power_law(x[:2], x[:2]).standard_error)


@pytest.mark.parametrize(("x", "y"), [([1, 2], [1]), ([1, 1], [1, 2]), ([0, 1], [1, 2]), ([1, 2], [1, np.nan]), ([1], [1])])
def test_points_without_a_power_law_are_refused(x, y):
    with pytest.raises(InputError, match=r"x, y|x = "):
        power_law(np.array(x, float), np.array(y, float))
