"""Diffusion of single actions: the denoiser that a noise-predicting network makes, its ancestral chain, its loss."""

import chex
import jax
import jax.numpy as jnp
from flax import linen as nn
from flax import struct
from jax import Array

from jaxpgd.diffusion.edm import coefficients, vp_time
from jaxpgd.diffusion.sampling import sample
from jaxpgd.diffusion.single_step import Ancestral
from jaxpgd.types import Denoise, PyTree


@struct.dataclass
class ActionDenoise:
    """The Denoise of actions at one observation: x [A], sigma [] > 0 -> E[action | x] [A].

    The network predicts the noise (EDM table 1, column VP): D = x - sigma * network(x / sqrt(1 + sigma^2), step, obs), with the
    steps of the schedule counted from 0 at its lowest level. With `clip`, D is kept in [-1, 1], as in sampling.
    """

    params: PyTree
    obs: Array  # [O]
    beta_min: Array | float
    beta_max: Array | float
    network: nn.Module = struct.field(pytree_node=False)
    steps: int = struct.field(pytree_node=False)
    clip: bool = struct.field(pytree_node=False)

    def __call__(self, x: Array, sigma: Array) -> Array:
        """Estimate of the clean action."""
        chex.assert_rank([x, self.obs, sigma], [1, 1, 0])
        step = self.steps * vp_time(sigma, self.beta_min, self.beta_max) - 1.0
        noise: Array = self.network.apply(self.params, coefficients(sigma, 1.0).c_in * x, step, self.obs)  # type: ignore[assignment]
        action = x - sigma * noise
        return jnp.clip(action, -1.0, 1.0) if self.clip else action


def chain(key: Array, denoise: Denoise, sigmas: Array, action_dim: int, noise: float = 1.0) -> Array:
    """An action [A] by ancestral steps at `sigmas` [n + 1] (Diffusion-QL, equation 1); `noise` 0 starts at 0 and adds none.

    The chain starts, as published, at unit variance in the coordinates where samples keep it: sqrt(1 + sigma^2) here. The
    action is in [-1, 1] where `denoise` clips, since the last step returns D.
    """
    key_start, key_chain = jax.random.split(key)
    start = noise * jnp.sqrt(1.0 + jnp.square(sigmas[0])) * jax.random.normal(key_start, (action_dim,), sigmas.dtype)
    return sample(key_chain, denoise, start, sigmas, Ancestral(noise=noise))[0]


def noise_error(denoised: Array, action: Array, sigma: Array) -> Array:
    """L_d = |eps - eps_theta|^2 [] (Diffusion-QL, equation 2), averaged over the batch [B] and the action's entries.

    From actions [B, A] and what is denoised of action + sigma * eps [B, A]: the error of the predicted noise is that of the
    action over sigma [B].
    """
    chex.assert_equal_shape([denoised, action])
    chex.assert_shape(sigma, denoised.shape[:1])
    return (jnp.square(denoised - action).mean(axis=-1) / jnp.square(sigma)).mean()


def key_of(obs: Array) -> Array:
    """A key made of the bits of obs [O]: different noise at every observation, the same noise at the same one.

    With one key for all observations, the noise would be a constant error of the actions along an episode.
    """
    bits = jax.lax.bitcast_convert_type(jnp.asarray(obs, jnp.float32), jnp.uint32)
    words = (bits + jnp.arange(bits.size, dtype=jnp.uint32)) * jnp.uint32(0x9E3779B1)
    words = (words ^ (words >> 15)) * jnp.uint32(0x85EBCA6B)  # not linear: swapped entries or signs give another key
    return jax.random.key(jnp.sum(words ^ (words >> 13), dtype=jnp.uint32))
