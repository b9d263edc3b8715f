"""Shapes, bounds, initialisation and stacking of actor and critic networks."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxpgd.errors import InputError
from jaxpgd.networks.actor_critic import (
    Critic,
    CriticEnsemble,
    DiffusionActor,
    GaussianActor,
    TanhActor,
    TanhGaussianActor,
    ValueNetwork,
    member,
)
from jaxpgd.networks.mlp import MLP, kernel_init, sinusoidal

OBS, ACTION = jnp.linspace(-2, 2, 3), jnp.array([0.5, -0.5])


def test_mlp_is_dense_relu_dense_by_hand():
    model = MLP((4, 2))
    params = model.init(jax.random.key(0), OBS)
    first, last = params["params"]["Dense_0"], params["params"]["Dense_1"]
    hidden = np.maximum(np.asarray(OBS) @ np.asarray(first["kernel"]).T + np.asarray(first["bias"]), 0)
    expected = hidden @ np.asarray(last["kernel"]).T + np.asarray(last["bias"])
    np.testing.assert_allclose(model.apply(params, OBS), expected, rtol=1e-5)


def test_layer_normalisation_comes_behind_each_activation_and_not_behind_the_last_layer():
    model = MLP((4, 5, 2), norm="layer")
    params = model.init(jax.random.key(0), OBS)
    assert sorted(params["params"]) == ["Dense_0", "Dense_1", "Dense_2", "LayerNorm_0", "LayerNorm_1"]
    draw = lambda x: x + 0.3 * np.random.default_rng(x.size).normal(size=x.shape)  # scales and biases that are not 1 and 0
    params = jax.tree.map(draw, params)
    x, layers = np.asarray(OBS, np.float64), jax.tree.map(np.asarray, params["params"])
    for i in range(2):
        x = np.maximum(layers[f"Dense_{i}"]["kernel"] @ x + layers[f"Dense_{i}"]["bias"], 0)
        x = (x - x.mean()) / np.sqrt(x.var() + 1e-6)
        x = x * layers[f"LayerNorm_{i}"]["scale"] + layers[f"LayerNorm_{i}"]["bias"]
    expected = layers["Dense_2"]["kernel"] @ x + layers["Dense_2"]["bias"]
    np.testing.assert_allclose(model.apply(params, OBS), expected, rtol=1e-4, atol=1e-5)


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


def test_tanh_gaussian_actor_has_a_spread_for_every_state_and_clips_it():
    actor = TanhGaussianActor(2, (8,))
    params = actor.init(jax.random.key(0), OBS)
    mean, std = actor.apply(params, jnp.stack([OBS, 2 * OBS]))
    assert mean.shape == std.shape == (2, 2)
    assert not np.allclose(std[0], std[1])
    last = params["params"]["MLP_0"]["Dense_1"]
    last["kernel"], last["bias"] = jnp.zeros_like(last["kernel"]), jnp.array([5.0, -3.0, -30.0, 30.0])
    mean, std = actor.apply(params, OBS)
    np.testing.assert_allclose(mean, [5.0, -3.0])  # before tanh: not bounded
    np.testing.assert_allclose(std, [np.exp(-20), np.exp(2)], rtol=1e-5)


def test_sinusoidal_features_by_hand():
    frequencies = np.array([1.0, 1e-2, 1e-4])
    expected = np.concatenate([np.sin(3 * frequencies), np.cos(3 * frequencies)])
    np.testing.assert_allclose(sinusoidal(jnp.array(3.0), 6), expected, rtol=1e-5)
    np.testing.assert_allclose(sinusoidal(jnp.array([0.0, 3.0]), 6)[1], expected, rtol=1e-5)


def test_diffusion_actor_depends_on_all_it_is_given():
    actor = DiffusionActor(2, (8, 8), 4)
    x, step = jnp.array([0.3, -1.0]), jnp.array(2.0)
    params = actor.init(jax.random.key(0), x, step, OBS)
    out = actor.apply(params, x, step, OBS)
    assert out.shape == (2,)
    for other in ((2 * x, step, OBS), (x, step + 1, OBS), (x, step, 2 * OBS)):
        assert not np.allclose(actor.apply(params, *other), out)
    together = actor.apply(params, jnp.stack([x, 2 * x]), jnp.stack([step, step]), jnp.stack([OBS, OBS]))
    np.testing.assert_allclose(together[0], out, rtol=1e-5)


def test_ensemble_members_are_independent_critics():
    ensemble = CriticEnsemble(3, (8, 8))
    params = ensemble.init(jax.random.key(0), OBS, ACTION)
    q = ensemble.apply(params, OBS[None], ACTION[None])
    assert q.shape == (3, 1)
    assert len(set(np.asarray(q).ravel().tolist())) == 3
    for i in range(3):
        np.testing.assert_allclose(Critic((8, 8)).apply(member(params, i), OBS, ACTION), q[i, 0], rtol=1e-5)
    smooth = CriticEnsemble(3, (8, 8), activation=jax.nn.mish).apply(params, OBS, ACTION)
    one = Critic((8, 8), activation=jax.nn.mish).apply(member(params, 0), OBS, ACTION)
    np.testing.assert_allclose(smooth[0], one, rtol=1e-5)
    assert not np.allclose(smooth, q[:, 0])


def test_value_network_gives_one_number_per_observation():
    value = ValueNetwork((8,))
    params = value.init(jax.random.key(0), OBS)
    assert value.apply(params, jnp.zeros((4, 3))).shape == (4,)


def test_an_unknown_initialiser_is_refused():
    with pytest.raises(InputError, match="init = 'xavier': expected one of 'uniform', 'orthogonal', 'lecun_normal'"):
        kernel_init("xavier")


def test_inputs_whose_leading_axes_differ_are_refused():
    with pytest.raises(AssertionError, match="shape"):
        Critic((8,)).init(jax.random.key(0), jnp.zeros((5, 3)), jnp.zeros((4, 2)))
    with pytest.raises(AssertionError, match="rank"):
        CriticEnsemble(2, (8,)).init(jax.random.key(0), jnp.zeros((5, 3)), jnp.zeros(2))
    with pytest.raises(AssertionError, match="rank"):
        DiffusionActor(2, (8,)).init(jax.random.key(0), jnp.zeros((5, 2)), jnp.zeros(()), jnp.zeros((5, 3)))
