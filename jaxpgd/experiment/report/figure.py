"""Figures before and after their panels are drawn: size, titles, labels, one legend below all panels, saving."""

import itertools
import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.font_manager import FontProperties
from matplotlib.textpath import text_to_path

from jaxpgd.experiment.report.style import STYLE
from jaxpgd.files import new_file

_DPI = 120
_TITLE, _LEGEND = 13.0, 10.0  # points
_LINE = 1.35 / 72  # inches of a line of text of one point
_HANDLE = 0.75  # inches of a legend's entry before and after its text
_MOST_COLUMNS = 4


def save(figure: Figure, path: str | Path) -> Path:
    """Write a PNG at 120 dpi; a reader never sees half of it."""
    with new_file(path) as stream:
        figure.savefig(stream, format="png", dpi=_DPI)
    return Path(path)


def panels(
    count: int, *, width: float = 5.0, height: float = 4.2, columns: int = 0, **options: Any
) -> tuple[Figure, list[Axes]]:
    """A figure of `count` panels, `width` x `height` inches each; `options` as of `subplots`.

    Rows have `columns` panels; 0: at most four, none much shorter than the others. `finish` makes room on top of that for what
    stands above and below the panels.
    """
    across = min(count, columns) if columns else -(-count // -(-count // _MOST_COLUMNS))
    down = -(-count // across)
    with rc_context(STYLE):
        figure = Figure(figsize=(width * across, height * down), layout="constrained")
        FigureCanvasAgg(figure)
        axes = list(figure.subplots(down, across, squeeze=False, **options).ravel())
    for spare in axes[count:]:
        spare.set_visible(False)
    for above in axes[count - across : count]:
        above.tick_params(labelbottom=True)  # also where panels share their x axis and there is none below
    return figure, axes[:count]


def finish(figure: Figure, title: str = "") -> Figure:
    """Break titles and labels that are too long for their panel, leave out repeated ones, add the title and the legend.

    The legend stands below the panels, where it covers no data, and has each label of any panel once. Returns the figure.
    """
    shown = [axis for axis in figure.axes if axis.get_visible()]
    _outer_labels(shown)
    for axis in shown:
        box = axis.get_position()
        width, height = box.width * figure.get_figwidth(), box.height * figure.get_figheight()
        for text, room in ((axis.title, width), (axis.xaxis.label, width), (axis.yaxis.label, height)):
            text.set_text(broken(text.get_text(), room, float(text.get_fontsize())))
    more = _legend(figure, shown)
    if title:
        heading = broken(title, figure.get_figwidth() - 0.2, _TITLE)
        figure.suptitle(heading, fontsize=_TITLE)
        more += _LINE * _TITLE * (heading.count("\n") + 1) + 0.1
    figure.set_figheight(figure.get_figheight() + more)
    return figure


def text_width(text: str, size: float) -> float:
    """Inches of one line of text in points of `size`."""
    return float(text_to_path.get_text_width_height_descent(text, FontProperties(size=size), False)[0]) / 72


def broken(text: str, width: float, size: float) -> str:
    """A text in lines that fit `width` inches, as few as can be and none of them much shorter than the others."""
    return "\n".join(_balanced(line, width, size) for line in text.splitlines())


def _balanced(line: str, width: float, size: float) -> str:
    if "$" in line or (long := text_width(line, size)) <= width:
        return line
    characters = max(8, int(len(line) * width / long))
    wrap = lambda at: textwrap.wrap(line, at, break_long_words=False, break_on_hyphens=False)
    fewest = len(wrap(characters))
    narrower = range(max(1, len(line) // fewest), characters)
    return "\n".join(wrap(next((at for at in narrower if len(wrap(at)) == fewest), characters)))


def _outer_labels(shown: Sequence[Axes]) -> None:
    """Keep a label once where neighbours in a row, or in a column, have the same."""
    places = {axis: axis.get_subplotspec() for axis in shown}
    spot = {axis: (place.rowspan.start, place.colspan.start) for axis, place in places.items() if place is not None}
    for (one, here), (other, there) in itertools.permutations(spot.items(), 2):
        if here[0] == there[0] and here[1] < there[1] and one.get_ylabel() == other.get_ylabel():
            other.yaxis.label.set_visible(False)
        if here[1] == there[1] and here[0] < there[0] and one.get_xlabel() == other.get_xlabel():
            one.xaxis.label.set_visible(False)


def _legend(figure: Figure, shown: Sequence[Axes]) -> float:
    """Add the legend; returns the inches that it takes."""
    found: dict[str, Any] = {}
    for axis in shown:
        handles, labels = axis.get_legend_handles_labels()
        found |= {label: handle for handle, label in zip(handles, labels, strict=True) if label not in found}
    if not found:
        return 0.0
    width = figure.get_figwidth() - 0.3
    labels = [broken(label, width - _HANDLE, _LEGEND) for label in found]
    columns = _legend_columns([max(text_width(line, _LEGEND) for line in label.splitlines()) for label in labels], width)
    figure.legend(
        list(found.values()), labels, loc="outside lower center", ncols=columns, fontsize=_LEGEND, frameon=False,
        columnspacing=1.2,
    )  # fmt: skip
    lines = max(label.count("\n") + 1 for label in labels)
    return -(-len(labels) // columns) * lines * _LINE * _LEGEND + 0.15


def _legend_columns(widths: Sequence[float], room: float) -> int:
    """Columns of as few rows as fit, for entries of these widths in inches, which fill one column after the other."""
    count = len(widths)
    for rows in range(1, count):
        columns = -(-count // rows)
        if sum(max(part) + _HANDLE for part in np.array_split(np.asarray(widths), columns)) <= room:
            return columns
    return 1
