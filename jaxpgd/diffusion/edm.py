"""EDM (Karras et al., arXiv 2206.00364): preconditioning and training loss (table 1), noise levels of sampling (equation 5)."""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax import struct
from jax import Array

from jaxpgd import draws
from jaxpgd.diffusion.conditioning import Condition
from jaxpgd.types import Denoise

_HIGH = (1.0, 80.0)  # noise levels that the share `p_high` is drawn from: from the data's scale to EDM's largest


@struct.dataclass
class Coefficients:
    """EDM's table 1 at one noise level: D(x; sigma) = c_skip x + c_out F(c_in x; c_noise). Each []."""

    c_skip: Array
    c_out: Array
    c_in: Array
    c_noise: Array


def coefficients(sigma: Array, sigma_data: Array | float) -> Coefficients:
    """c_skip, c_out, c_in and c_noise of EDM (table 1, column "Ours") at noise level sigma []."""
    total = jnp.square(sigma) + jnp.square(sigma_data)
    return Coefficients(
        c_skip=jnp.square(sigma_data) / total,
        c_out=sigma * sigma_data / jnp.sqrt(total),
        c_in=1.0 / jnp.sqrt(total),
        c_noise=jnp.log(sigma) / 4.0,
    )


@struct.dataclass
class EDMDenoise:
    """The Denoise D of a network F and its parameters (EDM equation 7): x [T, D], sigma [] > 0 -> E[x0 | x] [T, D]."""

    params: Any
    sigma_data: Array | float
    network: nn.Module = struct.field(pytree_node=False)
    scaled: bool = struct.field(pytree_node=False, default=False)  # whether known entries are scaled as the input is

    def __call__(self, x: Array, sigma: Array) -> Array:
        """Estimate of the clean sample."""
        c = coefficients(sigma, self.sigma_data)
        output: Array = self.network.apply(self.params, c.c_in * x, c.c_noise)  # type: ignore[assignment]
        return c.c_skip * x + c.c_out * output

    def given(self, x: Array, sigma: Array, condition: Condition) -> Array:
        """The same with known entries.

        The network sees them unscaled, legible at every noise level, or `scaled` with the rest of its input (DyDiff's code).
        """
        c = coefficients(sigma, self.sigma_data)
        shown = c.c_in * condition.impose(x) if self.scaled else condition.impose(c.c_in * x)
        output: Array = self.network.apply(self.params, shown, c.c_noise)  # type: ignore[assignment]
        return condition.impose(c.c_skip * x + c.c_out * output)


def sample_sigma(key: Array, p_mean: Array | float, p_std: Array | float, p_high: Array | float = 0.0) -> Array:
    """Training noise level []: log sigma ~ Normal(p_mean, p_std), or with probability `p_high` uniform in [log 1, log 80].

    The published distribution (p_high = 0) hardly visits high noise, where samplers decide about rare events (terminals).
    """
    key_normal, key_high, key_choice = jax.random.split(key, 3)
    normal = p_mean + p_std * jax.random.normal(key_normal, (), jnp.float32)
    high = jax.random.uniform(key_high, (), jnp.float32, minval=jnp.log(_HIGH[0]), maxval=jnp.log(_HIGH[1]))
    return jnp.exp(jnp.where(jax.random.bernoulli(key_choice, p_high), high, normal))


def loss_weight(sigma: Array, sigma_data: Array | float) -> Array:
    """lambda(sigma) = 1 / c_out^2 (EDM table 1), which gives the network's output F unit loss at initialisation."""
    return (jnp.square(sigma) + jnp.square(sigma_data)) / jnp.square(sigma * sigma_data)


def denoising_error(key: Array, denoise: Denoise, x0: Array, sigma: Array) -> Array:
    """Mean squared error [] of denoising one example x0 (any shape) after fresh noise of level sigma []."""
    noised = x0 + sigma * draws.normal(key, x0.shape, x0.dtype)
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
    """EDM's loss lambda(sigma) |D(x0 + n; sigma) - x0|^2 [] (equation 8) of one example x0 [T, D] at a random noise level.

    With `known` [T, D] the network sees those entries without noise, and only the others are in the loss. It sees `padding`
    without noise as well, whatever x0 holds there, and padding has no weight: a valid step weighs as much as in a window
    without padding.
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
    noised = x0 + sigma * draws.normal(key_noise, x0.shape, x0.dtype)
    error = jnp.square(denoise.given(noised, sigma, Condition(x0, seen)) - x0)  # 0 at entries that are seen
    return weight * error.sum() / (x0.size if known is None else (~known).sum())  # as many as count without padding


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
