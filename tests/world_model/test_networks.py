"""Networks of world models."""

import jax
import jax.numpy as jnp

from jaxpgd.world_model.networks import GaussianRegressor


def test_log_variance_stays_between_its_bounds():
    network = GaussianRegressor(2, (8,))
    params = network.init(jax.random.key(0), jnp.zeros(3))
    _, log_variance = network.apply(params, 1e4 * jax.random.normal(jax.random.key(1), (100, 3)))
    assert float(log_variance.max()) <= 0.5 + 1e-3 and float(log_variance.min()) >= -10.0 - 1e-3
    assert float(log_variance.max()) > 0.4 and float(log_variance.min()) < -9.9  # inputs this large reach both
