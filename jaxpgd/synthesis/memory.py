"""The largest batch of trajectories that fits the device's memory."""

from typing import Any

import jax
import jax.numpy as jnp

from jaxpgd.types import Denoise

HOST_BATCH = 64  # on CPU: larger batches do not fit its caches and gain nothing
_PROBE, _LEAST, _MOST, _UNKNOWN = 8, 8, 8192, 512
_SHARE = 0.5  # of what is free now: a refresh happens beside agents, replay and dataset


def bytes_per_trajectory(denoise: Denoise, shape: tuple[int, int], *, guided: bool) -> float | None:
    """Memory that one function evaluation takes per trajectory of tokens `shape` [T, D]; guided: with its gradient.

    The compiler states it for a batch of 8 and nothing is computed. None if the compiler does not state it.
    """

    def evaluate(denoise: Denoise, x: Any, sigma: Any) -> Any:
        one = lambda x: denoise(x, sigma)
        if not guided:
            return jax.vmap(one)(x)
        return jax.vmap(lambda x: jax.vjp(one, x)[1](x)[0])(x)

    example = jax.ShapeDtypeStruct((_PROBE, *shape), jnp.float32)
    structure = jax.tree.map(lambda a: jax.ShapeDtypeStruct(jnp.shape(a), jnp.result_type(a)), denoise)
    memory: Any = jax.jit(evaluate).lower(structure, example, jax.ShapeDtypeStruct((), jnp.float32)).compile().memory_analysis()
    if memory is None:
        return None
    return float(memory.temp_size_in_bytes + memory.output_size_in_bytes) / _PROBE


def largest_batch_that_fits(denoise: Denoise, shape: tuple[int, int], *, guided: bool, agents: int = 1) -> int:
    """The largest power of two of trajectories of tokens `shape` [T, D] that take half of a device's free memory.

    `agents`: how many of them sample a batch each at the same time on one device (seeds of one program).
    """
    device = jax.local_devices()[0]
    if device.platform == "cpu":
        return HOST_BATCH
    stats, needed = device.memory_stats() or {}, bytes_per_trajectory(denoise, shape, guided=guided)
    if needed is None or "bytes_limit" not in stats:
        return _UNKNOWN
    most = _SHARE * (stats["bytes_limit"] - stats.get("bytes_in_use", 0)) / (agents * needed)
    batch = _LEAST
    while 2 * batch <= min(most, _MOST):
        batch *= 2
    return batch
