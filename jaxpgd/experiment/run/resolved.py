"""What a run decides by itself, in `resolved.json`: for each setting the value, and why. The config stays as it was given.

    {"sampler.batch_size": {"value": 512, "why": "the largest that fits ...", "device": "NVIDIA H100"}}

`effective(config, resolved)` is the config in which the decisions stand.
"""

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from jaxpgd.experiment.config import Config
from jaxpgd.experiment.run.logs import plain

RESOLVED = "resolved.json"
BATCH_SIZE, COEFFICIENT = "sampler.batch_size", "guidance.coefficient"


@dataclasses.dataclass(frozen=True)
class Decision:
    """The value of one setting. With a `device` it holds on devices of that kind alone."""

    value: float
    why: str
    device: str = ""


Resolved = Mapping[str, Decision]  # by the setting's dotted name


def read_resolved(path: Path) -> dict[str, Decision]:
    """The decisions of a run directory; none where the file is not there."""
    if not (path / RESOLVED).exists():
        return {}
    stored = json.loads((path / RESOLVED).read_text(encoding="utf-8-sig"))
    return {name: Decision(**decision) for name, decision in stored.items()}


def to_json(resolved: Resolved) -> str:
    """The text of `resolved.json`."""
    entries = {name: {k: v for k, v in vars(decision).items() if v != ""} for name, decision in resolved.items()}
    return json.dumps(plain(entries), indent=1, allow_nan=False)


def for_device(resolved: Resolved, device: str) -> dict[str, Decision]:
    """The decisions that hold on a kind of device."""
    return {name: decision for name, decision in resolved.items() if decision.device in ("", device)}


def effective(config: Config, resolved: Resolved, names: tuple[str, ...] = (BATCH_SIZE, COEFFICIENT)) -> Config:
    """The config in which the decisions named stand; a smaller batch that the config asks for stays.

    Training takes the decided batch size alone: coefficients are chosen again at each refresh, from the one that was given.
    """
    if BATCH_SIZE in names and BATCH_SIZE in resolved:
        decided = int(resolved[BATCH_SIZE].value)
        config = with_batch_size(config, min(config.sampler.batch_size or decided, decided))
    if COEFFICIENT in names and COEFFICIENT in resolved:
        config = with_coefficient(config, resolved[COEFFICIENT].value)
    return config


def with_batch_size(config: Config, size: int) -> Config:
    """The config with another number of trajectories that are sampled at once."""
    return _with(config, "sampler", batch_size=size)


def with_coefficient(config: Config, coefficient: float) -> Config:
    """The config with another coefficient of guidance."""
    return _with(config, "guidance", coefficient=coefficient)


def _with(config: Config, section: str, **values: Any) -> Config:
    return dataclasses.replace(config, **{section: dataclasses.replace(getattr(config, section), **values)})
