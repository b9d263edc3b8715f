"""A run directory to write: created or opened for one run, locked by one process. Stages leave a marker when they are done.

`RunView` (run.view) is the same directory, read only.
"""

import json
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from jaxpgd.datasets.hashing import data_hash
from jaxpgd.errors import InputError, check
from jaxpgd.experiment.config import Config
from jaxpgd.experiment.config_files import load_config, to_toml
from jaxpgd.experiment.run.checkpoints import CheckpointStore
from jaxpgd.experiment.run.lock import RunLock
from jaxpgd.experiment.run.logs import MetricsLog, plain
from jaxpgd.experiment.run.resolved import RESOLVED, Decision, to_json
from jaxpgd.experiment.run.versions import versions
from jaxpgd.experiment.run.view import RunView
from jaxpgd.files import PARTIAL, write_text, writing
from jaxpgd.parallel import any_process, collectively, is_writer

# settings that may differ when a run is continued: they change no result, or are compared by what they come to
UNCOMPARED = ("out", "checkpoint_seconds", "keep_checkpoints", "wandb_project", "models_from", "preset", "sampler.batch_size",
              "health.lost_seeds", "health.skip_updates", "health.value_excess", "health.debug_nans",
              "evaluation.processes")  # fmt: skip


def write_atomic(path: Path, text: str) -> None:
    """Write a file so that readers see the old text or the new, never a part. Of several processes the first writes."""
    if is_writer():
        write_text(path, text)


def write_json(path: Path, values: Any) -> None:
    """Write values (arrays allowed) as JSON by `write_atomic`."""
    write_atomic(path, json.dumps(plain(values), indent=1, allow_nan=False))


def make_directory(out: Path) -> None:
    """Make what `--out` names. Raises InputError where it cannot be, or nothing can be written there."""
    try:
        out.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=out):  # a file system may refuse what the folder's permissions allow
            pass
    except OSError as error:
        raise InputError(f"--out = {str(out)!r}: expected a directory that can be written ({error.strerror}).") from error


class ClaimedRun(RunView):
    """A run directory that this process has locked: it writes results, checkpoints, logs and decisions there.

    A context manager, which lets others write when it ends. `claim` and `create_run` make it.
    """

    def __init__(self, path: Path, config: Config, log: MetricsLog | None = None):
        super().__init__(path, config)
        self.lock, self.claimed = _HELD.setdefault(path.resolve(), RunLock(path)), False
        self._log = log or metrics_log(config)

    def __enter__(self) -> "ClaimedRun":
        return self

    def __exit__(self, *error: object) -> None:
        """Others may write again."""
        if self.claimed:
            self.claimed = False
            self.lock.release()

    @property
    def log(self) -> MetricsLog:
        """The metrics of its training stages."""
        return self._log

    def checkpoints(self, stage: str) -> CheckpointStore:
        """The checkpoints of a stage."""
        return CheckpointStore(self.path / "checkpoints" / stage, self.config.keep_checkpoints)

    def decide(self, name: str, value: float, why: str, *, device: str = "") -> None:
        """Set what a setting comes to in this run, and why, in `resolved.json`.

        Of several processes all have to call it, with the same value; the first writes.
        """
        self._resolved = {**self._resolved, name: Decision(value, why, device)}
        write_atomic(self.path / RESOLVED, to_json(self._resolved))

    def figure(self, name: str) -> Path:
        """Where a figure goes."""
        with writing(self.path / "figures"):
            (self.path / "figures").mkdir(exist_ok=True)
        return self.path / "figures" / f"{name}.png"

    def finish(self, stage: str, facts: dict[str, Any]) -> None:
        """Mark a stage as done, with what is worth keeping about it (seconds, counts)."""
        self.write_json(f"stages/{stage}.json", facts)

    def finish_after_failure(self, stage: str, facts: dict[str, Any]) -> None:
        """`finish`; where the stage had failed before, with that failure, whose own file goes when the marker is written."""
        path = self.path / "failures" / f"{stage}.json"
        left = self.read_json(f"failures/{stage}.json")
        self.finish(stage, facts | ({"overcame": left["message"]} if left else {}))
        if is_writer():
            path.unlink(missing_ok=True)

    def write_json(self, name: str, values: Any) -> None:
        """Write values (arrays allowed) to `name`."""
        write_json(self.path / name, values)


_HELD: dict[Path, RunLock] = {}  # by directory: a process may open one again, as it does when a run is continued in Python


def metrics_log(config: Config) -> MetricsLog:
    """The log of a run that writes into `config.out`."""
    path = Path(config.out)
    return MetricsLog(path / "metrics.jsonl", config.wandb_project, path.name)


def claim(run: RunView) -> ClaimedRun:
    """The run, locked by this process until a `with` of it ends, or the process.

    Raises InputError where another process writes into it.
    """
    log = MetricsLog(run.path / "metrics.jsonl", run.config.wandb_project, run.path.name)
    return _locked(ClaimedRun(run.path, run.config, log))


def _locked(run: ClaimedRun) -> ClaimedRun:
    run.lock.take()
    run.claimed = True
    return run


def create_run(config: Config, *, resume: bool, log: MetricsLog | None = None) -> ClaimedRun:
    """Open `config.out` for a run: new, or an earlier one of the same config. `log` is one that has been started already.

    Raises InputError where the directory is not writable, holds something else or another run, or an unfinished run of this
    config and `resume` is not set. Of several processes the first makes it, and the others go on when it is there.
    """

    def create() -> ClaimedRun:
        return _create(config, resume, log) if is_writer() else ClaimedRun(Path(config.out), config, log)

    run = collectively("run directory", create)
    shared = (run.path / "config.toml").exists()
    check(not any_process(not shared), "out", config.out, "a directory that all processes share")
    return run if run.claimed else _locked(ClaimedRun(run.path, config, log))  # which reads what the first has written


def _create(config: Config, resume: bool, log: MetricsLog | None) -> ClaimedRun:
    path = Path(config.out)
    stored = path / "config.toml"
    _check_writable(path)
    there = list(path.iterdir()) if path.is_dir() else []
    if not stored.exists() and not all(_is_beginning(file.name) for file in there):
        raise InputError(f"out = {config.out!r}: expected a new or empty directory. Choose another with --out.")
    try:
        path.mkdir(parents=True, exist_ok=True)
        run = _locked(ClaimedRun(path, config, log))  # from here on nobody else writes
        with releasing(run):
            _begin(run, resume)
    except OSError as error:
        raise InputError(
            f"out = {config.out!r}: expected a directory that can be written ({error.strerror}). Choose another with --out."
        ) from error
    return run


def _is_beginning(name: str) -> bool:
    """Whether a run that was killed while its directory was made may have left this; config.toml is written last."""
    partial = name.startswith(("versions.json.", "config.toml.")) and name.endswith(PARTIAL)
    return partial or name in ("run.lock", "stages", "versions.json")


def _begin(run: ClaimedRun, resume: bool) -> None:
    """Check the run that is there, or write what a new one starts with."""
    path, config, stored = run.path, run.config, run.path / "config.toml"
    if not stored.exists():
        (path / "stages").mkdir(exist_ok=True)
        found = versions(config.matmul_precision) | {"data": data_hash(config.data.name)}
        write_atomic(path / "versions.json", json.dumps(found, indent=1))
        write_atomic(stored, to_toml(config))
        return
    _check_same(load_config(stored, unused="kept"), config, path)
    if not resume and not (path / "stages" / "report.json").exists():
        raise InputError(
            f"out = {config.out!r}: holds an unfinished run of this config. Add --resume to continue it, "
            "or choose another directory with --out."
        )


@contextmanager
def releasing(run: ClaimedRun) -> Iterator[None]:
    """Release the run where what follows raises."""
    try:
        yield
    except BaseException:
        run.__exit__()
        raise


def _check_writable(path: Path) -> None:
    nearest = next(p for p in (path, *path.absolute().parents) if os.path.lexists(p))
    if not (nearest.is_dir() and os.access(nearest, os.W_OK | os.X_OK)):
        raise InputError(f"out = {str(path)!r}: expected a directory that can be written. Choose another with --out.")


def _check_same(stored: Config, config: Config, path: Path) -> None:
    old, new = _flat(stored), _flat(config)
    for name in old:
        if old[name] != new[name] and name not in UNCOMPARED:
            raise InputError(
                f"out = {str(path)!r}: holds another run ({name} = {old[name]!r} there, {new[name]!r} here). "
                f"Choose another directory with --out, or continue that run with `jaxpgd run {path / 'config.toml'} --resume`."
            )


def _flat(config: Any, prefix: str = "") -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, value in vars(config).items():
        found |= _flat(value, f"{prefix}{name}.") if hasattr(value, "__dataclass_fields__") else {prefix + name: value}
    return found
