import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxpgd.envs.linear_gaussian import (
    collect,
    feature_statistics,
    gaussian_denoise,
    linear_policy,
    make_env,
    reference_case,
    standardise_moments,
    trajectory_moments,
)
from jaxpgd.errors import InputError


def tokens(trajectory) -> np.ndarray:
    both = np.concatenate([trajectory.obs, trajectory.action], axis=-1)
    return both.reshape(len(both), -1).astype(np.float64)


def check_moments(samples: np.ndarray, mean: np.ndarray, cov: np.ndarray, widths: float = 5.0) -> None:
    """Every entry within `widths` standard errors: var(mean) = C_ii / N, var(C_ij) = (C_ii C_jj + C_ij^2) / N."""
    n, diagonal = len(samples), np.diag(cov)
    assert (np.abs(samples.mean(0) - mean) <= widths * np.sqrt(diagonal / n)).all()
    error = np.sqrt((np.outer(diagonal, diagonal) + cov**2) / n)
    assert (np.abs(np.cov(samples.T) - cov) <= widths * error).all()


@pytest.mark.parametrize("which", [1, 2])
def test_moments_match_rollouts(which: int) -> None:
    case = reference_case()
    mean, cov = trajectory_moments(case[0], case[which])
    trajectory, next_obs = collect(jax.random.key(which), case[0], case[which], 20_000)
    check_moments(tokens(trajectory), mean, cov)
    np.testing.assert_array_equal(next_obs[:, :-1], trajectory.obs[:, 1:])


def test_moments_of_two_steps_by_hand() -> None:
    env = make_env([[0.5]], [[2.0]], [[0.3]], [[1.0]], horizon=2)
    mean, cov = trajectory_moments(env, linear_policy([[-0.1]], [0.7], 0.4))
    closed, var_a = 0.5 + 2.0 * -0.1, 0.01 + 0.16  # s1 = closed s0 + 2 (0.7 + 0.4 e) + w
    var_s1 = closed**2 + 4 * 0.16 + 0.3
    np.testing.assert_allclose(mean, [0, 0.7, 1.4, 0.56], atol=1e-6)
    np.testing.assert_allclose(np.diag(cov), [1, var_a, var_s1, 0.01 * var_s1 + 0.16], atol=1e-6)
    np.testing.assert_allclose(cov[2, :2], [closed, -0.1 * closed + 2 * 0.16], atol=1e-6)


def test_standardised_tokens_have_unit_features() -> None:
    env, behaviour, _ = reference_case()
    mean, cov = trajectory_moments(env, behaviour)
    centre, scale = feature_statistics(mean, cov, 3)
    raw = tokens(collect(jax.random.key(0), env, behaviour, 5000)[0]).reshape(-1, 3)
    np.testing.assert_allclose(raw.mean(0), centre, atol=0.03)
    np.testing.assert_allclose(raw.std(0), scale, rtol=0.03)
    again = feature_statistics(*standardise_moments(mean, cov, centre, scale), 3)
    np.testing.assert_allclose(again[0], 0, atol=1e-12)
    np.testing.assert_allclose(again[1], 1, atol=1e-12)


@pytest.mark.parametrize("sigma", [0.0, 0.002, 0.3, 1.0, 80.0])
def test_denoise_is_gaussian_conditioning(sigma: float) -> None:
    env, behaviour, _ = reference_case()
    mean, cov = trajectory_moments(env, behaviour)
    denoise = gaussian_denoise(mean, cov, 3)
    x = np.random.default_rng(0).normal(size=48)
    gain = cov @ np.linalg.inv(cov + sigma**2 * np.eye(48))
    expected = mean + gain @ (x - mean)
    result = jax.jit(lambda d, x, s: d(x, s))(denoise, jnp.asarray(x, jnp.float32).reshape(16, 3), jnp.float32(sigma))
    np.testing.assert_allclose(result.ravel(), expected, atol=2e-4)


def test_exact_samples() -> None:
    env, behaviour, _ = reference_case()
    mean, cov = trajectory_moments(env, behaviour)
    denoise = gaussian_denoise(mean, cov, 3)
    samples = jax.vmap(lambda key: denoise.sample(key))(jax.random.split(jax.random.key(4), 20_000))
    check_moments(np.asarray(samples, np.float64).reshape(len(samples), -1), mean, cov)


def test_a_distribution_without_variance_denoises_to_its_mean() -> None:
    denoise = gaussian_denoise(np.array([1.0, 2.0]), np.zeros((2, 2)), 1)
    np.testing.assert_allclose(denoise(jnp.array([[5.0], [5.0]]), jnp.float32(0.0)).ravel(), [1, 2])


def test_log_prob_is_the_blurred_gaussian() -> None:
    _, _, target = reference_case()
    obs, action = jnp.array([0.3, -0.2]), jnp.array([0.1])
    mode = 0.4 - 1.2 * 0.3 + 0.2
    np.testing.assert_allclose(target.mode(obs)[0], mode, rtol=1e-5)
    expected = jax.scipy.stats.norm.logpdf(0.1, mode, (0.09 + 0.5) ** 0.5)
    np.testing.assert_allclose(target.log_prob(obs, action, 0.5), expected, rtol=1e-5)


def test_bad_matrices_are_refused() -> None:
    with pytest.raises(InputError, match="A = "):
        make_env(np.eye(3), np.ones((2, 1)), np.eye(2), np.eye(2))
    with pytest.raises(InputError, match="Q = "):
        make_env(np.eye(2), np.ones((2, 1)), -np.eye(2), np.eye(2))
