"""Moving samples towards a policy: the published nudge (a sampler hook) and guidance at the denoised point (a Denoise).

The target of all is p_off(trajectory) * q(trajectory)^coefficient, q the product over t of pi(tanh u_t | s_t), in the space of
pre-tanh actions u (PGD section 4): q is the density of the environment's action, without the log-slope of tanh. A ladder, by
what is assumed of the posterior of the clean trajectory given the noised one, and by cost per evaluation in forward-equivalents
(a forward pass of the denoiser is 1, the product of a vector with its Jacobian 1 more):

- `published` (1, or 2 at the denoised point): none; action entries move along the policy's gradient. Not the stated target, and
  the coefficient is that of a step where there are 256 of them, as published.
- `reconstruction` (2): entries independent, of variance sigma^2 / (1 + sigma^2).
- `moment` (1 + 2 per iteration, module `moment`): covariance sigma^2 times the denoiser's Jacobian.
- `smc` (that of its proposal, module `smc`): any of these corrected by weights; exact as steps and particles grow.

Where tokens hold actions as they are, `reconstruction` is exact for unit Gaussian tokens and `moment` for all Gaussians, with a
Gaussian policy. Where they hold pre-tanh actions u, as in all that a dataset is guided with, neither is: log q is no quadratic
of u, and the tangent at the denoised point pulls too weakly where u is large. With one action, u ~ N(0, 1) and the policy
N(0.6, 0.3^2), the target's mean action is 0.589 and that of both 0.515; `smc` has no such error. (The tanh expected of u in
place of its tangent gives 0.569 there, but moves the states of trajectories too far.)
"""

import math
from typing import Literal, Protocol

import jax
import jax.numpy as jnp
from flax import struct
from jax import Array

from jaxpgd.tokens import TokenCodec
from jaxpgd.types import Denoise, Policy, Stage

Normalise = Literal["none", "safe", "official"]
LEAST_CURVATURE = 1e-3  # of log pi in the action, below which it counts as flat
PUBLISHED_STEPS = 256  # of the sampler that the published guidance's coefficient belongs to


@struct.dataclass
class Look:
    """What guidance sees at x [T, D] and one noise level."""

    denoised: Array  # [T, D], E[x0 | x]
    guided: Array  # [T, D], the same for the target instead of the data
    log_twist: Array  # [], estimate of log E[q(x0)^coefficient | x], up to a constant of the noise level


class Guided(Protocol):
    """A guided Denoise that also says how likely its target makes x: what `smc` proposes with."""

    def __call__(self, x: Array, sigma: Array) -> Array: ...

    def look(self, x: Array, sigma: Array) -> Look:
        """x [T, D], sigma [] > 0."""
        ...

    def log_target(self, x0: Array) -> Array:
        """coefficient * log q [] of clean tokens [T, D]."""
        ...


def log_likelihood(
    policy: Policy, obs: Array, action: Array, variance: Array | float = 0.0, counted: Array | None = None
) -> Array:
    """Sum over T of log pi(a | s) []. obs [T, O], action [T, A], variance [T, A] of the action or a number.

    Only the steps `counted` [T] are in it (None: all).
    Of a policy with a score of its own the gradient is that score, in the action alone; its value is 0 without a log_prob.
    """
    variance = jnp.broadcast_to(variance, action.shape)
    total = lambda values: values.sum() if counted is None else jnp.where(counted, values, 0.0).sum()
    if policy.score_fn is None:
        return total(jax.vmap(policy.log_prob)(obs, action, variance))
    hold = jax.lax.stop_gradient
    value = (
        total(jax.vmap(policy.log_prob)(obs, action, variance))
        if policy.log_prob_fn is not None
        else jnp.zeros((), jnp.float32)
    )
    score = hold(jax.vmap(policy.score)(obs, action, variance))
    score = score if counted is None else jnp.where(counted[:, None], score, 0.0)
    return hold(value) + (score * (action - hold(action))).sum()


@struct.dataclass
class PolicyNudge:
    """The published guidance: before step i of n, action entries move along the policy's gradient (PGD algorithm 1).

    The step is `share * coefficient * (1 - i/n + sine * sin(pi (i+1)/n))` times the gradient of the log-likelihood with respect
    to the normalised pre-tanh actions, states held fixed, taken at the noised or the denoised trajectory; none on the last.

    `share` is 1 for the published 256 steps and about 256/n for n, so that the weights of any number add up to those of 256 and
    samples converge as n grows. Fewer steps are larger ones: where a single one passes the policy's mode, they overshoot it.
    """

    policy: Policy
    codec: TokenCodec
    coefficient: Array | float
    sine: Array | float
    sigma_min: Array | float
    sigma_max: Array | float
    at: Literal["noised", "denoised"] = struct.field(pytree_node=False, default="denoised")
    normalise: Normalise = struct.field(pytree_node=False, default="safe")
    counted: Array | None = None  # [T] steps whose actions count; None: all

    def gradient(self, x: Array) -> Array:
        """Gradient [T, A] of the log-likelihood at tokens x [T, D], normalised as set."""
        obs = self.codec.observation(x)

        def objective(actions: Array) -> Array:
            pre_tanh = self.codec.pre_tanh(x.at[:, self.codec.action].set(actions))
            return log_likelihood(self.policy, obs, self.codec.action_of(pre_tanh), counted=self.counted)

        return _normalise(jax.grad(objective)(x[:, self.codec.action]), self.normalise)

    def weight(self, stage: Stage) -> Array:
        """Size [] of the step."""
        index, count = stage.index, stage.count
        ramp = 1.0 - index / count + self.sine * jnp.sin(jnp.pi * (index + 1) / count)
        active = (index < count - 1) & (stage.sigma >= self.sigma_min) & (stage.sigma <= self.sigma_max)
        return jnp.where(active, self.coefficient * nudge_share(count, self.sine) * ramp, 0.0)

    def __call__(self, x: Array, stage: Stage) -> Array:
        """Nudged tokens [T, D]."""
        point = stage.denoise(x, stage.sigma) if self.at == "denoised" else x
        return x.at[:, self.codec.action].add(self.weight(stage).astype(x.dtype) * self.gradient(point))


def nudge_share(steps: int, sine: Array | float) -> Array | float:
    """The weights of the published 256 steps, added up, over those of so many: what each of these is multiplied by."""
    if steps == PUBLISHED_STEPS:
        return 1.0
    return _ramp_sum(PUBLISHED_STEPS, sine) / _ramp_sum(max(steps, 2), sine)  # a single step is the last, which has no nudge


def _ramp_sum(n: int, sine: Array | float) -> Array | float:
    """Sum over i < n - 1 of 1 - i/n + sine * sin(pi (i+1)/n)."""
    return (n - 1) * (n + 2) / (2 * n) + sine / math.tan(math.pi / (2 * n))


def _normalise(gradient: Array, how: Normalise) -> Array:
    if how == "none":
        return gradient
    norm = jnp.sqrt(jnp.square(gradient).sum())
    if how == "official":
        return gradient / norm + 1e-8  # the published expression: NaN where the gradient is zero
    return gradient / jnp.maximum(norm, 1e-8)


@struct.dataclass
class Likelihood:
    """log q of tokens, as guidance at the denoised point uses it; the fields are those of a `Guidance` with its policy."""

    policy: Policy
    codec: TokenCodec
    coefficient: Array | float
    sigma_min: Array | float = 0.0
    sigma_max: Array | float = jnp.inf
    limit: Array | float = jnp.inf
    hold_states: bool = struct.field(pytree_node=False, default=False)
    states: bool = struct.field(pytree_node=False, default=False)  # whether unknown states widen it
    counted: Array | None = None  # [T] steps whose actions count; None: all

    def parts(self, x0: Array) -> tuple[Array, Array]:
        """Observations [T, O], without a gradient where states are held, and actions [T, A] of tokens x0 [T, D]."""
        obs = self.codec.observation(x0)
        action = self.codec.action_of(self.codec.pre_tanh(x0))
        return jax.lax.stop_gradient(obs) if self.hold_states else obs, action

    def blurred(self, x0: Array, sigma: Array) -> Array:
        """log q [] at the denoised point x0 [T, D], widened by what sigma leaves unknown of x0.

        The variance of an entry of x0 given x is taken as sigma^2 / (1 + sigma^2) in units of the normalised tokens, carried to
        the action by the slope of tanh and, with `states`, from the states through the policy's mean. q^coefficient of a
        Gaussian policy is a Gaussian of its variance over the coefficient, hence the factor. Without `states` it is left out
        below 1: the unknown states widen q as well, and a larger variance of the actions makes up for them in part.
        """
        obs, action = self.parts(x0)
        slope = 1.0 - jnp.square(action) if self.codec.squashed else jnp.ones_like(action)
        unknown = sigma**2 / (1.0 + sigma**2)
        variance = jnp.square(slope * self.codec.std[self.codec.action])
        factor = jnp.maximum(self.coefficient, 1.0)
        if self.states:
            variance += jax.vmap(self.state_variance)(obs, action)
            factor = jnp.asarray(self.coefficient, jnp.float32)
        return log_likelihood(self.policy, obs, action, jax.lax.stop_gradient(factor * unknown * variance), self.counted)

    def state_variance(self, obs: Array, action: Array) -> Array:
        """Variance [A] that the policy's mean has where normalised states have unit variance: by its slope in obs [O].

        The slope of a Gaussian's mean is the score's slope in the state over its curvature in the action. Where log pi is flat
        or convex in an action that says nothing of a mean: 0. An action within [-1, 1] has variance 1 at most.
        """
        score = self.policy.score
        curvature = -jnp.diagonal(jax.jacfwd(lambda a: score(obs, a))(action))
        concave = curvature > LEAST_CURVATURE
        slope = jax.jacrev(lambda o: score(o, action))(obs) / jnp.where(concave, curvature, 1.0)[:, None]
        variance = jnp.where(concave, jnp.square(slope * self.codec.std[self.codec.obs]).sum(axis=-1), 0.0)
        return jnp.minimum(variance, 1.0) if self.codec.squashed else variance

    def exact(self, x0: Array) -> Array:
        """coefficient * log q [] of clean tokens x0 [T, D]."""
        return self.coefficient * log_likelihood(self.policy, *self.parts(x0), counted=self.counted)

    def moved(self, x0: Array, change: Array, sigma: Array) -> Array:
        """x0 [T, D] plus the change [T, D], each entry of it within `limit` deviations sigma / sqrt(1 + sigma^2).

        That is what sigma leaves unknown of an entry of unit variance. A change of many such deviations comes of a policy
        seen far from where it is known, and without a bound it feeds on itself.
        """
        most = self.limit * sigma / jnp.sqrt(1.0 + sigma**2)
        return x0 + jnp.clip(change, -most, most)

    def weight(self, sigma: Array) -> Array:
        """The coefficient [] where sigma is among the noise levels that are guided, else 0."""
        return jnp.where((sigma >= self.sigma_min) & (sigma <= self.sigma_max), self.coefficient, 0.0)


@struct.dataclass
class ReconstructionGuidance:
    """Guidance at the denoised point, through the denoiser: D'(x) = D(x) + coefficient * sigma^2 * grad_x log q(D(x)).

    q is widened as in `Likelihood.blurred`: exact where tokens are independent unit Gaussians and hold actions as they are, the
    policy is a Gaussian that is blind to the state, and the coefficient is not below 1. With `hold_states` the policy's
    observation is constant, so that states move only through the denoiser's Jacobian.
    """

    denoise: Denoise
    likelihood: Likelihood

    def look(self, x: Array, sigma: Array) -> Look:
        """As `Guided.look`: a forward and a backward pass."""

        def log_q(x: Array) -> tuple[Array, Array]:
            x0 = self.denoise(x, sigma)
            return self.likelihood.blurred(x0, sigma), x0

        (value, x0), gradient = jax.value_and_grad(log_q, has_aux=True)(x)
        guided = self.likelihood.moved(x0, self.likelihood.weight(sigma) * sigma**2 * gradient, sigma)
        return Look(x0, guided, self.likelihood.coefficient * value)

    def __call__(self, x: Array, sigma: Array) -> Array:
        """Guided estimate of the clean sample: x [T, D], sigma [] -> [T, D]."""
        return self.look(x, sigma).guided

    def log_target(self, x0: Array) -> Array:
        """As `Guided.log_target`."""
        return self.likelihood.exact(x0)


@struct.dataclass
class Unguided:
    """The denoiser itself, with the twist of `ReconstructionGuidance`: `smc` then guides by weights alone."""

    denoise: Denoise
    likelihood: Likelihood

    def look(self, x: Array, sigma: Array) -> Look:
        """As `Guided.look`: a forward pass."""
        x0 = self.denoise(x, sigma)
        return Look(x0, x0, self.likelihood.coefficient * self.likelihood.blurred(x0, sigma))

    def __call__(self, x: Array, sigma: Array) -> Array:
        """Estimate of the clean sample: x [T, D], sigma [] -> [T, D]."""
        return self.denoise(x, sigma)

    def log_target(self, x0: Array) -> Array:
        """As `Guided.log_target`."""
        return self.likelihood.exact(x0)
