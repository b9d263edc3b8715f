"""What the guidance methods have in common: how one changes a denoiser, and what it estimates at one noise level.

The target is p_off(trajectory) * q(trajectory)^lambda, q the product over t of pi(tanh u_t | s_t), in the space of pre-tanh
actions u (PGD section 4): q is the density of the environment's action, without the log-slope of tanh. The methods differ in
what they assume of the posterior of the clean trajectory x0 given the noised one x, and in their cost per guided evaluation in
forward-equivalents (a forward pass of the denoiser is 1, a JVP or VJP of it 1 more):

- `published` (1, or 2 at the denoised point): nothing; action entries move along the policy's gradient. Does not sample the
  target: lambda is the size of a step, of which there are 256, as published.
- `reconstruction` (2; DPS): entries independent, of variance sigma^2 / (1 + sigma^2).
- `moment` (1 + 1 per iteration down to a noise level, 1 below): covariance sigma^2 times the denoiser's Jacobian.
- `smc` (that of its proposal): any of these corrected by weights; exact as steps and particles grow.

Where tokens hold actions as they are, `reconstruction` is exact for unit Gaussian tokens and `moment` for all Gaussians, with a
Gaussian policy. Where they hold pre-tanh actions u, as all datasets' tokens do, neither is: log q is not quadratic in u, and
the tangent at the denoised point pulls too weakly where u is large. With one action, u ~ N(0, 1) and the policy N(0.6, 0.3^2),
the target's mean action is 0.589 and that of both 0.515; `smc` has no such error. (The tanh expected of u in place of its
tangent gives 0.569 there, but moves the states of trajectories too far.)

Not every evaluation of a sample has to compute the change D' - D (`GuidedPointConfig`): within a guidance interval
(Kynkaanniemi et al., arXiv 2404.07724) every n-th does, and those between reuse what it kept. All others cost a forward pass.
"""

from typing import Any, ClassVar, Protocol

import chex
import jax
import jax.numpy as jnp
from flax import struct
from jax import Array

from jaxpgd.guidance.caching import CachedChanges, deviation
from jaxpgd.guidance.likelihood import Likelihood
from jaxpgd.options import nonnegative, option, options, positive
from jaxpgd.tokens import TokenCodec
from jaxpgd.types import Denoise, Hook, Memory, Policy


@struct.dataclass
class Estimate:
    """What guidance estimates at x [T, D] and one noise level sigma."""

    x0: Array  # [T, D], D(x; sigma) = E[x0 | x] under the data
    x0_guided: Array  # [T, D], D'(x; sigma), the same under the target
    log_twist: Array  # [], estimate of log E[q(x0)^lambda | x], up to a constant of the noise level


class Guided(Protocol):
    """A guided Denoise that also says how likely its target makes x: what `smc` proposes with."""

    def __call__(self, x: Array, sigma: Array) -> Array: ...

    def estimate(self, x: Array, sigma: Array) -> Estimate:
        """x [T, D], sigma [] > 0."""
        ...

    def log_target(self, x0: Array) -> Array:
        """lambda * log q [] of clean tokens [T, D]."""
        ...


class Guidance(Protocol):
    """A guidance method with its numbers: what makes a denoiser a guided one for a policy and a coefficient lambda []."""

    weighted: ClassVar[bool]  # whether samples come in weighted populations
    at_denoised_point: ClassVar[bool]  # whether it guides a denoiser, whose change can be measured by noise level

    def attach(
        self, denoise: Denoise, policy: Policy, codec: TokenCodec, coefficient: Array | float, valid: Array | None = None
    ) -> tuple[Denoise, Hook | None]:
        """The Denoise and the `before_step` hook to sample one trajectory with; `valid` [T]: steps that are guided."""
        ...

    def counting(self) -> Denoise:
        """A Denoise that computes nothing, and whose memory counts what evaluations of the guided one cost."""
        ...

    def hook_cost(self, steps: int) -> int:
        """Forward passes of the hook in so many steps."""
        ...

    def unweighted(self) -> "Guidance | None":
        """The same guidance without weights; None where that is no guidance."""
        ...


@options
class GuidedLevels:
    """The noise levels that are guided: sigma in [sigma_min, sigma_max]."""

    sigma_min: float = nonnegative(0.0, "smallest noise level at which samples are guided; 0: down to the last step", high=1e9)
    sigma_max: float = option(1e9, "largest noise level at which samples are guided", low=0.0, high=1e9)

    def has(self, sigma: Array) -> Array:
        """Whether sigma is among them."""
        return (sigma >= self.sigma_min) & (sigma <= self.sigma_max)


@options
class GuidedPointConfig(GuidedLevels):
    """What the methods that guide the denoised point share."""

    limit: float = positive(
        2.0, "largest change of a denoised entry, in units of its deviation sigma / sqrt(1 + sigma^2)", high=1e3
    )
    hold_states: bool = option(False, "hold the states: take the gradient of log pi(a|s) in the actions alone")
    cache_interval: int = positive(
        1, "function evaluations from one computed change to the next; those between reuse it; 1: every one computes its own"
    )


class DenoisedPointGuidance:
    """Base of the methods that guide the denoised point D(x): subclasses have `estimate`, `cost` and their `options`."""

    weighted: ClassVar[bool] = False
    at_denoised_point: ClassVar[bool] = True
    options: GuidedPointConfig

    def cost(self, sigma: Array) -> Array:
        """Forward-equivalents [] of one evaluation that computes the change at sigma []."""
        raise NotImplementedError

    def estimate(self, denoise: Denoise, likelihood: Likelihood, x: Array, sigma: Array) -> Estimate:
        """The estimate at x [T, D] and sigma [] > 0, whatever noise levels are guided."""
        raise NotImplementedError

    def empty_cache(self, likelihood: Likelihood, x: Array) -> Any:
        """What `compute` takes at its first call, for samples shaped like x [T, D]."""
        return CachedChanges.none(x)

    def compute(self, denoise: Denoise, likelihood: Likelihood, x: Array, sigma: Array, cache: Any) -> tuple[Array, Any]:
        """The guided denoised point [T, D], and what `reuse` needs of it."""
        found = self.estimate(denoise, likelihood, x, sigma)
        return found.x0_guided, cache.push((found.x0_guided - found.x0) / deviation(sigma), sigma)

    def reuse(self, likelihood: Likelihood, x0: Array, sigma: Array, cache: Any) -> Array:
        """The change [T, D] of the denoised point x0 [T, D] at a later evaluation, without the denoiser: that of
        `CachedChanges.at`."""
        return within_limit(deviation(sigma) * cache.at(sigma), self.options.limit, sigma)

    def guide(
        self,
        denoise: Denoise,
        policy: Policy,
        codec: TokenCodec,
        coefficient: Array | float,
        valid: Array | None = None,
        *,
        uncertain_states: bool = False,
    ) -> "GuidedDenoise":
        """The guided Denoise for a policy and a coefficient lambda []; `valid` [T]: steps whose actions are in log q."""
        likelihood = Likelihood(policy, codec, coefficient, self.options.hold_states, uncertain_states, valid)
        return GuidedDenoise(self, denoise, likelihood)

    def attach(
        self, denoise: Denoise, policy: Policy, codec: TokenCodec, coefficient: Array | float, valid: Array | None = None
    ) -> tuple[Denoise, Hook | None]:
        """As `Guidance.attach`: no hook."""
        return self.guide(denoise, policy, codec, coefficient, valid), None

    def counting(self) -> Denoise:
        """As `Guidance.counting`."""
        return GuidedDenoise(Counting(self.options, self), Echo(), None)  # type: ignore[arg-type]

    def hook_cost(self, steps: int) -> int:
        """As `Guidance.hook_cost`: no hook."""
        return 0

    def unweighted(self) -> "Guidance | None":
        """As `Guidance.unweighted`."""
        return self


@struct.dataclass
class Cached:
    """What a method keeps of its last computed change, and when the next one is due."""

    kept: Any  # () without caching
    due: Array  # [] guided evaluations until the next change is computed; 0: at the next one


@struct.dataclass
class GuidedDenoise:
    """A Denoise guided by one method: D'(x; sigma) in place of D(x; sigma).

    With a memory (`types.DenoiseWithMemory`) it computes the change D' - D at every `cache_interval`-th evaluation within the
    guided noise levels. Those between reuse what it kept (`DenoisedPointGuidance.reuse`), and cost a forward pass, as those
    outside these levels do.
    """

    method: DenoisedPointGuidance
    denoise: Denoise
    likelihood: Likelihood

    def estimate(self, x: Array, sigma: Array) -> Estimate:
        """As `Guided.estimate`; without a change outside the guided noise levels."""
        chex.assert_rank(x, 2)
        chex.assert_rank(sigma, 0)
        found = self.method.estimate(self.denoise, self.likelihood, x, sigma)
        return Estimate(found.x0, jnp.where(self.method.options.has(sigma), found.x0_guided, found.x0), found.log_twist)

    def __call__(self, x: Array, sigma: Array) -> Array:
        """Guided estimate of the clean sample: x [T, D], sigma [] -> [T, D]."""
        return self.estimate(x, sigma).x0_guided

    def init_memory(self, x: Array) -> Memory:
        """As `DenoiseWithMemory.init_memory`: a change is due."""
        kept = self.method.empty_cache(self.likelihood, x) if self.method.options.cache_interval > 1 else ()
        return Memory(Cached(kept, jnp.zeros((), jnp.int32)), jnp.zeros((), jnp.int32))

    def evaluate(self, x: Array, sigma: Array, memory: Memory) -> tuple[Array, Memory]:
        """As `DenoiseWithMemory.evaluate`: the guided estimate [T, D] of the clean sample, and the new memory."""
        chex.assert_rank(x, 2)
        chex.assert_rank(sigma, 0)
        method, interval = self.method, self.method.options.cache_interval
        guided = method.options.has(sigma)

        def compute(cached: Cached) -> tuple[Array, Cached]:
            if interval == 1:
                return method.estimate(self.denoise, self.likelihood, x, sigma).x0_guided, cached
            x0, kept = method.compute(self.denoise, self.likelihood, x, sigma, cached.kept)
            return x0, Cached(kept, jnp.asarray(interval - 1, jnp.int32))

        def reuse(cached: Cached) -> tuple[Array, Cached]:
            x0 = self.denoise(x, sigma)
            if interval == 1:
                return x0, cached
            change = lambda x0: method.reuse(self.likelihood, x0, sigma, cached.kept)
            x0 = x0 + jax.lax.cond(guided, change, jnp.zeros_like, x0)
            return x0, Cached(cached.kept, jnp.where(guided, cached.due - 1, 0))

        cost = method.cost(sigma)
        due = guided & ((memory.kept.due == 0) | (cost == 1))  # a change that costs nothing is never reused
        x0, cached = jax.lax.cond(due, compute, reuse, memory.kept)
        return x0, Memory(cached, memory.passes + jnp.where(due, cost, 1))

    def log_target(self, x0: Array) -> Array:
        """As `Guided.log_target`."""
        return self.likelihood.exact(x0)


@struct.dataclass
class NoGuidance(DenoisedPointGuidance):
    """The denoiser itself, with the twist of `reconstruction`: `smc` then guides by weights alone."""

    options: GuidedPointConfig = GuidedPointConfig()

    def cost(self, sigma: Array) -> Array:
        """As `DenoisedPointGuidance.cost`: a forward pass."""
        return jnp.ones((), jnp.int32)

    def estimate(self, denoise: Denoise, likelihood: Likelihood, x: Array, sigma: Array) -> Estimate:
        """As `DenoisedPointGuidance.estimate`."""
        x0 = denoise(x, sigma)
        return Estimate(x0, x0, likelihood.coefficient * likelihood.blurred(x0, sigma))


@struct.dataclass
class Counting(DenoisedPointGuidance):
    """A method of another's cost that changes nothing: with it a `GuidedDenoise` only counts its evaluations."""

    options: GuidedPointConfig
    counted: DenoisedPointGuidance

    def cost(self, sigma: Array) -> Array:
        """As `DenoisedPointGuidance.cost`."""
        return self.counted.cost(sigma)

    def estimate(self, denoise: Denoise, likelihood: Likelihood, x: Array, sigma: Array) -> Estimate:
        """As `DenoisedPointGuidance.estimate`."""
        return Estimate(x, x, jnp.zeros((), x.dtype))


@struct.dataclass
class Echo:
    """The Denoise of samples without noise: x itself."""

    def __call__(self, x: Array, sigma: Array) -> Array:
        """x [T, D]."""
        return x


def within_limit(change: Array, limit: Array | float, sigma: Array) -> Array:
    """The change [T, D] of a denoised point, each entry of it within `limit` deviations sigma / sqrt(1 + sigma^2).

    That is what sigma leaves unknown of an entry of unit variance. A change of many such deviations comes from a policy that is
    evaluated far from where it is known, and without a bound it feeds on itself.
    """
    most = limit * deviation(sigma)
    return jnp.clip(change, -most, most)
