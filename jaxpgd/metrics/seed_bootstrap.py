"""Scores of runs on several tasks, and the stratified bootstrap over their seeds (Agarwal et al. 2021, section 4.1)."""

import dataclasses
from collections.abc import Mapping

import numpy as np

from jaxpgd.errors import check

# task -> one score per run [S_k], or a matrix [S, K] of S runs on each of K tasks, which get the names "0", "1", ...
Scores = Mapping[str, np.ndarray] | np.ndarray
Tasks = dict[str, np.ndarray]


@dataclasses.dataclass(frozen=True)
class Interval:
    """An estimate with the bounds of its confidence interval. The bounds are NaN if the data determine none."""

    value: float
    low: float
    high: float


def as_tasks(scores: Scores, field: str = "scores") -> Tasks:
    """Task -> scores [S_k], float64. A score is the mean of a run over its evaluation episodes.

    Raises InputError naming `field` if there is no task, if a task has no run, if a score is not finite, or if the shape is not
    one score per run.
    """
    if not isinstance(scores, Mapping):
        table = np.asarray(scores, np.float64)
        check(table.ndim == 2 and table.size > 0, field, table.shape, "tasks by name or a matrix [runs, tasks], not empty")
        scores = {str(k): column for k, column in enumerate(table.T)}
    check(len(scores) > 0, field, dict(scores), "at least one task")
    tasks = {name: np.asarray(values, np.float64) for name, values in scores.items()}
    for name, values in tasks.items():
        check(values.ndim == 1 and values.size > 0, f"{field}[{name!r}]", values.shape, "shape [S] with at least one run",
              "Average the episodes of a run first.")  # fmt: skip
        check(bool(np.isfinite(values).all()), f"{field}[{name!r}]", values.tolist(), "finite numbers")
    return tasks


def unit_of(*algorithms: Tasks) -> str:
    """What an interval generalises over: "seeds", or "none" if a task has a single run.

    A single run says nothing about the variance between runs. Resampling would hold that task constant, and the interval would
    silently ignore its variance; so there is none.
    """
    return "seeds" if all(len(values) > 1 for tasks in algorithms for values in tasks.values()) else "none"


def run_counts(tasks: Tasks) -> dict[str, int]:
    """Task -> number of runs."""
    return {name: len(values) for name, values in tasks.items()}


def weights_of_runs(tasks: Tasks, resamples: int, rng: np.random.Generator) -> Tasks:
    """Task -> weights [1 + R, S_k], each row summing to 1: equal weights first, then those of R = `resamples` resamples.

    A resample draws as many runs of a task as it has, with replacement and independently of the other tasks. Statistics depend
    only on how often each run was drawn, which is multinomial. `scipy.stats.bootstrap` would draw new
    resamples for every statistic.
    """
    weights = {}
    for name, values in tasks.items():
        runs = len(values)
        drawn = rng.multinomial(runs, np.full(runs, 1 / runs), size=resamples)
        weights[name] = np.concatenate([np.ones((1, runs)), drawn]) / runs
    return weights


def percentile_bounds(rows: np.ndarray, confidence: float, unit: str) -> tuple[np.ndarray, np.ndarray]:
    """Percentile bounds [...] of statistics [1 + R, ...] in the order of `weights_of_runs`. NaN if `unit` is "none"."""
    if unit == "none":
        return np.full(rows.shape[1:], np.nan), np.full(rows.shape[1:], np.nan)
    tail = (1 - confidence) / 2
    low, high = np.quantile(rows[1:], [tail, 1 - tail], axis=0)
    return low, high


def interval(rows: np.ndarray, confidence: float, unit: str) -> Interval:
    """Estimate and percentile bounds of statistics [1 + R] in the order of `weights_of_runs`."""
    low, high = percentile_bounds(rows, confidence, unit)
    return Interval(float(rows[0]), float(low), float(high))


def check_bootstrap(confidence: float, resamples: int) -> None:
    """Raise InputError for a confidence outside (0, 1), or for too few resamples to place its bounds."""
    check(0 < confidence < 1, "confidence", confidence, "a number between 0 and 1")
    least = int(np.ceil(2 / (1 - confidence)))
    check(resamples >= least, "resamples", resamples, f"at least {least}, which leave one resample beyond each bound")
