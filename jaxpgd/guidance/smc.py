"""Twisted sequential Monte Carlo: guided samples corrected by weights, so that they follow the stated target.

A population of particles goes down the noise levels by random steps: ancestral ones, or those of second order
(SDE-DPM-Solver++ 2M, arXiv 2211.01095), in which the denoised point is extrapolated from that of the step before. At every
level sigma the target is p_sigma(x) times a twist, which estimates E[q(x0)^lambda | x] and at sigma = 0 is q^lambda itself.
Steps are proposed with a guided denoiser; weights make up for what its proposals have too many or too few of (Wu et al., arXiv
2306.17775, algorithm 1). The twist and the proposal may be wrong: as particles grow, the error that remains is that of the
unguided steps.
"""

from collections.abc import Callable
from typing import ClassVar, Literal

import chex
import jax
import jax.numpy as jnp
from flax import struct
from jax import Array

from jaxpgd.diffusion.multistep import extrapolation_weight
from jaxpgd.guidance.base import DenoisedPointGuidance, Estimate, Guidance, Guided, GuidedDenoise, NoGuidance
from jaxpgd.options import option, options, positive, share
from jaxpgd.parallel import map_batches
from jaxpgd.resampling import effective_sample_size, systematic
from jaxpgd.tokens import TokenCodec
from jaxpgd.types import Denoise, Hook, Metrics, Policy


@options
class SMCConfig:
    """Sequential Monte Carlo: particles moved by a guidance, or none, and weighted."""

    proposal: Literal["none", "reconstruction", "moment"] = option(
        "reconstruction", "guidance that moves the particles before they are weighted, with the settings of its own section"
    )
    order: Literal["first", "second"] = option("second", "order of the solver's steps between weightings")
    particles: int = positive(256, "largest number of trajectories in a population that is weighted and resampled together")
    threshold: float = share(0.5, "resample when the effective sample size falls below this share of the population")


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

    @property
    def cost(self) -> int:
        """Forward-equivalents of a guided evaluation: those of the proposal."""
        return self.proposal.cost

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


def smc(
    key: Array,
    guided: Guided,
    shape: tuple[int, ...],
    sigmas: Array,
    *,
    particles: int,
    threshold: Array | float = 0.5,
    batch_size: int = 0,
    order: Literal["first", "second"] = "second",
) -> tuple[Array, Array, Metrics]:
    """A population [P, T, D] of the target with log weights [P].

    sigmas [n + 1] decrease to 0; `shape` is [T, D]. The population is resampled where its effective size falls under
    `threshold` times P; `batch_size` particles are evaluated together (0: all). Info, all []: `log_normaliser`, the estimate of
    log E[q^lambda] under the data's distribution; `ess` at the end and `least_ess` on the way, as shares of P;
    `resampled`, how often; and `nfe`, guided evaluations per particle. With one particle it is the proposal; with a constant
    likelihood weights stay equal. `order` "first" takes ancestral steps.
    """
    chex.assert_rank(sigmas, 1)
    key_start, key_march = jax.random.split(key)
    estimate_all = _in_batches(guided, batch_size)
    x = sigmas[0] * jax.random.normal(key_start, (particles, *shape), sigmas.dtype)
    estimate = estimate_all(x, sigmas[0])
    start = Population(x, estimate, estimate, _finite(estimate.log_twist), jnp.zeros((), jnp.float32))

    def step(population: Population, at: tuple[Array, Array, Array, Array]) -> tuple[Population, tuple[Array, Array]]:
        key, sigma, sigma_next, after = at
        key_resample, key_move = jax.random.split(key)
        share = effective_sample_size(population.log_weight) / particles
        population = _resample(key_resample, population, share < threshold)
        moved, correction = _propose(key_move, population, sigma, sigma_next)
        estimate = estimate_all(moved, sigma_next)
        ahead = extrapolated(estimate, population.estimate, sigma, sigma_next, after) if order == "second" else estimate
        log_weight = _finite(population.log_weight + estimate.log_twist - population.estimate.log_twist + correction)
        return Population(moved, estimate, ahead, log_weight, population.log_normaliser), (share, share < threshold)

    keys = jax.random.split(key_march, sigmas.shape[0] - 2)
    population, (shares, resampled) = jax.lax.scan(step, start, (keys, sigmas[:-2], sigmas[1:-1], sigmas[2:]))
    # the last step has no noise: it ends at the denoised point, under proposal and model alike
    x = population.estimate.x0
    log_weight = _finite(population.log_weight + jax.vmap(guided.log_target)(x) - population.estimate.log_twist)
    share = effective_sample_size(log_weight) / particles
    info = {
        "log_normaliser": population.log_normaliser + _log_mean(log_weight),
        "ess": share,
        "least_ess": jnp.minimum(shares.min(initial=1.0), share),
        "resampled": resampled.sum(),
        "nfe": jnp.asarray(sigmas.shape[0] - 1),
    }
    return x, log_weight, info


def on_one_scale(log_weight: Array, info: Metrics) -> tuple[Array, Metrics]:
    """Log weights of populations [M, P] on one scale, and their info as means over populations.

    A population counts by its estimate of the normaliser, its particles by their weights. One without a particle that is finite
    has the estimate -inf, and no weight.
    """
    inside = log_weight - jax.nn.logsumexp(log_weight, axis=-1, keepdims=True) + info["log_normaliser"][:, None]
    log_weight = jnp.where(jnp.isfinite(inside), inside, -jnp.inf)
    finite = {name: jnp.where(jnp.isfinite(info[name]), info[name], 0.0) for name in ("ess", "least_ess")}
    means = {"ess": finite["ess"].mean(), "least_ess": finite["least_ess"].min(), "resampled": info["resampled"].mean()}
    means["log_normaliser"] = jax.nn.logsumexp(info["log_normaliser"]) - jnp.log(len(info["log_normaliser"]))
    return log_weight, means


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


def _resample(key: Array, population: Population, when: Array) -> Population:
    """The population with equal weights where `when` [] is true, as it is elsewhere."""
    count = population.log_weight.shape[0]
    index = jnp.where(when, systematic(key, population.log_weight), jnp.arange(count))
    x, estimate, ahead = jax.tree.map(lambda a: a[index], (population.x, population.estimate, population.ahead))
    gone = jnp.where(when, _log_mean(population.log_weight), 0.0)
    return Population(x, estimate, ahead, jnp.where(when, 0.0, population.log_weight), population.log_normaliser + gone)


def _propose(key: Array, population: Population, sigma: Array, sigma_next: Array) -> tuple[Array, Array]:
    """Random steps towards the guided points, and log of model over proposal [P] for each.

    Both are Gaussians of the same spread around means that differ by (1 - ratio) times the guidance.
    """
    ratio = jnp.square(sigma_next / sigma)
    spread = sigma_next * jnp.sqrt(1.0 - ratio)
    noise = jax.random.normal(key, population.x.shape, population.x.dtype)
    guided = population.ahead.x0_guided
    x = guided + ratio * (population.x - guided) + spread * noise
    moves = spread > 0  # between equal levels nothing does
    shift = jnp.where(moves, (1.0 - ratio) * (guided - population.ahead.x0) / jnp.where(moves, spread, 1.0), 0.0)
    entries = tuple(range(1, noise.ndim))
    return x, -(shift * noise + 0.5 * jnp.square(shift)).sum(entries)
