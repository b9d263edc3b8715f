"""Noise levels of samplers."""

import jax.numpy as jnp
from jax import Array


def karras_sigmas(steps: int, sigma_min: Array | float, sigma_max: Array | float, rho: Array | float) -> Array:
    """Noise levels [steps + 1] from sigma_max to sigma_min, then 0 (EDM equation 5). One step goes straight to 0."""
    ramp = jnp.linspace(0.0, 1.0, steps)
    low, high = sigma_min ** (1.0 / rho), sigma_max ** (1.0 / rho)
    return jnp.append((high + ramp * (low - high)) ** rho, 0.0)
