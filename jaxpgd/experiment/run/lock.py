"""The lock of a run directory: one process writes, others are told which.

filelock is not used here. Its FileLock is exclusive only: a reader that asks who writes would have to take the lock, which
needs permission to write and turns away a writer, or a second reader, that comes at the same moment. Here readers ask with a
shared lock on a file that they open for reading. Where a file system has no locks, filelock falls back to a file that exists
while the lock is held, which a killed process leaves behind; here the run is then not locked.
"""

import errno
import os
import socket
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from jaxpgd.errors import InputError
from jaxpgd.parallel import is_writer

try:
    import fcntl
except ImportError:  # not on this system: runs are then not locked
    fcntl = None  # type: ignore[assignment]

_HELD_BY_ANOTHER = (errno.EWOULDBLOCK, errno.EACCES)
SECONDS = 5.0  # between two looks at a lock that is waited for


class HeldElsewhere(InputError):
    """Another process, the `holder`, has the lock of `folder`."""

    def __init__(self, folder: Path, holder: str) -> None:
        super().__init__(
            f"out = {str(folder)!r}: another process (number {holder}) is writing there. Wait for it, or choose another "
            "directory with --out."
        )
        self.folder, self.holder = folder, holder


class RunLock:
    """Held by the process that writes into a run directory. The system releases it when the process ends, however it ends.

    `run.lock` names the holder: its process number and its host. A shared file system decides by itself whether locks reach
    other hosts (NFS 4 and Lustre with `flock` do).
    """

    def __init__(self, path: Path):
        self.path = path / "run.lock"
        self.file: Any = None
        self.owner = self.holders = 0

    def take(self) -> None:
        """Take the lock. Raises HeldElsewhere where another process has it, InputError where its file cannot be written.

        A process may take it more than once; it is free when each has released it. Of several processes of one run the
        first takes it for all.
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
            _lock_exclusively(file)
        except OSError as error:
            holder = _holder(file)
            file.close()
            if error.errno not in _HELD_BY_ANOTHER:
                return  # a file system without locks
            raise HeldElsewhere(self.path.parent, holder) from error
        with suppress(OSError):  # a full disk: the lock is held all the same
            file.truncate(0)
        with suppress(OSError):
            # not through the file's buffer: what is left in it would fail once more when the file is closed
            os.write(file.fileno(), f"{os.getpid()} on {socket.gethostname()}".encode())
        self.file, self.owner, self.holders = file, os.getpid(), 1

    def held_elsewhere(self) -> str:
        """The number, and the host, of another process that holds it; empty where none does."""
        if fcntl is None or self._held() or not self.path.exists():
            return ""
        try:
            with self.path.open(encoding="utf-8") as file:
                try:
                    fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
                except OSError as error:
                    holder = _holder(file)
                    own = holder == f"{os.getpid()} on {socket.gethostname()}"
                    return holder if error.errno in _HELD_BY_ANOTHER and not own else ""
        except OSError:
            pass
        return ""

    def _held(self) -> bool:
        """Whether this very process has the lock of the file that is there now."""
        if self.file is None or self.owner != os.getpid() or not self.path.exists():
            return False
        return os.fstat(self.file.fileno()).st_ino == self.path.stat().st_ino

    def release(self) -> None:
        """Release it once."""
        self.holders = max(self.holders - 1, 0)
        if self.file is not None and self.holders == 0:
            self.file.close()
            self.file = None


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """One process at a time writes into a folder; others wait for it, and say so once."""
    lock, told = RunLock(folder), False
    while True:
        try:
            lock.take()
            break
        except HeldElsewhere as error:
            if not told:
                print(f"waiting for process {error.holder}, which is writing into {folder}", file=sys.stderr, flush=True)
            told = True
        time.sleep(SECONDS)
    try:
        yield
    finally:
        lock.release()


def _lock_exclusively(file: Any) -> None:
    """Raises OSError where another process holds it. Readers that ask who does hold it for a moment: they are waited for."""
    for _ in range(10):
        try:
            return fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno not in _HELD_BY_ANOTHER:
                raise
        time.sleep(0.01)
    return fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)


def _holder(file: Any) -> str:
    file.seek(0)
    return file.read().strip() or "unknown"
