"""Checkpoints of training states: Orbax, one directory per chunk, with checksums, restored against an expected structure."""

import hashlib
import json
import re
import shutil
import sys
import textwrap
from pathlib import Path
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp

from jaxpgd.errors import NOT_DAMAGE, InputError
from jaxpgd.experiment.run.orbax_errors import unprinted_errors
from jaxpgd.files import bring_back, new_directory, writing

MANIFEST = "manifest.json"  # types, shapes and checksums of the entries, beside Orbax's files
_UNFINISHED = ".writing"  # suffix of a checkpoint that is not complete
_DAMAGED = ".damaged"  # of one that could not be read
_OTHER = (
    "It was written with other settings or by another version of jaxpgd; delete the directory that it is in to train its stage "
    "again."
)

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


def _expected(target: Any) -> dict[str, tuple[tuple[int, ...], Any]]:
    """Shape and leaf of every entry of a structure of arrays or `jax.ShapeDtypeStruct`s, by name."""
    leaves = {_name(path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(target)}
    data = lambda leaf: jax.eval_shape(jax.random.key_data, leaf) if _is_key(leaf) else leaf
    return {name: (tuple(data(leaf).shape), leaf) for name, leaf in leaves.items()}


def check_structure(target: Any, shapes: dict[str, tuple[int, ...]], origin: str) -> None:
    """Raise InputError naming the first entry that `target` and the stored `shapes` do not have alike."""
    expected = _expected(target)
    for name in sorted(expected.keys() ^ shapes.keys()):
        word = "missing" if name in expected else "not expected"
        raise InputError(f"checkpoint = {origin!r}: entry {name!r} is {word}. {_OTHER}")
    for name, (shape, _) in expected.items():
        if shapes[name] != shape:
            text = f"checkpoint = {origin!r}: entry {name!r} has shape {shapes[name]}, expected {shape}. {_OTHER}"
            raise InputError(text)


def unflatten(target: Tree, values: dict[str, Any], origin: str) -> Tree:
    """`values` in the structure, shapes and types of `target` (arrays or `jax.ShapeDtypeStruct`s).

    Raises InputError naming the first entry that is missing, superfluous or of another shape.
    """
    check_structure(target, {name: np.shape(value) for name, value in values.items()}, origin)
    restored = [
        jax.random.wrap_key_data(jnp.asarray(values[name])) if _is_key(leaf) else jnp.asarray(values[name], leaf.dtype)
        for name, (_, leaf) in _expected(target).items()
    ]
    return jax.tree_util.tree_unflatten(jax.tree_util.tree_structure(target), restored)


def _checkpointer() -> ocp.StandardCheckpointer:
    """Orbax for this process alone: of several hosts one writes unsharded arrays, and each reads them for itself."""
    if jax.process_count() == 1:
        return ocp.StandardCheckpointer()
    own = jax.process_index()
    alone = ocp.options.MultiprocessingOptions(primary_host=own, active_processes={own}, barrier_sync_key_prefix=f"of{own}")
    return ocp.StandardCheckpointer(multiprocessing_options=alone)


def save_tree(path: Path, tree: Any, score: float | None = None) -> None:
    """Write a tree to a new directory, which appears when it is complete and on disk. Higher scores are better.

    Raises StorageError where it cannot be written; what was there before then stays.
    """
    path, values = path.absolute(), flatten(tree)
    entries = {name: {"type": str(x.dtype), "shape": list(x.shape), "sha256": checksum(x)} for name, x in values.items()}
    content = {"entries": entries, "score": score}
    with new_directory(path, _UNFINISHED) as partial:
        with unprinted_errors(), _checkpointer() as writer:
            writer.save(partial, values)
            writer.wait_until_finished()
        (partial / MANIFEST).write_text(json.dumps({**content, "sha256": _hash(content)}, indent=1), encoding="utf-8")


def checksum(value: np.ndarray) -> str:
    """SHA-256 of an array's type, shape and bytes."""
    array = np.ascontiguousarray(value)
    return hashlib.sha256(f"{array.dtype} {array.shape}".encode() + array.tobytes()).hexdigest()


def _hash(content: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def read_manifest(path: Path) -> dict[str, Any]:
    """What a checkpoint says of itself: "entries" by name, "score". Raises ValueError or OSError where that is damaged."""
    if not (path / MANIFEST).exists():
        raise ValueError(f"{MANIFEST} is missing: it is damaged, or of an earlier version of jaxpgd")
    stored = json.loads((path / MANIFEST).read_bytes())
    if not isinstance(stored, dict) or not {"entries", "score", "sha256"} <= stored.keys():
        raise ValueError(f"{MANIFEST} is not what was written")
    content = {name: stored[name] for name in ("entries", "score")}
    if stored["sha256"] != _hash(content):
        raise ValueError(f"checksum of {MANIFEST} does not match")
    return content


def read_arrays(path: Path) -> dict[str, np.ndarray]:
    """All arrays of a checkpoint by name. Raises ValueError or OSError where they are not those that were written."""
    return _restore(path.absolute(), read_manifest(path)["entries"])


def load_tree(path: Path, target: Tree) -> Tree:
    """Read a tree that has the structure of `target`. Raises InputError where it is absent, damaged or of another shape.

    Names and shapes are compared before any array is read; types become those of `target`.
    """
    path = path.absolute()
    if not path.is_dir():
        raise InputError(f"checkpoint = {str(path)!r}: expected a checkpoint directory, found none.")
    try:
        entries = read_manifest(path)["entries"]
        check_structure(target, {name: tuple(entry["shape"]) for name, entry in entries.items()}, str(path))
        values = _restore(path, entries)
    except (MemoryError, InputError):
        raise
    except Exception as error:  # Orbax and TensorStore raise many kinds for damaged files
        if isinstance(error, OSError) and error.errno in NOT_DAMAGE:
            raise
        first = textwrap.shorten(str(error).strip(), 200, placeholder=" ...") or type(error).__name__
        raise DamagedCheckpoint(
            f"checkpoint = {str(path)!r}: damaged or incomplete ({first}). The checkpoint before it is taken where there "
            "is one."
        ) from error
    return unflatten(target, values, str(path))


def _restore(path: Path, entries: dict[str, Any]) -> dict[str, np.ndarray]:
    """The arrays, which are those of the manifest or ValueError."""
    with unprinted_errors(), _checkpointer() as reader:
        found: Any = reader.metadata(path)
        found = getattr(found, "item_metadata", found)
        shapes = {name: (str(x.dtype), list(x.shape)) for name, x in dict(getattr(found, "tree", found)).items()}
        if shapes != {name: (entry["type"], entry["shape"]) for name, entry in entries.items()}:
            raise ValueError("its arrays are not those that were written")
        # the plain checkpointer reads numpy arrays where the target says so, whatever devices there are now
        target = {name: np.broadcast_to(np.zeros((), kind), shape) for name, (kind, shape) in shapes.items()}
        values = {name: np.asarray(value) for name, value in reader.restore(path, target).items()}
    for name, value in values.items():
        if entries[name]["sha256"] != checksum(value):
            raise ValueError(f"checksum of entry {name!r} does not match")
    return values


class CheckpointReader:
    """The checkpoints of one stage, `directory/<chunks done>`, read only."""

    def __init__(self, directory: Path):
        self.directory = directory

    def saved(self) -> list[int]:
        """Chunk counts of the complete checkpoints, in order."""
        if not self.directory.is_dir():
            return []
        return sorted(int(p.name) for p in self.directory.iterdir() if p.name.isdigit())

    def best(self) -> int | None:
        """Chunk count of the checkpoint with the highest score, the newest of several; None where none has a score."""
        found: list[tuple[float, int]] = []
        for chunks in self.saved():
            try:
                score = read_manifest(self.directory / str(chunks))["score"]
            except (OSError, ValueError, KeyError, TypeError):
                continue
            if score is not None:
                found.append((score, chunks))
        return max(found)[1] if found else None

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

    def restore_best(self, target: Tree) -> tuple[Tree, int] | None:
        """The state with the highest score, else, or where that is damaged, the newest, and its chunk count.

        Raises InputError as `restore`.
        """
        best = self.best()
        if best is not None:
            try:
                return load_tree(self.directory / str(best), target), best
            except DamagedCheckpoint as error:
                print(f"warning: {error}", file=sys.stderr, flush=True)
        return self.restore(target)


class CheckpointStore(CheckpointReader):
    """The same, to write: the newest `keep` checkpoints stay, and the best."""

    def __init__(self, directory: Path, keep: int = 2):
        super().__init__(directory)
        self.keep = keep

    def recover(self) -> None:
        """Bring back what a writer that was killed while it replaced a checkpoint had moved aside. For writers alone."""
        for left in self.directory.glob(f"*.old{_UNFINISHED}"):
            bring_back(self.directory / left.name.removesuffix(f".old{_UNFINISHED}"), _UNFINISHED)

    def save(self, chunks: int, state: Any, score: float | None = None) -> None:
        """Write the state after `chunks` chunks, then drop old ones and what killed writers left. Higher scores are better.

        Raises StorageError where it cannot be written; the checkpoints that are there stay.
        """
        self.recover()
        if self.directory.is_dir():
            for left in self.directory.glob(f"*{_UNFINISHED}*"):
                shutil.rmtree(left, ignore_errors=True)
        save_tree(self.directory / str(chunks), state, score)
        kept = {*self.saved()[-self.keep :], self.best()}
        for old in self.saved():
            if old not in kept:
                shutil.rmtree(self.directory / str(old), ignore_errors=True)

    def set_aside(self, after: int) -> None:
        """Take checkpoints of more than `after` chunks out of the way: they are damaged, or their chunks are run again."""
        for chunks in self.saved():
            if chunks > after:
                with writing(self.directory / str(chunks)):
                    aside = self.directory / f"{chunks}{_DAMAGED}"
                    shutil.rmtree(aside, ignore_errors=True)
                    (self.directory / str(chunks)).rename(aside)
