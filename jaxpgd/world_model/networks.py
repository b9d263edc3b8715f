"""Networks of one-step world models: the next state with its uncertainty, the reward, the terminal."""

import flax.linen as nn
import jax.numpy as jnp
from jax import Array

from jaxpgd.networks.mlp import MLP, Norm

MAX_LOG_VARIANCE, MIN_LOG_VARIANCE = 0.5, -10.0  # initial values of the learned bounds (PETS, appendix A.1)


class GaussianRegressor(nn.Module):
    """Mean and log-variance of independent Gaussians over targets. x [..., I] -> (mean [..., J], log_variance [..., J]).

    Softplus keeps the log-variance between two learned bounds, so that it stays finite far from data (PETS,
    arXiv 1805.12114, appendix A.1):

        log var <- max - softplus(max - log var),   log var <- min + softplus(log var - min)

    `norm = "layer"` normalises each hidden layer before its activation, as NEUBAY's code does (arXiv 2512.04341).
    """

    outputs: int
    hidden: tuple[int, ...] = (200, 200, 200, 200)
    norm: Norm = "none"

    @nn.compact
    def __call__(self, x: Array) -> tuple[Array, Array]:
        both = MLP((*self.hidden, 2 * self.outputs), activation=nn.swish, norm=self.norm, norm_first=True)(x)
        mean, log_variance = jnp.split(both, 2, axis=-1)
        high, low = self._bound("max_log_variance", MAX_LOG_VARIANCE), self._bound("min_log_variance", MIN_LOG_VARIANCE)
        log_variance = high - nn.softplus(high - log_variance)
        return mean, low + nn.softplus(log_variance - low)

    def _bound(self, name: str, start: float) -> Array:
        bound: Array = self.param(name, nn.initializers.constant(start), (self.outputs,), jnp.float32)
        return bound


class ScalarRegressor(nn.Module):
    """One number per input: a reward, or the logit of a terminal. x [..., I] -> [...]."""

    hidden: tuple[int, ...] = (256, 256)

    @nn.compact
    def __call__(self, x: Array) -> Array:
        return MLP((*self.hidden, 1), activation=nn.swish)(x)[..., 0]
