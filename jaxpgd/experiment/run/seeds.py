"""One training program for several seeds of several settings, trained together."""

from collections.abc import Callable
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
from jax import Array

from jaxpgd.parallel import SEEDS, map_seeds
from jaxpgd.training.program import Program
from jaxpgd.types import PyTree

State = TypeVar("State")


def over_seeds(make: Callable[[PyTree], Program[State]], settings: PyTree, count: int, seeds: int) -> Program[State]:
    """One program for `seeds` independent states of each of `count` settings: keys are split, data shared.

    `make(setting)` is the program of one of `settings` [count]; only its init may depend on it. The state's leading axis is
    [count * seeds], the seeds of a setting together; seed i has the same key in every setting.
    """
    program = make(jax.tree.map(lambda x: x[0], settings))

    def init(key: Array, data: PyTree) -> Any:
        keys = jax.random.split(key, seeds)[jnp.arange(count * seeds) % seeds]
        each = jax.tree.map(lambda x: jnp.repeat(x, seeds, axis=0), settings)
        one = lambda key, setting: make(setting).init(key, data)
        return jax.vmap(one, spmd_axis_name=SEEDS)(keys, each)

    return Program(
        init=init,
        chunk=lambda states, data, index: map_seeds(lambda state: program.chunk(state, data, index), states),
        chunks=program.chunks,
        steps_per_chunk=program.steps_per_chunk,
        seeds=count * seeds,
        updates_per_chunk=program.updates_per_chunk,
        quantities=program.quantities,
    )
