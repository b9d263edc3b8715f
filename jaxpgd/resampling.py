"""Weighted samples: how many they are worth, and how to make plain ones of them."""

import jax
import jax.numpy as jnp
from jax import Array


def effective_sample_size(log_weight: Array) -> Array:
    """(sum w)^2 / sum w^2 [] of log weights [N]."""
    return 1.0 / jnp.square(jax.nn.softmax(log_weight)).sum()


def systematic(key: Array, log_weight: Array) -> Array:
    """Indices [N] in which sample i occurs N w_i times, rounded up or down (Kitagawa 1996); with equal weights, each once."""
    count = log_weight.shape[0]
    positions = (jnp.arange(count) + jax.random.uniform(key, (), jnp.float32, minval=0.01, maxval=0.99)) / count
    index = jnp.searchsorted(jnp.cumsum(jax.nn.softmax(log_weight)), positions)
    return jnp.minimum(index, count - 1)  # the last sum may round to less than 1
