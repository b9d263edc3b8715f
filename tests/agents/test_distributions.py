"""Policies made of distrax distributions."""

import chex
import distrax
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from jaxpgd.agents.distributions import distribution_policy
from jaxpgd.guidance.likelihood import Likelihood
from jaxpgd.tokens import TokenCodec

OBS = jnp.array([0.3, -0.8])
PARAMS = {"K": jnp.array([[0.5, 0.2], [-0.3, 0.4]]), "scale": jnp.array([0.3, 0.6])}


def normal(params, obs):
    return distrax.Normal(params["K"] @ obs, params["scale"])


def diagonal(params, obs):
    return distrax.MultivariateNormalDiag(params["K"] @ obs, params["scale"])


def squashed(params, obs):
    return distrax.Independent(distrax.Transformed(normal(params, obs), distrax.Tanh()), 1)


def laplace(params, obs):
    return distrax.Laplace(params["K"] @ obs, params["scale"])


MEAN, STD = np.asarray(PARAMS["K"] @ OBS), np.asarray(PARAMS["scale"])
ACTION = np.array([0.4, -0.5])


@pytest.mark.parametrize("make", [normal, diagonal])
def test_normals_reach_beyond_the_bounds_of_actions(make):
    wanted = stats.norm(MEAN, STD).logpdf([2.0, -1.5]).sum()
    np.testing.assert_allclose(distribution_policy(make, PARAMS).log_prob(OBS, jnp.array([2.0, -1.5])), wanted, rtol=1e-4)


@pytest.mark.parametrize("make", [normal, diagonal])
def test_normals_are_blurred(make):
    policy = distribution_policy(make, PARAMS)
    for variance in (0.0, 0.5, np.array([0.1, 0.9])):
        wanted = stats.norm.logpdf(ACTION, MEAN, np.sqrt(STD**2 + variance)).sum()
        np.testing.assert_allclose(jax.jit(policy.log_prob)(OBS, jnp.asarray(ACTION), variance), wanted, rtol=1e-5)
    np.testing.assert_allclose(policy.mode(OBS), MEAN, rtol=1e-5)


def test_a_squashed_normal_has_the_density_of_the_action():
    """log N(arctanh a) - sum log(1 - a^2): the slope belongs to the policy's own density, guidance adds none."""
    policy = distribution_policy(squashed, PARAMS)
    wanted = (stats.norm.logpdf(np.arctanh(ACTION), MEAN, STD) - np.log(1 - ACTION**2)).sum()
    np.testing.assert_allclose(policy.log_prob(OBS, jnp.asarray(ACTION)), wanted, rtol=1e-4)
    np.testing.assert_allclose(policy.mode(OBS), np.tanh(MEAN), rtol=1e-5)
    assert np.isfinite(policy.log_prob(OBS, jnp.array([1.0, -1.0])))
    codec = TokenCodec(jnp.zeros(6), jnp.ones(6), obs_dim=2, action_dim=2)
    tokens = jnp.concatenate([OBS, jnp.arctanh(jnp.asarray(ACTION)), jnp.zeros(2)])[None]
    np.testing.assert_allclose(Likelihood(policy, codec, 2.0).exact(tokens), 2 * wanted, rtol=1e-4)


def test_samples_have_the_distribution_and_stay_in_bounds():
    policy = distribution_policy(squashed, PARAMS)
    x = np.asarray(jax.jit(jax.vmap(lambda k: policy.sample(k, OBS)))(jax.random.split(jax.random.key(0), 4000)))
    for i in range(2):
        assert stats.kstest(np.arctanh(x[:, i]), stats.norm(MEAN[i], STD[i]).cdf).pvalue > 1e-3
    wide = distribution_policy(normal, PARAMS | {"scale": jnp.array([5.0, 5.0])})
    assert np.abs(jax.vmap(lambda k: wide.sample(k, OBS))(jax.random.split(jax.random.key(0), 50))).max() == 1.0


def test_other_distributions_count_as_they_are():
    policy = distribution_policy(laplace, PARAMS)
    wanted = stats.laplace.logpdf(ACTION, MEAN, STD).sum()
    np.testing.assert_allclose(policy.log_prob(OBS, jnp.asarray(ACTION), 0.7), wanted, rtol=1e-5)


def test_new_parameters_do_not_trace_again():
    chex.clear_trace_counter()
    score = jax.jit(chex.assert_max_traces(lambda policy: policy.log_prob(OBS, jnp.asarray(ACTION)), n=1))
    first = score(distribution_policy(normal, PARAMS))
    second = score(distribution_policy(normal, PARAMS | {"scale": jnp.array([0.9, 0.9])}))
    assert first != second
