"""Orthogonal weights, without LAPACK."""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array
from jax.nn.initializers import Initializer

from jaxpgd import draws


def orthogonal(gain: float) -> Initializer:
    """Initialiser of kernels [I, O]: orthonormal columns (rows, where I < O), uniform among such, times `gain`.

    The same kernels as Flax's initialiser of this name, up to rounding. That one calls LAPACK, and several such calls of one
    program, batched over seeds, wait for each other forever on XLA's thread pool of a CPU with two cores (jaxlib 0.10).
    """

    def init(key: Array, shape: Sequence[Any], dtype: Any = jnp.float32, out_sharding: Any = None) -> Array:
        rows, columns = shape
        draw = draws.normal(key, (max(shape), min(shape)), dtype)
        basis = gram_schmidt(draw)
        return gain * (basis.T if rows < columns else basis)

    return init


def gram_schmidt(matrix: Array) -> Array:
    """Orthonormal columns [M, N] with the spans of the first columns of a matrix [M, N] of full rank, M >= N.

    It is the Q of the QR decomposition whose R has a positive diagonal. Each column is made orthogonal twice, which is enough
    for rounding (Giraud et al. 2005, The loss of orthogonality in the Gram-Schmidt process).
    """

    def add(index: Array, basis: Array) -> Array:
        column = matrix[:, index]
        for _ in range(2):
            column -= basis @ (basis.T @ column)
        return basis.at[:, index].set(column / jnp.linalg.norm(column))

    basis: Array = jax.lax.fori_loop(0, matrix.shape[1], add, jnp.zeros_like(matrix))
    return basis
