"""Numbers that are not finite: the first one and its step; updates that skip them and count how often."""

import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.experimental import checkify

from jaxpgd.types import Metrics, PyTree

Update = Callable[[Any, Any], tuple[Any, Metrics]]

FIRST = "first_bad/"  # prefix of metrics: the first step of the chunk that is not finite, its length where all are
SKIPPED = "skipped_updates"
LOST = "lost_seeds"  # in lines of a log: which seeds are lost, from the chunk on at which they were
WATCHED = ("gradient_norm", "loss")  # ends of the names of metrics that have to be finite
_PACKAGE = str(Path(__file__).parents[1])
_PARTS = ("value", "q_", "critic", "bc_", "actor")  # in the order in which an update computes them


def watched(name: str) -> bool:
    """Whether a metric must be finite."""
    return name.endswith(WATCHED)


def first_bad(values: Array) -> Array:
    """Index [] of the first of [n, ...] that is not finite; n where all are."""
    bad = ~jnp.isfinite(values.reshape(values.shape[0], -1)).all(-1)
    return jnp.where(bad.any(), jnp.argmax(bad), values.shape[0]).astype(jnp.int32)


def firsts(metrics: Metrics) -> Metrics:
    """`first_bad` of every watched metric [n] of n steps, by name, after `FIRST`."""
    return {FIRST + name: first_bad(value) for name, value in metrics.items() if watched(name)}


def split_firsts(metrics: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """The metrics, and what `firsts` says by the names of theirs."""
    rest = {name: value for name, value in metrics.items() if not name.startswith(FIRST)}
    return rest, {name.removeprefix(FIRST): value for name, value in metrics.items() if name.startswith(FIRST)}


def first_of_blocks(first: Array, size: int) -> Array:
    """The index [] over all steps from those within each block [blocks] of `size` steps."""
    start = jnp.arange(first.shape[0]) * size
    return jnp.where(first < size, start + first, first.shape[0] * size).min().astype(jnp.int32)


def skipping(update: Update) -> Update:
    """`update(state, x) -> (state, metrics)` that leaves the state as it was where a watched metric is not finite.

    Its metrics are then left out as well (0 instead, so that means stay finite) and counted under `SKIPPED`.
    """

    def guarded(state: Any, x: Any) -> tuple[Any, Metrics]:
        new, metrics = update(state, x)
        fine = jnp.stack([jnp.isfinite(value).all() for name, value in metrics.items() if watched(name)]).all()
        keep = lambda a, b: jax.tree.map(lambda p, q: jnp.where(fine, p, q), a, b)
        zeros = jax.tree.map(jnp.zeros_like, metrics)
        return keep(new, state), {**keep(metrics, zeros), SKIPPED: (~fine).astype(jnp.float32)}

    return guarded


def finite(tree: PyTree, seeds: int) -> Array:
    """Whether each of L floating-point leaves is finite, [L, seeds] (leading axis of the leaves; 0: they have none, [L, 1]).

    One array: a device hands over one more quickly than one for each leaf.
    """
    rows = max(seeds, 1)
    found = [jnp.isfinite(leaf.reshape(rows, leaf.size // rows)).all(-1) for _, leaf in _floating(tree)]
    return jnp.stack(found) if found else jnp.ones((0, rows), bool)


def finite_names(tree: PyTree) -> list[str]:
    """The names [L] of the leaves that `finite` reads."""
    word = lambda part: str(getattr(part, "key", getattr(part, "name", getattr(part, "idx", part))))
    return ["/".join(map(word, path)) for path, _ in _floating(tree)]


def _floating(tree: PyTree) -> list[tuple[Any, Any]]:
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return [(path, leaf) for path, leaf in leaves if jnp.issubdtype(leaf.dtype, jnp.floating)]


@dataclasses.dataclass(frozen=True)
class NonFinite:
    """A quantity that is not finite after a chunk: in words, its seeds, and where it comes in the order of causes."""

    what: str
    seeds: np.ndarray  # [seeds] bool, or [1]
    order: tuple[int, int, int]


def non_finite(
    state: dict[str, Any], metrics: dict[str, Any], first: dict[str, Any], steps: int, end: int, lost: np.ndarray
) -> list[NonFinite]:
    """The quantities that are not finite after a chunk of `steps` steps that ends at step `end`, causes before effects.

    `state`: `finite` of samples and parameters; `first`: `firsts` of the chunk; `metrics`: means, for metrics without a first
    step; `lost` [seeds]: seeds that were not finite before, which are left out.
    Samples come before what is learned from them, then metrics by step (within a step by `_PARTS`, a loss before its gradient),
    then parameters: a gradient that is not finite spoils them, and they the loss of the next step.
    """
    found = []
    for name, fine in state.items():
        order = (-1, 0, 0) if name.startswith("sample") else (steps, 1, 0)
        found.append(NonFinite(f"{name} has entries that are not finite", ~np.atleast_1d(fine) & ~lost, order))
    for name, value in first.items():
        index = np.where(lost, steps, np.atleast_1d(value))
        step = int(index.min())
        what = f"{name} is not finite from step {end - steps + step + 1} on"
        found.append(NonFinite(what, index < steps, (step, *_rank(name))))
    for name in [n for n in metrics if watched(n) and n not in first]:
        bad = ~np.isfinite(np.atleast_1d(np.asarray(metrics[name], np.float64)))
        found.append(NonFinite(f"{name} is not finite in the chunk that ends at step {end}", bad & ~lost, (steps, 0, 0)))
    return sorted((each for each in found if each.seeds.any()), key=lambda each: each.order)


def _rank(name: str) -> tuple[int, int]:
    part = next((i for i, part in enumerate(_PARTS) if name.startswith(part)), len(_PARTS))
    return part, int(not name.endswith("loss"))


def name_seeds(found: list[int], seeds: int, count: int, groups: Sequence[str] = ()) -> str:
    """Some of `count` states in words: their seeds, of which there are `seeds`, and their groups (default: of settings)."""
    if count <= seeds:
        return ("seed " if len(found) == 1 else "seeds ") + ", ".join(map(str, found))
    name = lambda i: groups[i] if groups else f"setting {i}"
    return ", ".join(f"{name(i // seeds)} seed {i % seeds}" for i in found)


def where(error: Any) -> str:
    """A checkify error in words: the operation whose result is the first NaN, and the lines of this package that called it."""
    said = str(error.get()).strip().splitlines()[0].rstrip(".")
    frames = getattr(getattr(error.get_exception(), "traceback_info", None), "frames", [])  # the innermost first
    ours = [frame for frame in frames if frame.file_name.startswith(_PACKAGE)][:4]
    lines = [f"{Path(frame.file_name).relative_to(_PACKAGE).as_posix()}, line {frame.line_num}" for frame in ours]
    return f"{said}, by {' from '.join(lines)}" if lines else said


def checked(chunk: Callable[..., Any]) -> Callable[..., tuple[Any, Any]]:
    """`chunk` as (error, result): `error.get()` is None, or names the primitive whose result is the first NaN."""
    return checkify.checkify(chunk, errors=checkify.nan_checks)
