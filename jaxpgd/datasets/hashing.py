"""Hashes that tell whether a dataset is still the one that results were computed with."""

import hashlib
from collections.abc import Iterable
from pathlib import Path

from minari.storage import get_dataset_path

from jaxpgd.datasets.ogbench_store import file_path, is_ogbench, parse_name
from jaxpgd.envs.builtin import is_builtin

_BLOCK = 2**22  # bytes read at a time


def data_hash(name: str) -> str:
    """16 hexadecimal digits of the SHA-256 of the files that `datasets.load(name)` reads.

    Minari datasets include their metadata, which scores depend on. Empty for built-in datasets and for those that are not on
    this machine.
    """
    if is_builtin(name):
        return ""
    path = file_path(parse_name(name)[1]) if is_ogbench(name) else Path(name).expanduser()
    if path.is_file():
        return file_hash(path)
    folder = get_dataset_path(name) / "data"
    files = sorted(file for file in folder.rglob("*") if file.is_file())
    return _hash(files, names=[file.relative_to(folder).as_posix() for file in files]) if files else ""


def file_hash(path: str | Path) -> str:
    """16 hexadecimal digits of the SHA-256 of a file's content."""
    return _hash([Path(path)])


def _hash(paths: Iterable[Path], names: Iterable[str] = ()) -> str:
    content = hashlib.sha256("\n".join(names).encode())
    for path in paths:
        with path.open("rb") as file:
            while block := file.read(_BLOCK):
                content.update(block)
    return content.hexdigest()[:16]
