"""DPM-Solver++ (Lu et al., arXiv 2211.01095): higher order at one evaluation a step, by earlier denoised points.

There is no churn: a step would not continue the last one.
"""

from typing import ClassVar

import jax
import jax.numpy as jnp
from flax import struct
from jax import Array

from jaxpgd import draws
from jaxpgd.diffusion.sampling import Step
from jaxpgd.types import Memory


@struct.dataclass
class DPMpp2M:
    """DPM-Solver++(2M) (algorithm 2): second order by the last denoised point.

    `noise` 0 follows the probability flow, 1 the reverse diffusion (SDE-DPM-Solver++); between them less noise is added.
    """

    noise: float = struct.field(pytree_node=False, default=0.0)
    history: ClassVar[int] = 1
    last_step_differs: ClassVar[bool] = False

    def init(self, x: Array) -> Array:
        """As `Solver.init`: the last denoised point [T, D]."""
        return jnp.zeros_like(x)

    def step(self, key: Array, x: Array, state: Array, memory: Memory, step: Step) -> tuple[Array, Array, Memory]:
        """As `Solver.step`."""
        key_before, key_noise, key_after = jax.random.split(key, 3)
        sigma_before, sigma, sigma_next = step.sigmas
        x = step.before(key_before, x)
        x0, memory = step.denoise.evaluate(x, sigma, memory)
        point = x0 + jnp.where(step.index > 0, extrapolation_weight(sigma_before, sigma, sigma_next), 0.0) * (x0 - state)
        shrink = (sigma_next / sigma) ** (1.0 + self.noise)
        spread = sigma_next * jnp.sqrt(1.0 - (sigma_next / sigma) ** (2.0 * self.noise))
        x = point + shrink * (x - point) + spread * draws.normal(key_noise, x.shape, x.dtype)
        return step.after(key_after, x), x0, memory

    def nfe(self, steps: int) -> int:
        """As `Solver.nfe`."""
        return steps


@struct.dataclass
class DPMpp3M:
    """DPM-Solver++ of third order by the two last denoised points (multistep; section 4.2 and appendix).

    The exponential integral of the parabola through three denoised points in log sigma is taken in closed form. `noise` as in
    `DPMpp2M`.
    """

    noise: float = struct.field(pytree_node=False, default=0.0)
    history: ClassVar[int] = 2
    last_step_differs: ClassVar[bool] = False

    def init(self, x: Array) -> tuple[Array, Array]:
        """As `Solver.init`: the last denoised point [T, D] and the one before it."""
        return jnp.zeros_like(x), jnp.zeros_like(x)

    def step(
        self, key: Array, x: Array, state: tuple[Array, Array], memory: Memory, step: Step
    ) -> tuple[Array, tuple[Array, Array], Memory]:
        """As `Solver.step`."""
        key_before, key_noise, key_after = jax.random.split(key, 3)
        *_, sigma, sigma_next = step.sigmas
        x = step.before(key_before, x)
        x0, memory = step.denoise.evaluate(x, sigma, memory)
        first, second = derivatives(x0, state, step.index, step.sigmas)
        rate, shrink = 1.0 + self.noise, (sigma_next / sigma) ** (1.0 + self.noise)
        h = jnp.log(sigma / jnp.maximum(sigma_next, 1e-10))
        # integrals over the step, s from 0 to h, of rate exp(-rate (h - s)) times s and s^2 / 2; none of the step to sigma 0
        linear = jnp.where(sigma_next > 0, h - (1.0 - shrink) / rate, 0.0)
        quadratic = jnp.where(sigma_next > 0, 0.5 * h * h - linear / rate, 0.0)
        spread = sigma_next * jnp.sqrt(1.0 - (sigma_next / sigma) ** (2.0 * self.noise))
        x = x0 + shrink * (x - x0) + linear * first + quadratic * second + spread * draws.normal(key_noise, x.shape, x.dtype)
        return step.after(key_after, x), (x0, state[0]), memory

    def nfe(self, steps: int) -> int:
        """As `Solver.nfe`."""
        return steps


def derivatives(x0: Array, before: tuple[Array, Array], index: Array, sigmas: tuple[Array, ...]) -> tuple[Array, Array]:
    """First and second derivative of the denoised point in -log sigma at sigmas[2], by the two before it at sigmas[1], [0].

    Step 0 has neither, step 1 only the first. Levels that are equal tell nothing of a slope: 0.
    """
    last, earlier = jnp.log(sigmas[1] / sigmas[2]), jnp.log(sigmas[0] / sigmas[1])
    slope, slope_before = _per(x0 - before[0], last), _per(before[0] - before[1], earlier)
    bend = jnp.where((index > 1) & (earlier > 0), _per(slope - slope_before, last + earlier), 0.0)
    return jnp.where(index > 0, slope + bend * last, 0.0), 2.0 * bend


def extrapolation_weight(sigma_before: Array, sigma: Array, sigma_next: Array) -> Array:
    """Share [] of its last change by which a denoised point at sigma is extrapolated to the middle of the next step.

    The middle is that of log sigma. None at the step to sigma 0, which is infinitely far, and none where the level has not
    changed.
    """
    ratio = _per(jnp.log(sigma / jnp.maximum(sigma_next, 1e-10)), jnp.log(sigma_before / sigma))
    return jnp.where(sigma_next > 0, 0.5 * ratio, 0.0)


def _per(change: Array, distance: Array) -> Array:
    """change / distance, 0 where the distance [] is not above 0."""
    return jnp.where(distance > 0, change / jnp.where(distance > 0, distance, 1.0), 0.0)
