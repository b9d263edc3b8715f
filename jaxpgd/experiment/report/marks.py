"""What is drawn within one panel: lines with bands, points with bars, levels, seeds, paths in the plane."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from jaxpgd.experiment.report.style import GOAL, colour_of, line_of, marker_of
from jaxpgd.experiment.report.words import name_of
from jaxpgd.metrics.dynamics_error import steps_taken
from jaxpgd.types import Trajectory

Styles = Mapping[str, tuple[str, str]]  # colour and line by name, where they are not by the order of the names
_NEUTRAL = "0.3"
_PLANE = np.array([0.75, 0.55])  # least width of a plane by its height, and height by its width


def style_of(name: str, names: Sequence[str], styles: Styles | None = None) -> tuple[str, str]:
    """Colour and line of one of several names, as `styles` says or else by the order of `names`."""
    return (styles or {}).get(name) or (colour_of(name, names), line_of(name, names))


def banded_line(
    axis: Axes,
    x: Any,
    y: Any,
    low: Any,
    high: Any,
    name: str,
    names: Sequence[str],
    *,
    label: str | None = None,
    styles: Styles | None = None,
    markers: bool = False,
) -> None:
    """A line [K] of one of several names, with a band from `low` to `high` [K] where these are not None."""
    colour, line = style_of(name, names, styles)
    if low is not None:
        axis.fill_between(x, low, high, color=colour, alpha=0.2, linewidth=0)
    points: dict[str, Any] = {"marker": marker_of(name, names), "markersize": 4} if markers else {}
    text = name_of(name) if label is None else label
    axis.plot(x, y, color=colour, linestyle=line, linewidth=1.8, label=text or None, **points)


def barred_points(
    axis: Axes, x: Any, y: Any, low: Any, high: Any, name: str, names: Sequence[str], *, size: float = 6.0, **options: Any
) -> None:
    """Points [K] of one of several names with bars from `low` to `high`; none where these are NaN. `options` as of errorbar."""
    middle = np.asarray(y, np.float64)
    bars = np.nan_to_num(np.abs(np.stack([middle - np.asarray(low, np.float64), np.asarray(high, np.float64) - middle])))
    look: dict[str, Any] = {"color": colour_of(name, names), "linestyle": line_of(name, names),
                            "marker": marker_of(name, names), "label": name_of(name) or None}  # fmt: skip
    axis.errorbar(x, middle, bars, markersize=size, capsize=4, **(look | options))


def scattered_points(axis: Axes, x: Any, y: Any, name: str, names: Sequence[str]) -> None:
    """Points [K] of one of several names, without a line."""
    look: dict[str, Any] = {"color": colour_of(name, names), "marker": marker_of(name, names), "label": name_of(name) or None}
    axis.plot(x, y, linestyle="", markersize=6, alpha=0.7, **look)


def level(axis: Axes, value: float, low: float, high: float, name: str, names: Sequence[str]) -> None:
    """A level line of one of several names across the panel, with its interval as a band where it has one."""
    colour = colour_of(name, names)
    axis.axhline(value, color=colour, linestyle="--", label=name_of(name))
    if np.isfinite([low, high]).all():
        axis.axhspan(low, high, color=colour, alpha=0.15, linewidth=0)


def reference(axis: Axes, y: Any, label: str, x: Any = None) -> None:
    """What methods are held against: a dotted grey level, or line where there is `x`."""
    if x is None:
        axis.axhline(y, color="0.4", linestyle=":", linewidth=1.5, label=label)
    else:
        axis.plot(x, y, color="0.4", linestyle=":", linewidth=1.5, label=label)


def seed_dots(axis: Axes, position: float, values: np.ndarray, name: str, names: Sequence[str]) -> None:
    """The value of each seed [S] beside the point of its name."""
    axis.plot(np.full(len(values), position), values, "o", color=colour_of(name, names), alpha=0.5, markersize=4.5)


def neutral_entry(axis: Axes, label: str, **style: Any) -> None:
    """An entry of the legend for what all names have in common, such as the marker of a mean."""
    axis.plot([], [], color=_NEUTRAL, label=label, **({"linestyle": ""} | style))


def paths(trajectory: Trajectory, limit: int | None = None) -> list[np.ndarray]:
    """The observations of the first `limit` trajectories [N, T], each up to its terminal."""
    obs, taken = np.asarray(trajectory.obs)[:limit], steps_taken(trajectory)[:limit]
    if trajectory.last_obs is not None:  # valid up to there
        end = np.asarray(trajectory.last_obs)[:limit, None]
        valid = taken[:, -1:] & (np.asarray(trajectory.discount)[:limit, -1:] > 0)
        obs, taken = np.concatenate([obs, end], axis=1), np.concatenate([taken, valid], axis=1)
    return [o[t] for o, t in zip(obs, taken, strict=True)]


def path_lines(axis: Axes, plane: Iterable[np.ndarray], colour: str) -> None:
    """Paths [T, 2] in the plane, their starts as dots."""
    for path in plane:
        axis.plot(*path.T, color=colour, alpha=0.45, linewidth=1)
        axis.plot(*path[0], marker="o", color="0.25", markersize=2.5)


def goal_marks(axis: Axes, goals: Mapping[str, tuple[float, float]]) -> None:
    """Goals in the plane, each with a mark of its own."""
    for mark, (goal, position) in zip("*XPD", goals.items(), strict=False):
        axis.plot(*position, marker=mark, markersize=14, color=GOAL, markeredgecolor="white", linestyle="", label=goal)


def plane_limits(sets: Sequence[Sequence[np.ndarray]], points: Iterable[tuple[float, float]] = ()) -> np.ndarray:
    """Limits [2, 2] (low and high of each coordinate) that hold all paths and points, with a margin.

    The shorter side is widened to about half of the longer one, so that a panel of equal scales has room for its numbers.
    """
    states = np.concatenate([path for group in sets for path in group] + [np.asarray(p, np.float64)[None] for p in points])
    low, high = states.min(axis=0), states.max(axis=0)
    sides = 1.1 * np.where(high > low, high - low, 1.0)
    return _around((low + high) / 2, np.maximum(sides, sides[::-1] * _PLANE))


def equal_scales(figure: Figure, axes: Sequence[Axes], limits: np.ndarray) -> None:
    """Give the panels of a finished figure, which share both axes, equal scales: one coordinate shows more than its limits.

    Panels keep their boxes. Matplotlib's own aspect shrinks them after the layout, which then leaves titles no room.
    """
    figure.draw_without_rendering()  # boxes are known from here on
    box, sides = axes[0].get_window_extent(), np.ptp(limits, axis=1)
    shape = np.array([box.width, box.height])
    x, y = _around(limits.mean(axis=1), shape * (sides / shape).max())
    for axis in axes:
        axis.set(xlim=x, ylim=y, aspect="equal")


def _around(middle: np.ndarray, sides: np.ndarray) -> np.ndarray:
    return np.stack([middle - sides / 2, middle + sides / 2], axis=1)
