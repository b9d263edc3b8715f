"""A training program: a state, and a compiled chunk of steps that advances it. Everything that trains has this form.

`fit` runs a program inside one trace (jit and vmap it as you like); `jaxpgd.experiment` runs the same chunks from Python, where
it reports progress and writes checkpoints in between.
"""

from collections.abc import Callable
from typing import Generic, TypeVar

import jax
import jax.numpy as jnp
from flax import struct
from jax import Array

from jaxpgd.training.health import SKIPPED, split_firsts
from jaxpgd.types import Metrics, PyTree

State = TypeVar("State")


@struct.dataclass
class Program(Generic[State]):
    """Pure functions of a training loop and its number of chunks.

    `init(key, data) -> state`; `chunk(state, data, index []) -> (state, metrics)`. The index is not part of the state so that
    it has no seed axis: what depends on it stays a branch, rather than a select, under vmap over seeds.
    """

    init: Callable[[Array, PyTree], State] = struct.field(pytree_node=False)
    chunk: Callable[[State, PyTree, Array], tuple[State, Metrics]] = struct.field(pytree_node=False)
    chunks: int = struct.field(pytree_node=False)
    steps_per_chunk: int = struct.field(pytree_node=False)
    updates_per_chunk: int = struct.field(pytree_node=False, default=0)  # where a step is many of them; 0: steps_per_chunk
    seeds: int = struct.field(pytree_node=False, default=0)  # length of the state's leading axis; 0: it has no seed axis
    groups: tuple[str, ...] = struct.field(pytree_node=False, default=())  # what equal parts of the seeds are called
    # parts of a state that have to be finite, "sample" and "parameter" by name
    quantities: Callable[[State], dict[str, PyTree]] = struct.field(pytree_node=False, default=lambda state: {})


def fit(key: Array, program: Program[State], data: PyTree) -> tuple[State, Metrics]:
    """Run a program to its end. Returns the final state and the metrics of every chunk, [chunks, ...]."""

    def chunk(state: State, index: Array) -> tuple[State, Metrics]:
        state, metrics = program.chunk(state, data, index)
        return state, split_firsts(metrics)[0]

    return jax.lax.scan(chunk, program.init(key, data), jnp.arange(program.chunks))


def mean_metrics(metrics: Metrics) -> Metrics:
    """Average over the leading axis (the steps of a chunk); updates that were left out do not count."""
    if SKIPPED not in metrics:
        return {name: value.mean(0) for name, value in metrics.items()}
    weight = 1.0 - metrics[SKIPPED]
    mean = lambda x: (x * weight).sum(0) / jnp.maximum(weight.sum(0), 1e-9)
    return {name: value.mean(0) if name == SKIPPED else mean(value) for name, value in metrics.items()}
