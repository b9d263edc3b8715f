"""What a study shows of its rows: figures, tables and comparisons, as its TOML file says them."""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any, Literal, TypeVar

from jaxpgd.errors import check
from jaxpgd.experiment.config_files import apply_values
from jaxpgd.experiment.studies.cell import TOTAL_TIMES

METHOD = "method"  # an axis within cells of kind rollouts, whose labels are known once they are measured
UNIT = "seed"  # an axis of this name repeats a cell: its labels are never told apart in figures or tables


@dataclasses.dataclass(frozen=True)
class Drawing:
    """`[[figures]]`: one figure, with a panel for every combination of labels of the axes `panels`.

    - `lines`: `value` over the axis `x`, whose labels are numbers, a line for each label of the axis `hue`;
    - `intervals`: `value` of each label of `hue`, with its interval and its seeds;
    - `steps`: `value` of the rows by step, or by their column `x`, a line for each label of `hue`;
    - `power`: `value` against the column `x`, a point for each cell and seed, and a power law for each label of `hue`;
    - `trajectories`: the samples that cells kept;
    - `profile`: share of seeds above a score, over all labels of the axis `x` (the tasks);
    - `aggregates`: mean, median and interquartile mean over the tasks, a row for each label of `hue` and `panels`;
      `improvement`: the chance that one label of `hue` is above another, over the tasks. These three name every axis;
    - `regret`: of choosing among all agents (seeds, labels of other axes) of a label of `hue`, over online evaluations;
    - `densities`: the curves of cells of kind tilt.
    """

    kind: Literal[
        "lines", "intervals", "steps", "power", "trajectories", "profile", "aggregates", "improvement", "regret", "densities"
    ] = "intervals"
    name: str = ""  # of the file
    title: str = ""
    value: str = "return"  # column of results.csv or by_step.csv
    label: str = ""  # of its axis; empty: the column's name
    x: str = ""  # an axis; of `power` a column, of `steps` one of by_step.csv that grows: `total_training_seconds`
    hue: str = ""
    panels: tuple[str, ...] = ()
    flat: tuple[str, ...] = ()  # labels of `hue` that do not depend on `x`: drawn as level lines
    log: bool = False  # logarithmic axis of the value


@dataclasses.dataclass(frozen=True)
class Table:
    """`[[tables]]`: `value` with its interval, by the axes `rows` and `columns`. Axes that are not named are averaged over.

    With `power`, a column, entries are the exponents p of value = factor * power^p, fitted to all cells and seeds. With
    `at_equal`, `total_training_seconds` or `total_training_core_seconds`, they are the values where each of a row's `columns`
    has taken as long as the one that takes least in all: linear between steps, none before the first.
    """

    title: str = ""
    value: str = "return"
    rows: tuple[str, ...] = ()
    columns: str = ""
    statistic: Literal["mean", "iqm"] = "mean"
    power: str = ""
    at_equal: str = ""


@dataclasses.dataclass(frozen=True)
class Comparison:
    """`[[comparisons]]`: whether `value` differs between two labels of an axis, for every combination of the other axes.

    `pairs` are labels in turn: first, second, first, second. A sentence is written where the difference is significant after
    Holm's correction for all comparisons of the study.
    """

    axis: str = ""
    pairs: tuple[str, ...] = ()
    value: str = "return"
    label: str = ""  # of the value in sentences
    better: Literal["higher", "lower"] = "higher"
    paired: bool = False  # seeds of both sides share what varies most between them, such as their denoiser


POOLED = ("profile", "aggregates", "improvement")  # kinds of figures that take seeds of several tasks together
_WITHOUT_VALUE = ("trajectories", "densities")  # kinds of figures that show what there is

_NAMES = {Drawing: "figure", Table: "table", Comparison: "comparison"}

Spec = TypeVar("Spec", Drawing, Table, Comparison)


def is_number(text: str) -> bool:
    """Whether a label is a finite number."""
    try:
        return math.isfinite(float(text))
    except ValueError:
        return False


def read_specs(
    kind: type[Spec],
    raw: Sequence[Mapping[str, Any]],
    axes: Mapping[str, Sequence[str]],
    all_axes: Mapping[str, Sequence[str]],
    values: Mapping[str, Sequence[str]],
    name: str,
) -> tuple[Spec, ...]:
    """The specifications of one kind; `all_axes` are the axes with all labels, also those that are left out now.

    `values`: the columns that cells measure, of "rows" by episode and of "steps". Raises InputError for unknown keys, for
    axes, labels and values that the study does not have, and for lines over no numbers.
    """
    found = []
    for i, given in enumerate(raw):
        where = f"{name}: {_NAMES[kind]} {i + 1}"
        spec: Any = apply_values(kind(), dict(given), where)
        drawn: str = spec.kind if isinstance(spec, Drawing) else ""
        of_axes = ("hue", "columns", "axis", *(("x",) if drawn not in ("power", "steps") else ()))
        named: list[str] = [getattr(spec, field) for field in of_axes if getattr(spec, field, "")]
        for axis in (*named, *getattr(spec, "panels", ()), *getattr(spec, "rows", ())):
            check(axis in all_axes and axis != UNIT, where, axis, f"an axis: {', '.join(a for a in all_axes if a != UNIT)}")
        by_step = drawn == "steps" or bool(getattr(spec, "at_equal", ""))
        columns = values["steps" if by_step else "rows"]
        check(
            drawn in _WITHOUT_VALUE or spec.value in columns,
            f"{where}: value",
            spec.value,
            f"one of {', '.join(sorted(columns))}",
        )
        for field, column in _columns_named(spec).items():
            known = values["rows"] if field == "power" or drawn == "power" else set(TOTAL_TIMES) & set(values["steps"])
            check(column in known, f"{where}: {field}", column, f"one of {', '.join(sorted(known))}")
        if isinstance(spec, Table):
            check(spec.columns not in spec.rows, f"{where}: columns", spec.columns, "another axis than those of rows")
            check(not (spec.power and spec.at_equal), f"{where}: at_equal", spec.at_equal, "nothing beside power")
            if spec.at_equal:
                _check_named("rows", spec.rows, (spec.columns,), axes, where)
        if isinstance(spec, Comparison):
            check(len(spec.pairs) % 2 == 0, f"{where}: pairs", list(spec.pairs), "labels in turn, two of each pair")
        if isinstance(spec, Drawing) and spec.kind == "lines":
            check(all(map(is_number, axes.get(spec.x, ("",)))), f"{where}: x", spec.x, "an axis whose labels are numbers")
        if isinstance(spec, Drawing) and (spec.kind in POOLED or (spec.kind == "steps" and spec.x)):
            _check_named("panels", spec.panels, (spec.x, spec.hue), axes, where)
        for axis, field in (("axis", "pairs"), ("hue", "flat")):
            of = getattr(spec, axis, "")
            unknown = [label for label in getattr(spec, field, ()) if of != METHOD and label not in all_axes.get(of, ())]
            check(not unknown, f"{where}: {field}", unknown, f"labels of the axis {getattr(spec, axis, '')!r}")
        found.append(spec)
    return tuple(found)


def _columns_named(spec: Drawing | Table | Comparison) -> dict[str, str]:
    """The columns beside `value` that a specification names, by its field."""
    if isinstance(spec, Drawing):
        return {"x": spec.x} if spec.kind == "power" or (spec.kind == "steps" and spec.x) else {}
    fields = ("power", "at_equal") if isinstance(spec, Table) else ()
    return {field: column for field in fields if (column := getattr(spec, field))}


def _check_named(
    field: str, given: Sequence[str], others: Sequence[str], axes: Mapping[str, Sequence[str]], where: str
) -> None:
    """Raise InputError where the axes that the `field` gives, and the others, would average over an axis that is no seed."""
    left = [axis for axis, labels in axes.items() if axis not in (*given, *others, UNIT) and len(labels) > 1]
    check(not left, f"{where}: {field}", list(given), f"every axis named: {', '.join(left)} too")
