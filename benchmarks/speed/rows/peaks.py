"""Rows that measure the peaks of the device: products by precision, copies, launches."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

from benchmarks.speed.bounds import Work, product_work
from benchmarks.speed.rows.base import Args, Program, Row, Sizes, weights


@functools.partial(jax.jit, static_argnames="times")
def products(a: Array, x: Array, times: int) -> Array:
    """a^times x."""
    return jax.lax.fori_loop(0, times, lambda _, x: a @ x, x)


@functools.partial(jax.jit, static_argnames="times")
def copies(x: Array, times: int) -> Array:
    """x, read and written `times` times."""
    return jax.lax.fori_loop(0, times, lambda _, x: jnp.sqrt(x + 1.0), x)


@functools.partial(jax.jit, static_argnames="times")
def launches(a: Array, x: Array, times: int) -> Array:
    """`times` small kernels, each of which waits for the one before: 16 per turn of a loop."""

    def turn(_: Any, x: Array) -> Array:
        for _ in range(16):
            x = a @ x
        return x

    return jax.lax.fori_loop(0, times // 16, turn, x)


def matrices(size: int, dtype: Any) -> Args:
    """Two matrices [size, size]."""
    one = jax.ShapeDtypeStruct((size, size), dtype)
    return tuple(jax.jit(lambda: [weights({"kernel": one})["kernel"] for _ in range(2)])())


def peak_rows(sizes: Sizes) -> list[Row]:
    """One row each for products of every precision, copies and launches."""
    rows = []
    for precision, setting in (("float32", "float32"), ("tensorfloat32", "tensorfloat32"), ("bfloat16", None)):
        dtype = jnp.bfloat16 if precision == "bfloat16" else jnp.float32
        build = lambda units, dtype=dtype: Program(products, lambda: matrices(sizes.matrix, dtype), {"times": units})
        work = product_work(sizes.matrix, precision)
        rows.append(Row(f"product, {precision}", "peaks", "product", work, 16, build, setting, compiling=8))
    numbers = lambda: (jax.jit(lambda: jnp.ones(sizes.copied))(),)
    copy = Work(sizes.copied, 8 * sizes.copied, 1, "float32")
    rows.append(Row("copy", "peaks", "copy", copy, 16, lambda n: Program(copies, numbers, {"times": n}), compiling=3))
    small = lambda n: Program(launches, lambda: matrices(64, jnp.float32), {"times": n})
    rows.append(Row("launch", "peaks", "launch", product_work(64, "tensorfloat32"), 1024, small, compiling=5))
    return rows
