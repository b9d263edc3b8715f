"""The published guidance: between sampler steps, actions move along the policy's gradient (PGD algorithm 1)."""

import math
from typing import ClassVar, Literal

import jax
import jax.numpy as jnp
from flax import struct
from jax import Array

from jaxpgd.guidance.base import Echo, GuidedLevels
from jaxpgd.guidance.likelihood import log_likelihood
from jaxpgd.options import nonnegative, option, options
from jaxpgd.tokens import TokenCodec
from jaxpgd.types import Denoise, Hook, Policy, Stage

PUBLISHED_STEPS = 256  # of the sampler that the published coefficient belongs to


@options
class PublishedConfig(GuidedLevels):
    """Guidance as published (PGD algorithm 1)."""

    at: Literal["noised", "denoised"] = option(
        "denoised", "trajectory at which the policy's gradient is taken: the noised or the denoised one"
    )
    normalise: Literal["none", "safe", "official"] = option(
        "safe", 'L2-normalise the gradient over the trajectory; "official": as PGD\'s code, NaN for a gradient of 0'
    )
    sine: float = nonnegative(0.3, "weight of the sine term in the schedule of the guidance coefficient (PGD: 0.3)", high=1e3)


@struct.dataclass
class PublishedGuidance:
    """The published guidance with its numbers: a hook of the sampler, not a denoiser."""

    options: PublishedConfig = PublishedConfig()
    weighted: ClassVar[bool] = False
    at_denoised_point: ClassVar[bool] = False

    def attach(
        self, denoise: Denoise, policy: Policy, codec: TokenCodec, coefficient: Array | float, valid: Array | None = None
    ) -> tuple[Denoise, Hook | None]:
        """As `Guidance.attach`: the denoiser as it is, and the hook."""
        return denoise, PolicyGradientStep(policy, codec, coefficient, self.options, valid)

    def counting(self) -> Denoise:
        """As `Guidance.counting`: a forward pass each."""
        return Echo()

    def hook_cost(self, steps: int) -> int:
        """As `Guidance.hook_cost`: the gradient at the denoised point takes one evaluation a step."""
        return steps if self.options.at == "denoised" else 0

    def unweighted(self) -> "PublishedGuidance":
        """As `Guidance.unweighted`."""
        return self


@struct.dataclass
class PolicyGradientStep:
    """Before step i of n, action entries move along the policy's gradient (PGD algorithm 1).

    The step is `step_share(n) * lambda * (1 - i/n + sine * sin(pi (i+1)/n))`, the schedule of PGD's code, times the gradient of
    log q with respect to the normalised pre-tanh actions, states held fixed, taken at the noised or the denoised trajectory;
    none before the last step.
    """

    policy: Policy
    codec: TokenCodec
    coefficient: Array | float  # lambda
    options: PublishedConfig = PublishedConfig()
    valid: Array | None = None  # [T] steps whose actions are in log q; None: all

    def gradient(self, x: Array) -> Array:
        """Gradient [T, A] of log q at tokens x [T, D], normalised as set."""
        obs = self.codec.observation(x)

        def log_q(actions: Array) -> Array:
            pre_tanh = self.codec.pre_tanh(x.at[:, self.codec.action].set(actions))
            return log_likelihood(self.policy, obs, self.codec.action_of(pre_tanh), valid=self.valid)

        return _normalise(jax.grad(log_q)(x[:, self.codec.action]), self.options.normalise)

    def weight(self, stage: Stage) -> Array:
        """Size [] of the step: the coefficient lambda times the schedule over steps."""
        i, n, sine = stage.index, stage.count, self.options.sine
        ramp = 1.0 - i / n + sine * jnp.sin(jnp.pi * (i + 1) / n)
        active = (i < n - 1) & self.options.has(stage.sigma)
        return jnp.where(active, self.coefficient * step_share(n, sine) * ramp, 0.0)

    def __call__(self, x: Array, stage: Stage) -> Array:
        """Tokens [T, D] after the step."""
        point = stage.denoise(x, stage.sigma) if self.options.at == "denoised" else x
        return x.at[:, self.codec.action].add(self.weight(stage).astype(x.dtype) * self.gradient(point))


def step_share(steps: int, sine: Array | float) -> Array | float:
    """What each of n steps is multiplied by, so that their weights add up to those of the published 256: 1 for 256 steps.

    Samples then converge as n grows. Fewer steps are larger ones: where a single one passes the policy's mode, they overshoot.
    """
    if steps == PUBLISHED_STEPS:
        return 1.0
    return _ramp_sum(PUBLISHED_STEPS, sine) / _ramp_sum(max(steps, 2), sine)  # a single step is the last, which has none


def _ramp_sum(n: int, sine: Array | float) -> Array | float:
    """Sum over i < n - 1 of 1 - i/n + sine * sin(pi (i+1)/n)."""
    return (n - 1) * (n + 2) / (2 * n) + sine / math.tan(math.pi / (2 * n))


def _normalise(gradient: Array, how: Literal["none", "safe", "official"]) -> Array:
    if how == "none":
        return gradient
    norm = jnp.sqrt(jnp.square(gradient).sum())
    if how == "official":
        return gradient / norm + 1e-8  # the published expression: NaN where the gradient is zero
    return gradient / jnp.maximum(norm, 1e-8)
