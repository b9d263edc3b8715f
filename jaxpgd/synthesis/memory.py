"""The largest batch of trajectories that fits the device's memory."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

from jaxpgd.types import Denoise

Correct = Callable[[Array, Array], Array]  # denoised tokens [T, D] and sigma [] to corrected ones, as a pytree

HOST_BATCH = 64  # on CPU: larger batches do not fit its caches and gain nothing
_PROBE, _LEAST, _MOST, _UNKNOWN = 8, 8, 8192, 512
_SHARE = 0.5  # of what is free now: a refresh happens beside agents, replay and dataset


def bytes_per_trajectory(
    denoise: Denoise, shape: tuple[int, int], *, guided: bool, correct: Correct | None = None
) -> float | None:
    """Memory that one function evaluation takes per trajectory of tokens `shape` [T, D]; guided: with its gradient.

    `correct` comes after the denoiser, guided or not, and is not differentiated (`DiffusionSynthesizer.consistency`). The
    compiler states the memory for a batch of 8 and nothing is computed. None if the compiler does not state it.
    """

    def evaluate(parts: tuple[Denoise, Correct | None], x: Array, sigma: Array) -> Array:
        denoise, correct = parts

        def one(x: Array) -> Array:
            x0 = jax.vjp(lambda x: denoise(x, sigma), x)[1](x)[0] if guided else denoise(x, sigma)
            return x0 if correct is None else correct(x0, sigma)

        return jax.vmap(one)(x)

    example = jax.ShapeDtypeStruct((_PROBE, *shape), jnp.float32)
    structure = jax.tree.map(lambda a: jax.ShapeDtypeStruct(jnp.shape(a), jnp.result_type(a)), (denoise, correct))
    memory: Any = jax.jit(evaluate).lower(structure, example, jax.ShapeDtypeStruct((), jnp.float32)).compile().memory_analysis()
    if memory is None:
        return None
    return float(memory.temp_size_in_bytes + memory.output_size_in_bytes) / _PROBE


def largest_batch_that_fits(
    denoise: Denoise, shape: tuple[int, int], *, guided: bool, correct: Correct | None = None, agents: int = 1
) -> int:
    """The largest power of two of trajectories of tokens `shape` [T, D] that take half of a device's free memory.

    `guided` and `correct` as in `bytes_per_trajectory`. `agents`: how many of them sample a batch each at the same time on one
    device (seeds of one program).
    """
    device = jax.local_devices()[0]
    if device.platform == "cpu":
        return HOST_BATCH
    stats, needed = device.memory_stats() or {}, bytes_per_trajectory(denoise, shape, guided=guided, correct=correct)
    if needed is None or "bytes_limit" not in stats:
        return _UNKNOWN
    most = _SHARE * (stats["bytes_limit"] - stats.get("bytes_in_use", 0)) / (agents * needed)
    batch = _LEAST
    while 2 * batch <= min(most, _MOST):
        batch *= 2
    return batch
