"""Orthogonal weights: what they are, and that no LAPACK call is left in what makes them."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxpgd.agents import iql
from jaxpgd.networks.orthogonal import gram_schmidt, orthogonal
from jaxpgd.types import Transition


@pytest.mark.parametrize("shape", [(64, 64), (17, 64), (64, 3), (3, 1), (1, 5), (256, 256)])
def test_kernels_are_those_of_flax(shape: tuple[int, int]) -> None:
    ours = orthogonal(1.5)(jax.random.key(0), shape)
    theirs = nn.initializers.orthogonal(1.5)(jax.random.key(0), shape)
    np.testing.assert_allclose(ours, theirs, atol=2e-4)
    product = ours.T @ ours if shape[0] >= shape[1] else ours @ ours.T
    np.testing.assert_allclose(product, 1.5**2 * np.eye(min(shape)), atol=2e-5)


def test_nearly_dependent_columns_become_orthonormal() -> None:
    first, noise = jax.random.normal(jax.random.key(1), (2, 50))
    matrix = jnp.stack([first, first + 1e-4 * noise, noise], axis=1)
    basis = gram_schmidt(matrix)
    np.testing.assert_allclose(basis.T @ basis, np.eye(3), atol=1e-4)
    np.testing.assert_allclose(basis[:, 0], first / jnp.linalg.norm(first), rtol=1e-5)


def test_agents_of_many_seeds_start_without_lapack() -> None:
    agent = iql(action_dim=2, hidden=(8,))
    example = Transition(jnp.zeros(3), jnp.zeros(2), jnp.zeros(()), jnp.ones(()), jnp.zeros(3))
    many = jax.jit(jax.vmap(lambda key: agent.init(key, example)))
    assert "lapack" not in many.lower(jax.random.split(jax.random.key(0), 8)).as_text().lower()
    basis = jax.vmap(orthogonal(1.0), in_axes=(0, None))(jax.random.split(jax.random.key(0), 2), (4, 4))
    assert not np.allclose(basis[0], basis[1])
