import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxpgd.training.optimisers import muon_beside_adam, power_average_decay, power_of_width

KEY = jax.random.key(0)


def some_parameters() -> dict[str, dict[str, dict[str, jax.Array]]]:
    """Kernels of two blocks, one of them too large, and of a layer outside blocks; a bias."""
    shapes = {
        "ResidualBlock_0": {"Dense_0": {"kernel": (6, 9), "bias": (6,)}},
        "ConvBlock_1": {"Dense_0": {"kernel": (7, 9)}},
        "Dense_0": {"Dense_0": {"kernel": (4, 5)}},
    }
    leaves, structure = jax.tree.flatten(shapes, is_leaf=lambda x: isinstance(x, tuple))
    return jax.tree.unflatten(structure, [jax.random.normal(jax.random.fold_in(KEY, i), s) for i, s in enumerate(leaves)])


def test_muon_orthogonalises_kernels_of_blocks_and_adam_takes_the_rest() -> None:
    """Two steps: singular vectors are those of Nesterov's momentum, the singular values of a step within Muon's 0.7 to 1.2."""
    params, optimiser, adam = some_parameters(), muon_beside_adam(6), optax.scale_by_adam()
    gradients = [params, jax.tree.map(lambda x: jnp.cos(3.0 * x), params)]
    state, adam_state = optimiser.init(params), adam.init(params)
    momentum = np.zeros((6, 9))
    for gradient in gradients:
        steps, state = optimiser.update(gradient, state, params)
        expected, adam_state = adam.update(gradient, adam_state)
        kernel = np.asarray(gradient["ResidualBlock_0"]["Dense_0"]["kernel"])
        momentum = 0.95 * momentum + 0.05 * kernel
    count = len(gradients)
    nesterov = 0.95 * momentum / (1 - 0.95 ** (count + 1)) + 0.05 * kernel / (1 - 0.95**count)
    u, _, v = np.linalg.svd(nesterov, full_matrices=False)
    turned = u.T @ np.asarray(steps["ResidualBlock_0"]["Dense_0"].pop("kernel")) @ v.T / (0.2 * 3.0)  # sqrt(9) = 3
    np.testing.assert_allclose(turned, np.diag(np.diag(turned)), atol=1e-3)
    assert (np.diag(turned) > 0.6).all() and (np.diag(turned) < 1.25).all()
    expected["ResidualBlock_0"]["Dense_0"].pop("kernel")
    chex.assert_trees_all_equal(steps, expected)


def test_how_kernels_are_stored_does_not_matter_to_muon() -> None:
    kernel = some_parameters()["ResidualBlock_0"]["Dense_0"]["kernel"]
    optimiser = muon_beside_adam(6)

    def step(kernel: jax.Array) -> jax.Array:
        params = {"Block": {"kernel": kernel}}
        return optimiser.update(params, optimiser.init(params), params)[0]["Block"]["kernel"]

    np.testing.assert_allclose(step(kernel.T), step(kernel).T, atol=1e-5)


@pytest.mark.parametrize("width", [0.28, 0.1, 0.05, 0.001])
def test_power_by_width(width: float) -> None:
    g = float(power_of_width(width))
    assert g > 0
    np.testing.assert_allclose(np.sqrt((g + 1) / ((g + 2) ** 2 * (g + 3))), width, rtol=1e-4)


@pytest.mark.parametrize("width", [0.05, 0.2])
def test_width_of_the_average_by_hand(width: float) -> None:
    """The weight of step i in the average after T steps, and its standard deviation over i."""
    decays = np.asarray(jax.vmap(lambda i: power_average_decay(i, width))(jnp.arange(1, 2001)), np.float64)
    assert decays[0] == 0  # the first step replaces the initial weights
    for length in (500, 2000):
        kept = np.append(np.cumprod(decays[1:length][::-1])[::-1], 1.0)
        weight = (1 - decays[:length]) * kept
        np.testing.assert_allclose(weight.sum(), 1, rtol=1e-5)
        times = np.arange(1, length + 1) / length
        std = np.sqrt(np.average(np.square(times - np.average(times, weights=weight)), weights=weight))
        np.testing.assert_allclose(std, width, rtol=0.01)
