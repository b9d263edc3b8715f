"""The figures of a study, each as its `[[figures]]` says. All return a matplotlib figure."""

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from jaxpgd.errors import InputError, check
from jaxpgd.experiment.report.figure import finish, panels
from jaxpgd.experiment.report.marks import (
    banded_line,
    barred_points,
    equal_scales,
    goal_marks,
    level,
    path_lines,
    paths,
    plane_limits,
    scattered_points,
    seed_dots,
)
from jaxpgd.experiment.report.style import COLOURS, arm_of
from jaxpgd.experiment.report.ticks import log_axis, name_ticks, number_ticks, width_of_names
from jaxpgd.experiment.report.words import label_of, name_of
from jaxpgd.experiment.studies.cell import STEP_COLUMNS
from jaxpgd.experiment.studies.over_tasks import aggregates, improvement, profile, regret
from jaxpgd.experiment.studies.places import Where, at, fitted, hues, name_of_place, places, summary, value_label
from jaxpgd.experiment.studies.results import Results, matching
from jaxpgd.experiment.studies.spec import Drawing
from jaxpgd.metrics.statistics import Summary

_ROUNDING = 1e-6  # of errors in standard deviations, on logarithmic axes
_MOST_COLUMNS = 6
_SCORES = {"dynamics_error": "dynamics error {:.3g}", "log_likelihood": "log-likelihood {:.3g} nats"}  # above trajectories
_DENSITIES: tuple[tuple[str, str, dict[str, Any]], ...] = (
    ("behaviour", "dataset", {"color": "#0072B2", "linestyle": ":"}),
    ("policy", "target policy", {"color": "#CC79A7", "linestyle": "--"}),
    ("target", "exact target", {"color": "black"}),
)


def _grid(results: Results, drawing: Drawing, width: float = 5.2) -> tuple[Figure, Iterator[tuple[Where, Axes]]]:
    """A panel for each combination of labels of `panels` of which there is something to show."""
    rows = results.steps if drawing.kind in ("steps", "densities") else results.rows
    value = "samples" if drawing.kind == "densities" else drawing.value
    shown = [
        where for where in places(results, drawing.panels) if any(row.get(value) is not None for row in matching(rows, where))
    ]
    check(bool(shown), "value", value, "cells that have it")
    last = len({where[drawing.panels[-1]] for where in shown}) if drawing.panels else 1
    columns = last if len(drawing.panels) > 1 and last <= _MOST_COLUMNS else 0  # a row for each label of the axes before
    figure, axes = panels(len(shown), width=width, columns=columns, sharey=drawing.kind == "intervals")
    for where, axis in zip(shown, axes, strict=True):
        axis.set(title=name_of_place(where), ylabel=value_label(results, drawing))
        if drawing.log:
            log_axis(axis, "y")
    return figure, zip(shown, axes, strict=True)


def lines(results: Results, drawing: Drawing) -> Figure:
    """`value` over the labels of `x`, with bars from the lowest to the highest bound of its interval."""
    figure, grid = _grid(results, drawing)
    names = hues(results, drawing)
    for where, axis in grid:
        if all(float(x) > 0 for x in results.labels(drawing.x)):
            axis.set_xscale("log")
        for hue in names:
            spot = at(where, drawing.hue, hue)
            found = {
                float(x): s for x in results.labels(drawing.x) if (s := summary(results, drawing.value, at(spot, drawing.x, x)))
            }
            if hue in drawing.flat and found:
                first = next(iter(found.values()))
                level(axis, first.mean, first.mean_low, first.mean_high, hue, names)
            elif found:
                barred_points(axis, list(found), *_bounds(list(found.values())), hue, names)
        number_ticks(axis, [float(x) for x in results.labels(drawing.x)])
        axis.set_xlabel(label_of(drawing.x))
    return finish(figure, drawing.title)


def _bounds(found: list[Summary]) -> tuple[list[float], list[float], list[float]]:
    """Means, and the bounds of their intervals."""
    return [s.mean for s in found], [s.mean_low for s in found], [s.mean_high for s in found]


def intervals(results: Results, drawing: Drawing) -> Figure:
    """Mean and interval of each label of `hue`, and its seeds as dots."""
    names = hues(results, drawing)
    measured = {row.get(drawing.hue) for row in results.rows if row.get(drawing.value) is not None}
    labels = [f"{name_of(hue)}\n(10 seeds)" for hue in names if hue in measured or not drawing.hue]
    figure, grid = _grid(results, drawing, width=max(3.6, width_of_names(labels)))
    for where, axis in grid:
        shown: list[str] = []
        for hue in names:
            spot = at(where, drawing.hue, hue)
            s = summary(results, drawing.value, spot)
            if s is None:
                continue
            position = len(shown)
            seed_dots(axis, position - 0.2, results.units(drawing.value, spot), hue, names)
            barred_points(axis, [position], *_bounds([s]), hue, names, size=8, marker="o", label=None)
            shown.append(f"{name_of(hue)}\n({s.seeds} seed{'s' * (s.seeds > 1)})")
        name_ticks(axis, shown)
    return finish(figure, drawing.title)


def steps(results: Results, drawing: Drawing) -> Figure:
    """`value` by step, or by the column `x`: mean over seeds, band from the lowest to the highest of them."""
    figure, grid = _grid(results, drawing)
    names = hues(results, drawing)
    of_agents = any(cell.measure.kind == "returns" for cell in results.cells)
    step = "agent updates" if of_agents and drawing.value in STEP_COLUMNS["returns"] else "step of the trajectory"
    for where, axis in grid:
        for hue in names:
            spot = at(where, drawing.hue, hue)
            x, spent, y = results.curves((drawing.x or drawing.value, drawing.value), spot)
            if drawing.x:
                x = np.nanmean(spent, axis=1) if np.isfinite(spent).any(axis=1).all() else x[:0]
            if not len(x):
                continue
            if drawing.log:  # a first state that is given has an error of rounding, which would take most of the axis
                shown = ~(y <= _ROUNDING).any(axis=1)
                x, y = x[shown], y[shown]
            banded_line(axis, x, np.nanmean(y, axis=1), np.nanmin(y, axis=1), np.nanmax(y, axis=1), hue, names)
        axis.set_xlabel(label_of(drawing.x) if drawing.x else step)
    return finish(figure, drawing.title)


def power(results: Results, drawing: Drawing) -> Figure:
    """`value` against the column `x`: a point for each cell and seed, and the power law of each label of `hue`."""
    figure, grid = _grid(results, drawing)
    names = hues(results, drawing)
    for where, axis in grid:
        said = [name_of_place(where)]
        for hue in names:
            spot = at(where, drawing.hue, hue)
            x, y = results.pairs(drawing.x, drawing.value, spot)
            law = fitted(results, drawing.x, drawing.value, spot)
            if len(x):
                scattered_points(axis, x, y, hue, names)
            if law is not None:
                ends = np.array([x.min(), x.max()])
                banded_line(axis, ends, law(ends), None, None, hue, names, label="")
                error = "" if np.isnan(law.standard_error) else f" ± {law.standard_error:.2f}"
                said.append(f"{name_of(hue) or 'exponent'}: {law.exponent:.2f}{error}")
        log_axis(axis, "x")
        log_axis(axis, "y")
        axis.set(title="\n".join(filter(None, said)), xlabel=label_of(drawing.x))
    return finish(figure, drawing.title)


def trajectories(results: Results, drawing: Drawing) -> Figure | None:
    """Samples of every cell that kept some, with their dynamics error and the target's log-likelihood."""
    if not results.samples:
        return None
    plane = [[path[:, :2] for path in paths(samples)] for _, samples in results.samples]
    limits = plane_limits(plane, [goal for cell, _ in results.samples for goal in results.goals(cell).values()])
    height = 2.6 * float(np.ptp(limits[1]) / np.ptp(limits[0])) + 1.2
    figure, axes = panels(len(plane), width=3.2, height=height, columns=_MOST_COLUMNS, sharex=True, sharey=True)
    for axis, (cell, _), states in zip(axes, results.samples, plane, strict=True):
        colours = [COLOURS[arm] for label in cell.labels.values() if (arm := arm_of(label))]
        path_lines(axis, states, [*colours, "0.4"][0])
        goal_marks(axis, results.goals(cell))
        scores = {text: summary(results, name, {"cell": cell.key}) for name, text in _SCORES.items()}
        said = [text.format(s.mean) for text, s in scores.items() if s is not None]
        axis.set_title("\n".join([name_of_place(dict(cell.labels)), *said]), fontsize=10)
        axis.set(xlabel="x position", ylabel="y position", xlim=limits[0], ylim=limits[1])
    finish(figure, drawing.title)
    equal_scales(figure, axes, limits)
    return figure


def densities(results: Results, drawing: Drawing) -> Figure:
    """Of one action: behaviour, policy, their exact product and what was sampled."""
    figure, grid = _grid(results, drawing, width=3.8)
    for where, axis in grid:
        x, y = results.curve("samples", where)
        if len(x):
            axis.fill_between(x, y.mean(axis=1), step="mid", color="#009E73", alpha=0.45, linewidth=0, label="samples")
        for column, label, style in _DENSITIES:
            x, y = results.curve(column, where)
            if len(x):
                axis.plot(x, y.mean(axis=1), label=label, linewidth=1.4, **style)
        said = summary(results, "divergence", where)
        title = name_of_place(where) + (f"\nKL divergence {said.mean:.3f} nats" if said else "")
        axis.set(xlabel="action", ylabel="density", title=title)
    return finish(figure, drawing.title)


DRAWINGS: dict[str, Callable[[Results, Drawing], Figure | None]] = {
    "lines": lines,
    "intervals": intervals,
    "steps": steps,
    "power": power,
    "trajectories": trajectories,
    "profile": profile,
    "aggregates": aggregates,
    "improvement": improvement,
    "regret": regret,
    "densities": densities,
}


def draw(results: Results, drawing: Drawing) -> Figure | None:
    """The figure; None where no cell has what it shows."""
    figure = DRAWINGS[drawing.kind](results, drawing)
    return figure if figure is not None and any(axis.has_data() for axis in figure.axes) else None


def checked(results: Results, drawing: Drawing) -> tuple[Figure | None, str]:
    """As `draw`, and why there is no figure. What goes wrong with one of them is no end of the others."""
    try:
        figure = draw(results, drawing)
    except InputError:
        figure = None
    except Exception as error:  # hours of results are not to be lost to a drawing
        return None, f"{type(error).__name__}: {error}"
    return figure, "" if figure else "no complete cells have what it shows"
