"""The closed forms of the tilted target against sampling, quadrature and each other."""

import jax
import numpy as np
import pytest
from scipy import integrate, stats

from jaxpgd.envs.gaussian_tilt import (
    Gaussian,
    QuadraticLikelihood,
    expected_log_likelihood,
    fitted,
    gaussian_wasserstein,
    log_normaliser,
    policy_likelihood,
    tilt,
    tilted_problem,
)
from jaxpgd.envs.linear_gaussian import collect, linear_policy, make_env, reference_case, trajectory_moments
from jaxpgd.errors import InputError

ENV, BEHAVIOUR, TARGET = reference_case()
PROBLEM = tilted_problem(ENV, BEHAVIOUR, TARGET)


def rollouts(count, policy=BEHAVIOUR):
    made, _ = collect(jax.random.key(0), ENV, policy, count)
    return made, np.concatenate([made.obs, made.action], axis=-1).reshape(count, -1).astype(np.float64)


def test_likelihood_is_the_policys_log_prob_of_every_action():
    made, x = rollouts(5)
    want = jax.vmap(jax.vmap(TARGET.log_prob))(made.obs, made.action).sum(-1)
    form = policy_likelihood(ENV, TARGET)
    value = -0.5 * ((x @ form.matrix.T - form.offset) ** 2).sum(-1) + form.constant
    np.testing.assert_allclose(value, want, rtol=1e-5)
    standardised = form.standardised(PROBLEM.centre, PROBLEM.scale)
    z = ((x.reshape(5, 16, 3) - PROBLEM.centre) / PROBLEM.scale).reshape(5, -1)
    again = -0.5 * ((z @ standardised.matrix.T - standardised.offset) ** 2).sum(-1) + form.constant
    np.testing.assert_allclose(again, value, rtol=1e-9)


@pytest.mark.parametrize("coefficient", [0.25, 1.0, 3.0])
def test_one_dimension_by_quadrature(coefficient):
    """N(x; 0.3, 2) exp(-c (1.5 x - 0.4)^2 / 2)."""
    p, q = Gaussian(np.array([0.3]), np.array([[2.0]])), QuadraticLikelihood(np.array([[1.5]]), np.array([0.4]), -0.7)
    density = lambda x: stats.norm.pdf(x, 0.3, np.sqrt(2.0)) * np.exp(-0.5 * coefficient * (1.5 * x - 0.4) ** 2)
    moment = lambda power: integrate.quad(lambda x: x**power * density(x), -20, 20)[0]
    z, mean = moment(0), moment(1) / moment(0)
    found = tilt(p, q, coefficient)
    np.testing.assert_allclose(found.mean, mean, rtol=1e-7)
    np.testing.assert_allclose(found.cov, moment(2) / z - mean**2, rtol=1e-7)
    np.testing.assert_allclose(log_normaliser(p, q, coefficient), np.log(z), rtol=1e-7)
    log_q = lambda x: (-0.5 * (1.5 * x - 0.4) ** 2 - 0.7) * stats.norm.pdf(x, 0.3, np.sqrt(2.0))
    np.testing.assert_allclose(expected_log_likelihood(p, q), integrate.quad(log_q, -20, 20)[0], rtol=1e-7)


@pytest.mark.parametrize("coefficient", [0.25, 1.0])
def test_precisions_add(coefficient):
    """The other way to write it, where the covariance has an inverse."""
    p, q = PROBLEM.behaviour, PROBLEM.likelihood
    precision = np.linalg.inv(p.cov) + coefficient * q.matrix.T @ q.matrix
    found = PROBLEM.target(coefficient)
    np.testing.assert_allclose(found.cov, np.linalg.inv(precision), atol=1e-8)
    right = np.linalg.solve(p.cov, p.mean) + coefficient * q.matrix.T @ q.offset
    np.testing.assert_allclose(found.mean, np.linalg.solve(precision, right), atol=1e-8)


def test_importance_weights_agree():
    """Weighted behaviour rollouts at a coefficient so small that they say something: bounds of four standard errors."""
    made, x = rollouts(200_000)
    log_q = np.asarray(jax.vmap(jax.vmap(TARGET.log_prob))(made.obs, made.action).sum(-1), np.float64)
    p, form, c = Gaussian(*trajectory_moments(ENV, BEHAVIOUR)), policy_likelihood(ENV, TARGET), 0.05
    w = np.exp(c * (log_q - log_q.max()))
    ess = w.sum() ** 2 / (w**2).sum()
    assert ess > 20_000
    wanted, found = tilt(p, form, c), fitted(x, w)
    np.testing.assert_array_less(np.abs(found.mean - wanted.mean), 4 * np.sqrt(np.diag(wanted.cov) / ess))
    log_z = np.log(w.mean()) + c * log_q.max()
    assert abs(log_z - log_normaliser(p, form, c) - c * form.constant) < 4 / np.sqrt(ess)


def test_reference_values():
    """Log normalisers of the reference case, q without its constants, as the issue of guidance states them."""
    p, form = Gaussian(*trajectory_moments(ENV, BEHAVIOUR)), policy_likelihood(ENV, TARGET)
    np.testing.assert_allclose([log_normaliser(p, form, c) for c in (0.25, 1.0)], [-5.839, -12.666], atol=2e-3)
    # tokens are another name for the same thing
    np.testing.assert_allclose(log_normaliser(PROBLEM.behaviour, PROBLEM.likelihood, 1.0), -12.666, atol=2e-3)


def test_no_process_noise():
    """A singular trajectory distribution: the same limit as of ever smaller noise."""

    def at(noise):
        env = make_env(ENV.A, ENV.B, noise * np.eye(2), ENV.P0)
        return tilt(Gaussian(*trajectory_moments(env, BEHAVIOUR)), policy_likelihood(env, TARGET), 1.0)

    exact, near = at(0.0), at(1e-9)
    np.testing.assert_allclose(exact.mean, near.mean, atol=1e-5)
    np.testing.assert_allclose(exact.cov, near.cov, atol=1e-5)


def test_target_that_is_the_behaviour_keeps_its_mean():
    """With linear policies without bias everything stays centred, and spread can only fall."""
    problem = tilted_problem(ENV, BEHAVIOUR, BEHAVIOUR)
    target = problem.target(1.0)
    np.testing.assert_allclose(target.mean, 0, atol=1e-9)
    assert np.linalg.eigvalsh(problem.behaviour.cov - target.cov).min() > -1e-9
    assert expected_log_likelihood(target, problem.likelihood) > expected_log_likelihood(problem.behaviour, problem.likelihood)


def test_samples_of_the_target_have_its_moments():
    count = 4096
    x = jax.vmap(PROBLEM.target_denoise(0.25).sample)(jax.random.split(jax.random.key(0), count))
    wanted = PROBLEM.target(0.25)
    error = (np.asarray(x).reshape(count, -1).mean(0) - wanted.mean) / np.sqrt(np.diag(wanted.cov) / count)
    assert np.abs(error).max() < 4.5  # 48 entries
    assert 0.1 < gaussian_wasserstein(fitted(x), wanted) < 0.25  # the finite-sample floor: 0.17


def test_wasserstein_distance():
    a = Gaussian(np.array([1.0, 0.0]), np.diag([4.0, 1.0]))
    b = Gaussian(np.array([0.0, 2.0]), np.diag([1.0, 9.0]))
    np.testing.assert_allclose(gaussian_wasserstein(a, b), np.sqrt(1 + 4 + 1 + 4))  # means, then (2-1)^2 + (1-3)^2
    assert gaussian_wasserstein(a, a) < 1e-6


def test_coefficients_below_zero_are_refused():
    with pytest.raises(InputError, match="coefficient = -1"):
        PROBLEM.target(-1.0)


def test_policies_of_several_actions():
    rng = np.random.default_rng(0)
    env = make_env(np.eye(3), rng.normal(size=(3, 2)), 0.1 * np.eye(3), np.eye(3), horizon=4)
    policy = linear_policy(rng.normal(size=(2, 3)), [0.2, -0.1], 0.4)
    made, _ = collect(jax.random.key(0), env, policy, 3)
    x = np.concatenate([made.obs, made.action], axis=-1).reshape(3, -1)
    form = policy_likelihood(env, policy)
    value = -0.5 * ((x @ form.matrix.T - form.offset) ** 2).sum(-1) + form.constant
    np.testing.assert_allclose(value, jax.vmap(jax.vmap(policy.log_prob))(made.obs, made.action).sum(-1), rtol=1e-4)
