"""Conditions: exact where they must be, and the conditional distribution where it is known."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import struct

from jaxpgd.diffusion import sampling
from jaxpgd.diffusion.conditioning import Chain, Clamp, Condition, attach
from jaxpgd.diffusion.edm import EDMDenoise, edm_loss, karras_sigmas
from jaxpgd.diffusion.single_step import EDMConfig, Euler, Heun
from jaxpgd.networks.temporal_unet import TemporalUNet
from jaxpgd.types import Stage

RHO = 0.8  # correlation of two unit Gaussians: given the first is v, the second is Normal(RHO v, 1 - RHO^2)
KNOWN = jnp.array([[True, False]])
SIGMAS = karras_sigmas(32, 0.01, 20.0, 7.0)
CHURN = EDMConfig(20.0, 0.05, 10.0, 1.0)


@struct.dataclass
class Conditional:
    """The exact conditional denoiser of the pair; NaN where it is shown other conditions than `expected` (if any)."""

    expected: jax.Array | None = None

    def __call__(self, x, sigma):
        raise AssertionError("conditions were not given")

    def given(self, x, sigma, condition):
        value = condition.value[0, 0]
        variance = 1 - RHO**2
        mean = RHO * value + variance / (variance + sigma**2) * (x[0, 1] - RHO * value)
        if self.expected is not None:
            mean = jnp.where(value == self.expected, mean, jnp.nan)
        return condition.impose(jnp.stack([x[0, :1], mean[None]], axis=1).reshape(1, 2))


def sample(kind, key, value, solver=Heun(CHURN), denoise=None):
    condition = Condition(jnp.array([[value, 0.0]]), KNOWN)
    wrapped, clamp = attach(kind, Conditional(jnp.asarray(value)) if denoise is None else denoise, condition)
    key_noise, key = jax.random.split(key)
    x = SIGMAS[0] * jax.random.normal(key_noise, (1, 2))
    return sampling.sample(key, wrapped, x, SIGMAS, solver, before_step=clamp, after_stage=clamp)[0]


@pytest.mark.parametrize("solver", [Euler(CHURN), Heun(CHURN)])
def test_clean_conditions_are_exact_at_every_evaluation_and_in_the_sample(solver):
    """The denoiser gives NaN wherever it sees another value, so that a finite sample proves every stage."""
    x = sample("clean", jax.random.key(0), 1.5, solver)
    assert np.isfinite(x).all() and float(x[0, 0]) == 1.5


def test_clean_conditions_sample_the_conditional_distribution():
    size, value = 4000, 1.5
    draw = jax.jit(jax.vmap(lambda k: sample("clean", k, value)[0, 1]))
    drawn = np.asarray(draw(jax.random.split(jax.random.key(1), size)))
    std = np.sqrt(1 - RHO**2)
    assert drawn.mean() == pytest.approx(RHO * value, abs=5 * std / np.sqrt(size) + 0.005)
    assert drawn.std() == pytest.approx(std, abs=5 * std / np.sqrt(2 * size) + 0.01)  # 32 steps: a little off


def test_churned_conditions_reach_the_network_with_churn_noise():
    """The published sampler: exact at the stages, noisy where the network looks after churn, exact at the end."""
    x = sample("churned", jax.random.key(0), 1.5, denoise=Conditional())
    assert float(x[0, 0]) == 1.5 and np.isfinite(x).all()
    assert np.isnan(np.asarray(sample("churned", jax.random.key(0), 1.5))[0, 1])  # it did see other values


@struct.dataclass
class Joint:
    """The exact denoiser of the pair: covariance times (covariance + sigma^2)^-1 times x."""

    def __call__(self, x, sigma):
        cov = jnp.array([[1.0, RHO], [RHO, 1.0]])
        return (cov @ jnp.linalg.solve(cov + sigma**2 * jnp.eye(2), x[0]))[None]


def test_in_painting_ends_with_the_condition_and_moves_the_rest_towards_it():
    size, value = 2000, 1.5
    draw = jax.jit(jax.vmap(lambda k: sample("noised", k, value, denoise=Joint())))
    drawn = np.asarray(draw(jax.random.split(jax.random.key(1), size)))
    np.testing.assert_array_equal(drawn[:, 0, 0], value)
    # replacement is not exact conditioning: between the unconditional mean 0 and the conditional one
    assert 0.3 < drawn[:, 0, 1].mean() < RHO * value + 0.1


def stage(sigma, key=0):
    return Stage(index=jnp.asarray(0), count=2, sigma=jnp.asarray(sigma), key=jax.random.key(key), denoise=Joint())


def test_clamp_by_hand():
    condition = Condition(jnp.array([[7.0, 0.0]]), KNOWN)
    x = jnp.array([[1.0, 2.0]])
    np.testing.assert_array_equal(Clamp(condition)(x, stage(3.0)), [[7.0, 2.0]])
    np.testing.assert_array_equal(Clamp(condition, noised=True)(x, stage(0.0)), [[7.0, 2.0]])
    noised = jax.vmap(lambda k: Clamp(condition, noised=True)(x, stage(3.0).replace(key=k)))(
        jax.random.split(jax.random.key(0), 4000)
    )
    np.testing.assert_array_equal(noised[:, 0, 1], 2.0)
    assert float(noised[:, 0, 0].mean()) == pytest.approx(7.0, abs=5 * 3 / 4000**0.5)
    assert float(noised[:, 0, 0].std()) == pytest.approx(3.0, abs=5 * 3 / 8000**0.5)


def test_chained_hooks_come_in_order_with_keys_of_their_own():
    double, add = (lambda x, stage: 2 * x), (lambda x, stage: x + 1)
    x = jnp.array([[1.0]])
    assert float(Chain((double, add))(x, stage(1.0))[0, 0]) == 3.0 and float(Chain((add, double))(x, stage(1.0))[0, 0]) == 4.0
    draw = lambda x, stage: x + jax.random.normal(stage.key)
    twice = Chain((draw, draw))(jnp.zeros(()), stage(1.0))
    once = Chain((draw,))(jnp.zeros(()), stage(1.0))
    assert not np.isclose(float(twice), 2 * float(once))


def test_the_networks_own_denoise_returns_conditions_and_ignores_x_there():
    network = TemporalUNet(features=8, blocks=2, groups=4)
    params = network.init(jax.random.key(0), jnp.zeros((4, 3)), jnp.zeros(()))
    denoise = EDMDenoise(params, 1.0, network)
    known = jnp.zeros((4, 3), bool).at[0, 0].set(True).at[:, 2].set(True)
    condition = Condition(jax.random.normal(jax.random.key(1), (4, 3)), known)
    x = 5.0 * jax.random.normal(jax.random.key(2), (4, 3))
    scaled = dataclasses.replace(denoise, scaled=True)
    x0 = condition.impose(x)
    at = lambda d: np.asarray(d.given(x, jnp.asarray(5.0), condition))
    np.testing.assert_allclose(at(scaled), condition.impose(scaled(x0, jnp.asarray(5.0))), rtol=1e-6)  # c_in times the whole
    assert not np.allclose(at(scaled), at(denoise))
    first = denoise.given(x, jnp.asarray(5.0), condition)
    other = denoise.given(jnp.where(known, x + 100.0, x), jnp.asarray(5.0), condition)
    np.testing.assert_array_equal(first, other)
    np.testing.assert_array_equal(first[known], condition.value[known])
    assert not np.allclose(first[~known], denoise(x, jnp.asarray(5.0))[~known])


def test_the_loss_counts_only_what_is_not_known():
    """A network whose output is 0: D = skip x, so the weighted error is that of the skip path on unknown entries."""

    @struct.dataclass
    class Zero:
        sigma_data: float = 1.0

        def given(self, x, sigma, condition):
            return condition.impose(jnp.zeros_like(x))

    x0 = jnp.array([[3.0, 5.0], [1.0, 2.0]])
    known = jnp.array([[True, False], [True, True]])
    loss = edm_loss(jax.random.key(0), Zero(), x0, 0.0, 0.0, known=known)  # sigma 1: weight 2
    assert float(loss) == pytest.approx(2 * 25.0, rel=1e-5)
