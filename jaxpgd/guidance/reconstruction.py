"""Reconstruction guidance: the gradient of log q at the denoised point, through the denoiser (DPS, arXiv 2209.14687)."""

import jax
import jax.numpy as jnp
from flax import struct
from jax import Array

from jaxpgd.guidance.base import DenoisedPointGuidance, Estimate, GuidedPointConfig, within_limit
from jaxpgd.guidance.likelihood import Likelihood
from jaxpgd.options import options
from jaxpgd.types import Denoise


@options
class ReconstructionConfig(GuidedPointConfig):
    """Reconstruction guidance: entries of the clean trajectory taken as independent given the noised one."""


@struct.dataclass
class ReconstructionGuidance(DenoisedPointGuidance):
    """Guidance at the denoised point, through the denoiser: D'(x) = D(x) + lambda * sigma^2 * grad_x log q(D(x)).

    q is widened as in `Likelihood.blurred`: exact where tokens are independent unit Gaussians and hold actions as they are, the
    policy is a Gaussian that is blind to the state, and lambda is not below 1. With `hold_states` the policy's observation is
    constant, so that states move only through the denoiser's Jacobian.
    """

    options: ReconstructionConfig = ReconstructionConfig()

    def cost(self, sigma: Array) -> Array:
        """As `DenoisedPointGuidance.cost`: a forward and a backward pass."""
        return jnp.full((), 2, jnp.int32)

    def estimate(self, denoise: Denoise, likelihood: Likelihood, x: Array, sigma: Array) -> Estimate:
        """As `DenoisedPointGuidance.estimate`."""

        def log_q(x: Array) -> tuple[Array, Array]:
            x0 = denoise(x, sigma)
            return likelihood.blurred(x0, sigma), x0

        (value, x0), gradient = jax.value_and_grad(log_q, has_aux=True)(x)
        guided = x0 + within_limit(likelihood.coefficient * sigma**2 * gradient, self.options.limit, sigma)
        return Estimate(x0, guided, likelihood.coefficient * value)
