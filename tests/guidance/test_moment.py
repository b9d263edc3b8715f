"""Guidance by posterior moments against exact denoisers of tilted Gaussians."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import struct
from guided import method

from jaxpgd.envs.gaussian_tilt import tilted_problem
from jaxpgd.envs.linear_gaussian import linear_policy, reference_case
from jaxpgd.guidance.base import GuidedDenoise
from jaxpgd.guidance.conjugate_gradients import LinearSystem, conjugate_directions, conjugate_gradients
from jaxpgd.guidance.likelihood import Likelihood
from jaxpgd.guidance.moment import inverse, standardised_residuals
from jaxpgd.tokens import TokenCodec
from jaxpgd.types import Policy

PROBLEM = tilted_problem(*reference_case())
CODEC = TokenCodec(
    jnp.asarray(PROBLEM.centre, jnp.float32), jnp.asarray(PROBLEM.scale, jnp.float32), obs_dim=2, action_dim=1, squashed=False
)
PLAIN = TokenCodec(jnp.zeros(2), jnp.ones(2), obs_dim=1, action_dim=1, squashed=False)


def moments(denoise, likelihood, **options):
    return GuidedDenoise(method("moment", **options), denoise, likelihood)


@struct.dataclass
class Linear:
    """D(x) = x K^T / (1 + sigma^2), with any K."""

    K: jax.Array  # [D, D]

    def __call__(self, x, sigma):
        return x @ self.K.T / (1.0 + sigma**2)


@pytest.mark.parametrize("coefficient", [0.25, 1.0])
@pytest.mark.parametrize("sigma", [0.02, 0.3, 2.0, 40.0])
def test_it_is_the_exact_denoiser_of_the_tilted_gaussian(coefficient, sigma):
    """16 unknowns: as many iterations solve the system up to rounding."""
    x = 3.0 * jax.random.normal(jax.random.key(0), (16, 3)) * (1.0 + sigma)
    guidance = moments(PROBLEM.denoise, Likelihood(PROBLEM.policy, CODEC, coefficient), iterations=16)
    solve = jax.jit(lambda x, sigma: guidance.method.solve(guidance.denoise, guidance.likelihood, x, sigma))
    estimate, left = solve(x, jnp.asarray(sigma))
    wanted = PROBLEM.target_denoise(coefficient)(x, jnp.asarray(sigma))
    np.testing.assert_allclose(estimate.x0, PROBLEM.denoise(x, jnp.asarray(sigma)), rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(estimate.x0_guided, wanted, rtol=1e-3, atol=3e-3)
    assert float(left) < 1e-3


def test_the_twist_is_the_likelihood_of_the_noised_point():
    """log E[q(x0)^c | x] = -c/2 r^T (I + c M C M^T)^-1 r + constants, by matrices."""
    sigma, c, x = 0.7, 0.5, jax.random.normal(jax.random.key(1), (16, 3))
    form, cov = PROBLEM.likelihood, PROBLEM.behaviour.cov
    posterior = cov - cov @ np.linalg.solve(cov + sigma**2 * np.eye(48), cov)
    r = form.matrix @ np.asarray(PROBLEM.denoise(x, jnp.asarray(sigma)), np.float64).ravel() - form.offset
    wanted = -0.5 * c * r @ np.linalg.solve(np.eye(16) + c * form.matrix @ posterior @ form.matrix.T, r) + c * form.constant
    guidance = moments(PROBLEM.denoise, Likelihood(PROBLEM.policy, CODEC, c), iterations=16)
    np.testing.assert_allclose(guidance.estimate(x, jnp.asarray(sigma)).log_twist, wanted, rtol=1e-3)


@pytest.mark.parametrize("jacobian", ["symmetrised", "transposed"])
def test_a_jacobian_that_is_not_symmetric(jacobian):
    """Against its symmetric part, or its transpose, by hand."""
    skewed = jnp.array([[0.8, 0.5], [-0.1, 0.9]])
    likelihood = Likelihood(linear_policy([[0.4]], [0.3], 0.5), PLAIN, 1.0)
    x, sigma = jax.random.normal(jax.random.key(2), (3, 2)), jnp.asarray(0.8)
    shift = lambda K: (lambda estimate: estimate.x0_guided - estimate.x0)(
        moments(Linear(K), likelihood, iterations=3, jacobian=jacobian).estimate(x, sigma)
    )
    residual = standardised_residuals(likelihood, Linear(skewed)(x, sigma))
    part = (skewed + skewed.T) / 2 if jacobian == "symmetrised" else skewed.T
    cov = np.asarray(sigma**2 * part / (1 + sigma**2))
    m = np.array([[-0.4, 1.0]]) / 0.5
    by_hand = -np.asarray(residual) / (1 + m @ cov @ m.T) @ (cov @ m.T).T
    np.testing.assert_allclose(shift(skewed), by_hand, rtol=1e-4, atol=1e-6)


def test_an_indefinite_jacobian_stays_finite():
    guidance = moments(Linear(-30.0 * jnp.eye(2)), Likelihood(linear_policy([[0.4]], [0.3], 0.5), PLAIN, 1.0))
    x, sigma = jax.random.normal(jax.random.key(2), (3, 2)), jnp.asarray(1.0)
    estimate, left = guidance.method.solve(guidance.denoise, guidance.likelihood, x, sigma)
    np.testing.assert_array_equal(estimate.x0_guided, estimate.x0)  # no direction is safe: no guidance
    assert float(left) == 1.0


def test_residuals_of_a_gaussian_policy_and_held_states():
    policy = linear_policy([[0.4]], [0.3], 0.5)
    x0 = jnp.array([[1.0, 2.0], [-1.0, 0.5]])
    residual = standardised_residuals(Likelihood(policy, PLAIN, 1.0), x0)
    np.testing.assert_allclose(residual[:, 0], [(2 - 0.7) / 0.5, (0.5 + 0.1) / 0.5], rtol=1e-5)
    held = moments(Linear(jnp.eye(2)), Likelihood(policy, PLAIN, 1.0, hold_states=True))
    estimate = held.estimate(2.0 * x0, jnp.asarray(1.0))
    np.testing.assert_allclose(estimate.x0_guided[:, 0], estimate.x0[:, 0], atol=1e-6)
    assert (np.abs(estimate.x0_guided - estimate.x0)[:, 1] > 0.1).all()


def two_modes(spread):
    """0.5 N(m - 0.6, s^2) + 0.5 N(m + 0.6, s^2), m = 0.5 obs: convex in the action about m."""

    def log_prob(params, obs, action, variance):
        away = action - 0.5 * obs - jnp.array([-0.6, 0.6])
        return jax.nn.logsumexp(-0.5 * away**2 / spread**2)

    return Policy(jnp.zeros(1), lambda p, k, o: p, lambda p, o: p, log_prob)


@pytest.mark.slow
def test_where_the_policy_is_convex_guidance_still_climbs():
    """The shift is along C times the gradient of log q, in the action and in the state."""
    likelihood, sigma = Likelihood(two_modes(0.25), PLAIN, 0.3), jnp.asarray(0.3)
    x = jnp.array([[0.2, 0.25], [-0.4, -0.1], [0.1, 0.75], [0.0, -0.55]])  # between the modes twice, then at the sides
    guidance = moments(Linear(jnp.eye(2)), likelihood)
    estimate = guidance.estimate(x, sigma)
    log_q = lambda x0: likelihood.exact(x0)
    gradient = jax.grad(log_q)(estimate.x0)
    curvature = jax.vmap(lambda row: jax.hessian(lambda a: log_q(row.at[1].set(a)[None]))(row[1]))(estimate.x0)
    assert (curvature[:2] > 0).all() and (np.abs(gradient[:, 1]) > 0.1).all()
    shift = np.asarray(estimate.x0_guided - estimate.x0)
    assert (np.sign(shift) == np.sign(np.asarray(gradient))).all()
    # the twist falls towards the ridge between the modes, as the likelihood does
    middle = guidance.estimate(x.at[:2, 1].set(0.5 * x[:2, 0]), sigma)
    assert middle.log_twist < estimate.log_twist


def test_flat_policies_move_nothing():
    flat = Policy(jnp.zeros(1), lambda p, k, o: p, lambda p, o: p, lambda p, o, a, v: jnp.zeros(()))
    estimate = moments(Linear(jnp.eye(2)), Likelihood(flat, PLAIN, 1.0)).estimate(jnp.ones((3, 2)), jnp.asarray(1.0))
    np.testing.assert_array_equal(estimate.x0_guided, estimate.x0)
    assert float(estimate.log_twist) == 0.0


def test_a_linear_log_density_shifts_actions_by_the_posterior_covariance():
    """N(m, C) tilted by exp(c g a) is N(m + c C g, C), and log E exp(c g (a - m)) = c^2 g^2 C / 2."""
    slope, c, sigma = 3.0, 0.5, jnp.asarray(0.8)
    linear = Policy(jnp.zeros(1), lambda p, k, o: p, lambda p, o: p, lambda p, o, a, v: slope * a.sum())
    x = jax.random.normal(jax.random.key(0), (3, 2))
    likelihood = Likelihood(linear, PLAIN, c)
    estimate = moments(Linear(jnp.eye(2)), likelihood).estimate(x, sigma)
    variance = float(sigma**2 / (1 + sigma**2))
    shift = np.asarray(estimate.x0_guided - estimate.x0)
    np.testing.assert_allclose(shift[:, 1], c * variance * slope, rtol=2e-3)
    np.testing.assert_allclose(shift[:, 0], 0.0, atol=1e-6)
    wanted = float(likelihood.exact(estimate.x0)) + 3 * 0.5 * (c * slope) ** 2 * variance
    np.testing.assert_allclose(float(estimate.log_twist), wanted, rtol=2e-3)


def test_conjugate_gradients_solve_and_carry_the_image():
    rng = np.random.default_rng(0)
    root = rng.normal(size=(6, 6))
    matrix, image, b = root @ root.T + np.eye(6), rng.normal(size=(4, 6)), rng.normal(size=6)
    A = jnp.asarray(matrix, jnp.float32)
    system = LinearSystem(lambda p: (jnp.asarray(image, jnp.float32) @ p, p @ A @ p), lambda p, _: A @ p)
    z, moved, left = conjugate_gradients(system, jnp.asarray(b, jnp.float32), jnp.zeros(4), 6)
    wanted = np.linalg.solve(matrix, b)
    np.testing.assert_allclose(z, wanted, rtol=2e-3, atol=1e-4)
    np.testing.assert_allclose(moved, image @ wanted, rtol=2e-3, atol=1e-3)
    assert float(left) < 1e-3
    z, _, left = conjugate_gradients(system, jnp.asarray(b, jnp.float32), jnp.zeros(4), 2)
    np.testing.assert_allclose(left, np.linalg.norm(b - matrix @ np.asarray(z)) / np.linalg.norm(b), rtol=1e-3)
    z, _, _ = conjugate_gradients(system, jnp.zeros(6), jnp.zeros(4), 3)
    np.testing.assert_array_equal(z, 0)


def test_a_preconditioner_that_is_the_inverse_leaves_one_step_and_directions_are_conjugate():
    rng = np.random.default_rng(1)
    root = rng.normal(size=(6, 6))
    A, b = jnp.asarray(root @ root.T + np.eye(6), jnp.float32), jnp.asarray(rng.normal(size=6), jnp.float32)
    system = lambda P: LinearSystem(lambda p: (p, p @ A @ p), lambda p, _: A @ p, lambda r: P @ r)
    np.testing.assert_allclose(conjugate_gradients(system(jnp.linalg.inv(A)), b, b, 1)[0], jnp.linalg.solve(A, b), rtol=2e-3)
    rough = system(jnp.diag(1.0 / jnp.diag(A)))
    z, _, left, directions = conjugate_directions(rough, b, b, 5)
    np.testing.assert_allclose(left, jnp.linalg.norm(b - A @ z) / jnp.linalg.norm(b), rtol=1e-2, atol=1e-5)
    p, products = directions.direction, directions.direction @ A @ directions.direction.T
    np.testing.assert_allclose(products, jnp.diag(directions.curvature), atol=1e-3 * float(jnp.abs(products).max()))
    np.testing.assert_allclose(z, directions.weights(b) @ p, rtol=1e-3, atol=1e-5)
    np.testing.assert_allclose(directions.image, p)


def test_independent_entries_take_one_step_and_no_derivative_of_the_denoiser():
    """Whatever the policy: their covariance is v I, by which the system is preconditioned."""
    policy = linear_policy([[0.4, -1.0], [2.0, 0.3]], [0.3, -0.2], jnp.array([0.5, 0.05]))
    codec = TokenCodec(jnp.zeros(4), jnp.ones(4), obs_dim=2, action_dim=2, squashed=False)
    x, sigma = jax.random.normal(jax.random.key(4), (5, 4)), jnp.asarray(0.7)
    guide = lambda denoise, **options: moments(denoise, Likelihood(policy, codec, 3.0), **options).estimate(x, sigma)
    exact = guide(Linear(jnp.eye(4)), iterations=10)
    once = guide(Linear(jnp.eye(4)), iterations=1)
    np.testing.assert_allclose(once.x0_guided, exact.x0_guided, rtol=1e-3, atol=1e-4)
    np.testing.assert_allclose(once.log_twist, exact.log_twist, rtol=1e-3)

    class Flat(Linear):  # the same points, with another Jacobian
        def __call__(self, x, sigma):
            return jax.lax.stop_gradient(super().__call__(x, sigma))

    below = guide(Flat(jnp.eye(4)), jacobian_sigma_min=0.8)
    np.testing.assert_allclose(below.x0_guided, exact.x0_guided, rtol=1e-3, atol=1e-4)
    assert jnp.abs(exact.x0_guided - exact.x0).max() > 0.1
    np.testing.assert_allclose(guide(Flat(jnp.eye(4))).x0_guided, exact.x0, atol=1e-6)


def test_narrow_policies_near_saturated_actions_stay_finite():
    """Slopes of the policy's mean that are parallel, at actions where tanh is flat: P is singular in float32."""
    slope = jax.random.normal(jax.random.key(0), (6, 1)) @ jax.random.normal(jax.random.key(1), (1, 5))
    codec = TokenCodec(jnp.zeros(11), jnp.ones(11), obs_dim=5, action_dim=6)

    @jax.jit
    def guide(std, sigma, coefficient, x):
        likelihood = Likelihood(linear_policy(slope, jnp.zeros(6), std), codec, coefficient)
        return jax.vmap(lambda x: moments(Linear(jnp.eye(11)), likelihood, limit=2.0).estimate(x, sigma).x0_guided)(x)

    x = jax.random.normal(jax.random.key(2), (20, 8, 11)).at[..., 5:].set(4.0)
    for numbers in ((1e-4, 0.1, 1.0), (1e-3, 0.1, 10.0), (0.0067, 1.0, 10.0), (1e-6, 0.05, 1.0)):
        assert jnp.isfinite(guide(*map(jnp.asarray, numbers), x)).all()


def test_small_inverses():
    root = np.random.default_rng(3).normal(size=(7, 7))
    P = root @ root.T + 0.1 * np.eye(7)
    np.testing.assert_allclose(inverse(jnp.asarray(P, jnp.float32)), np.linalg.inv(P), rtol=2e-3, atol=1e-3)
    np.testing.assert_allclose(inverse(jnp.full((1, 1), 4.0)), 0.25, rtol=1e-5)
