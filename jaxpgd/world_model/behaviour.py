"""The behaviour's mean action, and innovations: what of an action the state does not tell."""

from typing import Any

import chex
import jax
import jax.numpy as jnp
from flax import struct
from jax import Array

from jaxpgd import draws
from jaxpgd.networks.mlp import MLP
from jaxpgd.options import nonnegative, option, options, positive, share
from jaxpgd.types import PyTree
from jaxpgd.world_model.scales import Statistics

_FEATURES, _RIDGE = 128, 1e-2  # of the regression in `explained`: random features; penalty, as a share of the rows


@options
class BehaviourConfig:
    """The cloned mean of the behaviour, which innovations are taken against; held-out transitions as `world_model`."""

    hidden: tuple[int, ...] = option((256, 256), "widths of the hidden layers")
    lr: float = positive(1e-3, "learning rate of Adam", low=1e-12, high=1.0)
    ema: float = share(0.999, "decay of the averaged weights, which predict; 0: the weights themselves")
    weight_decay: float = nonnegative(0.0, "factor of the L2 penalty of all kernels; 0: none", high=1.0)
    batch_size: int = positive(256, "transitions per gradient step")
    epochs: int = positive(100, "largest number of epochs; early stopping ends training sooner")
    steps_per_epoch: int = nonnegative(0, "gradient steps per epoch; 0: one pass over the training transitions")
    patience: int = positive(5, "epochs without improvement of 0.01 % of the held-out loss after which training stops")


@struct.dataclass
class Behaviour:
    """mu_b(s), the mean action of the policy that collected the data, and how much innovations still depend on the state.

    An innovation is e_t = a_t - mu_b(s_t). Where actions have additive noise, a_t = mu_b(s_t) + noise, it is independent of
    the states up to t. Where the noise's size or shape depends on the state (actions at their bounds, several modes, data of
    several policies), it is only uncorrelated with them, and is evidence to the extent that `explained_square` measures.
    """

    params: PyTree
    obs: Statistics  # [O]
    explained: Array  # [A] R^2 of e on s, on held-out transitions; about 0 where the mean is cloned well
    explained_square: Array  # [A] R^2 of e^2 on s; about 0 where noise is additive and of one size
    network: MLP = struct.field(pytree_node=False)

    def mean(self, obs: Array) -> Array:
        """mu_b(s) [..., A] at obs [..., O]."""
        apply: Any = self.network.apply
        mean: Array = apply(self.params, self.obs.standardise(obs))
        return mean

    def innovation(self, obs: Array, action: Array) -> Array:
        """e = a - mu_b(s), [..., A], of actions [..., A] at obs [..., O]."""
        chex.assert_equal_shape_prefix([obs, action], obs.ndim - 1)
        return action - self.mean(obs)


def behaviour_network(config: BehaviourConfig, action_dim: int) -> MLP:
    """The network of a config section."""
    return MLP((*config.hidden, action_dim), activation=jax.nn.swish)


def explained(x: Array, y: Array) -> Array:
    """R^2 [J] of y [N, J] on standardised x [N, I]: fitted on one half of the rows, measured on the other.

    Ridge regression on x, x^2 and random features of x, without a seed of its own. Of independent y it is 0 up to about the
    number of features over N, which may be negative.
    """
    chex.assert_rank([x, y], 2)
    weights = draws.normal(jax.random.key(0), (x.shape[1] + 1, _FEATURES), x.dtype) / (x.shape[1] + 1) ** 0.5
    hidden = jnp.tanh(2.0 * (jnp.concatenate([x, jnp.ones_like(x[:, :1])], axis=1) @ weights))
    features = jnp.concatenate([x, jnp.square(x), hidden], axis=1)
    half = max(1, len(x) // 2)
    centre, mean = features[:half].mean(0), y[:half].mean(0)
    fit_x, fit_y = features[:half] - centre, y[:half] - mean
    penalty = _RIDGE * half * jnp.eye(features.shape[1], dtype=x.dtype)
    slope = jnp.linalg.solve(fit_x.T @ fit_x + penalty, fit_x.T @ fit_y)
    rest = y[-half:] - mean
    left = rest - (features[-half:] - centre) @ slope
    found: Array = 1.0 - jnp.square(left).sum(0) / jnp.maximum(jnp.square(rest).sum(0), 1e-12)
    return found
