"""Colours, lines and markers: an arm or guidance has one colour in every figure, its variants differ in line and marker."""

from collections.abc import Mapping, Sequence
from typing import Any

from jaxpgd.experiment.report.words import name_of

# Colours that stay apart for colour-blind readers (Okabe and Ito 2008, "Color Universal Design").
_PALETTE = ("#56B4E9", "#000000", "#555555", "#CC79A7", "#D55E00", "#009E73", "#E69F00", "#0072B2")
COLOURS: Mapping[str, str] = {
    "real": "#0072B2", "dataset": "#0072B2", "unguided": "#E69F00", "guided": "#009E73", "world model": "#D55E00",
    "DyDiff anchored": "#000000", "DyDiff given innovations": "#56B4E9", "DyDiff": "#CC79A7",  # the first that begins a name
    "published": "#56B4E9", "reconstruction": "#000000", "moment": "#CC79A7", "SMC": "#D55E00",
}  # fmt: skip
_LINES, _MARKERS = ("-", "--", "-.", ":"), "osD^vP"
GOAL = "#D55E00"
STYLE: dict[Any, Any] = {"font.size": 11, "axes.titlesize": 12, "axes.spines.top": False, "axes.spines.right": False,
         "axes.grid": True, "grid.alpha": 0.25, "figure.dpi": 120}  # fmt: skip


def arm_of(name: str) -> str:
    """The arm, or guidance, that a name is, or is a variant of ("guided, 0.3", "guided diffusion"); empty for other names."""
    words = name_of(name)
    found = (arm for arm in COLOURS if words == arm or words.startswith((f"{arm},", f"{arm} ")))
    return next(found, "")


def colour_of(name: str, names: Sequence[str]) -> str:
    """The colour of one of several names: that of its arm, else in order one that no arm among `names` has."""
    if arm := arm_of(name):
        return COLOURS[arm]
    palette = _free(names)
    return palette[_place(name, names) % len(palette)]


def line_of(name: str, names: Sequence[str]) -> str:
    """The line of one of several names: another one where colours repeat."""
    place = _place(name, names)
    return _LINES[(place if arm_of(name) else place // len(_free(names))) % len(_LINES)]


def marker_of(name: str, names: Sequence[str]) -> str:
    """The marker of one of several names, by its place among them."""
    return _MARKERS[list(names).index(name) % len(_MARKERS)]


def _free(names: Sequence[str]) -> list[str]:
    """The colours of names that are no arms."""
    taken = {COLOURS[arm] for name in names if (arm := arm_of(name))}
    return [colour for colour in _PALETTE if colour not in taken]


def _place(name: str, names: Sequence[str]) -> int:
    """The place of a name among those of its arm, or among those of none."""
    return [other for other in names if arm_of(other) == arm_of(name)].index(name)
