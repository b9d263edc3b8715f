"""Figures of a run, each a matplotlib Figure free of pyplot's global state; `figure.save` writes it."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from jaxpgd.experiment.report.figure import finish, panels
from jaxpgd.experiment.report.marks import (
    banded_line,
    barred_points,
    equal_scales,
    goal_marks,
    level,
    neutral_entry,
    path_lines,
    paths,
    plane_limits,
    reference,
    seed_dots,
)
from jaxpgd.experiment.report.style import COLOURS, colour_of
from jaxpgd.experiment.report.ticks import log_axis, name_ticks, number_ticks, width_of_names
from jaxpgd.experiment.report.words import label_of, name_of
from jaxpgd.metrics.statistics import Summary
from jaxpgd.types import Trajectory

PERSISTENCE = "persistence (s' = s)"
_PANEL_WIDTH = 4.0  # inches of a panel of trajectories; its height follows from what it shows


def trajectories_figure(
    groups: Mapping[str, Trajectory],
    goals: Mapping[str, tuple[float, float]] | None = None,
    *,
    coordinates: tuple[int, int] | None = (0, 1),
    limit: int = 60,
    title: str = "Trajectories",
    labels: tuple[str, str] = ("x position", "y position"),
) -> Figure:
    """Trajectories [N, T] of each group in a panel of its own, up to their terminals; the first `limit` of each.

    `coordinates` are the two observation entries to draw; None draws the first two principal components of the
    observations of the first group (standardised), for spaces without a plane to look at. `goals` are marked in every panel.
    """
    found = {name: paths(t, limit) for name, t in groups.items()}
    if coordinates is None:
        project = _principal_plane(np.concatenate(next(iter(found.values()))))
        labels = ("first principal component (real states)", "second principal component (real states)")
    else:
        project = lambda x: x[:, list(coordinates)]
    plane = {name: [project(path) for path in states] for name, states in found.items()}
    limits = plane_limits(list(plane.values()), (goals or {}).values())
    ratio = 1.0 if coordinates is None else float(np.ptp(limits[1]) / np.ptp(limits[0]))
    height = _PANEL_WIDTH * ratio + 0.7
    figure, axes = panels(len(groups), width=_PANEL_WIDTH + 0.2, height=height, sharex=True, sharey=True)
    for axis, (name, states) in zip(axes, plane.items(), strict=True):
        path_lines(axis, states, colour_of(name, list(groups)))
        if len({len(path) for path in states}) == 1:
            axis.plot(*np.mean(states, axis=0).T, color="black", linewidth=2.5, label="mean")
        goal_marks(axis, goals or {})
        axis.set(title=f"{name_of(name)} ({len(states)} trajectories)", xlabel=labels[0], ylabel=labels[1])
        axis.set(xlim=limits[0], ylim=limits[1])
    neutral_entry(axes[-1], "first state", marker="o", markersize=2.5)
    finish(figure, title)
    if coordinates is not None:
        equal_scales(figure, axes, limits)
    return figure


def _principal_plane(states: np.ndarray) -> Any:
    mean, std = states.mean(axis=0), states.std(axis=0)
    std = np.where(std > 0, std, 1.0)
    _, _, directions = np.linalg.svd((states - mean) / std, full_matrices=False)
    return lambda x: (x - mean) / std @ directions[:2].T


def learning_curves(curves: Mapping[str, tuple[np.ndarray, np.ndarray]], *, unit: str = "return", title: str = "") -> Figure:
    """Evaluation against updates: name -> (updates [K], scores [K, S]). Line: mean over seeds; band: lowest to highest seed."""
    figure, (axis,) = panels(1, width=7)
    for name, (x, y) in curves.items():
        scores = np.asarray(y, np.float64)
        seeds = f"{name_of(name)} ({scores.shape[1]} seed{'s' * (scores.shape[1] > 1)})"
        banded_line(axis, x, scores.mean(axis=1), scores.min(axis=1), scores.max(axis=1), name, list(curves),
                    label=seeds, markers=True)  # fmt: skip
    axis.set(xlabel="agent updates", ylabel=f"{unit} per episode")
    default = f"Evaluation during training: {unit}\n(line: mean over seeds, band: lowest to highest seed)"
    return finish(figure, title or default)


def returns_figure(
    summaries: Mapping[str, Summary], scores: Mapping[str, np.ndarray] | None = None, *, unit: str = "return", title: str = ""
) -> Figure:
    """Mean and IQM of each arm with their bootstrap intervals; `scores` adds each seed's mean as a dot ([S] or [S, E])."""
    first, names = next(iter(summaries.values())), [name_of(name) for name in summaries]
    figure, (axis,) = panels(1, width=max(6.0, width_of_names(names, 11.0)), height=4.4)
    for i, (name, s) in enumerate(summaries.items()):
        if scores is not None and name in scores:
            values = np.asarray(scores[name], np.float64)
            seed_dots(axis, i - 0.28, values if values.ndim == 1 else values.mean(axis=1), name, list(summaries))
        for offset, marker, bounds in (
            (-0.08, "o", (s.mean, s.mean_low, s.mean_high)), (0.12, "s", (s.iqm, s.iqm_low, s.iqm_high)),
        ):  # fmt: skip
            value, low, high = ([bound] for bound in bounds)
            barred_points(axis, [i + offset], value, low, high, name, list(summaries), size=8, marker=marker, label=None)
    neutral_entry(axis, "mean", marker="o")
    neutral_entry(axis, "interquartile mean", marker="s")
    if scores is not None:
        neutral_entry(axis, "each seed", marker="o", alpha=0.5, markersize=5)
    name_ticks(axis, names, 11.0)
    over = "no intervals: one score" if first.unit == "none" else f"{first.confidence:.0%} intervals over {first.unit}"
    axis.set(ylabel=f"{unit} per episode")
    return finish(figure, title or f"Final {unit} ({over}, {first.seeds} seed{'s' * (first.seeds > 1)})")


def loss_curves(
    curves: Mapping[str, tuple[np.ndarray, np.ndarray]], *, title: str = "Denoiser loss", xlabel: str = "updates"
) -> Figure:
    """Losses against updates on a logarithmic axis where all are above 0: name -> (updates [K], loss [K])."""
    figure, (axis,) = panels(1, width=7)
    for name, (x, y) in curves.items():
        banded_line(axis, x, y, None, None, name, list(curves))
    values = np.concatenate([np.ravel(y) for _, y in curves.values()])
    if values.size and np.nanmin(values) > 0:
        log_axis(axis, "y")
    axis.set(xlabel=xlabel, ylabel="loss")
    return finish(figure, title)


def sweep_figure(
    rows: Sequence[Mapping[str, float]], *, persistence: float | None = None, chosen: float | None = None
) -> Figure:
    """Effect of the guidance coefficient: action log-likelihood under the target policy, and dynamics error.

    Each row has `coefficient`, `log_likelihood`, `dynamics_error` and their standard errors (`..._se`, bars of two standard
    errors); the row with coefficient 0 is unguided and drawn as a level. `persistence` is the error of s' = s.
    """
    figure, axes = panels(2, height=4.4)
    ordered, names = sorted(rows, key=lambda r: r["coefficient"]), ["unguided", "guided"]
    guided = [r for r in ordered if r["coefficient"] > 0]
    titles = {"log_likelihood": "Actions under the target policy", "dynamics_error": "Dynamics error"}
    for axis, (key, title) in zip(axes, titles.items(), strict=True):
        x, y, error = (np.array([r[k] for r in guided]) for k in ("coefficient", key, key + "_se"))
        axis.set_xscale("log")
        barred_points(axis, x, y, y - 2 * error, y + 2 * error, "guided", names, linestyle="-", marker="o")
        for row in ordered[: len(ordered) - len(guided)]:
            level(axis, row[key], row[key] - 2 * row[key + "_se"], row[key] + 2 * row[key + "_se"], "unguided", names)
        if key == "dynamics_error" and persistence is not None:
            reference(axis, persistence, PERSISTENCE)
        if chosen:
            axis.axvline(chosen, color="0.7", linewidth=6, alpha=0.35, zorder=0, label="this run")
        number_ticks(axis, x.tolist())
        axis.set(xlabel=label_of("coefficient"), ylabel=label_of(key), title=title)
    axes[1].set_ylim(bottom=0)
    return finish(figure, "Guidance coefficient: what it gains and what it costs (bars: two standard errors)")


def dynamics_by_step_figure(curves: Mapping[str, np.ndarray], persistence: np.ndarray | None = None) -> Figure:
    """Dynamics error [steps] of each group by step of the window, in standardised units, with persistence as reference."""
    figure, (axis,) = panels(1, width=7)
    for name, error in curves.items():
        banded_line(axis, np.arange(1, len(error) + 1), error, None, None, name, list(curves))
    if persistence is not None:
        reference(axis, persistence, PERSISTENCE, np.arange(1, len(persistence) + 1))
    axis.set(xlabel="step of the trajectory", ylabel=label_of("dynamics_error"))
    axis.set_ylim(bottom=0)
    return finish(figure, "Dynamics error by step")


def guidance_strength_figure(profile: Mapping[str, Any]) -> Figure:
    """Size of guidance and of the score over noise levels: `sigma`, `guidance_norm` and `score_norm`, each [K]."""
    figure, (axis,) = panels(1, width=7)
    sigma = np.asarray(profile["sigma"], np.float64)
    for name, label, arm, marker in (("score_norm", "score", "unguided", "o"), ("guidance_norm", "guidance", "guided", "s")):
        y = np.asarray(profile[name], np.float64)
        axis.plot(sigma, y, color=COLOURS[arm], marker=marker, markersize=5, label=label)
    log_axis(axis, "x")
    log_axis(axis, "y")
    axis.set(xlabel="noise level (standard deviations)", ylabel="root mean square per entry")
    return finish(figure, "Guidance and score")
