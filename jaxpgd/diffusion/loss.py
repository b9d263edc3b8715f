"""EDM training loss (Karras et al. 2022, section 5 and table 1)."""

import jax
import jax.numpy as jnp
from jax import Array

from jaxpgd.diffusion.constraints import Condition
from jaxpgd.diffusion.precondition import EDMDenoise
from jaxpgd.types import Denoise

_HIGH = (1.0, 80.0)  # noise levels that the share `p_high` is drawn from: from the data's scale to EDM's largest


def sample_sigma(key: Array, p_mean: Array | float, p_std: Array | float, p_high: Array | float = 0.0) -> Array:
    """Training noise level []: log sigma ~ Normal(p_mean, p_std), or with probability `p_high` uniform in [log 1, log 80].

    The published distribution (p_high = 0) hardly visits high noise, where samplers decide about rare events (terminals).
    """
    key_normal, key_high, key_choice = jax.random.split(key, 3)
    normal = p_mean + p_std * jax.random.normal(key_normal, (), jnp.float32)
    high = jax.random.uniform(key_high, (), jnp.float32, minval=jnp.log(_HIGH[0]), maxval=jnp.log(_HIGH[1]))
    return jnp.exp(jnp.where(jax.random.bernoulli(key_choice, p_high), high, normal))


def loss_weight(sigma: Array, sigma_data: Array | float) -> Array:
    """The weight lambda(sigma) that gives the network's own output unit loss at initialisation."""
    return (jnp.square(sigma) + jnp.square(sigma_data)) / jnp.square(sigma * sigma_data)


def denoising_error(key: Array, denoise: Denoise, x0: Array, sigma: Array) -> Array:
    """Mean squared error [] of denoising one example x0 (any shape) after fresh noise of level sigma []."""
    noised = x0 + sigma * jax.random.normal(key, x0.shape, x0.dtype)
    return jnp.square(denoise(noised, sigma) - x0).mean()


def edm_loss(
    key: Array,
    denoise: EDMDenoise,
    x0: Array,
    p_mean: Array | float,
    p_std: Array | float,
    *,
    p_high: Array | float = 0.0,
    known: Array | None = None,
    padding: Condition | None = None,
) -> Array:
    """Weighted squared error [] of denoising one example x0 [T, D] at a random noise level.

    With `known` [T, D] the network sees those entries without noise, and only the others count. With `padding` it sees that
    without noise whatever x0 holds there, and it weighs nothing: a step that counts weighs as much as in a whole window.
    """
    key_sigma, key_noise = jax.random.split(key)
    sigma = sample_sigma(key_sigma, p_mean, p_std, p_high)
    weight = loss_weight(sigma, denoise.sigma_data)
    seen = known
    if padding is not None:
        x0 = padding.impose(x0)
        seen = padding.known if known is None else padding.known | known
    if seen is None:
        return weight * denoising_error(key_noise, denoise, x0, sigma)
    noised = x0 + sigma * jax.random.normal(key_noise, x0.shape, x0.dtype)
    error = jnp.square(denoise.given(noised, sigma, Condition(x0, seen)) - x0)  # 0 at entries that are seen
    return weight * error.sum() / (x0.size if known is None else (~known).sum())  # as many as count without padding
