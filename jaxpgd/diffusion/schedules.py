"""Noise levels of samplers."""

import jax.numpy as jnp
from jax import Array


def karras_sigmas(steps: int, sigma_min: Array | float, sigma_max: Array | float, rho: Array | float) -> Array:
    """Noise levels [steps + 1] from sigma_max to sigma_min, then 0 (EDM equation 5). One step goes straight to 0.

    Both ends are exact, so that bounds of churn and guidance at a level include it. The powers are taken relative to sigma_max
    and in logarithms: sigma^(1 / rho) leaves the numbers where rho is small, and all digits are lost in it where rho is large.
    """
    low, high, rho = (jnp.asarray(x, jnp.float32) for x in (sigma_min, sigma_max, rho))
    ramp = jnp.linspace(0.0, 1.0, steps, dtype=jnp.float32)[1:-1]
    inner = high * jnp.exp(rho * jnp.log1p(ramp * jnp.expm1((jnp.log(low) - jnp.log(high)) / rho)))
    ends = [high[None], jnp.clip(inner, low, high), low[None]] if steps > 1 else [high[None]]
    return jnp.concatenate([*ends, jnp.zeros(1, high.dtype)])


def vp_sigma(time: Array, beta_min: Array | float, beta_max: Array | float) -> Array:
    """Noise level of the variance-preserving process at time [...] in [0, 1] (EDM table 1, column VP).

    A sample kept at unit variance is sqrt(abar) x0 + sqrt(1 - abar) n with
    -log(abar) = beta_min t + (beta_max - beta_min) t^2 / 2; divided by sqrt(abar) it is x0 + sigma n with
    sigma = sqrt((1 - abar) / abar).
    """
    return jnp.sqrt(jnp.expm1(beta_min * time + (beta_max - beta_min) * jnp.square(time) / 2.0))


def vp_time(sigma: Array, beta_min: Array | float, beta_max: Array | float) -> Array:
    """The time [...] at which the variance-preserving process has noise level sigma [...]: the inverse of `vp_sigma`."""
    exponent = jnp.log1p(jnp.square(sigma))
    # the positive root of the quadratic, without the difference that cancels where beta_max is near beta_min
    return 2.0 * exponent / (beta_min + jnp.sqrt(jnp.square(beta_min) + 2.0 * (beta_max - beta_min) * exponent))


def vp_sigmas(steps: int, beta_min: Array | float, beta_max: Array | float) -> Array:
    """Noise levels [steps + 1] of the variance-preserving process at times 1, 1 - 1/steps, ..., 1/steps, then 0.

    With 0.1 and 10 the schedule of Diffusion-QL (arXiv 2208.06193, section 3): beta_i = 1 - abar_i / abar_(i-1).
    """
    return jnp.append(vp_sigma(jnp.arange(steps, 0, -1, dtype=jnp.float32) / steps, beta_min, beta_max), 0.0)
