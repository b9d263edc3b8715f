"""Multi-layer perceptrons: the body of every actor, critic and value network."""

from collections.abc import Callable
from typing import Literal

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import Array

Init = Literal["uniform", "orthogonal"]


def kernel_init(kind: Init) -> jax.nn.initializers.Initializer:
    """Weight initialiser by name.

    "uniform": U(-1/sqrt(n), 1/sqrt(n)) for n inputs (used by TD3+BC); "orthogonal": orthogonal with gain sqrt(2) (used by IQL).
    """
    if kind == "uniform":
        return nn.initializers.variance_scaling(1 / 3, "fan_in", "uniform")  # a uniform of half-width w has variance w^2 / 3
    return nn.initializers.orthogonal(jnp.sqrt(2.0))


class MLP(nn.Module):
    """Dense layers of widths `features`, with `activation` after all but the last. x [..., I] -> [..., features[-1]].

    Biases start at zero.
    """

    features: tuple[int, ...]
    init_kind: Init = "uniform"
    activation: Callable[[Array], Array] = nn.relu

    @nn.compact
    def __call__(self, x: Array) -> Array:
        for i, width in enumerate(self.features):
            x = nn.Dense(width, kernel_init=kernel_init(self.init_kind))(x)
            x = self.activation(x) if i + 1 < len(self.features) else x
        return x
