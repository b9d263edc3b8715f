"""Size of the change that guidance makes to the score, by noise level."""

import jax
import jax.numpy as jnp
from jax import Array

from jaxpgd import draws
from jaxpgd.guidance.base import Guided
from jaxpgd.types import Metrics


def guidance_profile(key: Array, guided: Guided, tokens: Array, sigmas: Array) -> Metrics:
    """Size of guidance and score at noise levels sigmas [K], on clean tokens [N, T, D] with noise of that level on them.

    `guidance_norm` [K]: root mean square over tokens of the change that guidance makes to the score; `score_norm` [K]: that of
    the unguided score (D(x) - x) / sigma^2.
    """

    def at(key: Array, sigma: Array) -> tuple[Array, Array]:
        x = tokens + sigma * draws.normal(key, tokens.shape, tokens.dtype)
        estimate = jax.vmap(guided.estimate, in_axes=(0, None))(x, sigma)
        size = lambda change: jnp.sqrt(jnp.square(change).mean()) / jnp.square(sigma)
        return size(estimate.x0_guided - estimate.x0), size(estimate.x0 - x)

    guidance, score = jax.lax.map(lambda pair: at(*pair), (jax.random.split(key, sigmas.shape[0]), sigmas))
    return {"guidance_norm": guidance, "score_norm": score}
