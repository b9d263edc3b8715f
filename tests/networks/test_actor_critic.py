"""Shapes, bounds, initialisation and stacking of actor and critic networks."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxpgd.networks.actor_critic import Critic, CriticEnsemble, GaussianActor, TanhActor, ValueNetwork, member
from jaxpgd.networks.mlp import MLP

OBS, ACTION = jnp.linspace(-2, 2, 3), jnp.array([0.5, -0.5])


def test_mlp_is_dense_relu_dense_by_hand():
    model = MLP((4, 2))
    params = model.init(jax.random.key(0), OBS)
    first, last = params["params"]["Dense_0"], params["params"]["Dense_1"]
    hidden = np.maximum(np.asarray(OBS) @ np.asarray(first["kernel"]) + np.asarray(first["bias"]), 0)
    expected = hidden @ np.asarray(last["kernel"]) + np.asarray(last["bias"])
    np.testing.assert_allclose(model.apply(params, OBS), expected, rtol=1e-5)


def test_uniform_init_fills_the_interval_one_over_root_inputs():
    kernel = MLP((200,)).init(jax.random.key(1), jnp.zeros(100))["params"]["Dense_0"]["kernel"]
    assert np.abs(kernel).max() <= 0.1
    assert np.abs(kernel).max() > 0.0999  # of 20000 draws the largest
    assert kernel.std() == pytest.approx(0.1 / np.sqrt(3), rel=0.03)


def test_orthogonal_init_has_gain_root_two():
    kernel = MLP((8,), "orthogonal").init(jax.random.key(1), jnp.zeros(8))["params"]["Dense_0"]["kernel"]
    np.testing.assert_allclose(kernel.T @ kernel, 2 * np.eye(8), atol=1e-5)


def test_tanh_actor_stays_in_bounds_and_broadcasts():
    actor = TanhActor(2, (8,))
    params = actor.init(jax.random.key(0), OBS)
    batch = 100 * jax.random.normal(jax.random.key(1), (5, 7, 3))
    action = actor.apply(params, batch)
    assert action.shape == (5, 7, 2)
    assert np.abs(action).max() <= 1
    np.testing.assert_allclose(action[2, 3], actor.apply(params, batch[2, 3]), atol=1e-6)


@pytest.mark.parametrize(("log_std", "std"), [(0.0, 1.0), (-1.0, np.exp(-1)), (5.0, np.exp(2)), (-30.0, np.exp(-20))])
def test_gaussian_actor_clips_its_log_std(log_std, std):
    actor = GaussianActor(2, (8,))
    params = actor.init(jax.random.key(0), OBS)
    params["params"]["log_std"] = jnp.full(2, log_std)
    mean, out = actor.apply(params, OBS)
    assert mean.shape == (2,)
    assert np.abs(mean).max() <= 1
    np.testing.assert_allclose(out, std, rtol=1e-5)


def test_ensemble_members_are_independent_critics():
    ensemble = CriticEnsemble(3, (8, 8))
    params = ensemble.init(jax.random.key(0), OBS, ACTION)
    q = ensemble.apply(params, OBS[None], ACTION[None])
    assert q.shape == (3, 1)
    assert len(set(np.asarray(q).ravel().tolist())) == 3
    for i in range(3):
        np.testing.assert_allclose(Critic((8, 8)).apply(member(params, i), OBS, ACTION), q[i, 0], rtol=1e-5)


def test_value_network_gives_one_number_per_observation():
    value = ValueNetwork((8,))
    params = value.init(jax.random.key(0), OBS)
    assert value.apply(params, jnp.zeros((4, 3))).shape == (4,)
