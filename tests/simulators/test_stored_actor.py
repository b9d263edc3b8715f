"""The stored actors: density against integration and change of variables."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxpgd.errors import InputError
from jaxpgd.simulators.stored_actor import stored_actor


@pytest.fixture
def actor(tmp_path):
    """Constant output: mean (0.3, -0.5), log std (-0.4, 9), the second clipped to 2."""
    zeros = {"w0": np.zeros((3, 4)), "b0": np.zeros(4), "w1": np.zeros((4, 4)), "b1": np.zeros(4), "w2": np.zeros((4, 4))}
    np.savez(tmp_path / "actor.npz", **zeros, b2=np.array([0.3, -0.5, -0.4, 9.0]), step=np.array(1))
    return stored_actor(tmp_path / "actor.npz")


@pytest.fixture
def one(tmp_path):
    weights = {"w0": np.zeros((2, 4)), "b0": np.zeros(4), "w1": np.zeros((4, 4)), "b1": np.zeros(4), "w2": np.zeros((4, 2))}
    np.savez(tmp_path / "one.npz", **weights, b2=np.array([0.3, -0.4]))
    return stored_actor(tmp_path / "one.npz")


@pytest.mark.parametrize("variance", [0.0, 0.2])
def test_the_density_integrates_to_one(one, variance):
    grid = jnp.linspace(-0.999, 0.999, 40001)
    density = jnp.exp(jax.vmap(lambda a: one.log_prob(jnp.zeros(2), a[None], variance))(grid))
    # all but the mass beyond |arctanh 0.999| = 3.8, more than 4 standard deviations away
    assert float(jnp.trapezoid(density, grid)) == pytest.approx(1.0, abs=2e-3)


def test_log_prob_is_the_change_of_variables(actor):
    action, std = np.array([0.6, -0.2]), np.exp([-0.4, 2.0])
    u = np.arctanh(action)
    want = np.sum(-0.5 * ((u - [0.3, -0.5]) / std) ** 2 - np.log(std * np.sqrt(2 * np.pi)) - np.log(1 - action**2))
    assert float(actor.log_prob(jnp.zeros(3), jnp.asarray(action))) == pytest.approx(want, rel=1e-4)


def test_saturated_actions_have_finite_values_and_gradients(actor):
    for action in (1.0, -1.0):
        value, slope = jax.value_and_grad(lambda a: actor.log_prob(jnp.zeros(3), a))(jnp.full(2, action))
        assert np.isfinite(value) and np.isfinite(slope).all()
    assert float(actor.log_prob(jnp.zeros(3), jnp.ones(2))) == pytest.approx(
        float(actor.log_prob(jnp.zeros(3), jnp.full(2, 0.9995)))
    )


def test_mode_and_sample_follow_the_gaussian(actor):
    np.testing.assert_allclose(actor.mode(jnp.zeros(3)), np.tanh([0.3, -0.5]), rtol=1e-6)
    samples = jax.vmap(lambda k: actor.sample(k, jnp.zeros(3)))(jax.random.split(jax.random.key(0), 4000))
    u = np.arctanh(np.asarray(samples[:, 0], np.float64))
    assert u.mean() == pytest.approx(0.3, abs=4 * np.exp(-0.4) / np.sqrt(4000))
    assert u.std() == pytest.approx(np.exp(-0.4), rel=4 / np.sqrt(2 * 4000))


def test_relu_layers_are_applied(tmp_path):
    weights = {"w0": -np.eye(1), "b0": [1.0], "w1": np.eye(1), "b1": [0.5], "w2": np.array([[2.0, 0.0]]), "b2": [0.0, 0.0]}
    np.savez(tmp_path / "a.npz", **weights)
    actor = stored_actor(tmp_path / "a.npz")
    np.testing.assert_allclose(actor.mode(jnp.array([0.4])), np.tanh(2 * (0.6 + 0.5)), rtol=1e-6)
    np.testing.assert_allclose(actor.mode(jnp.array([3.0])), np.tanh(2 * 0.5), rtol=1e-6)


def test_other_files_are_refused(tmp_path):
    np.savez(tmp_path / "other.npz", w0=np.zeros(2))
    (tmp_path / "text.npz").write_text("no")
    for name in ("other.npz", "text.npz", "absent.npz"):
        with pytest.raises(InputError, match="npz file with w0"):
            stored_actor(tmp_path / name)
