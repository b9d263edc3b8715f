"""Figures of a run. Each function returns a matplotlib Figure, free of pyplot's global state; `save` writes it."""

import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from jaxpgd.files import new_file
from jaxpgd.metrics.dynamics_error import steps_taken
from jaxpgd.metrics.statistics import Summary
from jaxpgd.types import Trajectory

# colours that stay apart for colour-blind readers (Okabe and Ito), one for each arm wherever it appears
COLOURS = {"real": "#0072B2", "unguided": "#E69F00", "guided": "#009E73"}
_MANY = ("#000000", "#999999", "#56B4E9", "#0072B2", "#009E73", "#D55E00", "#CC79A7", "#E69F00")
_OTHERS = ("#CC79A7", "#D55E00", "#56B4E9", "#000000", "#999999")
_STYLE: dict[Any, Any] = {"font.size": 11, "axes.titlesize": 12, "axes.spines.top": False, "axes.spines.right": False,
          "legend.frameon": False, "axes.grid": True, "grid.alpha": 0.25, "figure.dpi": 120}  # fmt: skip


def save(figure: Figure, path: str | Path) -> Path:
    """Write a PNG at 120 dpi; a reader never sees half of it."""
    with new_file(path) as stream:
        figure.savefig(stream, format="png", dpi=120)
    return Path(path)


_TITLE_CHARACTERS = 9.5  # of an inch


def _axes(
    columns: int, width: float, height: float, title: str = "", layout: Any = "constrained", **options: Any
) -> tuple[Figure, list[Axes]]:
    with rc_context(_STYLE):
        figure = Figure(figsize=(width, height), layout=layout)
        FigureCanvasAgg(figure)
        axes = list(figure.subplots(1, columns, squeeze=False, **options)[0])
    if title:
        figure.suptitle(_wrapped(title, figure))
    return figure, axes


def _wrapped(title: str, figure: Figure) -> str:
    """A title in lines that fit the width of its figure."""
    characters = max(20, int(figure.get_figwidth() * _TITLE_CHARACTERS))
    return "\n".join(_balanced(line, characters) for line in title.splitlines())


def _balanced(line: str, characters: int) -> str:
    """As few lines as fit, none of them much shorter than the others."""
    lines = textwrap.wrap(line, characters)
    narrower = (textwrap.wrap(line, width) for width in range(len(line) // max(len(lines), 1) + 1, characters))
    return "\n".join(next((found for found in narrower if len(found) == len(lines)), lines))


def panels(
    count: int, *, width: float = 5.0, height: float = 4.2, title: str = "", columns: int = 4, **options: Any
) -> tuple[Figure, list[Axes]]:
    """A figure of `count` panels in rows of at most `columns`, `width` x `height` inches each; `options` as of `subplots`."""
    across = min(count, columns)
    down = -(-count // across)
    with rc_context(_STYLE):
        figure = Figure(figsize=(width * across, height * down + 0.4 * bool(title)), layout="constrained")
        FigureCanvasAgg(figure)
        axes = list(figure.subplots(down, across, squeeze=False, **options).ravel())
    for spare in axes[count:]:
        spare.set_visible(False)
    if title:
        figure.suptitle(_wrapped(title, figure))
    return figure, axes[:count]


def colour_of(name: str, names: Sequence[str]) -> str:
    """The colour of one of several names in every figure: arms have their own, others one of a list in order."""
    return _colour(name, names)


def line_of(name: str, names: Sequence[str]) -> str:
    """The kind of line of one of several names: another one where colours repeat."""
    others = [n for n in names if n not in COLOURS]
    return "-" if name in COLOURS else ("-", "--", "-.")[others.index(name) // len(_OTHERS) % 3]


def path_lines(axis: Axes, trajectory: Trajectory, goals: Mapping[str, tuple[float, float]] | None = None) -> None:
    """Draw trajectories [N, T] by their first two observation entries, up to their terminals, with `goals` as marks."""
    for path in _paths(trajectory, len(trajectory.reward)):
        axis.plot(path[:, 0], path[:, 1], color="#0072B2", alpha=0.4, linewidth=1)
        axis.plot(path[0, 0], path[0, 1], marker="o", color="0.25", markersize=2.5)
    for mark, (goal, position) in zip("*XPD", (goals or {}).items(), strict=False):
        axis.plot(*position, marker=mark, markersize=14, color="#D55E00", markeredgecolor="white", linestyle="", label=goal)
    axis.set(xlabel="x", ylabel="y", aspect="equal")


def _colour(name: str, names: Sequence[str]) -> str:
    others = [n for n in names if n not in COLOURS]
    return COLOURS[name] if name in COLOURS else _OTHERS[others.index(name) % len(_OTHERS)]


def trajectories_figure(
    groups: Mapping[str, Trajectory],
    goals: Mapping[str, tuple[float, float]] | None = None,
    *,
    coordinates: tuple[int, int] | None = (0, 1),
    limit: int = 60,
    title: str = "Trajectories",
    labels: tuple[str, str] = ("x", "y"),
) -> Figure:
    """Trajectories [N, T] of each group in a panel of its own, up to their terminals; the first `limit` of each.

    `coordinates` are the two observation entries to draw; None draws the first two principal components of the
    observations of the first group (standardised), for spaces without a plane to look at. `goals` are marked in every panel.
    """
    paths = {name: _paths(t, limit) for name, t in groups.items()}
    if coordinates is None:
        project = _principal_plane(np.concatenate(next(iter(paths.values()))))
        labels = ("first principal component (real states)", "second principal component")
    else:
        project = lambda x: x[:, list(coordinates)]
    layout = "constrained" if coordinates is None else "compressed"  # equal aspect leaves gaps that only this one closes
    figure, axes = _axes(len(groups), 4 * len(groups), 4.6, title, layout, sharex=True, sharey=True)
    for axis, (name, states) in zip(axes, paths.items(), strict=True):
        for path in map(project, states):
            axis.plot(*path.T, color=_colour(name, list(groups)), alpha=0.45, linewidth=1)
            axis.plot(*path[0], marker="o", color="0.25", markersize=2.5)
        if len({len(path) for path in states}) == 1:
            axis.plot(*project(np.mean(states, axis=0)).T, color="black", linewidth=2.5, label="mean")
        for mark, (goal, position) in zip("*XPD", (goals or {}).items(), strict=False):
            axis.plot(*position, marker=mark, markersize=15, color="#D55E00", markeredgecolor="white", linestyle="", label=goal)
        axis.set(
            title=f"{name} ({len(states)} trajectories)", xlabel=labels[0], aspect="auto" if coordinates is None else "equal"
        )
    axes[0].set_ylabel(labels[1])
    if goals:
        axes[-1].legend(loc="best", fontsize=10)
    return figure


def _paths(trajectory: Trajectory, limit: int) -> list[np.ndarray]:
    obs, taken = np.asarray(trajectory.obs)[:limit], steps_taken(trajectory)[:limit]
    if trajectory.last_obs is not None:  # alive up to there
        end = np.asarray(trajectory.last_obs)[:limit, None]
        alive = taken[:, -1:] & (np.asarray(trajectory.discount)[:limit, -1:] > 0)
        obs, taken = np.concatenate([obs, end], axis=1), np.concatenate([taken, alive], axis=1)
    return [o[t] for o, t in zip(obs, taken, strict=True)]


def _principal_plane(states: np.ndarray) -> Any:
    mean, std = states.mean(axis=0), states.std(axis=0)
    std = np.where(std > 0, std, 1.0)
    _, _, directions = np.linalg.svd((states - mean) / std, full_matrices=False)
    return lambda x: (x - mean) / std @ directions[:2].T


def learning_curves(curves: Mapping[str, tuple[np.ndarray, np.ndarray]], *, unit: str = "return", title: str = "") -> Figure:
    """Evaluation against updates: name -> (updates [K], scores [K, S]). Line: mean over seeds; band: lowest to highest seed."""
    figure, (axis,) = _axes(1, 7, 4.2)
    for name, (x, y) in curves.items():
        y, colour = np.asarray(y, np.float64), _colour(name, list(curves))
        axis.fill_between(x, y.min(axis=1), y.max(axis=1), color=colour, alpha=0.2, linewidth=0)
        axis.plot(
            x,
            y.mean(axis=1),
            color=colour,
            label=f"{name} ({y.shape[1]} seed{'s' * (y.shape[1] > 1)})",
            marker="o",
            markersize=3,
        )
    default = f"Evaluation during training: {unit}\n(line: mean over seeds, band: lowest to highest seed)"
    axis.set(xlabel="agent updates", ylabel=f"{unit} per episode", title=title or default)
    axis.legend()
    return figure


def returns_figure(
    summaries: Mapping[str, Summary], scores: Mapping[str, np.ndarray] | None = None, *, unit: str = "return", title: str = ""
) -> Figure:
    """Mean and IQM of each arm with their bootstrap intervals; `scores` adds each seed's mean as a dot ([S] or [S, E])."""
    first = next(iter(summaries.values()))
    figure, (axis,) = _axes(1, max(5.0, 1.6 * len(summaries) + 2), 4.4)
    for i, (name, s) in enumerate(summaries.items()):
        colour = _colour(name, list(summaries))
        if scores is not None and name in scores:
            values = np.asarray(scores[name], np.float64)
            seeds = values if values.ndim == 1 else values.mean(axis=1)
            axis.plot(np.full(len(seeds), i - 0.28), seeds, "o", color=colour, alpha=0.5, markersize=5)
        for offset, marker, value, low, high in (
            (-0.08, "o", s.mean, s.mean_low, s.mean_high), (0.12, "s", s.iqm, s.iqm_low, s.iqm_high),
        ):  # fmt: skip
            spread = np.nan_to_num(np.abs(np.array([[value - low], [high - value]])))
            axis.errorbar(i + offset, value, spread, color=colour, marker=marker, markersize=8, capsize=4)
    axis.plot([], [], "o", color="0.3", label="mean")
    axis.plot([], [], "s", color="0.3", label="interquartile mean")
    if scores is not None:
        axis.plot([], [], "o", color="0.3", alpha=0.5, markersize=5, label="each seed")
    axis.set_xticks(range(len(summaries)), list(summaries))
    axis.set_xlim(-0.6, len(summaries) - 0.4)
    over = "no intervals: one score" if first.unit == "none" else f"{first.confidence:.0%} intervals over {first.unit}"
    axis.set(ylabel=f"{unit} per episode", title=title or f"Final {unit} ({over}, {first.seeds} seed{'s' * (first.seeds > 1)})")
    axis.legend(fontsize=10)
    return figure


def loss_curves(
    curves: Mapping[str, tuple[np.ndarray, np.ndarray]], *, title: str = "Denoiser loss", xlabel: str = "updates"
) -> Figure:
    """Losses against updates on a logarithmic axis where all are above 0: name -> (updates [K], loss [K])."""
    figure, (axis,) = _axes(1, 7, 4.2)
    for i, (name, (x, y)) in enumerate(curves.items()):
        axis.plot(x, y, color=[*COLOURS.values(), *_OTHERS][i % 8], label=name, linewidth=1.5)
    values = np.concatenate([np.ravel(y) for _, y in curves.values()])
    if values.size and np.nanmin(values) > 0:
        axis.set_yscale("log")
    axis.set(xlabel=xlabel, ylabel="loss", title=title)
    axis.legend()
    return figure


def sweep_figure(
    rows: Sequence[Mapping[str, float]], *, persistence: float | None = None, chosen: float | None = None
) -> Figure:
    """Effect of the guidance coefficient: action log-likelihood under the target policy, and dynamics error.

    Each row has `coefficient`, `log_likelihood`, `dynamics_error` and their standard errors (`..._se`, bars of two standard
    errors); the row with coefficient 0 is unguided and drawn as a level. `persistence` is the error of s' = s.
    """
    figure, axes = _axes(2, 10, 4.4, "Guidance coefficient: what it gains and what it costs (bars: two standard errors)")
    ordered = sorted(rows, key=lambda r: r["coefficient"])
    guided = [r for r in ordered if r["coefficient"] > 0]
    labels = (("log_likelihood", "log-likelihood (nats per action)", "Actions under the target policy"),
              ("dynamics_error", "one-step error (standardised RMS)", "Dynamics error"))  # fmt: skip
    for axis, (key, label, title) in zip(axes, labels, strict=True):
        x, y, bar = ([r[k] for r in guided] for k in ("coefficient", key, key + "_se"))
        axis.errorbar(x, y, 2 * np.nan_to_num(bar), color=COLOURS["guided"], marker="o", capsize=4, label="guided")
        for row in ordered[: len(ordered) - len(guided)]:
            axis.axhline(row[key], color=COLOURS["unguided"], linestyle="--", label="unguided")
            axis.axhspan(
                row[key] - 2 * row[key + "_se"], row[key] + 2 * row[key + "_se"], color=COLOURS["unguided"], alpha=0.15
            )
        if key == "dynamics_error" and persistence is not None:
            axis.axhline(persistence, color="0.4", linestyle=":", label="persistence (s' = s)")
        if chosen:
            axis.axvline(chosen, color="0.7", linewidth=6, alpha=0.35, zorder=0, label="this run")
        axis.set(xscale="log", xlabel="guidance coefficient", ylabel=label, title=title)
        axis.set_xticks(x, [f"{v:g}" for v in x], minor=False)
        axis.minorticks_off()
    axes[1].set_ylim(bottom=0)
    axes[1].legend(fontsize=10)
    return figure


def dynamics_by_step_figure(curves: Mapping[str, np.ndarray], persistence: np.ndarray | None = None) -> Figure:
    """Dynamics error [steps] of each group by step of the window, in standardised units, with persistence as reference."""
    figure, (axis,) = _axes(1, 7, 4.2)
    for name, error in curves.items():
        axis.plot(np.arange(1, len(error) + 1), error, color=_colour(name, list(curves)), label=name, linewidth=1.8)
    if persistence is not None:
        axis.plot(np.arange(1, len(persistence) + 1), persistence, color="0.4", linestyle=":", label="persistence (s' = s)")
    axis.set(xlabel="step of the trajectory", ylabel="one-step error (standardised RMS)", title="Dynamics error by step")
    axis.set_ylim(bottom=0)
    axis.legend()
    return figure


def rollout_comparison_figure(curves: Mapping[str, Mapping[str, Any]], *, title: str = "") -> Figure:
    """State error and distance of state distributions by step of the trajectory: one line for each method, with a legend.

    `curves` has the keys of `rollout_comparison.compare_rollouts` by method: `state_error` [T] with `state_error_se` (band: two
    standard errors) and `state_distance` [T]. A method without one of the two is left out of its panel, such as a second sample
    of the truth, which has a distance alone.
    """
    figure, axes = _axes(2, 10, 4.4, title or "Synthetic trajectories against true rollouts of the same policy")
    labels = (("state_error", "state error (standardised RMS)", "State error (bands: two standard errors)"),
              ("state_distance", "sliced Wasserstein-1 (standardised)", "Distance between the sets of states"))  # fmt: skip
    for axis, (key, label, panel) in zip(axes, labels, strict=True):
        for index, (name, curve) in enumerate(curves.items()):
            if key not in curve:
                continue
            y, colour = np.asarray(curve[key], np.float64), _MANY[index % len(_MANY)]
            style = ("-", "--", ":")[index // len(_MANY) % 3]
            axis.plot(np.arange(len(y)), y, color=colour, linestyle=style, label=name, linewidth=1.8)
            if key + "_se" in curve:
                bar = 2 * np.asarray(curve[key + "_se"], np.float64)
                axis.fill_between(np.arange(len(y)), y - bar, y + bar, color=colour, alpha=0.2, linewidth=0)
        axis.set(xlabel="step of the trajectory", ylabel=label, title=panel)
        axis.set_ylim(bottom=0)
        axis.legend(fontsize=10)
    return figure


def guidance_strength_figure(profile: Mapping[str, Any]) -> Figure:
    """Size of guidance and of the score over noise levels: `sigma`, `guidance_norm` and `score_norm`, each [K]."""
    figure, (axis,) = _axes(1, 7, 4.2)
    sigma = np.asarray(profile["sigma"], np.float64)
    for name, label, colour in (("score_norm", "score", "unguided"), ("guidance_norm", "guidance", "guided")):
        axis.plot(sigma, np.asarray(profile[name], np.float64), color=COLOURS[colour], marker="o", label=label)
    axis.set(xscale="log", yscale="log", xlabel="noise level", ylabel="root mean square per entry", title="Guidance and score")
    axis.legend()
    return figure


def frontier_figure(rows: Sequence[Mapping[str, Any]]) -> Figure:
    """Dynamics error against action log-likelihood: a line for each guidance over its coefficients, bars: the range over runs.

    Rows have `guidance`, `coefficient`, `log_likelihood`, `dynamics_error`, and both with `_low` and `_high`.
    """
    figure, (axis,) = _axes(1, 7.5, 4.6)
    kinds = list(dict.fromkeys(r["guidance"] for r in rows))
    for kind in kinds:
        chosen = sorted((r for r in rows if r["guidance"] == kind), key=lambda r: r["coefficient"])
        x, y = ([r[name] for r in chosen] for name in ("log_likelihood", "dynamics_error"))
        bars = [
            [[r[n] - r[n + "_low"] for r in chosen], [r[n + "_high"] - r[n] for r in chosen]]
            for n in ("log_likelihood", "dynamics_error")
        ]
        axis.errorbar(x, y, bars[1], bars[0], color=_colour(kind, kinds), marker="o", capsize=2, label=kind, linewidth=1.4)
        for r in chosen:
            if r["coefficient"] > 0:
                axis.annotate(f"{r['coefficient']:g}", (r["log_likelihood"], r["dynamics_error"]), fontsize=7, alpha=0.8)
    axis.set(
        xlabel="log-likelihood (nats per action)", ylabel="one-step error (standardised RMS)", yscale="log",
        title="What guidance gains and costs (numbers: coefficients)",
    )  # fmt: skip
    axis.legend(fontsize=10)
    return figure


def pareto_figure(rows: Sequence[Mapping[str, Any]], reference: Mapping[str, Any], measures: Sequence[str]) -> Figure:
    """Each measure against the price of a trajectory in forward passes, a line for each solver; dashed: the reference.

    Rows have `solver`, `forward_equivalents` and the measures; of rows of one solver and price the least is drawn.
    """
    shown = [name for name in measures if name in reference]
    figure, axes = _axes(len(shown), 4.6 * len(shown), 4.2, "What fewer evaluations cost")
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
                axis.plot(x, y, "o-", markersize=3.5, color=_MANY[kinds.index(kind)], label=kind)
        axis.axhline(reference[name], color="black", linestyle="--", linewidth=1)
        axis.set(xscale="log", yscale="log", xlabel="forward passes a trajectory", title=name.replace("_", " "))
    axes[0].legend(fontsize=8)
    return figure
