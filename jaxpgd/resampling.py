"""Importance-weighted samples: effective sample size, resampling, and what resampling leaves of a population's ancestors."""

from collections.abc import Callable

import chex
import jax
import jax.numpy as jnp
from jax import Array


def effective_sample_size(log_weight: Array) -> Array:
    """Effective sample size (sum w)^2 / sum w^2, [], of log weights [N]; from 1 to N. The weights need not be normalised."""
    chex.assert_rank(log_weight, 1)
    return 1.0 / jnp.square(jax.nn.softmax(log_weight)).sum()


def systematic(key: Array, log_weight: Array) -> Array:
    """Systematic resampling (Kitagawa 1996): indices [N], ascending, into samples with log weights [N].

    With normalised weights w, sample i occurs floor(N w_i) or ceil(N w_i) times. With equal weights each occurs once.
    """
    chex.assert_rank(log_weight, 1)
    count = log_weight.shape[0]
    positions = (jnp.arange(count) + jax.random.uniform(key, (), jnp.float32, minval=0.01, maxval=0.99)) / count
    index = jnp.searchsorted(jnp.cumsum(jax.nn.softmax(log_weight)), positions)
    return jnp.minimum(index, count - 1)  # the cumulative sum may round to less than 1


def surviving_ancestors(log_weight: Array, ancestor: Array) -> Array:
    """Different ancestors, as a share [] of N, that systematic resampling is expected to leave of samples with log weights [N].

    `ancestor` [N], ascending, numbers from 0 to N - 1, is the first sample that each descends from. With normalised weights w
    the descendants of a are drawn floor or ceil(N w_a) times, w_a the sum of theirs, so that a survives with probability
    min(1, N w_a).
    """
    chex.assert_rank([log_weight, ancestor], 1)
    count = log_weight.shape[0]
    w = jax.ops.segment_sum(jax.nn.softmax(log_weight), ancestor, num_segments=count, indices_are_sorted=True)
    return jnp.minimum(1.0, count * w).sum() / count


def power(log_weight: Array, exponent: Array | float) -> Array:
    """Log weights of w^exponent; a weight of 0 stays 0."""
    return jnp.where(jnp.isneginf(log_weight), -jnp.inf, exponent * log_weight)


def exponent_that_keeps(log_weight: Array, ancestor: Array, share: Array | float) -> Array:
    """The exponent [] in [0, 1] at which weights w^exponent leave `share` of N ancestors, as `surviving_ancestors` counts them.

    1 where w itself does; otherwise by bisection, and 0 where not even equal weights do.
    """
    enough = lambda exponent: surviving_ancestors(power(log_weight, exponent), ancestor) >= share
    return largest(enough, jnp.ones((), log_weight.dtype))


def largest(enough: Callable[[Array], Array], most: Array) -> Array:
    """The largest number [] in [0, most] that is `enough`, where all smaller ones are: 40 halvings leave most / 10^12."""

    def halve(bounds: tuple[Array, Array], _: None) -> tuple[tuple[Array, Array], None]:
        low, high = bounds
        middle = (low + high) / 2.0
        found = enough(middle)
        return (jnp.where(found, middle, low), jnp.where(found, high, middle)), None

    (low, _), _ = jax.lax.scan(halve, (jnp.zeros_like(most), most), None, length=40)
    return jnp.where(enough(most), most, low)
