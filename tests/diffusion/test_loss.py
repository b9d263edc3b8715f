import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import Array

from jaxpgd.diffusion.edm import EDMDenoise, coefficients, edm_loss, loss_weight, sample_sigma

SIGMAS = [0.002, 0.3, 1.0, 7.0, 80.0]


class Zero(nn.Module):
    def __call__(self, x: Array, noise: Array) -> Array:
        return jnp.zeros_like(x)


class Echo(nn.Module):
    """Returns its input, scaled by the noise feature that it is given."""

    def __call__(self, x: Array, noise: Array) -> Array:
        return noise * x


@pytest.mark.parametrize("sigma", SIGMAS)
@pytest.mark.parametrize("sigma_data", [0.5, 1.0])
def test_coefficients_of_table_1(sigma: float, sigma_data: float) -> None:
    c = coefficients(jnp.asarray(sigma), sigma_data)
    total = sigma**2 + sigma_data**2
    np.testing.assert_allclose(c.c_skip, sigma_data**2 / total, rtol=1e-5)
    np.testing.assert_allclose(c.c_noise, np.log(sigma) / 4, rtol=1e-5)
    # the input has unit variance, and so has what the network is asked for: (x0 - c_skip x) / c_out
    np.testing.assert_allclose(c.c_in**2 * total, 1.0, rtol=1e-5)
    target = (1 - c.c_skip) ** 2 * sigma_data**2 + c.c_skip**2 * sigma**2
    np.testing.assert_allclose(target / c.c_out**2, 1.0, rtol=1e-4)
    np.testing.assert_allclose(loss_weight(jnp.asarray(sigma), sigma_data) * c.c_out**2, 1.0, rtol=1e-5)


def test_denoise_combines_skip_and_network() -> None:
    sigma, sigma_data, x = 2.0, 0.5, jnp.arange(6.0).reshape(3, 2)
    c_skip, c_out, c_in = 0.25 / 4.25, 2 * 0.5 / np.sqrt(4.25), 1 / np.sqrt(4.25)
    result = EDMDenoise({}, sigma_data, Echo())(x, jnp.asarray(sigma))
    np.testing.assert_allclose(result, (c_skip + c_out * c_in * np.log(2.0) / 4) * np.asarray(x), rtol=1e-5)


def test_sigma_is_log_normal() -> None:
    draws = np.log(jax.vmap(lambda k: sample_sigma(k, -1.2, 1.2))(jax.random.split(jax.random.key(0), 20_000)))
    assert abs(draws.mean() + 1.2) < 5 * 1.2 / np.sqrt(20_000)
    assert abs(draws.std() - 1.2) < 5 * 1.2 / np.sqrt(40_000)


def test_a_share_of_sigma_is_log_uniform_at_high_noise() -> None:
    """With a narrow normal below 1, what lies above is the share, and a third of it lies above 80^(2/3)."""
    draws = np.asarray(jax.vmap(lambda k: sample_sigma(k, -3.0, 0.2, 0.25))(jax.random.split(jax.random.key(0), 20_000)))
    high = draws[draws > 0.999]
    assert abs(len(high) / 20_000 - 0.25) < 5 * np.sqrt(0.25 * 0.75 / 20_000) and high.max() <= 80.001
    assert abs((high > 80 ** (2 / 3)).mean() - 1 / 3) < 5 * np.sqrt(2 / 9 / len(high))


@pytest.mark.parametrize(("sigma", "scale"), [(0.3, 1.0), (0.3, 2.0), (5.0, 2.0)])
def test_expected_loss_of_a_network_that_returns_zero(sigma: float, scale: float) -> None:
    """D = c_skip x. With x0 ~ N(0, scale^2): E (D - x0)^2 = (1 - c_skip)^2 scale^2 + c_skip^2 sigma^2."""
    sigma_data, count = 1.0, 4000
    x0 = scale * jax.random.normal(jax.random.key(1), (count, 4, 3))
    keys = jax.random.split(jax.random.key(2), count)
    denoise = EDMDenoise({}, sigma_data, Zero())
    losses = jax.jit(jax.vmap(lambda k, x: edm_loss(k, denoise, x, np.log(sigma), 0.0)))(keys, x0)
    skip = sigma_data**2 / (sigma**2 + sigma_data**2)
    error = (1 - skip) ** 2 * scale**2 + skip**2 * sigma**2
    expected = error * (sigma**2 + sigma_data**2) / (sigma * sigma_data) ** 2
    # each of count * 12 squares has relative variance 2
    assert abs(losses.mean() / expected - 1) < 5 * np.sqrt(2 / (count * 12))
    if scale == sigma_data:
        np.testing.assert_allclose(expected, 1.0)  # unit loss at initialisation, whatever sigma
