"""The published guidance does the same in any number of steps, with any solver: its coefficient is per 256 of them.

One action, N(0, 1), and the gradient of N(1, 0.5^2) as it is, so that all is linear and samples are Gaussian. What is left
between n steps and 256 is the solver's own error, which halves where n doubles.
"""

import dataclasses
import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import struct
from guided import method
from jax import Array

from jaxpgd.diffusion.edm import karras_sigmas
from jaxpgd.diffusion.sampling import sample
from jaxpgd.diffusion.single_step import EDMConfig, Heun
from jaxpgd.diffusion.solvers import SOLVERS as KINDS
from jaxpgd.diffusion.solvers import SamplerConfig, make_solver
from jaxpgd.envs.gaussian_tilt import Gaussian, QuadraticLikelihood, tilt
from jaxpgd.envs.mixture import CODEC, gaussian_policy, mixture
from jaxpgd.guidance.published import PolicyGradientStep
from jaxpgd.types import Stage

COUNT = 1024
PRIOR, POLICY = mixture([1.0], [0.0], [1.0]), gaussian_policy(1.0, 0.5)  # one action: N(0, 1), and N(1, 0.5^2)
_tilted = tilt(Gaussian(np.zeros(1), np.eye(1)), QuadraticLikelihood(np.array([[2.0]]), np.array([2.0]), 0.0), 1.0)
TARGET = (float(_tilted.mean[0]), float(np.sqrt(_tilted.cov[0, 0])))


@functools.cache
def program(kind: str, steps: int) -> Any:
    sigmas = karras_sigmas(steps, 0.002, 80.0, 7.0)
    none: Any = {"churn": 0.0, "churn_max": math.inf, "churn_noise": 1.0}
    sections = {name: dataclasses.replace(getattr(SamplerConfig(), name), **none) for name in ("heun", "euler", "ancestral")}
    solver = make_solver(SamplerConfig(kind, **sections))  # type: ignore[arg-type]

    def one(key: Array, coefficient: Array) -> Array:
        key_noise, key = jax.random.split(key)
        denoise, hook = method("published", normalise="none").attach(PRIOR, POLICY, CODEC, coefficient)
        x = sigmas[0] * jax.random.normal(key_noise, (1, 1))
        return sample(key, denoise, x, sigmas, solver, before_step=hook)[0]

    return jax.jit(lambda c: jax.vmap(one, in_axes=(0, None))(jax.random.split(jax.random.key(0), COUNT), c))


def moments(kind: str, steps: int, coefficient: float) -> tuple[float, float]:
    x = np.asarray(program(kind, steps)(jnp.asarray(coefficient)), np.float64)
    return float(x.mean()), float(x.std())


def kl(a: tuple[float, float], b: tuple[float, float]) -> float:
    """KL of two Gaussians (mean, deviation)."""
    return 0.5 * ((a[1] ** 2 + (a[0] - b[0]) ** 2) / b[1] ** 2 - 1.0) + math.log(b[1] / a[1])


# how far the shift of 16 steps may be from that of 256, as a share of it; measured: 0.05, 0.01, 0.04, 0.24, 0.54, 0.11, 0.55
SOLVERS = {
    "euler": 0.1, "heun": 0.05, "ancestral": 0.1, "dpmpp_2m": 0.3, "dpmpp_2m_sde": 0.6, "dpmpp_3m": 0.2, "dpmpp_3m_sde": 0.6,
}  # fmt: skip


@pytest.mark.parametrize(
    "kind", [k if k in ("heun", "ancestral", "dpmpp_2m_sde") else pytest.param(k, marks=pytest.mark.slow) for k in KINDS]
)
def test_any_number_of_steps_does_what_256_do(kind: str) -> None:
    """By shift, KL to what 256 steps give and KL to the tilted Gaussian.

    With 0.003 at every step 16 would shift a tenth as far, and KL to the target be 2 nats larger.
    """
    finest = moments(kind, 256, 0.003)
    shift = finest[0] - moments(kind, 256, 0.0)[0]
    assert 0.35 < shift < 0.55
    for steps in (16, 32, 64):
        found, plain, share = moments(kind, steps, 0.003), moments(kind, steps, 0.0), 16 / steps
        assert abs(found[0] - plain[0] - shift) < (SOLVERS[kind] * share + 0.05) * shift  # 0.05: 1,024 samples
        assert kl(found, finest) < 0.3 * share**2
        assert abs(kl(found, TARGET) - kl(finest, TARGET)) < 1.0 * share


@struct.dataclass
class Published(PolicyGradientStep):
    """The step with the weights of PGD's algorithm 1 as they are."""

    def weight(self, stage: Stage) -> Array:
        ramp = 1.0 - stage.index / stage.count + self.options.sine * jnp.sin(jnp.pi * (stage.index + 1) / stage.count)
        active = (stage.index < stage.count - 1) & self.options.has(stage.sigma)
        return jnp.where(active, self.coefficient * ramp, 0.0)


def test_256_steps_are_the_published_ones_bit_for_bit() -> None:
    sigmas = karras_sigmas(256, 0.002, 80.0, 7.0)

    @functools.partial(jax.jit, static_argnames="kind")
    def draw(coefficient: Array, kind: type[PolicyGradientStep]) -> Array:
        hook, solver = kind(POLICY, CODEC, coefficient), Heun(EDMConfig(80.0, 0.05, 50.0, 1.003))
        x = sigmas[0] * jax.random.normal(jax.random.key(1), (64, 1, 1))
        one = lambda key, x: sample(key, PRIOR, x, sigmas, solver, before_step=hook)[0]
        return jax.vmap(one)(jax.random.split(jax.random.key(2), 64), x)

    ours = draw(jnp.asarray(0.01), PolicyGradientStep)
    np.testing.assert_array_equal(ours, draw(jnp.asarray(0.01), Published))
    assert np.abs(np.asarray(ours) - draw(jnp.asarray(0.0), Published)).max() > 0.1
