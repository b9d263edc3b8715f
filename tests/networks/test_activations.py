"""Activations against JAX's own."""

import jax
import jax.numpy as jnp
import numpy as np

from jaxpgd.networks.activations import mish


def test_mish_and_its_gradient_are_those_of_jax() -> None:
    x = jnp.concatenate([jnp.linspace(-60.0, 60.0, 4001), jnp.array([-1e4, -0.0, 1e4])])
    np.testing.assert_allclose(mish(x), jax.nn.mish(x), rtol=1e-5, atol=1e-6)
    gradient = lambda f: jax.vmap(jax.grad(f))(x)
    np.testing.assert_allclose(gradient(mish), gradient(jax.nn.mish), rtol=1e-5, atol=1e-5)
    assert np.isfinite(gradient(mish)).all()
