"""Importance-weighted samples: effective sample size and resampling."""

import chex
import jax
import jax.numpy as jnp
from jax import Array


def effective_sample_size(log_weight: Array) -> Array:
    """Effective sample size (sum w)^2 / sum w^2, [], of log weights [N]; from 1 to N. The weights need not be normalised."""
    chex.assert_rank(log_weight, 1)
    return 1.0 / jnp.square(jax.nn.softmax(log_weight)).sum()


def systematic(key: Array, log_weight: Array) -> Array:
    """Systematic resampling (Kitagawa 1996): indices [N] into samples with log weights [N].

    With normalised weights w, sample i occurs floor(N w_i) or ceil(N w_i) times. With equal weights each occurs once.
    """
    chex.assert_rank(log_weight, 1)
    count = log_weight.shape[0]
    positions = (jnp.arange(count) + jax.random.uniform(key, (), jnp.float32, minval=0.01, maxval=0.99)) / count
    index = jnp.searchsorted(jnp.cumsum(jax.nn.softmax(log_weight)), positions)
    return jnp.minimum(index, count - 1)  # the cumulative sum may round to less than 1
