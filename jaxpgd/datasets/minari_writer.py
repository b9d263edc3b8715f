"""Writing Minari datasets: episode by episode, and out of sight until they are whole."""

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

_STEPS_AT_ONCE = 10_000  # held in memory: Minari opens its file anew at every write, which short episodes would pay for


class DatasetWriter:
    """Takes the episodes of one dataset; `metadata` is stored with them at the end. Made by `new_dataset`."""

    def __init__(self, storage: MinariStorage) -> None:
        self.metadata: dict[str, Any] = {}
        self._storage = storage
        self._waiting: list[EpisodeBuffer] = []
        self._steps = 0

    def add(self, episode: EpisodeBuffer) -> None:
        """Append an episode of T steps, whose observations are T + 1."""
        self._waiting.append(episode)
        self._steps += len(episode)
        if self._steps >= _STEPS_AT_ONCE:
            self.flush()

    def flush(self) -> None:
        """Write what is held in memory."""
        if self._waiting:
            self._storage.update_episodes(self._waiting)
        self._waiting, self._steps = [], 0


def free_target(directory: str | Path, dataset_id: str) -> Path:
    """The folder of a new dataset under `directory`. Raises InputError where the id is not one, or is there already."""
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
    """A writer of the Minari dataset `dataset_id` under `directory`, which is there once the context ends without an error.

    Until then its files are in a hidden folder `.unfinished-*` that Minari does not list; an error or Ctrl-C removes it, and a
    process that is killed leaves it behind. Minari's storage is written directly: its collector draws seeds of its own, and its
    helpers build the environment, which needs its simulator installed. Raises InputError where the target exists, the id is
    not one, or the directory cannot be written.
    """
    target = free_target(directory, dataset_id)
    root = Path(directory).expanduser().resolve()
    try:
        root.mkdir(parents=True, exist_ok=True)
        hidden = Path(tempfile.mkdtemp(prefix=".unfinished-", dir=root))
    except OSError as error:
        raise InputError(f"directory = {str(root)!r}: expected a directory that can be written ({error.strerror}).") from error
    whole = hidden / "dataset"  # a folder inside: the hidden one is for its owner alone, the dataset's follows the umask
    try:
        (whole / "data").mkdir(parents=True)
        storage = MinariStorage.new(
            whole / "data", observation_space=observation_space, action_space=action_space, env_spec=env_spec
        )
        writer = DatasetWriter(storage)
        yield writer
        writer.flush()
        storage.update_metadata({"dataset_id": dataset_id, "minari_version": minari.__version__, **writer.metadata})
        _publish(whole, target, root, dataset_id)
    finally:
        shutil.rmtree(hidden, ignore_errors=True)


def _publish(whole: Path, target: Path, root: Path, dataset_id: str) -> None:
    """Put a finished dataset in its place, all at once."""
    namespace = dataset_id.rpartition("/")[0]
    with _minari_root(root):
        if namespace and namespace not in list_local_namespaces():
            create_namespace(namespace)
    free_target(root, dataset_id)  # another process may have been faster
    os.rename(whole, target)


@contextmanager
def _minari_root(root: Path) -> Iterator[None]:
    """Minari finds its datasets through an environment variable only; it is restored afterwards."""
    before = os.environ.get("MINARI_DATASETS_PATH")
    os.environ["MINARI_DATASETS_PATH"] = str(root)
    try:
        yield
    finally:
        if before is None:
            del os.environ["MINARI_DATASETS_PATH"]
        else:
            os.environ["MINARI_DATASETS_PATH"] = before
