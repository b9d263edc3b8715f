"""Telling whether a dataset is still the one that results were computed with."""

import hashlib
from collections.abc import Iterable
from pathlib import Path

from minari.storage import get_dataset_path

from jaxpgd.datasets.ogbench_store import file_path, is_ogbench, parse_name
from jaxpgd.envs.builtin import is_builtin

_BLOCK = 2**22


def data_fingerprint(name: str) -> str:
    """Digits of the content of the files that `data.load(name)` reads; of a Minari dataset also of its metadata, which scores
    are computed with.

    Empty where there is none: a built-in dataset, or one that is not here yet.
    """
    if is_builtin(name):
        return ""
    path = file_path(parse_name(name)[1]) if is_ogbench(name) else Path(name).expanduser()
    if path.is_file():
        return file_fingerprint(path)
    folder = get_dataset_path(name) / "data"
    files = sorted(file for file in folder.rglob("*") if file.is_file())
    return _digits(files, names=[file.relative_to(folder).as_posix() for file in files]) if files else ""


def file_fingerprint(path: str | Path) -> str:
    """Digits of the content of a file."""
    return _digits([Path(path)])


def _digits(paths: Iterable[Path], names: Iterable[str] = ()) -> str:
    content = hashlib.sha256("\n".join(names).encode())
    for path in paths:
        with path.open("rb") as file:
            while block := file.read(_BLOCK):
                content.update(block)
    return content.hexdigest()[:16]
