"""Multi-layer perceptrons: the body of every actor, critic and value network."""

from collections.abc import Callable
from typing import Literal, get_args

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import Array

from jaxpgd.errors import check
from jaxpgd.networks.dense import Dense
from jaxpgd.networks.initialisers import fan_in_uniform, lecun_normal
from jaxpgd.networks.orthogonal import orthogonal

Init = Literal["uniform", "orthogonal", "lecun_normal"]
Norm = Literal["none", "layer"]


def kernel_init(kind: Init) -> jax.nn.initializers.Initializer:
    """Weight initialiser by name.

    "uniform": U(-1/sqrt(n), 1/sqrt(n)) for n inputs (used by TD3+BC); "orthogonal": orthogonal with gain sqrt(2) (used by IQL);
    "lecun_normal": truncated normal of variance 1/n, Flax's default (used by PGD's released code). Raises InputError.
    """
    check(kind in get_args(Init), "init", kind, "one of " + ", ".join(map(repr, get_args(Init))))
    if kind == "lecun_normal":
        return lecun_normal
    if kind == "uniform":
        return fan_in_uniform
    return orthogonal(2.0**0.5)


def sinusoidal(position: Array, features: int) -> Array:
    """Sines, then cosines, of position [...] at features / 2 frequencies from 1 down to 1e-4. -> [..., features]."""
    half = features // 2
    angles = position[..., None] * 10_000.0 ** (-jnp.arange(half, dtype=jnp.float32) / (half - 1))
    return jnp.concatenate([jnp.sin(angles), jnp.cos(angles)], axis=-1)


class MLP(nn.Module):
    """Dense layers of widths `features`, with `activation` after all but the last. x [..., I] -> [..., features[-1]].

    Biases start at zero. `norm = "layer"`: layer normalisation (arXiv 1607.06450), with scale and bias, after each activation.
    That is the order of ReBRAC's code (arXiv 2305.09836). With `norm_first` it comes before the activation, as in RLPD
    (arXiv 2302.02948) and in the world models of NEUBAY's code (arXiv 2512.04341).
    """

    features: tuple[int, ...]
    init_kind: Init = "uniform"
    activation: Callable[[Array], Array] = nn.relu
    norm: Norm = "none"
    norm_first: bool = False

    @nn.compact
    def __call__(self, x: Array) -> Array:
        for i, width in enumerate(self.features):
            x = Dense(width, kernel_init=kernel_init(self.init_kind))(x)
            if i + 1 < len(self.features):
                normalised = nn.LayerNorm() if self.norm == "layer" else lambda y: y
                x = self.activation(normalised(x)) if self.norm_first else normalised(self.activation(x))
        return x
