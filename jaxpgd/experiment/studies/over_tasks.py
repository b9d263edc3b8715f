"""Figures of a study that take the seeds of several tasks together: profiles, aggregates, improvement, regret."""

import dataclasses
import itertools
from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.figure import Figure

from jaxpgd.errors import check
from jaxpgd.experiment.report.figure import finish, panels
from jaxpgd.experiment.report.study_plots import aggregates_figure, improvement_figure, profile_lines, selection_figure
from jaxpgd.experiment.report.style import colour_of
from jaxpgd.experiment.report.words import name_of
from jaxpgd.experiment.studies.places import Where, at, hues, name_of_place, places, value_label
from jaxpgd.experiment.studies.results import Results
from jaxpgd.experiment.studies.spec import Drawing
from jaxpgd.metrics.aggregate import aggregate
from jaxpgd.metrics.comparison import performance_profile, probability_of_improvement
from jaxpgd.metrics.policy_selection import policy_selection

_THRESHOLDS = 101
_EXPERT = 100.0  # normalised score to which the optimality gap is measured


@dataclasses.dataclass(frozen=True)
class Method:
    """A label of `hue` at one combination of `panels`."""

    where: Where  # labels of `panels`
    hue: str
    style: tuple[str, str]  # colour, by its label of `hue`, and line, by its place

    @property
    def name(self) -> str:
        return ", ".join(filter(None, (name_of_place(self.where), name_of(self.hue))))

    def labels(self, drawing: Drawing) -> Where:
        """Those of its rows."""
        return at(self.where, drawing.hue, self.hue)


def methods_of(results: Results, drawing: Drawing) -> list[Method]:
    """Every label of `hue` at every combination of `panels`: a colour for each label, a line for each combination."""
    labels, lines = hues(results, drawing), ("-", "--", "-.", ":")
    found = enumerate(places(results, drawing.panels))
    return [Method(where, hue, (colour_of(hue, labels), lines[i % len(lines)])) for i, where in found for hue in labels]


@dataclasses.dataclass(frozen=True)
class _Tasks:
    """Scores [S] by method and task (a label of `x`), of the tasks that all methods have; `heading` says how many."""

    methods: Sequence[Method]
    scores: Mapping[str, Mapping[str, np.ndarray]]
    heading: str

    @property
    def styles(self) -> dict[str, tuple[str, str]]:
        return {method.name: method.style for method in self.methods}


def _by_task(results: Results, drawing: Drawing) -> _Tasks:
    """Raises InputError where no task has scores of every method."""
    tasks, found = results.labels(drawing.x) if drawing.x else [""], dict[str, dict[str, np.ndarray]]()
    methods = methods_of(results, drawing)
    for method in methods:
        spots = {task: at(method.labels(drawing), drawing.x, task) for task in tasks}
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
    found = {name_of_place(method.where): [m for m in tasks.methods if m.where == method.where] for method in tasks.methods}
    figure, axes = panels(len(found), width=5.2 if len(found) > 1 else 7.5, sharey=True)
    for axis, (name, methods) in zip(axes, found.items(), strict=True):
        profiles = {m.hue or m.name: performance_profile(tasks.scores[m.name], thresholds) for m in methods}
        styles = {m.hue or m.name: (m.style[0], "-") for m in methods}
        profile_lines(axis, profiles, unit=value_label(results, drawing), styles=styles)
        axis.set_title(name)
    return finish(figure, tasks.heading)


def aggregates(results: Results, drawing: Drawing) -> Figure:
    """Mean, median, interquartile mean and (of scores) optimality gap over tasks."""
    tasks = _by_task(results, drawing)
    found = {name: aggregate(scores, gamma=_EXPERT) for name, scores in tasks.scores.items()}
    names = ("iqm", "median", "mean", *(("optimality_gap",) if drawing.value in results.scales else ()))
    unit = value_label(results, drawing)
    return aggregates_figure(found, metrics=names, unit=unit, title=tasks.heading, styles=tasks.styles)


def improvement(results: Results, drawing: Drawing) -> Figure | None:
    """Chance that a seed of one method is above one of another, over tasks, for every two labels of `hue` at one place."""
    tasks = _by_task(results, drawing)
    two = [(x, y) for y, x in itertools.combinations(tasks.methods, 2) if x.where == y.where]
    pairs = {(x.name, y.name): probability_of_improvement(tasks.scores[x.name], tasks.scores[y.name]) for x, y in two}
    return improvement_figure(pairs, title=tasks.heading) if pairs else None


def regret(results: Results, drawing: Drawing) -> Figure | None:
    """What choosing by few online episodes costs, among all agents of a label of `hue`: their seeds, and other axes' labels."""
    found, methods = {}, methods_of(results, drawing)
    for method in methods:
        table = results.candidates(drawing.value, method.labels(drawing))
        shortest = min((len(episodes) for episodes in table), default=0)
        if len(table) > 1 and shortest > 1:
            found[method.name] = policy_selection(np.array([episodes[:shortest] for episodes in table]), episodes=1)
    styles = {method.name: method.style for method in methods}
    return selection_figure(found, unit=value_label(results, drawing), title=drawing.title, styles=styles) if found else None
