"""Aggregate scores over tasks and seeds with bootstrap intervals: mean, median, interquartile mean, optimality gap."""

import dataclasses

import numpy as np

from jaxpgd.errors import check
from jaxpgd.metrics.seed_bootstrap import (
    Interval,
    Scores,
    Tasks,
    as_tasks,
    check_bootstrap,
    interval,
    run_counts,
    unit_of,
    weights_of_runs,
)
from jaxpgd.metrics.statistics import RESAMPLES


@dataclasses.dataclass(frozen=True)
class Aggregate:
    """Aggregates of one method, in the unit of its scores.

    `runs` is the number of runs of each task. `unit` is what the intervals generalise over: "seeds" (retrained agents on the
    same tasks), or "none" if a task has a single run; the bounds are then NaN.
    """

    mean: Interval
    median: Interval
    iqm: Interval
    optimality_gap: Interval
    gamma: float
    runs: dict[str, int]
    unit: str
    confidence: float


def aggregate(
    scores: Scores, *, gamma: float, confidence: float = 0.95, seed: int = 0, resamples: int = RESAMPLES
) -> Aggregate:
    """Aggregates of scores on K tasks (task -> [S_k], or [S, K]), after Agarwal et al. 2021 (arXiv 2108.13264), section 4.3.

    - mean: of the tasks' mean scores;
    - median: of the tasks' mean scores;
    - iqm: mean of the middle half of all runs pooled, see `pooled_interquartile_mean`;
    - optimality gap: mean amount by which runs fall short of `gamma`, runs above it counting as 0; lower is better. `gamma` is
      in the unit of the scores: 100 for normalised scores, where 100 is the reference of an expert.

    Every task has the same weight, however many runs it has. Intervals are percentile bootstraps that resample runs within each
    task: they describe other seeds on the same tasks, not other tasks. The bootstrap's variance is the fraction (S - 1) / S of
    the unbiased one, so that with five seeds per task or fewer the intervals are clearly too narrow. Raises InputError for
    empty, non-finite or ill-shaped scores.
    """
    tasks = as_tasks(scores)
    check_bootstrap(confidence, resamples)
    check(bool(np.isfinite(gamma)), "gamma", gamma, "a finite number")
    weights = weights_of_runs(tasks, resamples, np.random.default_rng(seed))
    unit = unit_of(tasks)
    means = _task_means(tasks, weights)
    reached = _task_means({name: np.minimum(values, gamma) for name, values in tasks.items()}, weights)
    rows = (means.mean(axis=1), np.median(means, axis=1), _pooled(tasks, weights), gamma - reached.mean(axis=1))
    mean, median, iqm, gap = (interval(row, confidence, unit) for row in rows)
    return Aggregate(mean, median, iqm, gap, float(gamma), run_counts(tasks), unit, confidence)


def pooled_interquartile_mean(scores: Scores) -> float:
    """The 25 % trimmed mean over all N runs of all tasks: without the lowest and the highest floor(N / 4).

    If tasks have different numbers of runs, a run of task k has the weight 1 / (K S_k). The fraction floor(N / 4) / N of the
    weight is cut off at each end, and a run at the border is cut in part.
    """
    tasks = as_tasks(scores)
    return float(_pooled(tasks, weights_of_runs(tasks, 0, np.random.default_rng(0)))[0])


def _task_means(tasks: Tasks, weights: Tasks) -> np.ndarray:
    return np.stack([weights[name] @ values for name, values in tasks.items()], axis=1)


def _pooled(tasks: Tasks, weights: Tasks) -> np.ndarray:
    """Interquartile means [1 + R]. One sort suffices: a resample changes weights, not the order.

    `scipy.stats.trim_mean` takes no weights.
    """
    values = np.concatenate(list(tasks.values()))
    order = np.argsort(values)
    weight = np.concatenate([weights[name] / len(tasks) for name in tasks], axis=1)[:, order]
    cut = (len(values) // 4) / len(values)
    ends = np.cumsum(weight, axis=1)
    kept = np.clip(np.minimum(ends, 1 - cut) - np.maximum(ends - weight, cut), 0, None)
    return np.asarray(kept @ values[order] / kept.sum(axis=1))
