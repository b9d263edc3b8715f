"""Figures over methods, tasks and seeds. As in `plots`, each returns a Figure, and `figure.save` writes it."""

from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from jaxpgd.errors import check
from jaxpgd.experiment.report.figure import finish, panels
from jaxpgd.experiment.report.marks import Styles, banded_line, neutral_entry, style_of
from jaxpgd.experiment.report.ticks import log_axis
from jaxpgd.experiment.report.words import name_of
from jaxpgd.metrics.aggregate import Aggregate
from jaxpgd.metrics.comparison import Improvement, Profile
from jaxpgd.metrics.policy_selection import Selection

METRICS = {
    "iqm": "interquartile mean",
    "median": "median of tasks",
    "mean": "mean",
    "optimality_gap": "optimality gap",
}


def aggregates_figure(
    aggregates: Mapping[str, Aggregate],
    *,
    metrics: Sequence[str] = tuple(METRICS),
    unit: str = "normalised score",
    title: str = "",
    styles: Styles | None = None,
) -> Figure:
    """A row for each method and a panel for each metric: the estimate as a line, its interval as a bar (none where NaN)."""
    check(len(aggregates) > 0, "aggregates", dict(aggregates), "at least one method")
    check(len(metrics) > 0 and set(metrics) <= set(METRICS), "metrics", metrics, f"one or more of {list(METRICS)}")
    first, names = next(iter(aggregates.values())), list(aggregates)
    heading = title or f"Aggregates over {_size([a.runs for a in aggregates.values()])}\n{_over(first.unit, first.confidence)}"
    figure, axes = panels(len(metrics), width=3.1 + 1 / len(metrics), height=1.3 + 0.45 * len(names), sharey=True)
    for axis, metric in zip(axes, metrics, strict=True):
        for row, (name, one) in enumerate(aggregates.items()):
            estimate = getattr(one, metric)
            if np.isfinite(estimate.low):
                colour = style_of(name, names, styles)[0]
                axis.barh(row, estimate.high - estimate.low, 0.6, estimate.low, color=colour, alpha=0.55)
            axis.plot([estimate.value] * 2, [row - 0.3, row + 0.3], color="black", linewidth=2)
        better = f"below {first.gamma:g}; lower is better" if metric == "optimality_gap" else "higher is better"
        axis.set_title(METRICS[metric])
        axis.set_xlabel(f"{unit}\n({better})")
        axis.xaxis.set_major_locator(MaxNLocator(5))
        axis.use_sticky_edges = False
        axis.margins(x=0.08)
    axes[0].set_yticks(range(len(names)), [name_of(name) for name in names])
    axes[0].set_ylim(len(names) - 0.5, -0.5)
    return finish(figure, heading)


def profiles_figure(
    profiles: Mapping[str, Profile], *, unit: str = "normalised score", title: str = "", styles: Styles | None = None
) -> Figure:
    """Fraction of runs above each threshold: a curve for each method with its pointwise band."""
    check(len(profiles) > 0, "profiles", dict(profiles), "at least one method")
    first = next(iter(profiles.values()))
    figure, (axis,) = panels(1, width=7.5, height=4.6)
    profile_lines(axis, profiles, unit=unit, styles=styles)
    heading = f"Performance profiles over {_size([p.runs for p in profiles.values()])}\n"
    heading += _over(first.unit, first.confidence, "bands: pointwise")
    return finish(figure, title or heading)


def profile_lines(axis: Axes, profiles: Mapping[str, Profile], *, unit: str, styles: Styles | None = None) -> None:
    """The same within a panel."""
    for name, profile in profiles.items():
        order = np.argsort(profile.thresholds)
        x, y, low, high = (a[order] for a in (profile.thresholds, profile.fraction, profile.low, profile.high))
        banded_line(axis, x, y, low, high, name, list(profiles), styles=styles)
    axis.set(xlabel=f"threshold: {unit}", ylabel="fraction of runs above the threshold", ylim=(-0.02, 1.02))
    axis.xaxis.set_major_locator(MaxNLocator(5))


def improvement_figure(pairs: Mapping[tuple[str, str], Improvement], *, title: str = "") -> Figure:
    """P(X > Y) for each pair (X, Y) of methods with its interval, X named on the left and Y on the right, 0.5 marked."""
    check(len(pairs) > 0, "pairs", dict(pairs), "at least one pair of methods")
    first = next(iter(pairs.values()))
    figure, (axis,) = panels(1, width=7.5, height=1.5 + 0.45 * len(pairs))
    for row, one in enumerate(pairs.values()):
        estimate = one.probability
        if np.isfinite(estimate.low):
            axis.barh(row, estimate.high - estimate.low, 0.4, estimate.low, color="0.7")
        axis.plot(estimate.value, row, marker="D", color="black", markersize=5)
    axis.axvline(0.5, color="0.3", linestyle="--", linewidth=1)
    axis.set_yticks(range(len(pairs)), [name_of(x) for x, _ in pairs])
    axis.set(xlim=(-0.02, 1.02), ylim=(len(pairs) - 0.5, -0.5), xlabel="P(X > Y), ties counting one half")
    axis.set_ylabel("X", rotation=0, va="center", labelpad=12)
    opposite = axis.secondary_yaxis("right")
    opposite.set_yticks(range(len(pairs)), [name_of(y) for _, y in pairs])
    opposite.set_ylabel("Y", rotation=0, va="center", labelpad=12)
    opposite.tick_params(labelsize=11)
    runs = [{task: n[i] for task, n in one.runs.items()} for one in pairs.values() for i in (0, 1)]
    return finish(figure, title or f"Probability of improvement over {_size(runs)}\n{_over(first.unit, first.confidence)}")


def selection_figure(
    selections: Mapping[str, Selection],
    *,
    unit: str = "normalised score",
    title: str = "",
    styles: Styles | None = None,
) -> Figure:
    """Regret of the policy selected against the online episodes spent, and its expected return, with levels for the best.

    A line for each entry, of the colour and kind that `styles` says, else one of its own; bands are two standard errors of the
    Monte Carlo. Dotted: evaluations without noise.
    """
    check(len(selections) > 0, "selections", dict(selections), "at least one selection")
    names = list(selections)
    heading = title or "Policy selected by online evaluation (bands: two standard errors of the Monte Carlo)"
    figure, axes = panels(2, width=5.5, height=4.4)
    for name, one in selections.items():
        each = f"{one.episodes} episode{'s' * (one.episodes > 1)} each"
        colour, _ = style_of(name, names, styles)
        label, error = f"{name_of(name)} ({one.candidates} candidates, {each})", 2 * one.value_se
        for axis, y, exact in zip(axes, (one.regret, one.value), (one.best - one.noiseless, one.noiseless), strict=True):
            banded_line(axis, one.evaluations, y, y - error, y + error, name, names, label=label, styles=styles)
            axis.plot(one.evaluations, exact, color=colour, linestyle=":", linewidth=1.2)
        axes[1].axhline(one.best, color=colour, linewidth=0.8, alpha=0.6)
    neutral_entry(axes[0], "evaluations without noise", linestyle=":", linewidth=1.2)
    neutral_entry(axes[0], "best candidate (right)", linestyle="-", linewidth=0.8, alpha=0.6)
    axes[0].set(title="Regret against the best candidate", ylabel=f"regret: {unit}")
    axes[1].set(title="What the policy selected is worth", ylabel=f"true mean: {unit}")
    axes[0].set_ylim(bottom=0)
    for axis in axes:
        axis.set_xlabel("online evaluation episodes")
        log_axis(axis, "x")
    return finish(figure, heading)


def _size(runs: Sequence[Mapping[str, int]]) -> str:
    counts, tasks = sorted({n for one in runs for n in one.values()}), len(runs[0])
    seeds = f"{counts[0]} to {counts[-1]}" if len(counts) > 1 else f"{counts[0]}"
    return f"{tasks} task{'s' * (tasks > 1)}, {seeds} seed{'s' * (counts[-1] > 1)} each"


def _over(unit: str, confidence: float, bars: str = "bars:") -> str:
    return "no intervals: a task has a single seed" if unit == "none" else f"{bars} {confidence:.0%} intervals over {unit}"
