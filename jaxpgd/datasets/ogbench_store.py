"""OGBench's names, package and files."""

import importlib
import importlib.util
import os
import re
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType

from jaxpgd.errors import InputError, check

PREFIX = "ogbench/"
FOLDER_VARIABLE = "OGBENCH_DATA_DIR"
_FOLDER = "~/.ogbench/data"
_NAME = re.compile(r"([a-z0-9-]+)-([a-z]+)-singletask(-task\d+)?-(v\d+)(-val)?")
_EXAMPLE = "antmaze-large-navigate-singletask-task1-v0"
_INSTALL = 'Install it with: pip install "jaxpgd[ogbench]"'
_SECONDS = 30.0  # timeout of a download


def is_ogbench(name: str) -> bool:
    """Whether `name` is an OGBench dataset: `ogbench/NAME`, or a NAME with "-singletask-", which no Minari id has."""
    return name.startswith(PREFIX) or ("/" not in name and "-singletask-" in name and not Path(name).suffix)


def parse_name(name: str) -> tuple[str, str]:
    """(Gymnasium id, file name without .npz) of the dataset `name`. Raises InputError for pixels and names without a task."""
    short = name.removeprefix(PREFIX)
    pixels = short.startswith(("visual-", "powderworld-"))
    check(not pixels, "data.name", name, "a dataset of states", "Only flat observations work, not images.")
    match = _NAME.fullmatch(short)
    if match is None:
        guess = re.sub(r"-(v\d+)$", r"-singletask-task1-\1", short)
        near = guess if "singletask" not in short and _NAME.fullmatch(guess) else _EXAMPLE
        raise InputError(
            f"data.name = {name!r}: expected an OGBench dataset with one of its tasks, such as '{PREFIX}{near}'. "
            "Goal-conditioned datasets hold no rewards: a task gives them."
        )
    env, kind, task, version, split = match.groups(default="")
    return f"{env}-singletask{task}-{version}", f"{env}-{kind}-{version}{split}"


def import_ogbench(field: str) -> ModuleType:
    """The package `ogbench`, which registers its environments with Gymnasium. Raises InputError if it is missing."""
    if importlib.util.find_spec("ogbench") is None:
        raise InputError(f"{field}: expected the package ogbench to be installed. {_INSTALL}")
    try:
        return importlib.import_module("ogbench")
    except ImportError as error:
        raise InputError(f"{field}: expected a package ogbench that can be imported ({error}). {_INSTALL}") from error


def file_path(file_name: str) -> Path:
    """The path where `file_name`.npz is expected."""
    return Path(os.environ.get(FOLDER_VARIABLE) or _FOLDER).expanduser() / f"{file_name}.npz"


def find_file(name: str, file_name: str) -> Path:
    """The path of `file_name`.npz, downloaded by the package `ogbench` if necessary. Raises InputError if that fails."""
    path = file_path(file_name)
    folder = path.parent
    if path.is_file():
        return path
    reason = "nothing came"
    try:
        with _time_limit(_SECONDS):
            import_ogbench("data.name").download_datasets([file_name.removesuffix("-val")], str(folder))
    except OSError as error:  # no network, no such file, no room: urllib's errors are OSErrors
        reason = f"{type(error).__name__}: {error}"
    if not path.is_file():
        path.with_suffix(".npz.tmp").unlink(missing_ok=True)
        raise InputError(
            f"data.name = {name!r}: expected {path}, or that ogbench can download it ({reason}). "
            f"{FOLDER_VARIABLE} names the folder that is searched."
        )
    return path


@contextmanager
def _time_limit(seconds: float) -> Iterator[None]:
    """A default timeout of sockets, without which ogbench's downloader may wait forever."""
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(seconds)
    try:
        yield
    finally:
        socket.setdefaulttimeout(before)
