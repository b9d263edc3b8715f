"""The tidy tables of a study: `results.csv` by cell, seed and episode, `by_step.csv` by cell, seed and step."""

import csv
import dataclasses
import io
import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from jaxpgd.envs.builtin import is_builtin
from jaxpgd.envs.point2d import BEHAVIOUR_GOAL, TARGET_GOAL
from jaxpgd.experiment.run.directory import write_atomic
from jaxpgd.experiment.studies.cell import Cell
from jaxpgd.experiment.studies.measures import SCALE, SCORE, Found, MadeBy, Row
from jaxpgd.experiment.studies.plan import Study
from jaxpgd.experiment.studies.spec import METHOD, UNIT, Spec
from jaxpgd.types import Trajectory


class Results:
    """The rows of all cells that were measured, each with the cell's labels."""

    def __init__(self, study: Study) -> None:
        self.study = study
        self.rows: list[Row] = []
        self.steps: list[Row] = []
        self.samples: list[tuple[Cell, Trajectory]] = []
        self.cells: list[Cell] = []
        self.failed: dict[str, str] = {}  # cells that could not be measured, by their labels, and why
        self.versions: dict[str, MadeBy] = {}  # by cell: what measured it, and what trained the models that it used
        self.scales: list[str] = []  # the columns of scores, one of each family of datasets

    def add(self, cell: Cell, found: Found) -> None:
        """Append what a cell says. An axis called `seed` replaces that of the rows.

        Scores get the column of their family: those of different families (`data.scores.score_column`) never share one.
        """
        head = {"cell": cell.key, **cell.labels}
        self.rows += [{**_by_scale(row), **head} for row in found.rows]
        self.steps += [{**row, **head} for row in found.steps]
        self.scales += [s for s in dict.fromkeys(row.get(SCALE) for row in found.rows) if s and s not in self.scales]
        self.cells.append(cell)
        if found.versions:
            self.versions[cell.key] = found.versions
        if found.samples is not None:
            self.samples.append((cell, found.samples))

    def axes(self) -> list[str]:
        """The axes that tell rows apart, but for the one that repeats them."""
        return [axis for axis in (*self.study.axes, METHOD) if axis != UNIT and any(axis in row for row in self.rows)]

    def labels(self, axis: str) -> list[str]:
        """The labels of an axis that rows have, in the study's order."""
        order = self.study.axes.get(axis, ())
        seen = dict.fromkeys(str(row[axis]) for row in self.rows if axis in row)
        return [label for label in order if label in seen] or list(seen)

    def units(self, value: str, where: Mapping[str, str]) -> np.ndarray:
        """The value of every seed [S]: its mean over episodes, of the rows with these labels."""
        return np.array(list(self.by_seed(value, where).values()))

    def by_seed(self, value: str, where: Mapping[str, str]) -> dict[str, float]:
        """The same by the seed's label."""
        return {seed: float(np.mean(episodes)) for seed, episodes in self.table(value, where).items()}

    def table(self, value: str, where: Mapping[str, str]) -> dict[str, np.ndarray]:
        """The values [E] of every seed, by episode, of the rows with these labels.

        Where the remaining axes have several labels (several tasks), each seed has one value, its mean over the tasks: they are
        averaged over and are no repetitions. A seed that is missing in a task, or not finite there, is left out; so are all
        where a task has no rows because its cells failed. Scores of another family are left out, too.
        """
        axes, found = self.axes(), dict[tuple[str, ...], dict[str, list[float]]]()
        for row in matching(self.rows, where):
            if value in self.scales and value not in row:
                continue
            task = tuple(str(row.get(axis)) for axis in axes)
            number, episodes = row.get(value), found.setdefault(task, {}).setdefault(str(row[UNIT]), [])
            if number is not None and math.isfinite(number):
                episodes.append(float(number))
        if self._incomplete(where):
            return {}
        common = [seed for seed in next(iter(found.values()), {}) if all(seeds.get(seed) for seeds in found.values())]
        if len(found) == 1:
            return {seed: np.asarray(seeds[seed]) for seeds in found.values() for seed in common}
        return {seed: np.array([np.mean([np.mean(seeds[seed]) for seeds in found.values()])]) for seed in common}

    def pairs(self, x: str, y: str, where: Mapping[str, str]) -> tuple[np.ndarray, np.ndarray]:
        """Two values of every seed of every cell with these labels, each its mean over episodes: [K] and [K]."""
        found: dict[tuple[str, str], dict[str, list[float]]] = {}
        for row in matching(self.rows, where):
            for name in (x, y):
                if row.get(name) is not None and math.isfinite(row[name]):
                    found.setdefault((row["cell"], str(row[UNIT])), {}).setdefault(name, []).append(float(row[name]))
        both = [values for values in found.values() if values.get(x) and values.get(y)]
        return np.array([np.mean(values[x]) for values in both]), np.array([np.mean(values[y]) for values in both])

    def candidates(self, value: str, where: Mapping[str, str]) -> list[np.ndarray]:
        """The values [E] of every agent with these labels, by episode: each seed of each cell, a cell once."""
        found: dict[tuple[str, str], dict[Any, float]] = {}
        for row in matching(self.rows, where):
            if row.get(value) is not None and math.isfinite(row[value]):
                found.setdefault((row["cell"], str(row[UNIT])), {})[row["episode"]] = float(row[value])
        return [np.array(list(episodes.values())) for episodes in found.values()]

    def _incomplete(self, where: Mapping[str, str]) -> bool:
        """Whether some task with these labels has no measured cell at all."""
        named = {axis: label for axis, label in where.items() if axis in self.study.axes or axis == "cell"}
        task = lambda cell: tuple(label for axis, label in cell.labels.items() if axis != UNIT)
        has = lambda cell: {"cell": cell.key, **cell.labels}
        inside = lambda cells: {task(c) for c in cells if all(has(c)[axis] == label for axis, label in named.items())}
        return inside(self.study.cells) != inside(self.cells)

    def curve(self, value: str, where: Mapping[str, str]) -> tuple[np.ndarray, np.ndarray]:
        """Steps [K] and the value of every seed at each [K, S] (NaN where a seed has none)."""
        steps, curve = self.curves((value,), where)
        return steps, curve

    def curves(self, values: Sequence[str], where: Mapping[str, str]) -> tuple[np.ndarray, ...]:
        """Steps [K] and several values of every seed at each, [K, S] each, the seeds in the same order.

        Steps and seeds are those that have the last of the values.
        """
        rows = [row for row in matching(self.steps, where) if row.get(values[-1]) is not None]
        found = {(float(row["step"]), (row["cell"], row[UNIT])): row for row in rows}
        steps, units = sorted({step for step, _ in found}), list(dict.fromkeys(unit for _, unit in found))
        at = lambda step, unit, name: np.nan if (x := found.get((step, unit), {}).get(name)) is None else float(x)
        of = lambda name: np.array([[at(step, unit, name) for unit in units] for step in steps])
        return np.array(steps), *(of(name).reshape(len(steps), len(units)) for name in values)

    def lost(self) -> dict[str, list[str]]:
        """Seeds whose training did not end with finite numbers, by the label of their cell."""
        found: dict[str, list[str]] = {}
        for cell in (cell for cell in self.cells if cell.measure.kind == "returns"):
            for row in matching(self.rows, {"cell": cell.key}):
                if row["return"] is None or not math.isfinite(row["return"]):
                    found.setdefault(cell.label, []).append(str(row[UNIT]))
        return {label: list(dict.fromkeys(seeds)) for label, seeds in found.items()}

    def goals(self, cell: Cell) -> dict[str, tuple[float, float]]:
        """Points to mark among a cell's trajectories: those of the built-in environment."""
        if not is_builtin(cell.config.data.name):
            return {}
        return {"dataset's goal": BEHAVIOUR_GOAL, "target policy's goal": TARGET_GOAL}

    def write(self, folder: Path) -> None:
        """Write both tables; one without rows is removed where an earlier study of this name left it."""
        for name, rows in (("results.csv", self.rows), ("by_step.csv", self.steps)):
            if rows:
                write_atomic(folder / name, to_csv(rows, first=("cell", *self.axes(), UNIT, "episode", "step")))
            else:
                (folder / name).unlink(missing_ok=True)


def _by_scale(row: Row) -> Row:
    """A row whose score stands under the name of its scale."""
    kept = {name: value for name, value in row.items() if name not in (SCORE, SCALE)}
    return kept | ({row[SCALE]: row[SCORE]} if row.get(SCALE) else {})


def by_scale(results: Results, specs: Sequence[Spec]) -> list[Spec]:
    """The specifications, those of the value `score` once for each family of scores."""
    found: list[Spec] = []
    for spec in specs:
        names = results.scales if spec.value == SCORE else [spec.value]
        found += [dataclasses.replace(spec, value=name) for name in names]
    return found


def matching(rows: Iterable[Row], where: Mapping[str, str]) -> Iterable[Row]:
    """The rows with these labels."""
    return (row for row in rows if all(str(row.get(axis)) == label for axis, label in where.items()))


def to_csv(rows: Sequence[Row], *, first: Sequence[str]) -> str:
    """Rows as CSV text, columns in order of `first`, then of appearance; missing values empty."""
    names = dict.fromkeys(name for row in rows for name in row)
    columns = [name for name in first if name in names] + [name for name in names if name not in first]
    text = io.StringIO()
    writer = csv.DictWriter(text, columns, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()
