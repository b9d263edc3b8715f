"""Figures of the commands that weigh one quantity against another: `frontier`, `pareto`, `compare-rollouts`."""

import itertools
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.transforms import Bbox

from jaxpgd.experiment.report.figure import finish, panels
from jaxpgd.experiment.report.marks import banded_line, barred_points
from jaxpgd.experiment.report.ticks import log_axis
from jaxpgd.experiment.report.words import label_of

_NUMBER_SIZE = 8.0  # points


def rollout_comparison_figure(curves: Mapping[str, Mapping[str, Any]], *, title: str = "") -> Figure:
    """State error and distance of state distributions by step of the trajectory: one line for each method.

    `curves` has the keys of `rollout_comparison.compare_rollouts` by method: `state_error` [T] with `state_error_se` (band: two
    standard errors) and `state_distance` [T]. A method without one of the two is left out of its panel, such as a second sample
    of the truth, which has a distance alone.
    """
    figure, axes = panels(2, height=4.4)
    titles = {
        "state_error": "State error (bands: two standard errors)",
        "state_distance": "Distance between the sets of states",
    }
    for axis, (key, panel) in zip(axes, titles.items(), strict=True):
        for name, curve in curves.items():
            if key not in curve:
                continue
            y = np.asarray(curve[key], np.float64)
            error = 2 * np.asarray(curve[key + "_se"], np.float64) if key + "_se" in curve else None
            low, high = (None, None) if error is None else (y - error, y + error)
            banded_line(axis, np.arange(len(y)), y, low, high, name, list(curves))
        axis.set(xlabel="step of the trajectory", ylabel=label_of(key), title=panel)
        axis.set_ylim(bottom=0)
    return finish(figure, title or "Synthetic trajectories against true rollouts of the same policy")


def frontier_figure(rows: Sequence[Mapping[str, Any]]) -> Figure:
    """Dynamics error against action log-likelihood: a line for each guidance over its coefficients, bars: the range over runs.

    Rows have `guidance`, `coefficient`, `log_likelihood`, `dynamics_error`, and both with `_low` and `_high`.
    """
    figure, (axis,) = panels(1, width=8.0, height=5.0)
    kinds, points = list(dict.fromkeys(r["guidance"] for r in rows)), dict[tuple[float, float], str]()
    for kind in kinds:
        chosen = sorted((r for r in rows if r["guidance"] == kind), key=lambda r: r["coefficient"])
        x, x_low, x_high, y, y_low, y_high = (
            np.array([r[f"{name}{bound}"] for r in chosen], np.float64)
            for name in ("log_likelihood", "dynamics_error")
            for bound in ("", "_low", "_high")
        )
        across = np.nan_to_num(np.abs(np.stack([x - x_low, x_high - x])))
        barred_points(axis, x, y, y_low, y_high, kind, kinds, xerr=across, linewidth=1.4, elinewidth=0.8)
        shown = np.isfinite(x) & np.isfinite(y)
        points |= {
            (float(a), float(b)): f"{r['coefficient']:g}"
            for r, a, b, there in zip(chosen, x, y, shown, strict=True)
            if there and r["coefficient"] > 0
        }
    log_axis(axis, "y")
    axis.set(xlabel=label_of("log_likelihood"), ylabel=label_of("dynamics_error"))
    finish(figure, "What guidance gains and costs (numbers: coefficients)")
    _write_numbers(figure, axis, points)
    return figure


def _write_numbers(figure: Figure, axis: Axes, points: Mapping[tuple[float, float], str]) -> None:
    """Write a number beside each point, where it covers no point and no other number; leave out what has no such place."""
    figure.draw_without_rendering()  # places are known from here on
    spots = axis.transData.transform(list(points)) if points else np.zeros((0, 2))
    pixels = figure.dpi / 72
    marks = [Bbox.from_bounds(x - 4 * pixels, y - 4 * pixels, 8 * pixels, 8 * pixels) for x, y in spots]
    inside, taken = axis.get_window_extent(), list[Bbox]()
    for (point, text), mark in zip(points.items(), marks, strict=True):
        others = [other for other in marks if other is not mark]
        for side, above in itertools.product((1, -1), (1, -1)):
            note = axis.annotate(
                text, point, (6 * side, 5 * above), textcoords="offset points", fontsize=_NUMBER_SIZE, color="0.25",
                ha="left" if side > 0 else "right", va="bottom" if above > 0 else "top",
            )  # fmt: skip
            box = note.get_window_extent().padded(3 * pixels, 1)
            if not _touches(box, [*others, *taken]) and inside.containsx(box.x1) and inside.containsx(box.x0):
                taken.append(box)
                break
            note.remove()


def _touches(box: Bbox, others: Iterable[Bbox]) -> bool:
    return any(Bbox.intersection(box, other) is not None for other in others)


def pareto_figure(rows: Sequence[Mapping[str, Any]], reference: Mapping[str, Any], measures: Sequence[str]) -> Figure:
    """Each measure against the price of a trajectory in forward passes, a line for each solver; dashed: the reference.

    Rows have `solver`, `forward_equivalents` and the measures; of rows of one solver and price the least is drawn.
    """
    shown = [name for name in measures if name in reference]
    figure, axes = panels(len(shown), width=4.6)
    kinds = list(dict.fromkeys(row["solver"] for row in rows))
    for axis, name in zip(axes, shown, strict=True):
        for kind in kinds:
            best: dict[float, float] = {}
            for row in rows:
                if row["solver"] == kind and np.isfinite(row[name]):
                    price = row["forward_equivalents"]
                    best[price] = min(row[name], best.get(price, np.inf))
            if best:
                x, y = zip(*sorted(best.items()), strict=True)
                banded_line(axis, x, y, None, None, kind, kinds, markers=True)
        axis.axhline(reference[name], color="black", linestyle="--", linewidth=1, label="reference")
        log_axis(axis, "x")
        log_axis(axis, "y")
        axis.set(xlabel=label_of("forward_equivalents"), ylabel=label_of(name))
    return finish(figure, "What fewer function evaluations cost")
