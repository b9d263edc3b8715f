"""Networks of world models."""

import jax
import jax.numpy as jnp
import numpy as np

from jaxpgd.networks.mlp import MLP
from jaxpgd.world_model.networks import GaussianRegressor


def test_log_variance_stays_between_its_bounds():
    network = GaussianRegressor(2, (8,))
    params = network.init(jax.random.key(0), jnp.zeros(3))
    _, log_variance = network.apply(params, 1e4 * jax.random.normal(jax.random.key(1), (100, 3)))
    assert float(log_variance.max()) <= 0.5 + 1e-3 and float(log_variance.min()) >= -10.0 - 1e-3
    assert float(log_variance.max()) > 0.4 and float(log_variance.min()) < -9.9  # inputs this large reach both


def test_layer_normalisation_comes_before_each_activation():
    network, x = GaussianRegressor(1, (4, 5), norm="layer"), jax.random.normal(jax.random.key(0), (3,))
    params = network.init(jax.random.key(1), x)
    draw = lambda p: p + 0.3 * np.random.default_rng(p.size).normal(size=p.shape)  # scales and biases that are not 1 and 0
    params = {"params": params["params"] | {"MLP_0": jax.tree.map(draw, params["params"]["MLP_0"])}}
    layers, y = jax.tree.map(np.asarray, params["params"]["MLP_0"]), np.asarray(x, np.float64)
    assert sorted(layers) == ["Dense_0", "Dense_1", "Dense_2", "LayerNorm_0", "LayerNorm_1"]
    for i in range(2):
        y = layers[f"Dense_{i}"]["kernel"] @ y + layers[f"Dense_{i}"]["bias"]
        y = (y - y.mean()) / np.sqrt(y.var() + 1e-6) * layers[f"LayerNorm_{i}"]["scale"] + layers[f"LayerNorm_{i}"]["bias"]
        y = y / (1.0 + np.exp(-y))  # swish
    mean, _ = network.apply(params, x)
    np.testing.assert_allclose(mean, (layers["Dense_2"]["kernel"] @ y + layers["Dense_2"]["bias"])[:1], rtol=1e-4, atol=1e-5)


def test_without_normalisation_parameters_are_those_of_a_plain_network():
    x = jnp.zeros(3)
    found = GaussianRegressor(1, (4, 5)).init(jax.random.key(0), x)["params"]
    assert set(found) == {"MLP_0", "max_log_variance", "min_log_variance"}
    plain = MLP((4, 5, 2), activation=jax.nn.swish).init(jax.random.key(0), x)["params"]
    assert jax.tree.map(jnp.shape, found["MLP_0"]) == jax.tree.map(jnp.shape, plain)
