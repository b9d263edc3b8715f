"""Checkpoints of training states: Orbax, one directory per chunk, with checksums, restored against an expected structure."""

import errno
import hashlib
import json
import re
import shutil
import sys
from pathlib import Path
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp

from jaxpgd.errors import InputError

CHECKSUMS = "checksums.json"  # of every entry's bytes, beside Orbax's files
# what the system says of itself and not of the file
_NOT_DAMAGE = {errno.EMFILE, errno.ENFILE, errno.EACCES, errno.EPERM, errno.EIO, errno.ESTALE, errno.ENOMEM}
_UNFINISHED = ".writing"  # suffix of a checkpoint that is not complete

Tree = TypeVar("Tree")


class DamagedCheckpoint(InputError):
    """A checkpoint whose files cannot be read or are not what was written."""


def _is_key(leaf: Any) -> bool:
    return jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)


def _name(path: Any) -> str:
    return "/".join(re.sub(r"[^A-Za-z0-9_]+", "", jax.tree_util.keystr((part,))) for part in path)


def flatten(tree: Any) -> dict[str, np.ndarray]:
    """Leaves by name, as host arrays; random keys as their data."""
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return {_name(path): np.asarray(jax.random.key_data(x) if _is_key(x) else x) for path, x in leaves}


def unflatten(target: Tree, values: dict[str, Any], origin: str) -> Tree:
    """`values` in the structure, shapes and types of `target` (arrays or `jax.ShapeDtypeStruct`s).

    Raises InputError naming the first entry that is missing, superfluous or of another shape.
    """
    leaves, structure = jax.tree_util.tree_flatten_with_path(target)
    expected = {_name(path): leaf for path, leaf in leaves}
    for name in sorted(expected.keys() ^ values.keys()):
        word = "missing" if name in expected else "not expected"
        raise InputError(
            f"checkpoint = {origin!r}: entry {name!r} is {word}. It was written with other settings or by another "
            "version of jaxpgd; delete this stage's checkpoints to train it again."
        )
    restored = []
    for name, leaf in expected.items():
        is_key = _is_key(leaf)
        shape = jax.eval_shape(jax.random.key_data, leaf).shape if is_key else leaf.shape
        value = np.asarray(values[name])
        if value.shape != shape:
            raise InputError(
                f"checkpoint = {origin!r}: entry {name!r} has shape {value.shape}, expected {shape}. It was written with "
                "other settings or by another version of jaxpgd; delete this stage's checkpoints to train it again."
            )
        restored.append(jax.random.wrap_key_data(jnp.asarray(value)) if is_key else jnp.asarray(value, leaf.dtype))
    return jax.tree_util.tree_unflatten(structure, restored)


def _checkpointer() -> ocp.StandardCheckpointer:
    """Orbax for this process alone: of several hosts one writes whole arrays, and each reads them for itself."""
    if jax.process_count() == 1:
        return ocp.StandardCheckpointer()
    own = jax.process_index()
    alone = ocp.options.MultiprocessingOptions(primary_host=own, active_processes={own}, barrier_sync_key_prefix=f"of{own}")
    return ocp.StandardCheckpointer(multiprocessing_options=alone)


def save_tree(path: Path, tree: Any) -> None:
    """Write a tree to a new directory; it appears only when it is complete, checksums included."""
    path = path.absolute()
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(path.name + _UNFINISHED)
    shutil.rmtree(partial, ignore_errors=True)
    values = flatten(tree)
    with _checkpointer() as writer:
        writer.save(partial, values)
        writer.wait_until_finished()
    (partial / CHECKSUMS).write_text(json.dumps({name: checksum(value) for name, value in values.items()}, indent=1))
    if path.exists():
        shutil.rmtree(path)
    partial.rename(path)


def checksum(value: np.ndarray) -> str:
    """SHA-256 of an array's type, shape and bytes."""
    array = np.ascontiguousarray(value)
    return hashlib.sha256(f"{array.dtype} {array.shape}".encode() + array.tobytes()).hexdigest()


def load_tree(path: Path, target: Tree) -> Tree:
    """Read a tree that has the structure of `target`. Raises InputError where it is absent, damaged or of another shape."""
    path = path.absolute()
    if not path.is_dir():
        raise InputError(f"checkpoint = {str(path)!r}: expected a checkpoint directory, found none.")
    try:
        with _checkpointer() as reader:
            values = reader.restore(path)
        _verify(path, values)
    except MemoryError:
        raise
    except Exception as error:  # Orbax and TensorStore raise many kinds for damaged files
        if isinstance(error, OSError) and error.errno in _NOT_DAMAGE:
            raise
        first = str(error).strip().splitlines()[0][:200] if str(error).strip() else type(error).__name__
        raise DamagedCheckpoint(
            f"checkpoint = {str(path)!r}: damaged or incomplete ({first}). The checkpoint before it is taken where there "
            "is one."
        ) from error
    return unflatten(target, values, str(path))


def _verify(path: Path, values: dict[str, Any]) -> None:
    """Raise ValueError where an entry is not what was written. Checkpoints without checksums are taken as they are."""
    stored = path / CHECKSUMS
    if not stored.exists():
        return
    expected = json.loads(stored.read_text())
    if expected.keys() != values.keys():
        raise ValueError(f"entries {sorted(expected.keys() ^ values.keys())[:3]} are not those that were written")
    for name, value in values.items():
        if expected.get(name) != checksum(np.asarray(value)):
            raise ValueError(f"checksum of entry {name!r} does not match")


class CheckpointStore:
    """The checkpoints of one stage, `directory/<chunks done>`; the newest `keep` of them are kept."""

    def __init__(self, directory: Path, keep: int = 2):
        self.directory, self.keep = directory, keep

    def saved(self) -> list[int]:
        """Chunk counts of the complete checkpoints, in order."""
        if not self.directory.is_dir():
            return []
        return sorted(int(p.name) for p in self.directory.iterdir() if p.name.isdigit())

    def save(self, chunks: int, state: Any) -> None:
        """Write the state after `chunks` chunks, then drop old ones and what killed writers left."""
        if self.directory.is_dir():
            for left in self.directory.glob(f"*{_UNFINISHED}*"):
                shutil.rmtree(left, ignore_errors=True)
        save_tree(self.directory / str(chunks), state)
        for old in self.saved()[: -self.keep]:
            shutil.rmtree(self.directory / str(old))

    def restore(self, target: Tree) -> tuple[Tree, int] | None:
        """The newest state that can be read and its chunk count, or None where none was saved.

        A damaged one gives way, with a warning, to the one before. Raises InputError where every one is damaged, or where they
        belong to other settings.
        """
        damaged: DamagedCheckpoint | None = None
        for chunks in reversed(self.saved()):
            try:
                return load_tree(self.directory / str(chunks), target), chunks
            except DamagedCheckpoint as error:
                damaged = error
                print(f"warning: {error}", file=sys.stderr, flush=True)
        if damaged is not None:
            raise DamagedCheckpoint(
                f"checkpoints = {str(self.directory)!r}: every one is damaged. Delete this directory to start its stage again."
            )
        return None
