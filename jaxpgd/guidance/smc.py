"""Twisted sequential Monte Carlo: guided samples corrected by weights, so that they follow the stated target.

A population of particles goes down the noise levels by random steps, ancestral ones or those of second order (SDE-DPM-Solver++
2M, arXiv 2211.01095), in which the denoised point is carried on from the last step's. At every level sigma the target is
p_sigma(x) times a twist, which estimates E[q(x0)^coefficient | x] and at sigma = 0 is q^coefficient itself. Steps are proposed
with a guided denoiser; what its proposals are too many or too few is made up by weights (Wu et al., arXiv 2306.17775, algorithm
1). The twist and the proposal may be wrong: as particles grow, the error that remains is that of the unguided steps.
"""

from collections.abc import Callable
from typing import Literal

import jax
import jax.numpy as jnp
from flax import struct
from jax import Array

from jaxpgd.diffusion.solvers import carry_weight
from jaxpgd.guidance.base import Guided, Look
from jaxpgd.parallel import map_batches
from jaxpgd.resampling import effective_sample_size, systematic
from jaxpgd.types import Metrics


@struct.dataclass
class Population:
    """P particles at one noise level. Log weights are those since the last resampling."""

    x: Array  # [P, T, D]
    look: Look  # [P, ...]
    ahead: Look  # [P, ...]; the points of `look` carried on from those of the step before: what the next step goes towards
    log_weight: Array  # [P]
    log_normaliser: Array  # [], of what was resampled away


def largest_exponent(log_likelihood: Array, share: Array | float, most: Array | float) -> Array:
    """The largest exponent [] in [0, most] at which weights likelihood^exponent [N] keep an effective size of `share` times N.

    The effective size falls as the exponent grows, so bisection finds it; 40 halvings leave `most` / 10^12.
    """
    log_likelihood = jnp.where(jnp.isnan(log_likelihood), -jnp.inf, log_likelihood)
    wanted = share * log_likelihood.shape[0]

    def halve(bounds: tuple[Array, Array], _: None) -> tuple[tuple[Array, Array], None]:
        low, high = bounds
        middle = (low + high) / 2.0
        enough = effective_sample_size(middle * log_likelihood) >= wanted
        return (jnp.where(enough, middle, low), jnp.where(enough, high, middle)), None

    top = jnp.asarray(most, log_likelihood.dtype)
    (low, _), _ = jax.lax.scan(halve, (jnp.zeros_like(top), top), None, length=40)
    return jnp.where(effective_sample_size(top * log_likelihood) >= wanted, top, low)


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
    `threshold` times P; `batch_size` particles are looked at together (0: all). Info, all []: `log_normaliser`, the estimate of
    log E[q^coefficient] under the data's distribution; `ess` at the end and `least_ess` on the way, as shares of P;
    `resampled`, how often; and `looks`, guided evaluations per particle. With one particle it is the proposal; with a constant
    likelihood weights stay equal. `order` "first" takes ancestral steps.
    """
    key_start, key_march = jax.random.split(key)
    see = _looker(guided, batch_size)
    x = sigmas[0] * jax.random.normal(key_start, (particles, *shape), sigmas.dtype)
    look = see(x, sigmas[0])
    start = Population(x, look, look, _usable(look.log_twist), jnp.zeros((), jnp.float32))

    def step(population: Population, at: tuple[Array, Array, Array, Array]) -> tuple[Population, tuple[Array, Array]]:
        key, sigma, sigma_next, after = at
        key_resample, key_move = jax.random.split(key)
        share = effective_sample_size(population.log_weight) / particles
        population = _resample(key_resample, population, share < threshold)
        moved, correction = _propose(key_move, population, sigma, sigma_next)
        look = see(moved, sigma_next)
        ahead = carried(look, population.look, sigma, sigma_next, after) if order == "second" else look
        log_weight = _usable(population.log_weight + look.log_twist - population.look.log_twist + correction)
        return Population(moved, look, ahead, log_weight, population.log_normaliser), (share, share < threshold)

    keys = jax.random.split(key_march, sigmas.shape[0] - 2)
    population, (shares, resampled) = jax.lax.scan(step, start, (keys, sigmas[:-2], sigmas[1:-1], sigmas[2:]))
    # the last step has no noise: it ends at the denoised point, under proposal and model alike
    x = population.look.denoised
    log_weight = _usable(population.log_weight + jax.vmap(guided.log_target)(x) - population.look.log_twist)
    share = effective_sample_size(log_weight) / particles
    info = {
        "log_normaliser": population.log_normaliser + _log_mean(log_weight),
        "ess": share,
        "least_ess": jnp.minimum(shares.min(initial=1.0), share),
        "resampled": resampled.sum(),
        "looks": jnp.asarray(sigmas.shape[0] - 1),
    }
    return x, log_weight, info


def carried(look: Look, before: Look, sigma_before: Array, sigma: Array, after: Array) -> Look:
    """The points of `look` at sigma, extrapolated to the middle of the step to `after` in log sigma, by those before.

    At the last step, to sigma 0, they stay: it ends at the denoised point itself.
    """
    weight = carry_weight(sigma_before, sigma, after)
    forward = lambda now, then: now + weight * (now - then)
    return Look(forward(look.denoised, before.denoised), forward(look.guided, before.guided), look.log_twist)


def _looker(guided: Guided, batch_size: int) -> Callable[[Array, Array], Look]:
    def see(x: Array, sigma: Array) -> Look:
        return map_batches(lambda y: guided.look(y, sigma), x, batch_size or len(x))

    return see


def _usable(log_weight: Array) -> Array:
    """Log weights [P]; a particle that has left the numbers weighs nothing."""
    return jnp.where(jnp.isfinite(log_weight), log_weight, -jnp.inf)


def _log_mean(log_weight: Array) -> Array:
    return jax.nn.logsumexp(log_weight) - jnp.log(log_weight.shape[0])


def _resample(key: Array, population: Population, when: Array) -> Population:
    """The population with equal weights where `when` [] is true, as it is elsewhere."""
    count = population.log_weight.shape[0]
    index = jnp.where(when, systematic(key, population.log_weight), jnp.arange(count))
    x, look, ahead = jax.tree.map(lambda a: a[index], (population.x, population.look, population.ahead))
    gone = jnp.where(when, _log_mean(population.log_weight), 0.0)
    return Population(x, look, ahead, jnp.where(when, 0.0, population.log_weight), population.log_normaliser + gone)


def _propose(key: Array, population: Population, sigma: Array, sigma_next: Array) -> tuple[Array, Array]:
    """Random steps towards the guided points, and log of model over proposal [P] for each.

    Both are Gaussians of the same spread around means that differ by (1 - ratio) times the guidance.
    """
    ratio = jnp.square(sigma_next / sigma)
    spread = sigma_next * jnp.sqrt(1.0 - ratio)
    noise = jax.random.normal(key, population.x.shape, population.x.dtype)
    guided = population.ahead.guided
    x = guided + ratio * (population.x - guided) + spread * noise
    moves = spread > 0  # between equal levels nothing does
    shift = jnp.where(moves, (1.0 - ratio) * (guided - population.ahead.denoised) / jnp.where(moves, spread, 1.0), 0.0)
    entries = tuple(range(1, noise.ndim))
    return x, -(shift * noise + 0.5 * jnp.square(shift)).sum(entries)
