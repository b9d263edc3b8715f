"""Euler, Heun (EDM algorithm 2), ancestral and DPM-Solver++ samplers as functions of `(key, denoise, x, sigmas)`.

They know neither networks nor policies: any Denoise works, an analytic one included; guidance comes as a wrapped Denoise or
as a hook.
"""

import functools
import math
from collections.abc import Callable
from typing import Any, Literal

import jax
import jax.numpy as jnp
from flax import struct
from jax import Array

from jaxpgd.options import nonnegative, option, options, positive
from jaxpgd.types import Denoise, Hook, Metrics, Sampler, Stage

SamplerKind = Literal["heun", "euler", "ancestral", "dpmpp_2m", "dpmpp_2m_sde", "dpmpp_3m", "dpmpp_3m_sde", "auto"]


@options
class SamplerConfig:
    """Noise levels and stochasticity of sampling (EDM section 5, algorithm 2)."""

    kind: SamplerKind = option(
        "dpmpp_2m_sde", 'dpmpp_*: no churn; "auto": the cheapest as good as 256 Heun steps, measured unguided'
    )
    steps: int = positive(32, "solver steps; heun takes two function evaluations in each but the last, other solvers one")
    sigma_min: float = positive(0.002, "smallest noise level (EDM: 0.002)")
    sigma_max: float = positive(80.0, "largest noise level, where sampling starts (EDM: 80)")
    rho: float = positive(
        7.0, "spacing of the noise levels (EDM, equation 5: 7); larger values put more of them near sigma_min", low=0.1
    )
    churn: float = nonnegative(80.0, "S_churn: total of noise put back over all steps")
    churn_min: float = nonnegative(0.05, "noise is put back for sigma in [churn_min, churn_max]")
    churn_max: float = option(50.0, "noise is put back for sigma up to this")
    churn_noise: float = nonnegative(1.003, "S_noise", high=10.0)
    predictor: Literal["churned", "unchurned"] = option("churned", 'where the Euler step starts; "unchurned" as official code')
    batch_size: int = nonnegative(0, "trajectories sampled at once; 0: the largest batch that fits the device's memory")


Predictor = Literal["churned", "unchurned"]


@struct.dataclass
class Churn:
    """Noise put back before each step (EDM algorithm 2: S_churn, S_tmin, S_tmax, S_noise). `total = 0`: none."""

    total: Array | float = 0.0
    low: Array | float = 0.0
    high: Array | float = jnp.inf
    noise: Array | float = 1.0

    def gamma(self, sigma: Array, steps: int) -> Array:
        """Relative increase [] of the noise level at sigma []."""
        amount = jnp.minimum(self.total / steps, jnp.sqrt(2.0) - 1.0)
        return jnp.where((sigma >= self.low) & (sigma <= self.high), amount, 0.0)


def make_churn(config: SamplerConfig) -> Churn:
    """Churn with the numbers of a config section as leaves."""
    return Churn(*(jnp.asarray(x, jnp.float32) for x in (config.churn, config.churn_min, config.churn_max, config.churn_noise)))


@struct.dataclass
class _Step:
    """What one step needs besides the sample: fixed over the loop."""

    denoise: Denoise
    churn: Churn
    before_step: Hook | None
    after_stage: Hook | None
    steps: int = struct.field(pytree_node=False)
    predictor: Predictor = struct.field(pytree_node=False)

    def stage(self, key: Array, index: Array, sigma: Array) -> Stage:
        return Stage(index=index, count=self.steps, sigma=sigma, key=key, denoise=self.denoise)

    def finish(self, key: Array, x: Array, index: Array, sigma: Array) -> Array:
        return x if self.after_stage is None else self.after_stage(x, self.stage(key, index, sigma))

    def begin(self, key_before: Array, key_churn: Array, x: Array, index: Array, sigma: Array) -> tuple[Array, Array, Array]:
        """The hook's answer, the same with churn, and the noise level of the latter."""
        if self.before_step is not None:
            x = self.before_step(x, self.stage(key_before, index, sigma))
        gamma = self.churn.gamma(sigma, self.steps)
        # sqrt(sigma_hat^2 - sigma^2) without the difference, whose rounding alone would add noise of 3e-4 sigma without churn
        added = self.churn.noise * sigma * jnp.sqrt(gamma * (2.0 + gamma))
        return x, x + added * jax.random.normal(key_churn, x.shape, x.dtype), sigma * (1.0 + gamma)

    def deterministic(self, key: Array, x: Array, index: Array, sigma: Array, sigma_next: Array, second_order: bool) -> Array:
        """A step along the probability flow after churn (EDM algorithm 2)."""
        key_before, key_churn, key_euler, key_heun = jax.random.split(key, 4)
        x, x_hat, sigma_hat = self.begin(key_before, key_churn, x, index, sigma)
        slope = (x_hat - self.denoise(x_hat, sigma_hat)) / sigma_hat
        start = x_hat if self.predictor == "churned" else x
        x_next = self.finish(key_euler, start + (sigma_next - sigma_hat) * slope, index, sigma_next)
        if not second_order:
            return x_next
        slope_next = (x_next - self.denoise(x_next, sigma_next)) / sigma_next
        x_next = x_hat + (sigma_next - sigma_hat) * (slope + slope_next) / 2.0
        return self.finish(key_heun, x_next, index, sigma_next)

    def posterior(self, key: Array, x: Array, index: Array, sigma: Array, sigma_next: Array, noise: Array | float) -> Array:
        """A draw at sigma_next given x after churn and the denoised point in place of the clean one; no noise at 0."""
        key_before, key_churn, key_noise, key_after = jax.random.split(key, 4)
        _, x_hat, sigma_hat = self.begin(key_before, key_churn, x, index, sigma)
        x0, ratio = self.denoise(x_hat, sigma_hat), jnp.square(sigma_next / sigma_hat)
        spread = noise * sigma_next * jnp.sqrt(1.0 - ratio)
        x_next = x0 + ratio * (x_hat - x0) + spread * jax.random.normal(key_noise, x.shape, x.dtype)
        return self.finish(key_after, x_next, index, sigma_next)

    def multistep(
        self, key: Array, x: Array, before: Array, index: Array, sigmas: tuple[Array, Array, Array], noise: float
    ) -> tuple[Array, Array]:
        """A step of second order from sigmas[1] to sigmas[2], with the denoised point `before` at sigmas[0]; and its own."""
        key_before, key_noise, key_after = jax.random.split(key, 3)
        _, sigma, sigma_next = sigmas
        if self.before_step is not None:
            x = self.before_step(x, self.stage(key_before, index, sigma))
        x0 = self.denoise(x, sigma)
        point = x0 + jnp.where(index > 0, carry_weight(*sigmas), 0.0) * (x0 - before)
        shrink = (sigma_next / sigma) ** (1.0 + noise)
        spread = sigma_next * jnp.sqrt(1.0 - (sigma_next / sigma) ** (2.0 * noise))
        x = point + shrink * (x - point) + spread * jax.random.normal(key_noise, x.shape, x.dtype)
        return self.finish(key_after, x, index, sigma_next), x0

    def multistep_third(
        self, key: Array, x: Array, before: tuple[Array, Array], index: Array, sigmas: tuple[Array, ...], noise: float
    ) -> tuple[Array, tuple[Array, Array]]:
        """A step of third order from sigmas[2] to sigmas[3], with the denoised points `before` at sigmas[1] and sigmas[0]."""
        key_before, key_noise, key_after = jax.random.split(key, 3)
        *_, sigma, sigma_next = sigmas
        if self.before_step is not None:
            x = self.before_step(x, self.stage(key_before, index, sigma))
        x0 = self.denoise(x, sigma)
        first, second = extrapolation(x0, before, index, sigmas)
        rate, shrink = 1.0 + noise, (sigma_next / sigma) ** (1.0 + noise)
        h = jnp.log(sigma / jnp.maximum(sigma_next, 1e-10))
        # integrals over the step, s from 0 to h, of rate exp(-rate (h - s)) times s and s^2 / 2; none of the step to sigma 0
        linear = jnp.where(sigma_next > 0, h - (1.0 - shrink) / rate, 0.0)
        quadratic = jnp.where(sigma_next > 0, 0.5 * h * h - linear / rate, 0.0)
        spread = sigma_next * jnp.sqrt(1.0 - (sigma_next / sigma) ** (2.0 * noise))
        x = (
            x0
            + shrink * (x - x0)
            + linear * first
            + quadratic * second
            + spread * jax.random.normal(key_noise, x.shape, x.dtype)
        )
        return self.finish(key_after, x, index, sigma_next), (x0, before[0])


def extrapolation(x0: Array, before: tuple[Array, Array], index: Array, sigmas: tuple[Array, ...]) -> tuple[Array, Array]:
    """First and second derivative of the denoised point in -log sigma at sigmas[2], by the two before it at sigmas[1], [0].

    Step 0 has neither, step 1 only the first. Levels that are equal tell nothing of a slope: 0.
    """
    last, earlier = jnp.log(sigmas[1] / sigmas[2]), jnp.log(sigmas[0] / sigmas[1])
    slope, slope_before = _per(x0 - before[0], last), _per(before[0] - before[1], earlier)
    bend = jnp.where((index > 1) & (earlier > 0), _per(slope - slope_before, last + earlier), 0.0)
    return jnp.where(index > 0, slope + bend * last, 0.0), 2.0 * bend


def carry_weight(sigma_before: Array, sigma: Array, sigma_next: Array) -> Array:
    """Share [] of its last change by which a denoised point at sigma is carried on to the middle of the next step in log sigma.

    None at the step to sigma 0, which is infinitely far, and none where the level has not changed.
    """
    ratio = _per(jnp.log(sigma / jnp.maximum(sigma_next, 1e-10)), jnp.log(sigma_before / sigma))
    return jnp.where(sigma_next > 0, 0.5 * ratio, 0.0)


def _per(change: Array, distance: Array) -> Array:
    """change / distance, 0 where the distance [] is not above 0."""
    return jnp.where(distance > 0, change / jnp.where(distance > 0, distance, 1.0), 0.0)


def _march(step: Callable[..., Array], x: Array, keys: Array, sigmas: Array) -> Array:
    """`step(key, x, index, sigma, sigma_next)` for each of n keys and the n intervals of sigmas [n + 1], in one scan."""
    inputs = (keys, jnp.arange(keys.shape[0]), sigmas[:-1], sigmas[1:])
    return jax.lax.scan(lambda x, at: (step(at[0], x, *at[1:]), None), x, inputs)[0]


def _integrate(
    key: Array,
    denoise: Denoise,
    x: Array,
    sigmas: Array,
    *,
    churn: Churn | None = None,
    before_step: Hook | None = None,
    after_stage: Hook | None = None,
    predictor: Predictor = "churned",
    second_order: bool,
) -> tuple[Array, Metrics]:
    steps = sigmas.shape[0] - 1
    step = _Step(denoise, churn or Churn(), before_step, after_stage, steps, predictor)
    keys = jax.random.split(key, steps)
    x = _march(functools.partial(step.deterministic, second_order=second_order), x, keys[:-1], sigmas[:-1])
    # The last step ends at sigma 0, where no slope exists: Euler, so that a network is never evaluated there.
    x = step.deterministic(keys[-1], x, jnp.asarray(steps - 1), sigmas[-2], sigmas[-1], False)
    return x, {"evaluations": jnp.asarray((2 if second_order else 1) * (steps - 1) + 1)}


def _remembering(
    step: Callable[..., Any], key: Array, x: Array, memory: Any, sigmas: Array, before: int
) -> tuple[Array, Metrics]:
    """`step(key, x, memory, index, levels) -> (x, memory)` over all intervals; levels: `before` that are past, now, next."""
    steps = sigmas.shape[0] - 1
    # the first steps have nothing behind them, and do not look at it
    padded = jnp.concatenate([*(2.0**i * sigmas[:1] for i in range(before, 0, -1)), sigmas])

    def advance(carry: tuple[Array, Any], at: tuple[Array, ...]) -> tuple[tuple[Array, Any], None]:
        key, index, *levels = at
        return step(key, *carry, index, tuple(levels)), None

    inputs = (jax.random.split(key, steps), jnp.arange(steps), *(padded[i : i + steps] for i in range(before + 2)))
    (x, _), _ = jax.lax.scan(advance, (x, memory), inputs)
    return x, {"evaluations": jnp.asarray(steps)}


def euler(
    key: Array,
    denoise: Denoise,
    x: Array,
    sigmas: Array,
    *,
    churn: Churn | None = None,
    before_step: Hook | None = None,
    after_stage: Hook | None = None,
    predictor: Predictor = "churned",
) -> tuple[Array, Metrics]:
    """First-order sampler: one evaluation a step.

    x [T, D] is noise of standard deviation sigmas[0]; sigmas [n + 1] decrease to 0 at the end. Before step i `before_step`
    changes x; `after_stage` changes the result of every stage (in-painting). `predictor = "unchurned"` starts the step at the
    point before churn, as the published code of PGD does: it shrinks samples, and is there for comparison only.
    Returns the sample [T, D] and {"evaluations": []}.
    """
    return _integrate(
        key, denoise, x, sigmas, churn=churn, before_step=before_step, after_stage=after_stage,
        predictor=predictor, second_order=False,
    )  # fmt: skip


def heun(
    key: Array,
    denoise: Denoise,
    x: Array,
    sigmas: Array,
    *,
    churn: Churn | None = None,
    before_step: Hook | None = None,
    after_stage: Hook | None = None,
    predictor: Predictor = "churned",
) -> tuple[Array, Metrics]:
    """Second-order sampler (EDM algorithm 2): n steps cost 2n - 1 evaluations. Arguments as `euler`."""
    return _integrate(
        key, denoise, x, sigmas, churn=churn, before_step=before_step, after_stage=after_stage,
        predictor=predictor, second_order=True,
    )  # fmt: skip


def ancestral(
    key: Array,
    denoise: Denoise,
    x: Array,
    sigmas: Array,
    *,
    churn: Churn | None = None,
    before_step: Hook | None = None,
    after_stage: Hook | None = None,
    noise: Array | float = 1.0,
) -> tuple[Array, Metrics]:
    """Ancestral sampler: one evaluation a step, each a draw from DDPM's posterior (arXiv 2006.11239, equations 6 and 7).

    In terms of sigma: x' = D + (s'/s)^2 (x - D) + noise * s' sqrt(1 - (s'/s)^2) n. Exact where D is the clean sample itself.
    `noise` scales what is added: 1 as published, 0 makes the chain deterministic given x. Other arguments as `euler`; churn
    comes before the step, on top of its own noise.
    """
    steps = sigmas.shape[0] - 1
    step = _Step(denoise, churn or Churn(), before_step, after_stage, steps, "churned")
    x = _march(functools.partial(step.posterior, noise=noise), x, jax.random.split(key, steps), sigmas)
    return x, {"evaluations": jnp.asarray(steps)}


def dpmpp_2m(
    key: Array,
    denoise: Denoise,
    x: Array,
    sigmas: Array,
    *,
    churn: Churn | None = None,
    before_step: Hook | None = None,
    after_stage: Hook | None = None,
    noise: float = 0.0,
) -> tuple[Array, Metrics]:
    """DPM-Solver++(2M) (arXiv 2211.01095, algorithm 2): second order at one evaluation a step, by the last denoised point.

    `noise` 0 follows the probability flow, 1 the reverse diffusion (SDE-DPM-Solver++); between them less noise is added. There
    is no churn: a step would not continue the last one. Other arguments as `euler`.
    """
    steps = sigmas.shape[0] - 1
    step = _Step(denoise, Churn(), before_step, after_stage, steps, "churned")

    return _remembering(functools.partial(step.multistep, noise=noise), key, x, jnp.zeros_like(x), sigmas, 1)


def dpmpp_3m(
    key: Array,
    denoise: Denoise,
    x: Array,
    sigmas: Array,
    *,
    churn: Churn | None = None,
    before_step: Hook | None = None,
    after_stage: Hook | None = None,
    noise: float = 0.0,
) -> tuple[Array, Metrics]:
    """DPM-Solver++ of third order by the two last denoised points (multistep; arXiv 2211.01095, section 4.2 and appendix).

    The exponential integral of the parabola through three denoised points in log sigma is taken in closed form. Arguments as
    `dpmpp_2m`.
    """
    steps = sigmas.shape[0] - 1
    step = _Step(denoise, Churn(), before_step, after_stage, steps, "churned")

    blank = (jnp.zeros_like(x), jnp.zeros_like(x))
    return _remembering(functools.partial(step.multistep_third, noise=noise), key, x, blank, sigmas, 2)


dpmpp_2m_sde: Sampler = functools.partial(dpmpp_2m, noise=1.0)
dpmpp_3m_sde: Sampler = functools.partial(dpmpp_3m, noise=1.0)

SAMPLERS: dict[str, Sampler] = {
    "euler": euler, "heun": heun, "ancestral": ancestral, "dpmpp_2m": dpmpp_2m, "dpmpp_2m_sde": dpmpp_2m_sde,
    "dpmpp_3m": dpmpp_3m, "dpmpp_3m_sde": dpmpp_3m_sde,
}  # fmt: skip


@functools.cache
def make_sampler(kind: str, predictor: Predictor = "churned") -> Sampler:
    """The sampler of a name in `SAMPLERS` with its structural settings fixed. Equal arguments give the same object.

    `predictor` concerns "euler" and "heun" only.
    """
    if kind not in ("euler", "heun"):
        return SAMPLERS[kind]
    return functools.partial(SAMPLERS[kind], predictor=predictor)  # type: ignore[call-arg]


def noise_levels(sampler: SamplerConfig) -> list[float]:
    """The noise levels of a sampler's steps, the largest first (EDM equation 5), as `diffusion.edm.karras_sigmas`."""
    low, high, last = sampler.sigma_min, sampler.sigma_max, sampler.steps - 1
    shrink = math.expm1((math.log(low) - math.log(high)) / sampler.rho)
    inner = [high * math.exp(sampler.rho * math.log1p(i / last * shrink)) for i in range(1, last)]
    return [high, *inner, low] if last > 0 else [high]
