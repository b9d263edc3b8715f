"""Guidance where tokens hold pre-tanh actions, against the target by quadrature: no kind but `smc` is exact there.

A token is one action, Gaussian, and its denoiser is exact. The policy is N(m, s^2) of the action tanh(mean + std z).
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from guided import method
from jax import Array
from scipy import stats

from jaxpgd.diffusion.edm import karras_sigmas
from jaxpgd.diffusion.sampling import sample
from jaxpgd.diffusion.single_step import Heun
from jaxpgd.envs.mixture import gaussian_policy, mixture
from jaxpgd.guidance import base as guidance
from jaxpgd.guidance.smc import smc
from jaxpgd.tokens import TokenCodec
from jaxpgd.types import Policy

UNIT = mixture([1.0], [0.0], [1.0])


@dataclasses.dataclass(frozen=True)
class Case:
    """z ~ N(0, 1), tilted by N(tanh(mean + std z); m, s^2)^c."""

    mean: float
    std: float
    m: float
    s: float
    c: float = 1.0

    @property
    def codec(self) -> TokenCodec:
        return TokenCodec(jnp.array([self.mean]), jnp.array([self.std]), obs_dim=0, action_dim=1)

    @property
    def policy(self) -> Policy:
        return gaussian_policy(self.m, self.s)

    def action(self, z: np.ndarray) -> np.ndarray:
        return np.asarray(np.tanh(self.mean + self.std * z))

    def log_q(self, z: np.ndarray) -> np.ndarray:
        return np.asarray(-0.5 * self.c * ((self.action(z) - self.m) / self.s) ** 2)

    @property
    def exact(self) -> float:
        """The target's mean action."""
        z = np.linspace(-8.0, 8.0, 20_001)
        w = np.exp(-0.5 * z**2 + self.log_q(z))
        return float((w * self.action(z)).sum() / w.sum())


# (case, error of the mean action)
CASES = [
    (Case(0.0, 1.0, 0.6, 0.3), 0.074), (Case(0.0, 1.0, 0.8, 0.3), 0.066), (Case(0.0, 1.5, 0.6, 0.3), 0.110),
    (Case(0.0, 0.5, 0.6, 0.3), 0.022), (Case(0.0, 1.0, 0.95, 0.1), 0.059), (Case(0.0, 2.0, -0.9, 0.5), 0.114),
    (Case(0.0, 3.0, 0.8, 0.2), 0.122), (Case(1.5, 1.0, -0.5, 0.3), 0.054), (Case(0.0, 1.0, 0.8, 0.3, 3.0), 0.067),
    (Case(0.0, 1.0, 0.5, 0.5), 0.069), (Case(0.0, 1.0, 0.5, 0.3, 0.25), 0.052), (Case(0.0, 1.0, 1.0, 1.0), 0.008),
]  # fmt: skip


@functools.partial(jax.jit, static_argnames="kind")
def mean_action(codec: TokenCodec, policy: Policy, coefficient: Array, kind: str) -> Array:
    """Of trajectories without noise, started from 401 quantiles of the noise."""
    sigmas = karras_sigmas(48, 0.002, 80.0, 7.0)
    start = jnp.asarray(stats.norm.ppf((np.arange(401) + 0.5) / 401) * np.sqrt(80.0**2 + 1.0), jnp.float32)[:, None, None]
    options = {"iterations": 1} if kind == "moment" else {}
    denoise, _ = method(kind, **options).attach(UNIT, policy, codec, coefficient)
    x = jax.vmap(lambda x: sample(jax.random.key(0), denoise, x, sigmas, Heun())[0])(start)
    return codec.action_of(codec.pre_tanh(x)).mean()


@pytest.mark.parametrize("kind", ["moment", "reconstruction"])
def test_the_mean_action_falls_short_of_the_targets_by_what_is_stated(kind: str) -> None:
    """0.07 on the mean of these cases, 0.12 at most: what README and the modules say of pre-tanh actions."""
    for case, error in CASES:
        if kind == "moment" or case.c >= 1.0:  # below 1 `reconstruction` is wrong in another way
            found = float(mean_action(case.codec, case.policy, jnp.asarray(case.c), kind))
            np.testing.assert_allclose(abs(found - case.exact), error, atol=0.01)


def test_what_the_module_states_of_squashed_actions_is_measured() -> None:
    case = CASES[0][0]
    found = float(mean_action(case.codec, case.policy, jnp.asarray(case.c), "moment"))
    assert f"mean action is {case.exact:.3f} and that of both {found:.3f}" in " ".join((guidance.__doc__ or "").split())


def test_where_actions_are_not_squashed_the_mean_is_exact() -> None:
    """N(0, 1) N(z; 0.6, 0.3^2): the same program, with a codec that holds actions as they are."""
    case = CASES[0][0]
    codec = dataclasses.replace(case.codec, squashed=False)
    found = float(mean_action(codec, case.policy, jnp.asarray(1.0), "moment"))
    np.testing.assert_allclose(found, 0.6 / (1.0 + 0.3**2), atol=2e-3)


def test_smc_has_no_such_error() -> None:
    case = CASES[0][0]
    guided = method("smc", proposal="moment", iterations=1).guide(UNIT, case.policy, case.codec, jnp.asarray(case.c))
    sigmas = karras_sigmas(48, 0.002, 80.0, 7.0)
    x, log_weight, _ = jax.jit(lambda key: smc(key, guided, (1, 1), sigmas, particles=4096))(jax.random.key(0))
    found = np.average(case.action(np.asarray(x)[:, 0, 0]), weights=np.exp(np.asarray(log_weight) - log_weight.max()))
    assert abs(found - case.exact) < 0.02
