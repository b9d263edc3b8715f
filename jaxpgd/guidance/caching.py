"""Changes of the denoised point kept from one evaluation to the next, so that not every evaluation has to compute one."""

import jax.numpy as jnp
from flax import struct
from jax import Array

TREND = 0.5  # share of the last slope by which a cached change is extrapolated: 0 lags behind, 1 amplifies the sampler's noise


def deviation(sigma: Array) -> Array:
    """sigma / sqrt(1 + sigma^2) []: what the noise level leaves unknown of an entry of unit variance."""
    return sigma / jnp.sqrt(1.0 + sigma**2)


@struct.dataclass
class CachedChanges:
    """The two last computed changes D' - D of the denoised point, in units of `deviation`."""

    last: Array  # [T, D]
    before: Array  # [T, D]
    sigma: Array  # [] noise level of the last one
    sigma_before: Array  # [] and of the one before, 0: there was none

    @classmethod
    def none(cls, x: Array) -> "CachedChanges":
        """Before the first change of samples shaped like x [T, D]."""
        change, level = jnp.zeros_like(x), jnp.zeros((), x.dtype)
        return cls(change, change, level, level)

    def push(self, change: Array, sigma: Array) -> "CachedChanges":
        """With one more computed change [T, D] at sigma []."""
        return CachedChanges(change, self.last, sigma, self.sigma)

    def at(self, sigma: Array) -> Array:
        """The change [T, D] at a later noise level: the last one, carried on by `TREND` of its slope in log sigma."""
        known = (self.sigma_before > self.sigma) & (self.sigma > sigma)
        ahead = jnp.log(jnp.where(known, self.sigma / sigma, 1.0))
        behind = jnp.log(jnp.where(known, self.sigma_before / self.sigma, 2.0))
        return self.last + TREND * ahead / behind * (self.last - self.before)
