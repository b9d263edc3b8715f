import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import integrate, stats

from jaxpgd.envs.mixture import CODEC, divergence, gaussian_policy, mixture, tilted_masses
from jaxpgd.errors import InputError

TWO = mixture([0.3, 0.7], [-1.0, 1.5], [0.2, 0.4])
EDGES = np.linspace(-3, 4, 71)


@pytest.mark.parametrize("sigma", [0.05, 0.8, 10.0])
@pytest.mark.parametrize("x", [-2.0, 0.1, 1.3])
def test_denoiser_is_the_posterior_mean_by_quadrature(x, sigma):
    points = np.linspace(-4, 5, 200_001)
    joint = TWO.density(points) * stats.norm.pdf(x, points, sigma)
    wanted = (points * joint).sum() / joint.sum()
    np.testing.assert_allclose(TWO(jnp.array([[x]]), jnp.asarray(sigma))[0, 0], wanted, rtol=1e-3, atol=1e-4)


def test_density_and_samples_agree():
    np.testing.assert_allclose(integrate.quad(lambda x: TWO.density(np.array([x]))[0], -5, 6)[0], 1.0, rtol=1e-6)
    x = np.asarray(jax.vmap(TWO.sample)(jax.random.split(jax.random.key(0), 20_000))).ravel()
    # 0.3 of 20,000 on the left of 0.3: standard error 0.0032
    assert abs((x < 0.3).mean() - 0.3) < 4 * 0.0033
    assert divergence(x, EDGES, tilted_masses(EDGES, TWO, gaussian_policy(0.0, 1.0), 0.0)) < 2 * 70 / (2 * 20_000)


@pytest.mark.parametrize("coefficient", [0.0, 0.5, 4.0])
def test_tilted_masses_by_quadrature(coefficient):
    density = lambda x: TWO.density(np.array([x]))[0] * stats.norm.pdf(x, 0.5, 0.6) ** coefficient
    whole = integrate.quad(density, -3, 4, points=[-1, 1.5], limit=200)[0]
    masses = tilted_masses(EDGES, TWO, gaussian_policy(0.5, 0.6), coefficient)
    for i in (20, 35, 45):
        np.testing.assert_allclose(masses[i], integrate.quad(density, EDGES[i], EDGES[i + 1])[0] / whole, rtol=1e-3)
    np.testing.assert_allclose(masses.sum(), 1.0)


def test_divergence_by_hand():
    edges, masses = np.array([0.0, 1.0, 2.0]), np.array([0.25, 0.75])
    np.testing.assert_allclose(divergence(np.array([0.5, 0.6, 1.5, 9.0]), edges, masses), 0.5 * np.log(2) + 0.5 * np.log(2 / 3))
    assert divergence(np.array([0.5, np.nan, 1.5]), edges, masses) == np.inf


def test_policy_and_codec_see_one_action():
    policy = gaussian_policy(0.5, 0.6)
    x = jnp.array([[0.2]])
    value = policy.log_prob(CODEC.observation(x)[0], CODEC.action_of(CODEC.pre_tanh(x))[0])
    np.testing.assert_allclose(value, stats.norm.logpdf(0.2, 0.5, 0.6), rtol=1e-5)


def test_bad_mixtures_are_refused():
    with pytest.raises(InputError, match="as many of each"):
        mixture([1.0], [0.0, 1.0], [1.0])
    with pytest.raises(InputError, match="above 0"):
        mixture([1.0], [0.0], [0.0])
