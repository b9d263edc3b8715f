"""The same numbers from the authors' library, where it is installed: it is none of our dependencies."""

import numpy as np
import pytest

from jaxpgd.metrics.aggregate import aggregate
from jaxpgd.metrics.comparison import performance_profile, probability_of_improvement
from jaxpgd.metrics.statistics import RESAMPLES

REASON = "rliable is not installed; `pip install rliable 'pandas<3'` adds this cross-check"
library = pytest.importorskip("rliable.library", reason=REASON)
metrics = pytest.importorskip("rliable.metrics", reason=REASON)

RUNS, TASKS, GAMMA = 10, 6, 70.0
RNG = np.random.default_rng(0)
X = RNG.normal(60 + 5 * np.arange(TASKS), 10, (RUNS, TASKS)).round()  # rounded: ties
Y = RNG.normal(57 + 5 * np.arange(TASKS), 12, (RUNS + 3, TASKS)).round()


def estimates(scores, statistic, resamples):
    """Estimates [n] and bounds [2, n] of rliable, which draws from NumPy's global generator."""
    np.random.seed(0)  # noqa: NPY002
    values, bounds = library.get_interval_estimates({"x": scores}, statistic, reps=resamples)
    return values["x"], bounds["x"]


def assert_close(ours, values, bounds, resamples):
    """Equal estimates, and bounds that are apart by no more than four standard errors of the two Monte Carlos.

    The 2.5 % quantile of R normal values has a standard error of sqrt(0.025 * 0.975 / R) / 0.0584 in their standard deviation,
    of which the interval is 3.92 wide.
    """
    np.testing.assert_allclose([one.value for one in ours], values, rtol=1e-10)
    error = np.sqrt(0.025 * 0.975 * (1 / resamples + 1 / RESAMPLES)) / 0.0584 / 3.92
    mine = np.array([[one.low for one in ours], [one.high for one in ours]])
    print("value, rliable's bounds, ours, tolerance:")
    print(np.round(np.stack([values, *bounds, *mine, 4 * error * (bounds[1] - bounds[0])]), 4))
    assert (np.abs(mine - bounds) <= 4 * error * (bounds[1] - bounds[0])).all()


def test_aggregates():
    ours = aggregate(X, gamma=GAMMA)
    gap = lambda s: metrics.aggregate_optimality_gap(s, GAMMA)
    parts = (metrics.aggregate_mean, metrics.aggregate_median, metrics.aggregate_iqm, gap)
    theirs = estimates(X, lambda s: np.array([f(s) for f in parts]), 4000)
    assert_close((ours.mean, ours.median, ours.iqm, ours.optimality_gap), *theirs, 4000)


def test_probability_of_improvement():
    ours = probability_of_improvement(X, Y).probability
    theirs = estimates([X, Y], lambda x, y: np.array([metrics.probability_of_improvement(x, y)]), 1000)
    assert_close((ours,), *theirs, 1000)


def test_performance_profile():
    thresholds = np.linspace(40, 100, 7)
    ours = performance_profile(X, thresholds)
    np.random.seed(0)  # noqa: NPY002
    values, bounds = library.create_performance_profile({"x": X}, thresholds, reps=2000)
    np.testing.assert_allclose(ours.fraction, values["x"], rtol=1e-12)
    # fractions are multiples of 1 / 60, so that a bound may fall on the next one
    np.testing.assert_allclose(np.stack([ours.low, ours.high]), bounds["x"], atol=1 / (RUNS * TASKS) + 1e-9)
