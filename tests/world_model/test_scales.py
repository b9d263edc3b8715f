"""Units of world models."""

import jax.numpy as jnp
import numpy as np

from jaxpgd.types import Transition
from jaxpgd.world_model.scales import fit_scales, statistics


def test_scales_standardise_and_constant_entries_stay_finite():
    rng = np.random.default_rng(0)
    x = jnp.asarray(np.stack([rng.normal(3.0, 2.0, 500), np.full(500, 7.0)], axis=1), jnp.float32)
    found = statistics(x)
    z = found.standardise(x)
    np.testing.assert_allclose(z.mean(0), 0.0, atol=1e-4)
    np.testing.assert_allclose(z.std(0), [1.0, 0.0], atol=1e-4)
    np.testing.assert_allclose(found.restore(z), x, rtol=1e-5, atol=1e-5)
    batch = Transition(x, jnp.zeros((500, 1)), jnp.arange(500.0), jnp.ones(500), x + 1.0)
    scales = fit_scales(batch)
    assert scales.inputs(batch.obs, batch.action).shape == (500, 3)
    np.testing.assert_allclose(scales.target_delta(batch), 0.0, atol=1e-2)  # a constant change is its mean
    np.testing.assert_allclose(scales.target_reward(batch).std(), 1.0, rtol=1e-4)
