"""Cells that are trained as one program: those that differ in numeric settings alone, or in their source of data alone."""

import dataclasses
import json
from collections.abc import Sequence
from typing import get_args

from jaxpgd.errors import InputError
from jaxpgd.experiment.config import Arm, Config
from jaxpgd.experiment.studies.cell import Cell
from jaxpgd.experiment.studies.identity import settings_of, short_hash
from jaxpgd.experiment.sweep import COEFFICIENT, read_sweep, sweepable
from jaxpgd.options import get


def groups(cells: Sequence[Cell], *, joint: bool = False) -> list[tuple[Cell, ...]]:
    """The cells in order of their first, those together that one program can train.

    These are all of a full product of numeric values; with `joint` instead the cells that differ in their arm alone, where one
    at least is synthetic. Only cells of kind `returns` are trained; others are each their own. A cell that occurs again is left
    out.
    """
    found: dict[str, list[Cell]] = {}
    for cell in {cell.key: cell for cell in cells}.values():
        found.setdefault(_but_for_arms(cell) if joint else _structure(cell), []).append(cell)
    if joint:
        return [tuple(group) for group in found.values()]
    return [part for group in found.values() for part in _parts(tuple(group))]


def swept(cells: Sequence[Cell]) -> Config:
    """The run that trains all cells of a group: the first one's config, which sweeps over what differs."""
    config = cells[0].config
    if len(cells) == 1:
        return config
    words = []
    for name in _numbers(config):
        values = list(dict.fromkeys(_number(cell.config, name) for cell in cells))
        if len(values) > 1:
            words += [name, ",".join(map(repr, values))]
    return dataclasses.replace(config, sweep=tuple(words))


def joined(cells: Sequence[Cell]) -> Config:
    """The run that trains all cells of a group with different arms."""
    return dataclasses.replace(cells[0].config, arms=tuple(cell.config.arms[0] for cell in cells))


def setting_of(cell: Cell, names: Sequence[str]) -> dict[str, float]:
    """The values that a cell has of swept names."""
    return {name: _number(cell.config, name) for name in names}


def _parts(group: tuple[Cell, ...]) -> list[tuple[Cell, ...]]:
    """The group as one where a sweep has exactly its cells, else each cell alone."""
    alone: list[tuple[Cell, ...]] = [(cell,) for cell in group]
    if len(group) == 1:
        return alone
    config = swept(group)
    try:
        settings = read_sweep(config, config.arms[0]).settings
    except InputError:  # such as a coefficient that something else chooses
        return alone
    own = [setting_of(cell, list(settings[0])) for cell in group]
    complete = len(settings) == len(own) and all(setting in own for setting in settings)
    return [group] if complete else alone


def _structure(cell: Cell) -> str:
    """Equal for cells that differ in nothing but what a run may sweep over."""
    if cell.measure.kind != "returns" or cell.config.sweep:
        return cell.key
    values = json.loads(json.dumps(settings_of(cell.config)))
    for name in _numbers(cell.config):
        *sections, last = _path(cell.config, name).split(".")
        inner = values
        for section in sections:
            inner = inner[section]
        inner[last] = None
    return short_hash(values)


def _but_for_arms(cell: Cell) -> str:
    """Equal for cells that differ in nothing but their arm."""
    if cell.measure.kind != "returns":
        return cell.key
    values = settings_of(dataclasses.replace(cell.config, arms=get_args(Arm)))  # arms decide which settings count
    target = cell.target.config and settings_of(cell.target.config)
    return short_hash([values, dataclasses.asdict(cell.measure), cell.target.actor, target])


def _numbers(config: Config) -> list[str]:
    """What a sweep of this config may name."""
    return [name for name in sweepable(config) if name != COEFFICIENT or config.arms == ("guided",)]


def _path(config: Config, name: str) -> str:
    """The dotted name of the setting in the config."""
    return name if name == COEFFICIENT else f"agent.{config.agent.kind}.{name.partition('.')[2]}"


def _number(config: Config, name: str) -> float:
    return float(get(config, _path(config, name)))
