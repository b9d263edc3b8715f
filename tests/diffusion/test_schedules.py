import jax
import jax.numpy as jnp
import numpy as np

from jaxpgd.diffusion.schedules import karras_sigmas


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
