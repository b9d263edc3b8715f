"""Twisted sequential Monte Carlo: guided samples corrected by weights, so that they follow the stated target.

A population of particles goes down the noise levels by random steps: ancestral ones, or those of second order
(SDE-DPM-Solver++ 2M, arXiv 2211.01095), in which the denoised point is extrapolated from that of the step before. At every
level sigma the target is p_sigma(x) times a twist, which estimates E[q(x0)^lambda | x] and at sigma = 0 is q^lambda itself.
Steps are proposed with a guided denoiser; weights make up for what its proposals have too many or too few of (Wu et al., arXiv
2306.17775, algorithm 1). The twist and the proposal may be wrong: as particles grow, the error that remains is that of the
unguided steps.

How many particles that takes grows with the number of actions: each level adds to the weights what its step and its twist are
off, summed over them. Full resampling then leaves a few ancestors of the population, which the effective sample size, high
again after every resampling, does not show. So resampling is by w^alpha, alpha the largest exponent that leaves enough
ancestors, and particles keep w^(1 - alpha): their weights stay proper for the target, and the estimate of the normaliser
unbiased.
"""

import dataclasses
from collections.abc import Callable
from typing import ClassVar, Literal

import chex
import jax
import jax.numpy as jnp
from flax import struct
from jax import Array

from jaxpgd import draws
from jaxpgd.diffusion.multistep import extrapolation_weight
from jaxpgd.guidance.base import DenoisedPointGuidance, Estimate, Guidance, Guided, GuidedDenoise, NoGuidance
from jaxpgd.options import nonnegative, option, options, positive, share
from jaxpgd.parallel import map_batches
from jaxpgd.resampling import effective_sample_size, exponent_that_keeps, power, surviving_ancestors, systematic
from jaxpgd.tokens import TokenCodec
from jaxpgd.types import Denoise, Hook, Metrics, Policy

_MOST_KEPT = 0.5  # of a population: with more, weights could hardly say anything


@options
class SMCConfig:
    """Sequential Monte Carlo: particles moved by a guidance, or none, and weighted."""

    proposal: Literal["none", "reconstruction", "moment"] = option(
        "reconstruction", "guidance that moves the particles before they are weighted, with the settings of its own section"
    )
    order: Literal["first", "second"] = option("second", "order of the solver's steps between weightings")
    particles: int = positive(256, "largest number of trajectories in a population that is weighted and resampled together")
    threshold: float = share(0.5, "resample when the effective sample size falls below this share of the population")
    least_ancestors: int = nonnegative(
        64, "first particles that a final population must descend from, half of it at most: tempers weights; 0: none"
    )

    def least_share(self, particles: int) -> float:
        """`least_ancestors` as a share of a population."""
        return min(self.least_ancestors / particles, _MOST_KEPT)


@struct.dataclass
class SMCGuidance:
    """Sequential Monte Carlo with its numbers: `guide` makes the denoiser that `smc` proposes with."""

    options: SMCConfig
    proposal: DenoisedPointGuidance
    weighted: ClassVar[bool] = True
    at_denoised_point: ClassVar[bool] = True

    def guide(
        self, denoise: Denoise, policy: Policy, codec: TokenCodec, coefficient: Array | float, valid: Array | None = None
    ) -> GuidedDenoise:
        """The guided Denoise of the proposal. Raises TypeError for policies without log_prob_fn."""
        if policy.log_prob_fn is None:
            raise TypeError('guidance.kind = "smc": expected a policy with log_prob_fn, which weights are made of')
        return self.proposal.guide(denoise, policy, codec, coefficient, valid, uncertain_states=True)

    def attach(
        self, denoise: Denoise, policy: Policy, codec: TokenCodec, coefficient: Array | float, valid: Array | None = None
    ) -> tuple[Denoise, Hook | None]:
        """As `Guidance.attach`, for a single trajectory without weights."""
        return self.guide(denoise, policy, codec, coefficient, valid), None

    def cost(self, sigma: Array) -> Array:
        """Forward-equivalents [] of a guided evaluation at sigma []: those of the proposal."""
        return self.proposal.cost(sigma)

    def counting(self) -> Denoise:
        """As `Guidance.counting`."""
        return self.proposal.counting()

    def hook_cost(self, steps: int) -> int:
        """As `Guidance.hook_cost`: no hook."""
        return 0

    def unweighted(self) -> "Guidance | None":
        """As `Guidance.unweighted`: the proposal."""
        return None if isinstance(self.proposal, NoGuidance) else self.proposal


@struct.dataclass
class Population:
    """P particles at one noise level. Log weights are those since the last resampling."""

    x: Array  # [P, T, D]
    estimate: Estimate  # [P, ...]
    ahead: Estimate  # [P, ...]; points of `estimate` extrapolated from those of the step before: where the next step goes
    log_weight: Array  # [P]
    log_normaliser: Array  # [], of what was resampled away
    ancestor: Array  # [P] int32, the first particle that each descends from; ascending


def smc(
    key: Array,
    guided: Guided,
    shape: tuple[int, ...],
    sigmas: Array,
    *,
    particles: int,
    threshold: Array | float = 0.5,
    least_share: Array | float = 0.0,
    batch_size: int = 0,
    order: Literal["first", "second"] = "second",
) -> tuple[Array, Array, Metrics]:
    """A population [P, T, D] of the target with log weights [P].

    sigmas [n + 1] decrease to 0; `shape` is [T, D]. The population is resampled where its effective size falls under
    `threshold` times P, so that at level i it is expected to descend from no less than `least_share`^(i / n) P particles;
    `batch_size` particles are evaluated together (0: all). Info: `ancestor` [P], the first particle that each descends from,
    and, all [], `log_normaliser`, the estimate of log E[q^lambda] under the data's distribution; `ess` at the end and
    `least_ess` on the way, as shares of P; `resampled`, how often; and `nfe`, guided evaluations per particle. With one
    particle it is the proposal; with a constant likelihood weights stay equal. `order` "first" takes ancestral steps.
    """
    chex.assert_rank(sigmas, 1)
    key_start, key_march = jax.random.split(key)
    estimate_all = _in_batches(guided, batch_size)
    x = sigmas[0] * draws.normal(key_start, (particles, *shape), sigmas.dtype)
    estimate = estimate_all(x, sigmas[0])
    start = Population(x, estimate, estimate, _finite(estimate.log_twist), jnp.zeros((), jnp.float32), jnp.arange(particles))

    def step(population: Population, at: tuple[Array, Array, Array, Array, Array]) -> tuple[Population, tuple[Array, Array]]:
        key, sigma, sigma_next, after, least = at
        key_resample, key_move = jax.random.split(key)
        share = effective_sample_size(population.log_weight) / particles
        population = _resample(key_resample, population, share < threshold, least)
        moved, correction = _propose(key_move, population, sigma, sigma_next)
        estimate = estimate_all(moved, sigma_next)
        ahead = extrapolated(estimate, population.estimate, sigma, sigma_next, after) if order == "second" else estimate
        log_weight = _finite(population.log_weight + estimate.log_twist - population.estimate.log_twist + correction)
        return dataclasses.replace(population, x=moved, estimate=estimate, ahead=ahead, log_weight=log_weight), (
            share, share < threshold,
        )  # fmt: skip

    n = sigmas.shape[0] - 1
    least = jnp.asarray(least_share, jnp.float32) ** (jnp.arange(1, n) / n)
    keys = jax.random.split(key_march, n - 1)
    population, (shares, resampled) = jax.lax.scan(step, start, (keys, sigmas[:-2], sigmas[1:-1], sigmas[2:], least))
    # the last step has no noise: it ends at the denoised point, under proposal and model alike
    x = population.estimate.x0
    log_weight = _finite(population.log_weight + jax.vmap(guided.log_target)(x) - population.estimate.log_twist)
    share = effective_sample_size(log_weight) / particles
    info = {
        "log_normaliser": population.log_normaliser + _log_mean(log_weight),
        "ess": share,
        "least_ess": jnp.minimum(shares.min(initial=1.0), share),
        "resampled": resampled.sum(),
        "nfe": jnp.asarray(n),
        "ancestor": population.ancestor,
    }
    return x, log_weight, info


def on_one_scale(log_weight: Array, info: Metrics, least_share: Array | float = 0.0) -> tuple[Array, Metrics]:
    """Log weights of populations [M, P] on one scale, raised to the power that leaves `least_share`, and their info.

    A population counts by its estimate of the normaliser, its particles by their weights. One without a particle that is finite
    has the estimate -inf, and no weight. Info, all []: the `exponent` of the weights (1: all of them, for the target as
    particles grow; below, samples lie between the proposal's and the target's); `ancestors`, the share of the M P first
    particles that samples by these weights descend from; `ess` of them; and by all of the weights `least_ess`, `resampled` and
    `log_normaliser`, over populations.
    """
    populations, particles = log_weight.shape
    inside = log_weight - jax.nn.logsumexp(log_weight, axis=-1, keepdims=True) + info["log_normaliser"][:, None]
    log_weight = jnp.where(jnp.isfinite(inside), inside, -jnp.inf).reshape(-1)
    ancestor = (info["ancestor"] + particles * jnp.arange(populations)[:, None]).reshape(-1)
    exponent = exponent_that_keeps(log_weight, ancestor, least_share)
    log_weight = power(log_weight, exponent)
    means = {
        "exponent": exponent,
        "ancestors": surviving_ancestors(log_weight, ancestor),
        "ess": effective_sample_size(log_weight) / log_weight.shape[0],
        "least_ess": jnp.where(jnp.isfinite(info["least_ess"]), info["least_ess"], 0.0).min(),
        "resampled": info["resampled"].mean(),
        "log_normaliser": jax.nn.logsumexp(info["log_normaliser"]) - jnp.log(populations),
    }
    return log_weight.reshape(populations, particles), means


def extrapolated(estimate: Estimate, before: Estimate, sigma_before: Array, sigma: Array, after: Array) -> Estimate:
    """The points of `estimate` at sigma, extrapolated to the middle of the step to `after` in log sigma, by those before.

    At the last step, to sigma 0, they stay: it ends at the denoised point itself.
    """
    weight = extrapolation_weight(sigma_before, sigma, after)
    forward = lambda now, then: now + weight * (now - then)
    x0, guided = forward(estimate.x0, before.x0), forward(estimate.x0_guided, before.x0_guided)
    return Estimate(x0, guided, estimate.log_twist)


def _in_batches(guided: Guided, batch_size: int) -> Callable[[Array, Array], Estimate]:
    def estimate_all(x: Array, sigma: Array) -> Estimate:
        estimate: Estimate = map_batches(lambda y: guided.estimate(y, sigma), x, batch_size or len(x))
        return estimate

    return estimate_all


def _finite(log_weight: Array) -> Array:
    """Log weights [P]; a particle that is not finite weighs nothing."""
    return jnp.where(jnp.isfinite(log_weight), log_weight, -jnp.inf)


def _log_mean(log_weight: Array) -> Array:
    return jax.nn.logsumexp(log_weight) - jnp.log(log_weight.shape[0])


def _resample(key: Array, population: Population, when: Array, least: Array | float) -> Population:
    """The population, where `when` [] is true resampled by w^alpha, with weights w^(1 - alpha) left.

    alpha is the largest exponent that leaves a share `least` [] of the first particles.
    """
    log_weight, count = population.log_weight, population.log_weight.shape[0]
    alpha = jnp.where(when, exponent_that_keeps(log_weight, population.ancestor, least), 0.0)
    index = jnp.where(when, systematic(key, power(log_weight, alpha)), jnp.arange(count))
    drawn: Population = jax.tree.map(lambda a: a[index] if a.ndim else a, population)
    gone = jnp.where(when, _log_mean(power(log_weight, alpha)), 0.0)
    return dataclasses.replace(
        drawn, log_weight=power(drawn.log_weight, 1.0 - alpha), log_normaliser=population.log_normaliser + gone
    )


def _propose(key: Array, population: Population, sigma: Array, sigma_next: Array) -> tuple[Array, Array]:
    """Random steps towards the guided points, and log of model over proposal [P] for each.

    Both are Gaussians of the same spread around means that differ by (1 - ratio) times the guidance.
    """
    ratio = jnp.square(sigma_next / sigma)
    spread = sigma_next * jnp.sqrt(1.0 - ratio)
    noise = draws.normal(key, population.x.shape, population.x.dtype)
    guided = population.ahead.x0_guided
    x = guided + ratio * (population.x - guided) + spread * noise
    moves = spread > 0  # between equal levels nothing does
    shift = jnp.where(moves, (1.0 - ratio) * (guided - population.ahead.x0) / jnp.where(moves, spread, 1.0), 0.0)
    entries = tuple(range(1, noise.ndim))
    return x, -(shift * noise + 0.5 * jnp.square(shift)).sum(entries)
