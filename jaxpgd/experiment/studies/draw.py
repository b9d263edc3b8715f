"""The figures of a study, each as its `[[figures]]` says. All return a matplotlib figure."""

import dataclasses
import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogFormatter

from jaxpgd.errors import InputError, check
from jaxpgd.experiment.report.plots import colour_of, line_of, panels, path_lines
from jaxpgd.experiment.report.study_plots import aggregates_figure, improvement_figure, profile_lines, selection_figure
from jaxpgd.experiment.studies.results import Results, matching
from jaxpgd.experiment.studies.spec import Drawing, is_number
from jaxpgd.metrics.aggregate import aggregate
from jaxpgd.metrics.comparison import performance_profile, probability_of_improvement
from jaxpgd.metrics.policy_selection import policy_selection
from jaxpgd.metrics.statistics import Summary, summarise

Where = dict[str, str]
_THRESHOLDS = 101
_ROUNDING = 1e-6  # of errors in standard deviations, on logarithmic axes
_MOST_COLUMNS = 6
_LEGEND_WIDTH = 1.8  # inches of an entry
_EXPERT = 100.0  # normalised score to which the optimality gap is measured


def summary(results: Results, value: str, where: Mapping[str, str]) -> Summary | None:
    """Mean and IQM of the seeds with these labels, with their intervals; of one seed over its episodes. None without values."""
    table = results.table(value, where)
    if not table:
        return None
    rows = list(table.values())
    if len(rows) == 1:
        return summarise(rows[0][None])
    return summarise(np.array([episodes.mean() for episodes in rows]))


def draw(results: Results, drawing: Drawing) -> Figure | None:
    """The figure; None where no cell has what it shows."""
    figure = DRAWINGS[drawing.kind](results, drawing)
    return figure if figure is not None and any(axis.has_data() for axis in figure.axes) else None


def _label(results: Results, drawing: Drawing) -> str:
    """Of the axis of the value; a score says whose."""
    return drawing.value if drawing.value in results.scales else drawing.label or drawing.value.replace("_", " ")


def _places(results: Results, axes: Sequence[str]) -> list[Where]:
    return [dict(zip(axes, labels, strict=True)) for labels in itertools.product(*(results.labels(axis) for axis in axes))]


def _hues(results: Results, drawing: Drawing) -> list[str]:
    return results.labels(drawing.hue) if drawing.hue else [""]


def _at(where: Where, axis: str, label: str) -> Where:
    return where | {axis: label} if axis else where


def _name(where: Where) -> str:
    return ", ".join(f"{axis.replace('_', ' ')} {label}" if is_number(label) else label for axis, label in where.items())


def _grid(results: Results, drawing: Drawing, width: float = 5.2) -> tuple[Figure, Iterator[tuple[Where, Axes]]]:
    rows = results.steps if drawing.kind in ("steps", "densities") else results.rows
    value = "samples" if drawing.kind == "densities" else drawing.value
    places = [
        where for where in _places(results, drawing.panels) if any(row.get(value) is not None for row in matching(rows, where))
    ]
    check(bool(places), "value", value, "cells that have it")
    last = len({where[drawing.panels[-1]] for where in places}) if drawing.panels else 1
    columns = last if len(drawing.panels) > 1 and last <= _MOST_COLUMNS else 4  # a row for each label of the axes before
    figure, axes = panels(len(places), width=width, title=drawing.title, columns=columns, sharey=drawing.kind == "intervals")
    for where, axis in zip(places, axes, strict=True):
        axis.set(title=_name(where), ylabel=_label(results, drawing))
        if drawing.log:
            axis.set_yscale("log")
            axis.yaxis.set_major_formatter("{x:g}")
            axis.yaxis.set_minor_formatter(LogFormatter(minor_thresholds=(1.0, 0.4)))  # numbers also within one decade
    return figure, zip(places, axes, strict=True)


def lines(results: Results, drawing: Drawing) -> Figure:
    """`value` over the labels of `x`, with bars from the lowest to the highest bound of its interval."""
    figure, grid = _grid(results, drawing)
    hues = _hues(results, drawing)
    for where, axis in grid:
        for hue in hues:
            spot = _at(where, drawing.hue, hue)
            if hue in drawing.flat:
                _level(axis, _any(results, drawing, spot), hue, hues)
                continue
            found = [
                (float(x), s)
                for x in results.labels(drawing.x)
                if (s := summary(results, drawing.value, _at(spot, drawing.x, x)))
            ]
            if found:
                _bars(axis, np.array([x for x, _ in found]), [s for _, s in found], hue, hues)
        positive = all(float(x) > 0 for x in results.labels(drawing.x))
        axis.set(xlabel=drawing.x.replace("_", " "), **({"xscale": "log"} if positive else {}))
        ticks = [float(x) for x in results.labels(drawing.x)]
        axis.set_xticks(ticks, [f"{t:g}" for t in ticks])
        axis.minorticks_off()
    return _with_legend(figure)


def _with_legend(figure: Figure) -> Figure:
    """One legend below all panels, of every line that any of them has."""
    found: dict[str, Any] = {}
    for axis in figure.axes:
        handles, labels = axis.get_legend_handles_labels()
        found |= {label: handle for handle, label in zip(handles, labels, strict=True) if label not in found}
    columns = max(1, min(len(found), int(figure.get_figwidth() / _LEGEND_WIDTH)))
    if found:
        figure.legend(list(found.values()), list(found), loc="outside lower center", ncols=columns, fontsize=10)
    return figure


def _any(results: Results, drawing: Drawing, spot: Where) -> Summary | None:
    return next(
        filter(None, (summary(results, drawing.value, _at(spot, drawing.x, x)) for x in results.labels(drawing.x))), None
    )


def _level(axis: Axes, s: Summary | None, hue: str, hues: list[str]) -> None:
    if s is None:
        return
    colour = colour_of(hue, hues)
    axis.axhline(s.mean, color=colour, linestyle="--", label=hue)
    if np.isfinite([s.mean_low, s.mean_high]).all():
        axis.axhspan(s.mean_low, s.mean_high, color=colour, alpha=0.15, linewidth=0)


def _bars(axis: Axes, x: np.ndarray, found: Sequence[Summary], hue: str, hues: list[str]) -> None:
    mean = np.array([s.mean for s in found])
    spread = np.nan_to_num(np.abs(np.array([[s.mean - s.mean_low for s in found], [s.mean_high - s.mean for s in found]])))
    axis.errorbar(x, mean, spread, color=colour_of(hue, hues), marker="o", capsize=4, label=hue or None)


def intervals(results: Results, drawing: Drawing) -> Figure:
    """Mean and interval of each label of `hue`, and its seeds as dots."""
    figure, grid = _grid(results, drawing, width=max(3.6, 1.1 * len(_hues(results, drawing)) + 1.2))
    hues = _hues(results, drawing)
    for where, axis in grid:
        shown: list[str] = []
        for hue in hues:
            spot = _at(where, drawing.hue, hue)
            s, colour = summary(results, drawing.value, spot), colour_of(hue, hues)
            if s is None:
                continue
            units = results.units(drawing.value, spot)
            position = len(shown)
            axis.plot(np.full(len(units), position - 0.2), units, "o", color=colour, alpha=0.4, markersize=4)
            bar = np.nan_to_num(np.abs([[s.mean - s.mean_low], [s.mean_high - s.mean]]))
            axis.errorbar([position], [s.mean], bar, color=colour, marker="o", markersize=8, capsize=5)
            shown.append(f"{hue}\n({s.seeds} seed{'s' * (s.seeds > 1)})")
        axis.set_xticks(range(len(shown)), shown, fontsize=9)
        axis.set_xlim(-0.6, len(shown) - 0.4)
    return figure


def steps(results: Results, drawing: Drawing) -> Figure:
    """`value` by step: mean over seeds, band from the lowest to the highest of them."""
    figure, grid = _grid(results, drawing)
    hues = _hues(results, drawing)
    for where, axis in grid:
        for hue in hues:
            x, y = results.curve(drawing.value, _at(where, drawing.hue, hue))
            if len(x):
                colour, line = colour_of(hue, hues), line_of(hue, hues)
                if drawing.log:  # a first state that is given has an error of rounding, which would take most of the axis
                    shown = ~(y <= _ROUNDING).any(axis=1)
                    x, y = x[shown], y[shown]
                axis.plot(x, np.nanmean(y, axis=1), color=colour, linestyle=line, label=hue or None, linewidth=1.8)
                axis.fill_between(x, np.nanmin(y, axis=1), np.nanmax(y, axis=1), color=colour, alpha=0.2, linewidth=0)
        axis.set(xlabel=drawing.x or "step")
    return _with_legend(figure)


def trajectories(results: Results, drawing: Drawing) -> Figure | None:
    """Samples of every cell that kept some, with their dynamics error and the target's log-likelihood."""
    if not results.samples:
        return None
    figure, axes = panels(
        len(results.samples), width=3.2, height=4.4, title=drawing.title, columns=_MOST_COLUMNS, sharex=True, sharey=True
    )
    for axis, (cell, samples) in zip(axes, results.samples, strict=True):
        label = _name(dict(cell.labels))
        path_lines(axis, samples, results.goals(cell))
        scores = {name: summary(results, name, {"cell": cell.key}) for name in ("dynamics_error", "log_likelihood")}
        said = [f"{name.replace('_', ' ')} {s.mean:.3g}" for name, s in scores.items() if s is not None]
        axis.set_title("\n".join([label, *said]), fontsize=10)
    return _with_legend(figure)


def densities(results: Results, drawing: Drawing) -> Figure:
    """Of one action: behaviour, policy, their exact product and what was sampled."""
    figure, grid = _grid(results, drawing, width=3.8)
    styles: tuple[tuple[str, str, dict[str, Any]], ...] = (
        ("behaviour", "dataset", {"color": "#0072B2", "linestyle": ":"}),
        ("policy", "target policy", {"color": "#CC79A7", "linestyle": "--"}),
        ("target", "exact target", {"color": "black"}),
    )
    for where, axis in grid:
        x, y = results.curve("samples", where)
        if len(x):
            axis.fill_between(x, y.mean(axis=1), step="mid", color="#009E73", alpha=0.45, linewidth=0, label="samples")
        for column, label, style in styles:
            x, y = results.curve(column, where)
            if len(x):
                axis.plot(x, y.mean(axis=1), label=label, linewidth=1.4, **style)
        said = summary(results, "divergence", where)
        axis.set(xlabel="action", ylabel="density", title=_name(where) + (f"\nKL {said.mean:.3f}" if said else ""))
    return _with_legend(figure)


@dataclasses.dataclass(frozen=True)
class _Method:
    """A label of `hue` at one combination of `panels`."""

    where: Where  # labels of `panels`
    hue: str
    style: tuple[str, str]  # colour, by its label of `hue`, and kind of line, by its place

    @property
    def name(self) -> str:
        return ", ".join(filter(None, (_name(self.where), self.hue)))

    def labels(self, drawing: Drawing) -> Where:
        """Those of its rows."""
        return _at(self.where, drawing.hue, self.hue)


def _methods(results: Results, drawing: Drawing) -> list[_Method]:
    hues, kinds = _hues(results, drawing), ("-", "--", "-.", ":")
    places = enumerate(_places(results, drawing.panels))
    return [_Method(where, hue, (colour_of(hue, hues), kinds[i % len(kinds)])) for i, where in places for hue in hues]


@dataclasses.dataclass(frozen=True)
class _Tasks:
    """Scores [S] by method and task (a label of `x`), of the tasks that all methods have; `heading` says how many."""

    methods: Sequence[_Method]
    scores: Mapping[str, Mapping[str, np.ndarray]]
    heading: str

    @property
    def styles(self) -> dict[str, tuple[str, str]]:
        return {method.name: method.style for method in self.methods}


def _by_task(results: Results, drawing: Drawing) -> _Tasks:
    """Raises InputError where no task has scores of every method."""
    tasks, found = results.labels(drawing.x) if drawing.x else [""], dict[str, dict[str, np.ndarray]]()
    methods = _methods(results, drawing)
    for method in methods:
        spots = {task: _at(method.labels(drawing), drawing.x, task) for task in tasks}
        scores = {task: results.units(drawing.value, spot) for task, spot in spots.items()}
        found[method.name] = {task: units for task, units in scores.items() if len(units)}
    found = {name: scores for name, scores in found.items() if scores}
    common = [task for task in tasks if found and all(task in scores for scores in found.values())]
    check(bool(common), "figure", drawing.title, "a task of which every method has scores")
    left = [task for task in tasks if any(task in scores for scores in found.values()) and task not in common]
    counts = sorted({len(scores[task]) for scores in found.values() for task in common})
    seeds = " to ".join(map(str, dict.fromkeys((counts[0], counts[-1]))))
    size = f"{len(common)} task{'s' * (len(common) > 1)}, {seeds} seed{'s' * (counts[-1] > 1)} of each"
    without = f"; without {', '.join(left)}, which some lack" if left else ""
    kept = {name: {task: units[task] for task in common} for name, units in found.items()}
    return _Tasks([method for method in methods if method.name in found], kept, f"{drawing.title}\n{size}{without}")


def profile(results: Results, drawing: Drawing) -> Figure:
    """Share of seeds above each score, over tasks."""
    tasks = _by_task(results, drawing)
    values = np.concatenate([units for scores in tasks.scores.values() for units in scores.values()])
    margin = 0.05 * (np.ptp(values) or 1.0)
    thresholds = np.linspace(values.min() - margin, values.max() + margin, _THRESHOLDS)
    places = {_name(method.where): [m for m in tasks.methods if m.where == method.where] for method in tasks.methods}
    figure, axes = panels(len(places), width=5.2 if len(places) > 1 else 7.5, title=tasks.heading, sharey=True)
    for axis, (name, methods) in zip(axes, places.items(), strict=True):
        found = {m.hue or m.name: performance_profile(tasks.scores[m.name], thresholds) for m in methods}
        profile_lines(axis, found, unit=_label(results, drawing), styles={m.hue or m.name: (m.style[0], "-") for m in methods})
        axis.set_title(name)
    return _with_legend(figure)


def aggregates(results: Results, drawing: Drawing) -> Figure:
    """Mean, median, interquartile mean and (of scores) optimality gap over tasks."""
    tasks = _by_task(results, drawing)
    found = {name: aggregate(scores, gamma=_EXPERT) for name, scores in tasks.scores.items()}
    names = ("iqm", "median", "mean", *(("optimality_gap",) if drawing.value in results.scales else ()))
    return aggregates_figure(found, metrics=names, unit=_label(results, drawing), title=tasks.heading, styles=tasks.styles)


def improvement(results: Results, drawing: Drawing) -> Figure | None:
    """Chance that a seed of one method is above one of another, over tasks, for every two labels of `hue` at one place."""
    tasks = _by_task(results, drawing)
    two = [(x, y) for y, x in itertools.combinations(tasks.methods, 2) if x.where == y.where]
    pairs = {(x.name, y.name): probability_of_improvement(tasks.scores[x.name], tasks.scores[y.name]) for x, y in two}
    return improvement_figure(pairs, title=tasks.heading) if pairs else None


def regret(results: Results, drawing: Drawing) -> Figure | None:
    """What choosing by few online episodes costs, among all agents of a label of `hue`: their seeds, and other axes' labels."""
    found, methods = {}, _methods(results, drawing)
    for method in methods:
        table = results.candidates(drawing.value, method.labels(drawing))
        shortest = min((len(episodes) for episodes in table), default=0)
        if len(table) > 1 and shortest > 1:
            found[method.name] = policy_selection(np.array([episodes[:shortest] for episodes in table]), episodes=1)
    styles = {method.name: method.style for method in methods}
    return selection_figure(found, unit=_label(results, drawing), title=drawing.title, styles=styles) if found else None


DRAWINGS: dict[str, Callable[[Results, Drawing], Figure | None]] = {
    "lines": lines,
    "intervals": intervals,
    "steps": steps,
    "trajectories": trajectories,
    "profile": profile,
    "aggregates": aggregates,
    "improvement": improvement,
    "regret": regret,
    "densities": densities,
}


def checked(results: Results, drawing: Drawing) -> tuple[Figure | None, str]:
    """As `draw`, and why there is no figure. What goes wrong with one of them is no end of the others."""
    try:
        figure = draw(results, drawing)
    except InputError:
        figure = None
    except Exception as error:  # hours of results are not to be lost to a drawing
        return None, f"{type(error).__name__}: {error}"
    return figure, "" if figure else "no complete cells have what it shows"
