import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxpgd.networks.dense import Dense


@pytest.mark.parametrize("shape", [(3,), (4, 3), (5, 3), (2, 4, 3)])  # a vector; even and odd rows; more axes
def test_the_layer_is_flax_own_with_its_kernel_transposed(shape: tuple[int, ...]) -> None:
    x = jax.random.normal(jax.random.key(1), shape)
    ours, theirs = Dense(7), nn.Dense(7)
    mine, others = (layer.init(jax.random.key(0), x)["params"] for layer in (ours, theirs))
    np.testing.assert_array_equal(mine["kernel"].T, others["kernel"])  # the same draw
    mine["bias"] = others["bias"] = jnp.arange(7.0)
    np.testing.assert_allclose(ours.apply({"params": mine}, x), theirs.apply({"params": others}, x), rtol=1e-6, atol=1e-6)

    def loss(layer: nn.Module, params: dict[str, jax.Array]) -> jax.Array:
        return jnp.sin(layer.apply({"params": params}, x)).sum()  # type: ignore[arg-type]

    gradient, expected = jax.grad(loss, argnums=1)(ours, mine), jax.grad(loss, argnums=1)(theirs, others)
    np.testing.assert_allclose(gradient["kernel"].T, expected["kernel"], rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(gradient["bias"], expected["bias"], rtol=1e-5, atol=1e-6)


def test_products_of_half_precision_keep_float32_parameters() -> None:
    x = jax.random.normal(jax.random.key(1), (6, 40))
    layer, exact = Dense(5, dtype=jnp.bfloat16), Dense(5)
    params = layer.init(jax.random.key(0), x)
    assert {p.dtype for p in jax.tree.leaves(params)} == {jnp.dtype(jnp.float32)}
    y = layer.apply(params, x)
    assert y.dtype == jnp.bfloat16
    np.testing.assert_allclose(np.asarray(y, np.float32), exact.apply(params, x), atol=0.05)  # 8 bits, 40 summands
    assert (np.asarray(y, np.float32) != np.asarray(exact.apply(params, x))).any()
