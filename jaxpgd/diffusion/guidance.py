"""Moving samples towards a policy: the published nudge (a sampler hook) and guidance at the denoised point (a Denoise).

The target of both is p_off(trajectory) * pi(tanh u | s)^coefficient in the space of pre-tanh actions u (PGD section 4).
"""

from typing import Literal

import jax
import jax.numpy as jnp
from flax import struct
from jax import Array

from jaxpgd.packing import TokenCodec
from jaxpgd.types import Denoise, Hook, Policy, Stage

Normalise = Literal["none", "safe", "official"]


def log_likelihood(policy: Policy, obs: Array, pre_tanh: Array, variance: Array | float = 0.0) -> Array:
    """Sum over T of log pi(tanh(u) | s) []. obs [T, O], pre_tanh [T, A], variance [T, A] of the action or a number."""
    action = jnp.tanh(pre_tanh)
    return jax.vmap(policy.log_prob)(obs, action, jnp.broadcast_to(variance, action.shape)).sum()


@struct.dataclass
class PolicyNudge:
    """The published guidance: before step i of n, action entries move along the policy's gradient (PGD algorithm 1).

    The step is `coefficient * (1 - i/n + sine * sin(pi (i+1)/n))` times the gradient of the log-likelihood with respect to the
    normalised pre-tanh actions, states held fixed, taken at the noised or the denoised trajectory; none on the last step.
    """

    policy: Policy
    codec: TokenCodec
    coefficient: Array | float
    sine: Array | float
    sigma_min: Array | float
    sigma_max: Array | float
    at: Literal["noised", "denoised"] = struct.field(pytree_node=False, default="denoised")
    normalise: Normalise = struct.field(pytree_node=False, default="safe")

    def gradient(self, x: Array) -> Array:
        """Gradient [T, A] of the log-likelihood at tokens x [T, D], normalised as set."""
        obs = self.codec.observation(x)

        def objective(actions: Array) -> Array:
            return log_likelihood(self.policy, obs, self.codec.pre_tanh(x.at[:, self.codec.action].set(actions)))

        return _normalise(jax.grad(objective)(x[:, self.codec.action]), self.normalise)

    def weight(self, stage: Stage) -> Array:
        """Size [] of the step."""
        index, count = stage.index, stage.count
        ramp = 1.0 - index / count + self.sine * jnp.sin(jnp.pi * (index + 1) / count)
        active = (index < count - 1) & (stage.sigma >= self.sigma_min) & (stage.sigma <= self.sigma_max)
        return jnp.where(active, self.coefficient * ramp, 0.0)

    def __call__(self, x: Array, stage: Stage) -> Array:
        """Nudged tokens [T, D]."""
        point = stage.denoise(x, stage.sigma) if self.at == "denoised" else x
        return x.at[:, self.codec.action].add(self.weight(stage) * self.gradient(point))


def _normalise(gradient: Array, how: Normalise) -> Array:
    if how == "none":
        return gradient
    norm = jnp.sqrt(jnp.square(gradient).sum())
    if how == "official":
        return gradient / norm + 1e-8  # the published expression: NaN where the gradient is zero
    return gradient / jnp.maximum(norm, 1e-8)


@struct.dataclass
class ReconstructionGuidance:
    """Guidance at the denoised point, through the denoiser: D'(x) = D(x) + coefficient * sigma^2 * grad_x log q(D(x)).

    q is the policy's likelihood blurred by the variance of E[x0 | x], taken as sigma^2 / (1 + sigma^2) in units of the
    normalised tokens (exact where tokens are independent unit Gaussians) and carried to the action by the slope of tanh.
    With `hold_states` the policy's observation is constant, so that states move only through the denoiser's Jacobian.
    """

    denoise: Denoise
    policy: Policy
    codec: TokenCodec
    coefficient: Array | float
    sigma_min: Array | float
    sigma_max: Array | float
    hold_states: bool = struct.field(pytree_node=False, default=False)

    def _log_q(self, x: Array, sigma: Array) -> tuple[Array, Array]:
        x0 = self.denoise(x, sigma)
        obs, pre_tanh = self.codec.observation(x0), self.codec.pre_tanh(x0)
        if self.hold_states:
            obs = jax.lax.stop_gradient(obs)
        slope = 1.0 - jnp.square(jnp.tanh(pre_tanh))
        variance = jnp.square(slope * self.codec.std[self.codec.action]) * sigma**2 / (1.0 + sigma**2)
        return log_likelihood(self.policy, obs, pre_tanh, jax.lax.stop_gradient(variance)), x0

    def __call__(self, x: Array, sigma: Array) -> Array:
        """Guided estimate of the clean sample: x [T, D], sigma [] -> [T, D]."""
        gradient, x0 = jax.grad(self._log_q, has_aux=True)(x, sigma)
        active = (sigma >= self.sigma_min) & (sigma <= self.sigma_max)
        return x0 + jnp.where(active, self.coefficient * sigma**2, 0.0) * gradient


@struct.dataclass
class Guidance:
    """Which guidance, with its numbers as leaves; `attach` makes it act on a denoiser for a policy."""

    coefficient: Array | float
    sine: Array | float = 0.3
    sigma_min: Array | float = 0.0
    sigma_max: Array | float = jnp.inf
    kind: Literal["published", "reconstruction"] = struct.field(pytree_node=False, default="reconstruction")
    at: Literal["noised", "denoised"] = struct.field(pytree_node=False, default="denoised")
    normalise: Normalise = struct.field(pytree_node=False, default="safe")
    hold_states: bool = struct.field(pytree_node=False, default=False)

    def attach(self, denoise: Denoise, policy: Policy, codec: TokenCodec) -> tuple[Denoise, Hook | None]:
        """The Denoise and the `before_step` hook to sample with."""
        if self.kind == "reconstruction":
            wrapped = ReconstructionGuidance(
                denoise, policy, codec, self.coefficient, self.sigma_min, self.sigma_max, self.hold_states
            )
            return wrapped, None
        nudge = PolicyNudge(policy, codec, self.coefficient, self.sine, self.sigma_min, self.sigma_max, self.at, self.normalise)
        return denoise, nudge
