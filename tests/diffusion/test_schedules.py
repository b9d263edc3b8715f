import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxpgd.diffusion.edm import karras_sigmas, vp_sigma, vp_sigmas, vp_time


def test_end_points_and_closed_form() -> None:
    sigmas = np.asarray(karras_sigmas(18, 0.002, 80.0, 7.0))
    assert sigmas.shape == (19,) and sigmas[-1] == 0
    np.testing.assert_allclose(sigmas[[0, -2]], [80.0, 0.002], rtol=1e-4)
    assert (np.diff(sigmas) < 0).all()
    low, high = 0.002 ** (1 / 7), 80.0 ** (1 / 7)
    expected = [(high + i / 17 * (low - high)) ** 7 for i in range(18)]
    np.testing.assert_allclose(sigmas[:-1], expected, rtol=1e-4)


def test_rho_one_is_a_straight_line() -> None:
    np.testing.assert_allclose(karras_sigmas(3, 1.0, 5.0, 1.0), [5, 3, 1, 0], rtol=1e-6)


def test_one_step_goes_straight_to_zero() -> None:
    np.testing.assert_allclose(karras_sigmas(1, 0.002, 80.0, 7.0), [80, 0], rtol=1e-5)


def test_settings_may_be_vmapped() -> None:
    many = jax.vmap(lambda high: karras_sigmas(4, 0.1, high, 7.0))(jnp.array([10.0, 80.0]))
    np.testing.assert_allclose(many[1], karras_sigmas(4, 0.1, 80.0, 7.0), rtol=1e-5)


@pytest.mark.parametrize("steps", [1, 5, 20])
def test_vp_sigmas_are_the_published_steps(steps: int) -> None:
    """Diffusion-QL states each step: beta_i = 1 - exp(-beta_min / n - (beta_max - beta_min) (2i - 1) / (2 n^2))."""
    i = np.arange(1, steps + 1)
    beta = 1 - np.exp(-0.1 / steps - 0.5 * (10.0 - 0.1) * (2 * i - 1) / steps**2)
    abar = np.cumprod(1 - beta)
    expected = np.sqrt((1 - abar) / abar)[::-1]
    sigmas = vp_sigmas(steps, 0.1, 10.0)
    assert sigmas.shape == (steps + 1,) and sigmas[-1] == 0
    np.testing.assert_allclose(sigmas[:-1], expected, rtol=1e-5)


@pytest.mark.parametrize(("low", "high"), [(0.1, 10.0), (0.1, 20.0), (2.0, 2.0)])
def test_vp_time_inverts_vp_sigma(low: float, high: float) -> None:
    time = jnp.linspace(0.01, 1.0, 50)
    np.testing.assert_allclose(vp_time(vp_sigma(time, low, high), low, high), time, rtol=1e-4)
