"""A run directory to read: config, decisions, logs, results, checkpoints. Nothing here writes.

`RunView` is what commands on finished runs get. `ClaimedRun` (run.directory) is what writes: the same, and locked.
"""

import json
import os
from pathlib import Path
from typing import Any

import jax

from jaxpgd.errors import InputError
from jaxpgd.experiment.config import Config
from jaxpgd.experiment.config_files import load_config
from jaxpgd.experiment.run.checkpoints import CheckpointReader
from jaxpgd.experiment.run.lock import RunLock
from jaxpgd.experiment.run.logs import MetricsReader, numbers
from jaxpgd.experiment.run.resolved import BATCH_SIZE, COEFFICIENT, Resolved, effective, for_device, read_resolved


class RunView:
    """A run directory, read only."""

    def __init__(self, path: Path, config: Config):
        self._path, self._config = path, config
        self._resolved: Resolved = read_resolved(path)

    @property
    def path(self) -> Path:
        """The directory."""
        return self._path

    @property
    def config(self) -> Config:
        """What the run was asked for. It never changes; what the run decides by itself is in `resolved`."""
        return self._config

    @property
    def resolved(self) -> Resolved:
        """What the run has decided: setting, value, reason."""
        return self._resolved

    def effective(self, names: tuple[str, ...] = (BATCH_SIZE, COEFFICIENT)) -> Config:
        """The config with the decisions that hold on the device of this process."""
        return effective(self.config, for_device(self.resolved, jax.devices()[0].device_kind), names)

    @property
    def log(self) -> MetricsReader:
        """The metrics of its training stages."""
        return MetricsReader(self.path / "metrics.jsonl")

    def checkpoints(self, stage: str) -> CheckpointReader:
        """The checkpoints of a stage."""
        return CheckpointReader(self.path / "checkpoints" / stage)

    def is_done(self, stage: str) -> bool:
        """Whether a stage has been completed."""
        return (self.path / "stages" / f"{stage}.json").exists()

    def facts(self, stage: str) -> dict[str, Any]:
        """What a completed stage has left about itself: seconds, counts."""
        found: dict[str, Any] = numbers(json.loads((self.path / "stages" / f"{stage}.json").read_text(encoding="utf-8-sig")))
        return found

    def read_json(self, name: str) -> Any:
        """The content of a file such as `returns.json`; an empty dict where it does not exist."""
        path = self.path / name
        return numbers(json.loads(path.read_text(encoding="utf-8-sig"))) if path.exists() else {}

    def require(self, stage: str, command: str, hint: str = "") -> None:
        """Raise InputError unless `stage` is done; `command` is what does it."""
        if self.is_done(stage):
            return
        unfinished = f"run = {str(self.path)!r}: its stage {stage!r} is not finished{hint}"
        if holder := RunLock(self.path).held_elsewhere():
            raise InputError(f"{unfinished}, and another process (number {holder}) is writing there. Wait for it.")
        raise InputError(f"{unfinished}. Run `{command}` first.")


def open_run(path: str | os.PathLike[str]) -> RunView:
    """An existing run directory with its own config. Raises InputError where there is none."""
    directory = Path(path)
    if not (directory / "config.toml").exists():
        raise InputError(f"run = {str(path)!r}: expected a run directory made by `jaxpgd run` (it holds config.toml).")
    return RunView(directory, load_config(directory / "config.toml", unused="kept"))
