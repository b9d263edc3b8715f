"""Ticks whose labels do not collide: of logarithmic axes, of given numbers and of names."""

import math
from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import FixedLocator, FuncFormatter, Locator, LogLocator, MaxNLocator, NullFormatter, NullLocator

from jaxpgd.experiment.report.figure import broken, text_width

_MOST, _FEWEST = 7, 3  # labels of a logarithmic axis
_STEPS = ((1, 2, 5), (1, 3), (1,))  # of a decade, the densest first
_PLAIN = (1e-4, 1e5)  # numbers from here to there are written out
_SIZE = 11.0  # points
_GAP = 0.08  # inches between two labels


def log_axis(axis: Axes, which: Literal["x", "y"]) -> None:
    """Make an axis logarithmic, with three to seven labels wherever its limits are."""
    axis.set(**{f"{which}scale": "log"})
    side = axis.xaxis if which == "x" else axis.yaxis
    side.set_major_locator(LogTicks())
    side.set_major_formatter(FuncFormatter(lambda value, _: log_label(value)))
    side.set_minor_locator(LogLocator(subs=range(2, 10)))
    side.set_minor_formatter(NullFormatter())


class LogTicks(Locator):
    """Ticks of a logarithmic axis: 1, 2, 5 of each decade, fewer over many decades; round numbers within one."""

    def __call__(self) -> Any:
        """The ticks within the limits of the axis."""
        assert self.axis is not None
        return self.tick_values(*self.axis.get_view_interval())

    def nonsingular(self, v0: float, v1: float) -> tuple[float, float]:
        """The limits that an axis gets for these: of one without data a decade, as none below 0 can be drawn."""
        low, high = super().nonsingular(v0, v1)
        return (low, high) if 0 < min(low, high) and max(low, high) < math.inf else (1.0, 10.0)

    def tick_values(self, vmin: float, vmax: float) -> Any:
        """The ticks from `vmin` to `vmax`."""
        low, high = sorted((vmin, vmax))
        if not 0 < low < high < math.inf:
            return []
        decades = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
        sets = [[step * 10.0**k for k in decades for step in steps] for steps in _STEPS]
        sets += [[10.0**k for k in decades if k % stride == 0] for stride in range(2, len(decades) + 1)]
        inside = [[tick for tick in ticks if low <= tick <= high] for ticks in sets]
        found = next((ticks for ticks in inside if len(ticks) <= _MOST), [])
        if len(found) >= _FEWEST:
            return found
        linear = MaxNLocator(5, steps=[1, 2, 2.5, 5, 10]).tick_values(low, high)
        return [tick for tick in linear if low <= tick <= high]


def log_label(value: float) -> str:
    """A number as a tick's label: written out, or as a power of ten where it is very small or large."""
    if value <= 0 or _PLAIN[0] <= value < _PLAIN[1]:
        return f"{value:g}"
    power = math.floor(math.log10(value) + 1e-9)
    factor = f"{value / 10.0**power:.3g}"
    return f"$10^{{{power}}}$" if factor == "1" else f"${factor}\\times10^{{{power}}}$"


def number_ticks(axis: Axes, values: Sequence[float]) -> None:
    """Ticks of the x axis at these numbers; labels that would touch the one before are left out. Limits are set here."""
    numbers = sorted(set(values))
    if not numbers:
        return
    side, log = axis.xaxis, axis.get_xscale() == "log"
    scaled = np.log(numbers) if log else np.asarray(numbers, np.float64)
    margin = 0.05 * (np.ptp(scaled) or 1.0)
    limits = np.array([scaled[0] - margin, scaled[-1] + margin])
    axis.set_autoscalex_on(False)  # else matplotlib warns first that the data's own limits are one number
    axis.set_xlim(*(np.exp(limits) if log else limits))
    inches = _inches(axis) * (scaled - limits[0]) / np.ptp(limits)
    labels, end = [], -math.inf
    for value, at in zip(numbers, inches, strict=True):
        half = text_width(f"{value:g}", _SIZE) / 2
        labels.append(f"{value:g}" if at - half > end + _GAP else "")
        end = at + half if labels[-1] else end
    side.set_major_locator(FixedLocator(numbers))
    side.set_minor_locator(NullLocator())
    axis.set_xticks(numbers, labels)


def name_ticks(axis: Axes, names: Sequence[str], size: float = 10.0) -> None:
    """Ticks of the x axis at 0, 1, ... with names, in lines that fit beside each other; limits are set here."""
    axis.set_xlim(-0.6, len(names) - 0.4)
    each = _inches(axis) / (len(names) + 0.2) - _GAP
    axis.set_xticks(range(len(names)), [broken(name, each, size) for name in names], fontsize=size)


def width_of_names(names: Sequence[str], size: float = 10.0) -> float:
    """Inches of a panel in which `name_ticks` breaks names between their words only, and the longer ones twice."""
    lines = [line for name in names for line in name.splitlines()]
    words = max((text_width(word, size) for line in lines for word in line.split()), default=0.0)
    third = max((text_width(line, size) / 3 for line in lines), default=0.0)
    return (max(words, third, 0.75) + 1.5 * _GAP) * (len(names) + 0.2) / 0.8 + 0.4


def _inches(axis: Axes) -> float:
    """Width of a panel before the layout moves it: about what it has afterwards."""
    figure = axis.get_figure()
    assert figure is not None
    return 0.9 * float(axis.get_position().width * figure.get_figwidth())  # type: ignore[union-attr]
