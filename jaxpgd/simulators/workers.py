"""Worker processes that make and step Gymnasium environments.

A worker is a new Python process that runs `stepping.py`. It does not import the user's main program and is not forked. It makes
environments from their pickled spec, with modules as they are on disk.
"""

import atexit
import dataclasses
import json
import multiprocessing.connection
import os
import pickle
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

from gymnasium.envs.registration import load_env_creator

from jaxpgd.dataset import DatasetInfo
from jaxpgd.errors import EnvironmentFailure
from jaxpgd.simulators import stepping
from jaxpgd.simulators.environments import environment_spec

_MARK = "JAXPGD_WORKER"  # set in workers, which start no workers themselves
_START = """import sys, json
sys.path[:] = json.loads(sys.argv[3])
from importlib.util import spec_from_file_location, module_from_spec
spec = spec_from_file_location("_jaxpgd_stepping", sys.argv[1])
sys.modules[spec.name] = module = module_from_spec(spec)
spec.loader.exec_module(module)
module.serve(int(sys.argv[2]))"""


@dataclasses.dataclass(frozen=True)
class Job:
    """What workers need to make an environment."""

    packed: bytes  # its pickled spec
    modules: tuple[str, ...]  # imported first
    setting: Any  # what workers must have started with: code, search path, working directory, variables


ALONE: set[bytes] = set()  # specs that only this process may step
_FILES: dict[Any, Any] = {}  # modification times of the files of an environment's code, as first seen


def job_of(info: DatasetInfo) -> Job | None:
    """The job of a dataset's environment. None if workers could not make the same environment."""
    if os.name != "posix" or not sys.executable or _MARK in os.environ:
        return None
    spec = environment_spec(info)
    entry, module = spec.entry_point, str(info.env_id).rpartition(":")[0]
    modules = (module,) if module else ()
    try:
        creator: Any = load_env_creator(entry) if isinstance(entry, str) else entry
        if creator.__module__.startswith("jaxpgd."):  # which imports JAX
            return None
        packed, names = pickle.dumps(spec), {creator.__module__, *modules}
        names |= {entry.split(":")[0]} if isinstance(entry, str) else set()
        files = _files({name.split(".")[0] for name in names})
        first = _FILES.setdefault(creator, {})
        known = packed not in ALONE and all(map(_importable, names)) and all(files.get(f) == at for f, at in first.items())
        first |= files if known else {}  # modules of the package imported since
    except Exception:  # this process raises a clear error for it
        return None
    paths = tuple(p for p in sys.path if isinstance(p, str))
    setting = (creator, paths, os.getcwd(), dict(os.environ))
    return Job(packed, modules, setting) if known else None


def _importable(name: str) -> bool:
    """Whether another process can import the same module without running the main program."""
    module, main = sys.modules[name], getattr(sys.modules["__main__"], "__file__", None)
    spec, file = module.__spec__, getattr(module, "__file__", None)
    again = main is not None and file is not None and Path(main).resolve() == Path(file).resolve()
    return name != "__main__" and spec is not None and not getattr(spec, "_initializing", False) and not again


def _files(packages: set[str]) -> dict[str, int]:
    """Modification times of the imported source files of packages."""
    found = [m for name, m in list(sys.modules.items()) if name.split(".")[0] in packages]
    files = {str(file) for module in found if (file := getattr(module, "__file__", None))}
    return {file: Path(file).stat().st_mtime_ns for file in files if Path(file).is_file()}


class Worker:
    """A process that steps environments. `begin` sends a request, `end` receives the answer."""

    def __init__(self) -> None:
        self.connection, theirs = multiprocessing.connection.Pipe()
        paths = json.dumps([p for p in sys.path if isinstance(p, str)])
        words = [sys.executable, "-P", "-c", _START, stepping.__file__, str(theirs.fileno()), paths]
        try:
            with theirs:
                self.process = subprocess.Popen(
                    words, pass_fds=[theirs.fileno()], stdin=subprocess.PIPE, env=os.environ | {_MARK: "1"},
                    start_new_session=True,  # only the parent receives Ctrl-C
                )  # fmt: skip
        except BaseException:
            self.connection.close()
            raise

    def begin(self, name: str, *arguments: Any) -> None:
        """Request `name(*arguments)`. If the worker has ended, `end` raises the error."""
        with suppress(OSError):
            self.connection.send_bytes(pickle.dumps((name, arguments), pickle.HIGHEST_PROTOCOL))

    def end(self) -> Any:
        """The result of the request. Raises EnvironmentFailure."""
        try:
            sound, found = pickle.loads(self.connection.recv_bytes())
        except (EOFError, OSError):
            with suppress(subprocess.TimeoutExpired):
                self.process.wait(1.0)  # its connection closes slightly earlier
            raise EnvironmentFailure(f"its process ended ({self.process.returncode})") from None
        if not sound:
            error = EnvironmentFailure(found[0])
            error.add_note(found[1])
            raise error
        return found

    def stop(self, patience: float) -> None:
        """End the process: it may exit within `patience` seconds and is then killed."""
        self.connection.close()
        try:
            with suppress(subprocess.TimeoutExpired):
                self.process.wait(patience)
        finally:
            self.process.kill()
            self.process.wait()
            if self.process.stdin:
                self.process.stdin.close()


@dataclasses.dataclass
class Team:
    """Workers with the same setting. They are kept for the next evaluation of the environment."""

    setting: Any
    workers: list[Worker] = dataclasses.field(default_factory=list)
    owner: int = dataclasses.field(default_factory=os.getpid)

    def stop(self, patience: float = 0.0) -> None:
        """End all workers, except those that belong to a process from which this one was forked."""
        workers, self.workers = self.workers if self.owner == os.getpid() else [], []
        deadline = time.monotonic() + patience
        try:
            for worker in workers:
                worker.connection.close()  # all begin to exit
            for worker in workers:
                worker.stop(max(deadline - time.monotonic(), 0.0))
        finally:
            for worker in workers:
                worker.process.kill()


_KEPT: list[Team] = []


def keep(team: Team) -> None:
    """Keep a team, replacing the one kept before."""
    stop_workers()
    _KEPT.append(team)


@atexit.register
def stop_workers() -> None:
    """End the kept workers."""
    while _KEPT:
        _KEPT.pop().stop()


def hire(job: Job, count: int) -> Team:
    """A team with at least `count` workers. Empty if no process can be started."""
    team = _KEPT.pop() if _KEPT else Team(job.setting)
    sound = team.owner == os.getpid() and all(w.process.poll() is None for w in team.workers)
    if not sound or team.setting != job.setting:
        team.stop()
        team = Team(job.setting)
    try:
        while len(team.workers) < count:
            team.workers.append(Worker())
    except OSError:
        team.stop()
    except BaseException:
        team.stop()
        raise
    return team
