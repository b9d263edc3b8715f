"""Writing Minari datasets episode by episode. A dataset becomes visible when it is complete."""

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import gymnasium
import minari
from gymnasium.envs.registration import EnvSpec
from minari.data_collector import EpisodeBuffer
from minari.dataset.minari_dataset import parse_dataset_id
from minari.dataset.minari_storage import MinariStorage
from minari.namespace import create_namespace, list_local_namespaces

from jaxpgd.errors import InputError, check

_STEPS_AT_ONCE = 10_000  # buffered: Minari reopens its file at every write, which is slow for short episodes


class DatasetWriter:
    """Writer of the episodes of one dataset, from `new_dataset`. `metadata` is stored at the end."""

    def __init__(self, storage: MinariStorage) -> None:
        self.metadata: dict[str, Any] = {}
        self._storage = storage
        self._waiting: list[EpisodeBuffer] = []
        self._steps = 0

    def add(self, episode: EpisodeBuffer) -> None:
        """Append an episode of T steps and T + 1 observations."""
        self._waiting.append(episode)
        self._steps += len(episode)
        if self._steps >= _STEPS_AT_ONCE:
            self.flush()

    def flush(self) -> None:
        """Write the buffered episodes."""
        if self._waiting:
            self._storage.update_episodes(self._waiting)
        self._waiting, self._steps = [], 0


def free_target(directory: str | Path, dataset_id: str) -> Path:
    """The folder of a new dataset under `directory`. Raises InputError if the id is invalid or the folder exists."""
    try:
        version = parse_dataset_id(dataset_id)[2]
    except (ValueError, TypeError):  # TypeError: an id without a version
        version = None
    check(version is not None, "dataset_id", dataset_id, 'a Minari id such as "pgd/hopper/guided-v0"')
    target = Path(directory).expanduser().resolve() / dataset_id
    check(not target.exists(), "dataset_id", dataset_id, f"no existing dataset in {directory}", "Choose another version.")
    return target


@contextmanager
def new_dataset(
    directory: str | Path,
    dataset_id: str,
    observation_space: gymnasium.Space[Any],
    action_space: gymnasium.Space[Any],
    env_spec: EnvSpec | None,
) -> Iterator[DatasetWriter]:
    """A writer of the Minari dataset `dataset_id` under `directory`, which appears when the context ends without an error.

    Until then its files are in a hidden folder `.unfinished-*`, which Minari does not list. An error or Ctrl-C removes it; a
    killed process leaves it behind. Minari's storage is used directly: its collector draws its own seeds, and its helpers build
    the environment, which requires the simulator. Raises InputError if the target exists, the id is invalid, or the directory
    cannot be written.
    """
    target = free_target(directory, dataset_id)
    root = Path(directory).expanduser().resolve()
    try:
        root.mkdir(parents=True, exist_ok=True)
        hidden = Path(tempfile.mkdtemp(prefix=".unfinished-", dir=root))
    except OSError as error:
        raise InputError(f"directory = {str(root)!r}: expected a directory that can be written ({error.strerror}).") from error
    complete = hidden / "dataset"  # a folder inside: the hidden one is private, this one follows the umask
    try:
        (complete / "data").mkdir(parents=True)
        storage = MinariStorage.new(
            complete / "data", observation_space=observation_space, action_space=action_space, env_spec=env_spec
        )
        writer = DatasetWriter(storage)
        yield writer
        writer.flush()
        storage.update_metadata({"dataset_id": dataset_id, "minari_version": minari.__version__, **writer.metadata})
        _publish(complete, target, root, dataset_id)
    finally:
        shutil.rmtree(hidden, ignore_errors=True)


def _publish(complete: Path, target: Path, root: Path, dataset_id: str) -> None:
    """Move a complete dataset to its place, atomically."""
    namespace = dataset_id.rpartition("/")[0]
    with _minari_root(root):
        if namespace and namespace not in list_local_namespaces():
            create_namespace(namespace)
    free_target(root, dataset_id)  # another process may have been faster
    os.rename(complete, target)


@contextmanager
def _minari_root(root: Path) -> Iterator[None]:
    """Set the environment variable through which Minari finds its datasets, and restore it afterwards."""
    before = os.environ.get("MINARI_DATASETS_PATH")
    os.environ["MINARI_DATASETS_PATH"] = str(root)
    try:
        yield
    finally:
        if before is None:
            del os.environ["MINARI_DATASETS_PATH"]
        else:
            os.environ["MINARI_DATASETS_PATH"] = before
