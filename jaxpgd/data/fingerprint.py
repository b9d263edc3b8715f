"""Telling whether a dataset is still the one that results were computed with."""

import hashlib
from pathlib import Path

from minari.storage import get_dataset_path

from jaxpgd.data.ogbench_store import file_path, is_ogbench, parse_name
from jaxpgd.envs.builtin import is_builtin

_BLOCK = 2**22


def data_fingerprint(name: str) -> str:
    """Digits of the content of the file that `data.load(name)` reads.

    Empty where there is none: a built-in dataset, or one that is not here yet.
    """
    if is_builtin(name):
        return ""
    path = file_path(parse_name(name)[1]) if is_ogbench(name) else Path(name).expanduser()
    if not path.is_file():
        path = get_dataset_path(name) / "data" / "main_data.hdf5"
    return file_fingerprint(path) if path.is_file() else ""


def file_fingerprint(path: str | Path) -> str:
    """Digits of the content of a file."""
    content = hashlib.sha256()
    with Path(path).open("rb") as file:
        while block := file.read(_BLOCK):
            content.update(block)
    return content.hexdigest()[:16]
