"""The dense layer of every network."""

import flax.linen as nn
import jax.numpy as jnp
from jax import Array, lax
from jax.nn.initializers import Initializer
from jax.typing import DTypeLike

from jaxpgd.networks.initialisers import lecun_normal


class Dense(nn.Module):
    """Affine map with bias from 0. x [..., I] -> [..., features].

    Products are taken in `dtype`, of parameters kept in float32; the result has that type. `kernel_init` makes kernels
    [I, features]; they are stored transposed. All three matrix products of a training step then read row by row what is stored
    row by row: with [I, features] the weights' gradient comes out transposed, at half the speed on CPU.
    """

    features: int
    kernel_init: Initializer = lecun_normal
    dtype: DTypeLike | None = None  # None: that of input and parameters

    @nn.compact
    def __call__(self, x: Array) -> Array:
        kernel = self.param(
            "kernel", lambda key, *shape: self.kernel_init(key, shape, jnp.float32).T, x.shape[-1], self.features
        )
        bias = self.param("bias", nn.initializers.zeros, (self.features,), jnp.float32)
        if self.dtype is not None:
            x, kernel, bias = (a.astype(self.dtype) for a in (x, kernel, bias))
        # Rows in two halves: the weights' gradient then sums over two axes, which sends it to XLA's fast path on CPU.
        rows = x.reshape(2, -1, x.shape[-1]) if x.ndim == 2 and x.shape[0] % 2 == 0 else x
        y = lax.dot_general(rows, kernel, (((rows.ndim - 1,), (1,)), ((), ())))
        return y.reshape(*x.shape[:-1], self.features) + bias
