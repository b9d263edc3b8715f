"""Solvers whose steps stand alone: Euler and Heun (EDM algorithm 2) and ancestral sampling, with or without churn."""

from typing import ClassVar, Literal

import jax
import jax.numpy as jnp
from flax import struct
from jax import Array

from jaxpgd import draws
from jaxpgd.diffusion.sampling import Step
from jaxpgd.options import nonnegative, option, options
from jaxpgd.types import Memory


@options
class ChurnConfig:
    """Noise put back before each step (EDM algorithm 2: S_churn, S_tmin, S_tmax, S_noise)."""

    churn: float = nonnegative(80.0, "S_churn of EDM: how much noise is added back in all steps together; 0: none")
    churn_min: float = nonnegative(0.05, "S_tmin of EDM: noise is added back only for sigma in [churn_min, churn_max]")
    churn_max: float = option(50.0, "S_tmax of EDM: largest noise level at which noise is added back")
    churn_noise: float = nonnegative(
        1.003, "S_noise of EDM: factor of the standard deviation of the added noise (EDM: 1.003 to 1.007)", high=10.0
    )

    def gamma(self, sigma: Array, steps: int) -> Array:
        """Relative increase [] of the noise level at sigma []."""
        amount = jnp.minimum(self.churn / steps, jnp.sqrt(2.0) - 1.0)
        return jnp.where((sigma >= self.churn_min) & (sigma <= self.churn_max), amount, 0.0)

    def apply(self, key: Array, x: Array, sigma: Array, steps: int) -> tuple[Array, Array]:
        """x [T, D] with noise put back, and its noise level [] sigma_hat."""
        gamma = self.gamma(sigma, steps)
        # sqrt(sigma_hat^2 - sigma^2) without the difference, whose rounding alone would add noise of 3e-4 sigma without churn
        added = self.churn_noise * sigma * jnp.sqrt(gamma * (2.0 + gamma))
        return x + added * draws.normal(key, x.shape, x.dtype), sigma * (1.0 + gamma)


@options
class EDMConfig(ChurnConfig):
    """Churn, and where the step after it starts."""

    predictor: Literal["churned", "unchurned"] = option(
        "churned",
        "x from which the Euler step starts: with the added noise (EDM), or without, as PGD's code, which shrinks samples",
    )


NO_CHURN = ChurnConfig(churn=0.0, churn_min=0.0, churn_max=float("inf"), churn_noise=1.0)
DETERMINISTIC = EDMConfig(churn=0.0, churn_min=0.0, churn_max=float("inf"), churn_noise=1.0)


@struct.dataclass
class Euler:
    """First order along the probability flow, after churn: one evaluation a step. Without options there is no churn."""

    options: EDMConfig = DETERMINISTIC
    history: ClassVar[int] = 0
    last_step_differs: ClassVar[bool] = True

    def init(self, x: Array) -> tuple[()]:
        """As `Solver.init`: nothing."""
        return ()

    def step(self, key: Array, x: Array, state: tuple[()], memory: Memory, step: Step) -> tuple[Array, tuple[()], Memory]:
        """As `Solver.step`."""
        x, memory = _probability_flow(key, x, memory, step, self.options, second_order=False)
        return x, (), memory

    def nfe(self, steps: int) -> int:
        """As `Solver.nfe`."""
        return steps


@struct.dataclass
class Heun:
    """Second order (EDM algorithm 2): n steps cost 2 n - 1 evaluations. Without options there is no churn."""

    options: EDMConfig = DETERMINISTIC
    history: ClassVar[int] = 0
    last_step_differs: ClassVar[bool] = True  # it ends at sigma 0, where no slope exists: Euler, as no network is asked there

    def init(self, x: Array) -> tuple[()]:
        """As `Solver.init`: nothing."""
        return ()

    def step(self, key: Array, x: Array, state: tuple[()], memory: Memory, step: Step) -> tuple[Array, tuple[()], Memory]:
        """As `Solver.step`."""
        x, memory = _probability_flow(key, x, memory, step, self.options, second_order=not step.last)
        return x, (), memory

    def nfe(self, steps: int) -> int:
        """As `Solver.nfe`."""
        return 2 * (steps - 1) + 1


def _probability_flow(
    key: Array, x: Array, memory: Memory, step: Step, options: EDMConfig, *, second_order: bool
) -> tuple[Array, Memory]:
    """A step along the probability flow after churn (EDM algorithm 2)."""
    sigma, sigma_next = step.sigmas
    key_before, key_churn, key_euler, key_heun = jax.random.split(key, 4)
    x = step.before(key_before, x)
    x_hat, sigma_hat = options.apply(key_churn, x, sigma, step.count)
    x0, memory = step.denoise.evaluate(x_hat, sigma_hat, memory)
    slope = (x_hat - x0) / sigma_hat
    start = x_hat if options.predictor == "churned" else x
    x_next = step.after(key_euler, start + (sigma_next - sigma_hat) * slope)
    if not second_order:
        return x_next, memory
    x0, memory = step.denoise.evaluate(x_next, sigma_next, memory)
    slope_next = (x_next - x0) / sigma_next
    return step.after(key_heun, x_hat + (sigma_next - sigma_hat) * (slope + slope_next) / 2.0), memory


@struct.dataclass
class Ancestral:
    """One evaluation a step, each a draw from DDPM's posterior (arXiv 2006.11239, equations 6 and 7).

    In terms of sigma: x' = D + (s'/s)^2 (x - D) + noise * s' sqrt(1 - (s'/s)^2) n. Exact where D is the clean sample itself.
    `noise` scales what is added: 1 as published, 0 makes the chain deterministic given x. Churn comes before the step, on top
    of its own noise; without options there is none.
    """

    options: ChurnConfig = NO_CHURN
    noise: Array | float = 1.0
    history: ClassVar[int] = 0
    last_step_differs: ClassVar[bool] = False

    def init(self, x: Array) -> tuple[()]:
        """As `Solver.init`: nothing."""
        return ()

    def step(self, key: Array, x: Array, state: tuple[()], memory: Memory, step: Step) -> tuple[Array, tuple[()], Memory]:
        """As `Solver.step`."""
        sigma, sigma_next = step.sigmas
        key_before, key_churn, key_noise, key_after = jax.random.split(key, 4)
        x = step.before(key_before, x)
        x_hat, sigma_hat = self.options.apply(key_churn, x, sigma, step.count)
        x0, memory = step.denoise.evaluate(x_hat, sigma_hat, memory)
        ratio = jnp.square(sigma_next / sigma_hat)
        spread = self.noise * sigma_next * jnp.sqrt(1.0 - ratio)
        x_next = x0 + ratio * (x_hat - x0) + spread * draws.normal(key_noise, x.shape, x.dtype)
        return step.after(key_after, x_next), (), memory

    def nfe(self, steps: int) -> int:
        """As `Solver.nfe`."""
        return steps
