"""Reading arrays from files of unknown origin: nothing in them is executed, and sizes are checked before memory is taken."""

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
_SHARE = 0.25  # of the memory that one file may ask for: loading holds several copies
_LIMIT = Path("/sys/fs/cgroup/memory.max")  # of this process' group, where there is one


@contextmanager
def reading(field: str, name: str, expected: str, remedy: str = "") -> Iterator[None]:
    """Turn whatever a library raises for a damaged or hostile file into InputError: `field` = `name`: expected `expected`.

    What the system says of itself (too many open files, a failing disk) and a lack of memory pass.
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
    """How much one file may hold: a share of the memory that this machine, or this process' group, has."""
    try:
        memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, OSError, ValueError):  # not on this system
        memory = 2**36
    with suppress(OSError, ValueError):  # "max", or no such file
        memory = min(memory, int(_LIMIT.read_text(encoding="utf-8-sig")))
    return int(_SHARE * memory)


class Budget:
    """Counts what a file asks for, before it is read. Raises InputError naming the array that goes beyond the memory."""

    def __init__(self, name: str) -> None:
        self.name, self.most = name, most_bytes()
        self.left = self.most

    def take(self, what: str, shape: tuple[int, ...], dtype: np.dtype[Any]) -> None:
        """Account for an array that is about to be read."""
        check(dtype.kind in _KINDS and dtype.names is None, f"{what} of {self.name}", str(dtype), "numbers")
        size = math.prod(shape) * dtype.itemsize
        self.left -= size
        check(self.left >= 0, f"{what} of {self.name}", shape, f"at most {self.most / 2**30:.3g} GiB in all, a "
              f"quarter of the memory, not {size / 2**30:.3g} GiB here")  # fmt: skip


def read_npz(
    path: Path, wanted: Collection[str], field: str = "data.name", expected: str = "a readable npz file"
) -> tuple[dict[str, np.ndarray], list[str]]:
    """The arrays of an npz file that are `wanted`, and the names of all. Raises InputError, naming `field`.

    Headers are read first: an array of objects, or one that is not as long as its header says, is refused unread.
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
    """An open HDF5 file whose arrays are checked before they are read. Made by `open_hdf5`.

    Links into other files, virtual and external datasets are refused: a file is what is in it.
    """

    def __init__(self, file: h5py.File, name: str) -> None:
        self.file, self._budget, self._visited = file, Budget(name), 0

    def keys(self) -> list[str]:
        """The names of the arrays and groups of the outermost level."""
        return sorted(self.file)

    def array(self, path: str) -> np.ndarray | None:
        """The array at a path; None where there is none, or a group."""
        node = self._node(path)
        return self._read(path, node) if isinstance(node, h5py.Dataset) else None

    def tree(self, path: str) -> Any:
        """The array at a path, or a dict of what a group there holds. Raises KeyError where there is nothing."""
        self._visited = 0
        return self._tree(path, self._node(path), 0)

    def _tree(self, path: str, node: Any, depth: int) -> Any:
        self._visited += 1  # groups that hold the same ones many times over would never end
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
            field = f"{path} of {self._budget.name}"  # a soft link may lead through an external one
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
    """An HDF5 file for reading. Raises InputError, `field` = `name`, for whatever goes wrong in the context."""
    with reading(field, name, f"a readable HDF5 file {path}", remedy), h5py.File(path, "r") as file:
        yield Hdf5(file, name)


def read_json(path: Path, field: str, name: str, remedy: str = "") -> dict[str, Any]:
    """A JSON object of a file that is not absurdly large. Raises InputError."""
    with reading(field, name, f"a readable JSON file {path}", remedy), path.open("rb") as stream:
        return json_object(_all_of(stream), field, name)


def _all_of(stream: BinaryIO) -> bytes:
    text = stream.read(_JSON_BYTES + 1)
    check(len(text) <= _JSON_BYTES, "size of a JSON file", f"above {_JSON_BYTES}", f"at most {_JSON_BYTES} bytes")
    return text


def json_object(text: str | bytes, field: str, name: str) -> dict[str, Any]:
    """A JSON object. Raises InputError where the text is something else."""
    try:
        found = json.loads(text)
    except (ValueError, RecursionError, TypeError) as error:
        raise InputError(f"{field} = {name!r}: expected JSON ({error}).") from error
    check(isinstance(found, Mapping), field, name, "a JSON object")
    return dict(found)
