"""A run directory: resolved config, versions, metrics, checkpoints, results, figures. Stages leave a marker when done."""

import errno
import json
import os
import platform
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from importlib import metadata
from pathlib import Path
from typing import Any

import jax

from jaxpgd.datasets.hashing import data_hash
from jaxpgd.errors import InputError, check
from jaxpgd.experiment.config import Config
from jaxpgd.experiment.config_files import load_config, to_toml
from jaxpgd.experiment.precision import STATED, precision_of
from jaxpgd.experiment.run.checkpoints import CheckpointStore
from jaxpgd.experiment.run.logs import MetricsLog, numbers, plain
from jaxpgd.files import PARTIAL, write_text, writing
from jaxpgd.parallel import any_process, collectively, is_writer

try:
    import fcntl
except ImportError:  # not on this system: runs are then not locked
    fcntl = None  # type: ignore[assignment]

_PACKAGES = ("jaxpgd", "jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "numpy", "minari", "gymnasium", "mujoco")


# settings that may differ when a run is continued: they change no result, or are compared by what they come to
UNCOMPARED = ("out", "checkpoint_seconds", "keep_checkpoints", "wandb_project", "models_from", "preset", "sampler.batch_size",
              "health.lost_seeds", "health.skip_updates", "health.value_excess", "health.debug_nans",
              "evaluation.processes")  # fmt: skip


def write_atomic(path: Path, text: str) -> None:
    """Write a file so that readers see the old text or the new, never a part. Of several processes the first writes."""
    if is_writer():
        write_text(path, text)


def make_directory(out: Path) -> None:
    """Make what `--out` names. Raises InputError where it cannot be, or nothing can be written there."""
    try:
        out.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=out):  # a file system may refuse what the folder's permissions allow
            pass
    except OSError as error:
        raise InputError(f"--out = {str(out)!r}: expected a directory that can be written ({error.strerror}).") from error


def versions(*precisions: str) -> dict[str, str]:
    """Python, platform, device and package versions, the commit of the source; what settings of `matmul_precision` come to."""
    found = {"python": platform.python_version(), "platform": platform.platform(), "device": jax.devices()[0].device_kind}
    for package in _PACKAGES:
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            found[package] = "not installed"
    stated = {STATED: ", ".join(sorted({precision_of(each) for each in precisions}))} if precisions else {}
    return found | {"devices": str(len(jax.devices()))} | stated | {"source": _source()}


def _source() -> str:
    """The commit of the checkout that jaxpgd runs from, and how many of its files are changed; empty for an installed one."""
    here = Path(__file__).parent
    try:
        how: dict[str, Any] = {"capture_output": True, "encoding": "utf-8", "errors": "replace", "timeout": 10, "check": True}
        ask = lambda *words: str(subprocess.run(["git", "-C", str(here), *words], **how).stdout)
        if Path(ask("rev-parse", "--show-toplevel").strip()).resolve() != here.parents[1].resolve():
            return ""  # installed into some other project
        commit = ask("rev-parse", "HEAD").strip()
        changed = len(ask("status", "--porcelain", "--untracked-files=no").splitlines())
    except (OSError, subprocess.SubprocessError):
        return ""
    return commit + (f", {changed} files changed" if changed else "")


def _lock(file: Any) -> None:
    """Raises OSError where another process holds it; readers that look whether one does hold it for a moment."""
    for _ in range(10):
        try:
            return fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno not in (errno.EWOULDBLOCK, errno.EACCES):
                raise
        time.sleep(0.01)
    return fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)


class RunLock:
    """Held by the process that writes into a run directory; the system lets go of it when the process ends, however it ends."""

    def __init__(self, path: Path):
        self.path = path / "run.lock"
        self.file: Any = None
        self.owner = self.holders = 0

    def take(self) -> None:
        """Raises InputError where another process has it, or where its file cannot be written.

        Within a process it may be taken more than once; it is free when each has let go.
        """
        if fcntl is None or not is_writer():
            return
        if self._held():
            self.holders += 1
            return
        try:
            file = self.path.open("a+", encoding="utf-8")
        except OSError as error:
            raise InputError(
                f"run = {str(self.path.parent)!r}: expected a directory that can be written ({error.strerror})."
            ) from error
        try:
            _lock(file)
        except OSError as error:
            file.seek(0)
            holder = file.read().strip() or "unknown"
            file.close()
            if error.errno not in (errno.EWOULDBLOCK, errno.EACCES):
                return  # a file system without locks
            raise InputError(
                f"out = {str(self.path.parent)!r}: another process (number {holder}) is writing there. Wait for it, or choose "
                "another directory with --out."
            ) from error
        with suppress(OSError):  # a full disk: the lock is held all the same
            file.truncate(0)
        with suppress(OSError):
            os.write(file.fileno(), str(os.getpid()).encode())  # what is left in a buffer would fail once more at the end
        self.file, self.owner, self.holders = file, os.getpid(), 1

    def elsewhere(self) -> str:
        """The number of another process that has it; empty where none has."""
        if fcntl is None or self._held() or not self.path.exists():
            return ""
        try:
            with self.path.open(encoding="utf-8") as file:
                try:
                    fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
                except OSError as error:
                    holder = file.read().strip() or "unknown"
                    locked = error.errno in (errno.EWOULDBLOCK, errno.EACCES)
                    return holder if locked and holder != str(os.getpid()) else ""
        except OSError:
            pass
        return ""

    def _held(self) -> bool:
        """Whether this very process has the lock of the file that is there now."""
        if self.file is None or self.owner != os.getpid() or not self.path.exists():
            return False
        return os.fstat(self.file.fileno()).st_ino == self.path.stat().st_ino

    def release(self) -> None:
        """Let go."""
        self.holders = max(self.holders - 1, 0)
        if self.file is not None and self.holders == 0:
            self.file.close()
            self.file = None


class RunDirectory:
    """Paths and small files of one run."""

    def __init__(self, path: Path, config: Config):
        self.path, self.config = path, config
        self.lock, self.claimed = RunLock(path), False  # who claims a run may train in it
        self.log = MetricsLog(path / "metrics.jsonl", config.wandb_project, path.name)

    def __enter__(self) -> "RunDirectory":
        return self

    def __exit__(self, *error: object) -> None:
        """Others may write again."""
        if self.claimed:
            self.claimed = False
            self.lock.release()

    def checkpoints(self, stage: str) -> CheckpointStore:
        """The checkpoints of a stage."""
        return CheckpointStore(self.path / "checkpoints" / stage, self.config.keep_checkpoints)

    def figure(self, name: str) -> Path:
        """Where a figure goes."""
        with writing(self.path / "figures"):
            (self.path / "figures").mkdir(exist_ok=True)
        return self.path / "figures" / f"{name}.png"

    def is_done(self, stage: str) -> bool:
        """Whether a stage has been completed."""
        return (self.path / "stages" / f"{stage}.json").exists()

    def finish(self, stage: str, facts: dict[str, Any]) -> None:
        """Mark a stage as done, with what is worth keeping about it (seconds, counts)."""
        write_atomic(self.path / "stages" / f"{stage}.json", json.dumps(plain(facts), indent=1, allow_nan=False))

    def overcome(self, stage: str, facts: dict[str, Any]) -> None:
        """`finish`, with the failure that the stage has left behind, whose own file goes when that is written."""
        path = self.path / "failures" / f"{stage}.json"
        left = self.read_json(f"failures/{stage}.json")
        self.finish(stage, facts | ({"overcame": left["message"]} if left else {}))
        if is_writer():
            path.unlink(missing_ok=True)

    def facts(self, stage: str) -> dict[str, Any]:
        """What `finish` stored."""
        found: dict[str, Any] = numbers(json.loads((self.path / "stages" / f"{stage}.json").read_text(encoding="utf-8-sig")))
        return found

    def write_json(self, name: str, values: Any) -> None:
        """Write values (arrays allowed) to `name`."""
        write_atomic(self.path / name, json.dumps(plain(values), indent=1, allow_nan=False))

    def read_json(self, name: str) -> Any:
        """Read `name`; an empty dict where it does not exist."""
        path = self.path / name
        return numbers(json.loads(path.read_text(encoding="utf-8-sig"))) if path.exists() else {}

    def require(self, stage: str, command: str, hint: str = "") -> None:
        """Raise InputError unless `stage` is done; `command` is what does it."""
        if not self.is_done(stage) and (holder := self.lock.elsewhere()):
            raise InputError(
                f"run = {str(self.path)!r}: its stage {stage!r} is not finished{hint}, and another process (number {holder}) "
                "is writing there. Wait for it."
            )
        if not self.is_done(stage):
            raise InputError(f"run = {str(self.path)!r}: its stage {stage!r} is not finished{hint}. Run `{command}` first.")


def create_run(config: Config, *, resume: bool) -> RunDirectory:
    """Open `config.out` for a run: new, or an earlier one of the same config.

    Raises InputError where the directory is not writable, holds something else or another run, or an unfinished run of this
    config and `resume` is not set. Of several processes the first makes it, and the others go on when it is there.
    """
    run = collectively(
        "run directory", lambda: _create(config, resume) if is_writer() else RunDirectory(Path(config.out), config)
    )
    shared = (run.path / "config.toml").exists()
    check(not any_process(not shared), "out", config.out, "a directory that all processes share")
    return claim(run)


def _create(config: Config, resume: bool) -> RunDirectory:
    path = Path(config.out)
    stored = path / "config.toml"
    _check_writable(path)
    # A run that was killed while its directory was made has left some of these, and config.toml, written last, is missing.
    beginnings = {"run.lock", "stages", "versions.json", f"versions.json{PARTIAL}", f"config.toml{PARTIAL}"}
    if not stored.exists() and path.is_dir() and any(p.name not in beginnings for p in path.iterdir()):
        raise InputError(f"out = {config.out!r}: expected a new or empty directory. Choose another with --out.")
    try:
        path.mkdir(parents=True, exist_ok=True)
        run = claim(RunDirectory(path, config))  # from here on nobody else writes
        with releasing(run):
            _begin(run, resume)
    except OSError as error:
        raise InputError(
            f"out = {config.out!r}: expected a directory that can be written ({error.strerror}). Choose another with --out."
        ) from error
    return run


def _begin(run: RunDirectory, resume: bool) -> None:
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


_HELD: dict[Path, RunLock] = {}  # by directory: a process may open one again, as it does when a run is continued in Python


def claim(run: RunDirectory) -> RunDirectory:
    """The run, locked by this process until a `with` of it ends, or the process.

    Raises InputError where another process writes into it.
    """
    run.lock = _HELD.setdefault(run.path.resolve(), run.lock)
    if not run.claimed:
        run.lock.take()
        run.claimed = True
    return run


@contextmanager
def releasing(run: RunDirectory) -> Iterator[None]:
    """Let go of the run where what follows raises."""
    try:
        yield
    except BaseException:
        run.__exit__()
        raise


def _check_writable(path: Path) -> None:
    nearest = next(p for p in (path, *path.absolute().parents) if os.path.lexists(p))
    if not (nearest.is_dir() and os.access(nearest, os.W_OK | os.X_OK)):
        raise InputError(f"out = {str(path)!r}: expected a directory that can be written. Choose another with --out.")


def open_run(path: str | os.PathLike[str]) -> RunDirectory:
    """An existing run directory with its own config. Raises InputError where there is none."""
    directory = Path(path)
    if not (directory / "config.toml").exists():
        raise InputError(f"run = {str(path)!r}: expected a run directory made by `jaxpgd run` (it holds config.toml).")
    return RunDirectory(directory, load_config(directory / "config.toml", unused="kept"))


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
