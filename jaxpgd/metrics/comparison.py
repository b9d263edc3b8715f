"""Comparison of methods over tasks and seeds: probability of improvement, performance profiles."""

import dataclasses

import numpy as np

from jaxpgd.errors import check
from jaxpgd.metrics.seed_bootstrap import (
    Interval,
    Scores,
    as_tasks,
    check_bootstrap,
    interval,
    percentile_bounds,
    run_counts,
    unit_of,
    weights_of_runs,
)
from jaxpgd.metrics.statistics import RESAMPLES


@dataclasses.dataclass(frozen=True)
class Improvement:
    """Probability that a run of X scores above a run of Y. Ties count one half.

    `by_task` holds the estimate of each task, `runs` the numbers of runs (of X, of Y). `unit` as in `Aggregate`.
    """

    probability: Interval
    by_task: dict[str, float]
    runs: dict[str, tuple[int, int]]
    unit: str
    confidence: float


def probability_of_improvement(
    x: Scores, y: Scores, *, confidence: float = 0.95, seed: int = 0, resamples: int = RESAMPLES
) -> Improvement:
    """P(X > Y) + P(X = Y) / 2 averaged over tasks: Agarwal et al. 2021 (arXiv 2108.13264), section 4.3.

    Per task this is Mann-Whitney's U divided by the number of pairs, all runs of X against all runs of Y. It measures how often
    X is better, not by how much. `x` and `y` have the same tasks (task -> [S_k], or [S, K]), possibly with different numbers of
    runs.

    The interval is a percentile bootstrap that resamples the runs of X and of Y independently within each task. It does not
    exploit pairing: if runs of X and Y share a seed, and with it data, denoiser or initial weights, their scores are usually
    positively correlated, and a paired interval would be narrower. It holds for this pair of methods, not for several pairs
    jointly. If every run of X is above every run of Y, all resamples agree and the interval is the point 1: the bootstrap found
    no exception, which does not mean that there is none.
    Raises InputError for empty, non-finite or ill-shaped scores and for tasks that differ.
    """
    first, second = as_tasks(x, "x"), as_tasks(y, "y")
    check(set(first) == set(second), "y", sorted(second), f"the tasks of x, {sorted(first)}")
    check_bootstrap(confidence, resamples)
    rng = np.random.default_rng(seed)
    of_x, of_y = weights_of_runs(first, resamples, rng), weights_of_runs(second, resamples, rng)
    rows = {}
    for name in first:
        difference = first[name][:, None] - second[name]
        wins = (difference > 0) + 0.5 * (difference == 0)
        rows[name] = np.sum(of_x[name] @ wins * of_y[name], axis=1)
    unit = unit_of(first, second)
    return Improvement(
        interval(np.mean(list(rows.values()), axis=0), confidence, unit),
        {name: float(row[0]) for name, row in rows.items()},
        {name: (len(first[name]), len(second[name])) for name in first},
        unit,
        confidence,
    )


@dataclasses.dataclass(frozen=True, eq=False)
class Profile:
    """Fraction of runs [N] above each threshold [N], with pointwise bounds [N]. `runs` and `unit` as in `Aggregate`."""

    thresholds: np.ndarray
    fraction: np.ndarray
    low: np.ndarray
    high: np.ndarray
    runs: dict[str, int]
    unit: str
    confidence: float


def performance_profile(
    scores: Scores, thresholds: np.ndarray, *, confidence: float = 0.95, seed: int = 0, resamples: int = RESAMPLES
) -> Profile:
    """Fraction of runs with a score above each threshold [N], averaged over tasks of equal weight.

    This is the run-score distribution of Agarwal et al. 2021 (arXiv 2108.13264), section 4.2. Bounds are percentile bootstraps
    that resample runs within each task. They are pointwise: a whole curve stays within its band less often. If no run, or every
    run, is above a threshold, the band has no width there; this is not certainty.
    Raises InputError for empty, non-finite or ill-shaped scores or thresholds.
    """
    tasks = as_tasks(scores)
    thresholds = np.asarray(thresholds, np.float64)
    check(thresholds.ndim == 1 and thresholds.size > 0, "thresholds", thresholds.shape, "shape [N], not empty")
    check(bool(np.isfinite(thresholds).all()), "thresholds", thresholds.tolist(), "finite numbers")
    check_bootstrap(confidence, resamples)
    weights = weights_of_runs(tasks, resamples, np.random.default_rng(seed))
    rows = np.zeros((1 + resamples, len(thresholds)))
    for name, values in tasks.items():
        rows += weights[name] @ (values[:, None] > thresholds)
    rows /= len(tasks)
    unit = unit_of(tasks)
    low, high = percentile_bounds(rows, confidence, unit)
    return Profile(thresholds, rows[0], low, high, run_counts(tasks), unit, confidence)
