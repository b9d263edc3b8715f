"""Choice of the guidance coefficient lambda, one number [] per refresh.

It is fixed (and may be swept over), or the largest at which unguided samples with weights q^lambda keep an effective sample
size of some share of their number, or the largest at which the dynamics error of guided trajectories stays within a bound.
"""

import math
from collections.abc import Callable
from typing import ClassVar, Protocol

import chex
import jax.numpy as jnp
from flax import struct
from jax import Array

from jaxpgd.resampling import effective_sample_size, largest

_SPAN = 256.0  # between the largest coefficient and what counts as none
_HALVINGS = 4  # of the span's logarithm, to a factor of 1.41


class Strength(Protocol):
    """What chooses the coefficient lambda [] of a refresh."""

    needs_samples: ClassVar[bool]  # whether it is found on unguided samples

    def resolve(self, log_likelihood: Array | None = None) -> Array:
        """lambda [], where samples are needed from log q [N] of unguided ones."""
        ...


@struct.dataclass
class FixedStrength:
    """A fixed coefficient lambda []."""

    coefficient: Array | float
    needs_samples: ClassVar[bool] = False

    def resolve(self, log_likelihood: Array | None = None) -> Array:
        """As `Strength.resolve`."""
        return jnp.asarray(self.coefficient, jnp.float32)


@struct.dataclass
class EffectiveSizeStrength:
    """The largest coefficient up to `most` at which weights q^lambda of unguided samples keep a share `target_ess` of N."""

    target_ess: Array | float
    most: Array | float
    needs_samples: ClassVar[bool] = True

    def resolve(self, log_likelihood: Array | None = None) -> Array:
        """As `Strength.resolve`."""
        if log_likelihood is None:
            raise TypeError("guidance.target_ess: expected log q of unguided samples")
        return largest_exponent(log_likelihood, self.target_ess, self.most)


def largest_exponent(log_likelihood: Array, share: Array | float, most: Array | float) -> Array:
    """The largest exponent [] in [0, most] at which weights likelihood^exponent [N] keep an effective size of `share` times N.

    The effective size falls as the exponent grows, so bisection finds it.
    """
    chex.assert_rank(log_likelihood, 1)
    log_likelihood = jnp.where(jnp.isnan(log_likelihood), -jnp.inf, log_likelihood)
    wanted = share * log_likelihood.shape[0]
    enough = lambda exponent: effective_sample_size(exponent * log_likelihood) >= wanted
    return largest(enough, jnp.asarray(most, log_likelihood.dtype))


def largest_within(error: Callable[[float], float], most: float, bound: float) -> float:
    """The largest coefficient found, up to `most`, whose error is at most `bound`, where errors grow with it; 0: none."""
    if error(most) <= bound:
        return most
    good, low, high = 0.0, math.log(most / _SPAN), math.log(most)
    for _ in range(_HALVINGS):
        middle = 0.5 * (low + high)
        if error(math.exp(middle)) <= bound:
            good, low = math.exp(middle), middle
        else:
            high = middle
    return good
