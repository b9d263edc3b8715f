"""Atomic writes: readers see a complete file, synced to disk, or none. Errors name the path."""

import errno
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from jaxpgd.errors import StorageError

PARTIAL = ".partial"  # suffix of a file that is not complete
_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
_REFUSED = {errno.EROFS, errno.EACCES, errno.EPERM, errno.EIO, errno.ESTALE}
_SAID = ("No space left on device", "Disk quota exceeded", "ENOSPC", "RESOURCE_EXHAUSTED: Error writing")


@contextmanager
def writing(path: str | Path) -> Iterator[None]:
    """A context that raises StorageError naming `path` if the file system is full or refuses to write."""
    try:
        yield
    except Exception as error:  # TensorStore reports it in the text of a ValueError
        number = error.errno if isinstance(error, OSError) else None
        full = number in _FULL or any(word in str(error) for word in _SAID)
        if not full and number not in _REFUSED:
            raise
        reason = "no space left on its disk" if full else os.strerror(number or 0)
        advice = f"{'Free some' if full else 'Make it writable'}, then give the command again (`run` with --resume)."
        raise StorageError(f"{path}: cannot be written, {reason}. What was there before is as it was. {advice}") from error


@contextmanager
def new_file(path: str | Path, mode: str = "wb") -> Iterator[IO[Any]]:
    """A stream that replaces the content of `path` once everything is written and synced. Readers see the old content before.

    Several processes may write one path: the last to end replaces it. Raises StorageError if that fails. A failed attempt
    leaves nothing behind.
    """
    path = Path(path)
    partial = path.with_name(f"{path.name}.{os.getpid()}{PARTIAL}")
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            with partial.open(mode, encoding=None if "b" in mode else "utf-8") as stream:
                yield stream
                stream.flush()
                os.fsync(stream.fileno())
            partial.replace(path)
        except BaseException:
            partial.unlink(missing_ok=True)
            raise
        sync(path.parent)


def write_text(path: str | Path, text: str) -> None:
    """Replace the content of a file atomically. Raises StorageError."""
    with new_file(path, "w") as stream:
        stream.write(text)


def sync(path: Path) -> None:
    """Sync a file, or the entries of a directory, to disk. Does nothing on file systems that do not support it."""
    try:
        number = os.open(path, os.O_RDONLY)
    except OSError:
        return
    try:
        os.fsync(number)
    except OSError as error:
        if error.errno in _FULL | {errno.EIO}:
            raise
    finally:
        os.close(number)


def _old(path: Path, unfinished: str) -> Path:
    return path.with_name(path.name + ".old" + unfinished)


def bring_back(path: Path, unfinished: str) -> None:
    """Restore the directory that an interrupted `new_directory` was about to replace."""
    if _old(path, unfinished).exists() and not path.exists():
        _old(path, unfinished).rename(path)


@contextmanager
def new_directory(path: Path, unfinished: str) -> Iterator[Path]:
    """A directory to fill, which replaces `path` once everything is written and synced.

    Until then its name ends in `unfinished`. Raises StorageError if that fails. A failed attempt leaves nothing behind.
    """
    partial, old = path.with_name(path.name + unfinished), _old(path, unfinished)
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        bring_back(path, unfinished)
        for left in (partial, old):
            shutil.rmtree(left, ignore_errors=True)
        try:
            yield partial
            for each in (*partial.rglob("*"), partial):
                sync(each)
            if path.exists():  # a rename cannot replace a directory that is not empty
                path.rename(old)
            partial.rename(path)
        except BaseException:
            shutil.rmtree(partial, ignore_errors=True)
            bring_back(path, unfinished)
            raise
        sync(path.parent)
        shutil.rmtree(old, ignore_errors=True)
