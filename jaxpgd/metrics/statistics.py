"""Mean, interquartile mean and bootstrap intervals of the returns or scores of one task; power laws."""

import dataclasses
from collections.abc import Callable
from typing import Any

import numpy as np
from scipy import stats

from jaxpgd.errors import check

RESAMPLES = 9999


@dataclasses.dataclass(frozen=True)
class Summary:
    """Mean and interquartile mean (IQM) with bootstrap intervals.

    `unit` is what the intervals generalise over: "seeds" (retrained agents), "episodes" of a single seed (which says nothing
    about other seeds), or "none" for a single score, whose bounds are NaN.
    """

    mean: float
    iqm: float
    mean_low: float
    mean_high: float
    iqm_low: float
    iqm_high: float
    seeds: int
    episodes: int
    unit: str
    confidence: float


def summarise(scores: np.ndarray, *, confidence: float = 0.95, seed: int = 0) -> Summary:
    """Summary of scores [S, E] (seeds, episodes) or [S].

    A seed counts once, by its mean over episodes: episodes of one agent are not independent repetitions of training. The IQM is
    the mean of the middle half of the seeds (Agarwal et al. 2021, arXiv 2108.13264). Intervals are percentile bootstraps over
    seeds, with 9,999 resamples; with fewer than about ten seeds they are somewhat too narrow. Raises InputError for empty or
    non-finite scores.
    """
    scores = np.asarray(scores, np.float64)
    table = scores[:, None] if scores.ndim == 1 else scores
    check(table.ndim == 2 and table.size > 0, "scores", scores.shape, "shape [S] or [S, E], not empty")
    check(bool(np.isfinite(table).all()), "scores", scores.tolist(), "finite numbers")
    check(0 < confidence < 1, "confidence", confidence, "a number between 0 and 1")
    seeds, episodes = table.shape
    units = table.mean(axis=1) if seeds > 1 else table[0]
    unit = "seeds" if seeds > 1 else "episodes" if episodes > 1 else "none"
    mean_low, mean_high = _interval(units, np.mean, confidence, seed)
    iqm_low, iqm_high = _interval(units, interquartile_mean, confidence, seed)
    return Summary(float(units.mean()), float(interquartile_mean(units)), mean_low, mean_high, iqm_low, iqm_high,
                   seeds, episodes, unit, confidence)  # fmt: skip


def interquartile_mean(values: np.ndarray, axis: int = -1) -> np.ndarray:
    """Mean along an axis without the lowest and the highest quarter of the values (each rounded down)."""
    return np.asarray(stats.trim_mean(values, 0.25, axis=axis))


def _interval(values: np.ndarray, statistic: Callable[..., np.ndarray], confidence: float, seed: int) -> tuple[float, float]:
    if len(values) < 2:
        return float("nan"), float("nan")
    if np.ptp(values) == 0:
        return float(values[0]), float(values[0])
    result = stats.bootstrap((values,), statistic, confidence_level=confidence, n_resamples=RESAMPLES, axis=-1,
                             vectorized=True, method="percentile", rng=np.random.default_rng(seed))  # fmt: skip
    return float(result.confidence_interval.low), float(result.confidence_interval.high)


def standard_error(values: np.ndarray) -> float:
    """Standard error of the mean of independent values [K], ignoring NaN. NaN for fewer than two values."""
    values = np.asarray(values, np.float64)
    values = values[~np.isnan(values)]
    return float(stats.sem(values)) if len(values) > 1 else float("nan")


@dataclasses.dataclass(frozen=True)
class PowerLaw:
    """y = factor * x^exponent, with the standard error of the exponent (NaN of two points)."""

    exponent: float
    standard_error: float
    factor: float
    points: int

    def __call__(self, x: np.ndarray) -> np.ndarray:
        """y [K] of x [K]."""
        return np.asarray(self.factor * np.asarray(x, np.float64) ** self.exponent)


def power_law(x: np.ndarray, y: np.ndarray) -> PowerLaw:
    """The power law of points x [K] and y [K] above 0: least squares of log y on log x.

    Raises InputError for other numbers, and unless two of x differ.
    """
    x, y = np.asarray(x, np.float64), np.asarray(y, np.float64)
    fits = x.ndim == 1 and x.shape == y.shape and bool(np.isfinite([x, y]).all() and (x > 0).all() and (y > 0).all())
    check(fits, "x, y", (x.tolist(), y.tolist()), "as many finite numbers above 0")
    check(len(np.unique(x)) > 1, "x", x.tolist(), "at least two different numbers")
    fit: Any = stats.linregress(np.log(x), np.log(y))
    error = float(fit.stderr) if len(x) > 2 else float("nan")
    return PowerLaw(float(fit.slope), error, float(np.exp(fit.intercept)), len(x))
