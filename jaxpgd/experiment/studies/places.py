"""Which rows of a study's results a panel and a line of a figure show, and what they are called there."""

import itertools
from collections.abc import Mapping, Sequence

import numpy as np

from jaxpgd.experiment.report.words import label_of, name_of
from jaxpgd.experiment.studies.results import Results
from jaxpgd.experiment.studies.spec import Drawing, is_number
from jaxpgd.metrics.statistics import PowerLaw, Summary, power_law, summarise

Where = dict[str, str]  # labels by axis


def summary(results: Results, value: str, where: Mapping[str, str]) -> Summary | None:
    """Mean and IQM of the seeds with these labels, with their intervals; of one seed over its episodes. None without values."""
    table = results.table(value, where)
    if not table:
        return None
    rows = list(table.values())
    if len(rows) == 1:
        return summarise(rows[0][None])
    return summarise(np.array([episodes.mean() for episodes in rows]))


def fitted(results: Results, x: str, y: str, where: Mapping[str, str]) -> PowerLaw | None:
    """The power law of two columns over all cells and seeds with these labels; None where there are too few points."""
    points = results.pairs(x, y, where)
    positive = (points[0] > 0) & (points[1] > 0)
    if len(np.unique(points[0][positive])) < 2:
        return None
    return power_law(points[0][positive], points[1][positive])


def last(results: Results, value: str, where: Mapping[str, str]) -> float:
    """The value at the last step, mean over the seeds with these labels; NaN without any."""
    _, found = results.curve(value, where)
    return float(np.nanmean(found[-1])) if len(found) else np.nan


def summary_at(results: Results, value: str, column: str, most: float, where: Mapping[str, str]) -> Summary | None:
    """Of the `value` by step, where the `column` has grown to `most`: linear between steps. None before the first of them.

    Seeds that lack a value at any step, such as those that diverged, are left out.
    """
    steps, spent, found = results.curves((column, value), where)
    whole = np.isfinite(found).all(axis=0) & np.isfinite(spent).all(axis=0)
    if not len(steps) or not whole.any() or most < spent[0, whole].max():
        return None
    return summarise(np.array([np.interp(most, x, y) for x, y in zip(spent.T[whole], found.T[whole], strict=True)]))


def places(results: Results, axes: Sequence[str]) -> list[Where]:
    """Every combination of the labels of some axes."""
    return [dict(zip(axes, labels, strict=True)) for labels in itertools.product(*(results.labels(axis) for axis in axes))]


def hues(results: Results, drawing: Drawing) -> list[str]:
    """The labels that have a line each; a single empty one where the figure names no axis for them."""
    return results.labels(drawing.hue) if drawing.hue else [""]


def at(where: Where, axis: str, label: str) -> Where:
    """These labels and one more, where its axis has a name."""
    return where | {axis: label} if axis else where


def name_of_place(where: Where) -> str:
    """The labels in words; numbers with the name of their axis."""
    return ", ".join(f"{name_of(axis)} {label}" if is_number(label) else name_of(label) for axis, label in where.items())


def value_label(results: Results, drawing: Drawing) -> str:
    """The label of the axis of the value: the study's, else that of the column. A score names its family."""
    return label_of(drawing.value) if drawing.value in results.scales else drawing.label or label_of(drawing.value)
