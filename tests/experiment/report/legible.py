"""Whether a figure can be read: what its texts say, and that they, the legend and the panels keep apart."""

import itertools
import re
from collections.abc import Iterator

from matplotlib.axis import Axis
from matplotlib.figure import Figure
from matplotlib.text import Text
from matplotlib.transforms import Bbox

from jaxpgd.experiment.studies.cell import COLUMNS, STEP_COLUMNS

_FIELDS = {c for found in (*COLUMNS.values(), *STEP_COLUMNS.values()) for c in found if "_" in c}
_MATH = re.compile(r"\$[^$]*\$")
_TOUCHING = 1.0  # pixels that two texts may share


def check_legible(figure: Figure) -> None:
    """Assert that a figure has words for every axis, and that nothing that can be read covers anything else."""
    figure.draw_without_rendering()
    texts = list(shown_texts(figure))
    for text in texts:
        words = _MATH.sub("", text.get_text())
        assert "_" not in words and words not in _FIELDS, f"the name of a field: {words!r}"
    _check_apart(figure, texts)
    panels = [axis for axis in figure.axes if axis.get_visible()]
    for axis in panels:
        across, down = axis.get_shared_y_axes().get_siblings(axis), axis.get_shared_x_axes().get_siblings(axis)
        assert any(a.get_ylabel() or not _numbers(a.yaxis) for a in across), "numbers without words at the y axis"
        assert any(a.get_xlabel() or not _numbers(a.xaxis) for a in down), "numbers without words at the x axis"
        assert axis.get_legend() is None, "a legend within a panel, where it may cover data"
        assert max(_spread(a.xaxis) for a in down) >= 1 and max(_spread(a.yaxis) for a in across) >= 1, "no ticks"
    for legend, axis in itertools.product(figure.legends, panels):
        assert not _common(legend.get_window_extent(), axis.get_window_extent()), "a legend over a panel"


def shown_texts(figure: Figure) -> Iterator[Text]:
    """Every text that is drawn, also within legends, and of ticks those within the limits of their axis."""
    axes = [a for axis in figure.axes if axis.get_visible() for a in (axis, *axis.child_axes)]
    of_ticks = {id(label) for axis in axes for side in (axis.xaxis, axis.yaxis) for label in _all_labels(side)}
    hidden = {id(t) for axis in figure.axes if not axis.get_visible() for t in axis.findobj(Text)}
    for text in figure.findobj(Text):
        if text.get_text() and text.get_visible() and id(text) not in of_ticks | hidden:
            yield text
    for axis in axes:
        for side in (axis.xaxis, axis.yaxis):
            yield from _tick_labels(side)


def _all_labels(side: Axis) -> Iterator[Text]:
    for tick in (*side.get_major_ticks(), *side.get_minor_ticks()):
        yield from (tick.label1, tick.label2)
    yield side.get_offset_text()


def _tick_labels(side: Axis) -> Iterator[Text]:
    low, high = sorted(side.get_view_interval())
    slack = 1e-9 * (high - low)
    for tick in (*side.get_major_ticks(), *side.get_minor_ticks()):
        if low - slack <= tick.get_loc() <= high + slack:
            yield from (label for label in (tick.label1, tick.label2) if label.get_visible() and label.get_text())
    if side.get_offset_text().get_text():
        yield side.get_offset_text()


def _numbers(side: Axis) -> bool:
    return any(label.get_text().lstrip("\u2212-")[:1].isdigit() for label in _tick_labels(side))


def _spread(side: Axis) -> int:
    return len({label.get_text() for label in _tick_labels(side)})


def _check_apart(figure: Figure, texts: list[Text]) -> None:
    boxes = [(text.get_text(), text.get_window_extent()) for text in texts]
    page = figure.bbox
    for text, box in boxes:
        inside = page.x0 - 1 <= box.x0 and box.x1 <= page.x1 + 1 and page.y0 - 1 <= box.y0 and box.y1 <= page.y1 + 1
        assert inside, f"cut off: {text!r}"
    for (one, here), (other, there) in itertools.combinations(boxes, 2):
        assert not _common(here, there), f"{one!r} over {other!r}"


def _common(one: Bbox, other: Bbox) -> bool:
    found = Bbox.intersection(one, other)
    return found is not None and min(found.width, found.height) > _TOUCHING
