"""Reading arrays from untrusted files: nothing in them is executed, and sizes are checked before memory is allocated."""

import errno
import json
import math
import os
import zipfile
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, BinaryIO

import h5py
import numpy as np

from jaxpgd.errors import NOT_DAMAGE, InputError, check

_KINDS = "biuf"  # booleans, whole numbers, floating point: no objects, no text, no records
_DEEPEST = 16  # groups inside groups
_MOST_NODES = 1000  # entries of one (nested) observation
_JSON_BYTES = 2**24
_SHARE = 0.25  # of the memory that one file may take, as loading makes several copies
_LIMIT = Path("/sys/fs/cgroup/memory.max")  # memory limit of this process' control group


@contextmanager
def reading(field: str, name: str, expected: str, remedy: str = "") -> Iterator[None]:
    """A context that turns exceptions about a damaged or hostile file into InputError: `field` = `name`: expected `expected`.

    Errors of the system (too many open files, a failing disk) and lack of memory pass unchanged.
    """
    try:
        yield
    except (InputError, MemoryError):
        raise
    except Exception as error:  # each library has its own, and many
        if isinstance(error, OSError) and error.errno in NOT_DAMAGE - {errno.EACCES, errno.EPERM}:
            raise
        lines = str(error).strip().splitlines()
        reason = f"{type(error).__name__}: {lines[0][:300]}" if lines else type(error).__name__
        text = f"{field} = {name!r}: expected {expected} ({reason})." + (f" {remedy}" if remedy else "")
        raise InputError(text) from error


def most_bytes() -> int:
    """The most bytes that one file may take: a quarter of the memory of this machine or control group."""
    try:
        memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, OSError, ValueError):  # not on this system
        memory = 2**36
    with suppress(OSError, ValueError):  # "max", or no such file
        memory = min(memory, int(_LIMIT.read_text(encoding="utf-8-sig")))
    return int(_SHARE * memory)


class Budget:
    """Counts the bytes of a file's arrays before they are read. Raises InputError naming the array that exceeds the limit."""

    def __init__(self, name: str) -> None:
        self.name, self.most = name, most_bytes()
        self.left = self.most

    def take(self, what: str, shape: tuple[int, ...], dtype: np.dtype[Any]) -> None:
        """Count an array that is about to be read."""
        check(dtype.kind in _KINDS and dtype.names is None, f"{what} of {self.name}", str(dtype), "numbers")
        size = math.prod(shape) * dtype.itemsize
        self.left -= size
        check(self.left >= 0, f"{what} of {self.name}", shape, f"at most {self.most / 2**30:.3g} GiB in all, a "
              f"quarter of the memory, not {size / 2**30:.3g} GiB here")  # fmt: skip


def read_npz(
    path: Path, wanted: Collection[str], field: str = "data.name", expected: str = "a readable npz file"
) -> tuple[dict[str, np.ndarray], list[str]]:
    """The `wanted` arrays of an npz file, and the names of all its arrays. Raises InputError naming `field`.

    Headers are read first: arrays of objects, and arrays of another length than their header states, are refused unread.
    """
    budget, found = Budget(str(path)), dict[str, np.ndarray]()
    with reading(field, str(path), expected), zipfile.ZipFile(path) as archive:
        members = {info.filename.removesuffix(".npy"): info for info in archive.infolist() if info.filename.endswith(".npy")}
        for key in wanted:
            if key not in members:
                continue
            with archive.open(members[key]) as stream:
                shape, dtype = _header(stream)
                budget.take(key, shape, dtype)
                stored = members[key].file_size - stream.tell()
                check(stored == math.prod(shape) * dtype.itemsize, f"{key} of {path}", stored, f"{shape} of {dtype}, in bytes")
            with archive.open(members[key]) as stream:
                found[key] = np.lib.format.read_array(stream, allow_pickle=False)
        return found, sorted(members)


def _header(stream: Any) -> tuple[tuple[int, ...], np.dtype[Any]]:
    version = np.lib.format.read_magic(stream)
    read: Any = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    shape, _, dtype = read(stream)
    check(all(n >= 0 for n in shape), "shape", shape, "no negative sizes")
    return shape, dtype


class Hdf5:
    """An open HDF5 file whose arrays are checked before they are read, from `open_hdf5`.

    Links into other files, virtual datasets and external datasets are refused.
    """

    def __init__(self, file: h5py.File, name: str) -> None:
        self.file, self._budget, self._visited = file, Budget(name), 0

    def keys(self) -> list[str]:
        """The names of the arrays and groups at the top level."""
        return sorted(self.file)

    def array(self, path: str) -> np.ndarray | None:
        """The array at a path. None if there is nothing, or a group."""
        node = self._node(path)
        return self._read(path, node) if isinstance(node, h5py.Dataset) else None

    def tree(self, path: str) -> Any:
        """The array at a path, or the (nested) dict of a group. Raises KeyError if there is nothing."""
        self._visited = 0
        return self._tree(path, self._node(path), 0)

    def _tree(self, path: str, node: Any, depth: int) -> Any:
        self._visited += 1  # groups that share their members may unfold without end
        field = f"{path} of {self._budget.name}"
        check(self._visited <= _MOST_NODES, field, "more", f"at most {_MOST_NODES:,} groups and arrays")
        check(depth <= _DEEPEST, field, depth, f"at most {_DEEPEST} groups inside each other")
        if isinstance(node, h5py.Group):
            return {key: self._tree(f"{path}/{key}", self._node(f"{path}/{key}"), depth + 1) for key in node}
        if not isinstance(node, h5py.Dataset):
            raise KeyError(f"{path} is missing")
        return self._read(path, node)

    def _node(self, path: str) -> Any:
        node: Any = self.file
        for key in path.split("/"):
            if not isinstance(node, h5py.Group):
                return None
            link = node.get(key, getlink=True)
            field = f"{path} of {self._budget.name}"  # a soft link may lead to an external one
            check(link is None or isinstance(link, h5py.HardLink), field, "a link", "data in the file itself")
            node = node.get(key)
        return node

    def _read(self, path: str, node: h5py.Dataset) -> np.ndarray:
        field = f"{path} of {self._budget.name}"
        check(not node.is_virtual and not node.external, field, "data in another file", "data in the file itself")
        check(node.shape is not None, field, None, "an array")
        self._budget.take(path, node.shape, node.dtype)
        return np.asarray(node[()])


@contextmanager
def open_hdf5(path: Path, field: str, name: str, remedy: str = "") -> Iterator[Hdf5]:
    """An HDF5 file for reading. Raises InputError, `field` = `name`, for any exception in the context."""
    with reading(field, name, f"a readable HDF5 file {path}", remedy), h5py.File(path, "r") as file:
        yield Hdf5(file, name)


def read_json(path: Path, field: str, name: str, remedy: str = "") -> dict[str, Any]:
    """The JSON object in a file. Raises InputError if it is something else, or above 16 MiB."""
    with reading(field, name, f"a readable JSON file {path}", remedy), path.open("rb") as stream:
        return json_object(_all_of(stream), field, name)


def _all_of(stream: BinaryIO) -> bytes:
    text = stream.read(_JSON_BYTES + 1)
    check(len(text) <= _JSON_BYTES, "size of a JSON file", f"above {_JSON_BYTES}", f"at most {_JSON_BYTES} bytes")
    return text


def json_object(text: str | bytes, field: str, name: str) -> dict[str, Any]:
    """The JSON object in a text. Raises InputError if it is something else."""
    try:
        found = json.loads(text)
    except (ValueError, RecursionError, TypeError) as error:
        raise InputError(f"{field} = {name!r}: expected JSON ({error}).") from error
    check(isinstance(found, Mapping), field, name, "a JSON object")
    return dict(found)
