"""Actors, critics and value networks of the offline agents, for any leading axes: obs [..., O], action [..., A].

Inputs whose leading axes differ raise AssertionError when they are traced. `norm`: of the hidden layers, as `mlp.MLP`.
"""

from collections.abc import Callable
from typing import Any

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import Array

from jaxpgd.networks.activations import mish
from jaxpgd.networks.mlp import MLP, Init, Norm, sinusoidal

LOG_STD_MIN, LOG_STD_MAX = -20.0, 2.0


class TanhActor(nn.Module):
    """Deterministic actor. obs [..., O] -> action [..., A] in [-1, 1] (TD3, arXiv 1802.09477)."""

    action_dim: int
    hidden: tuple[int, ...] = (256, 256)
    init_kind: Init = "uniform"
    norm: Norm = "none"

    @nn.compact
    def __call__(self, obs: Array) -> Array:
        return jnp.tanh(MLP((*self.hidden, self.action_dim), self.init_kind, norm=self.norm)(obs))


class GaussianActor(nn.Module):
    """Normal with tanh mean and state-independent spread (IQL, arXiv 2110.06169, appendix B).

    obs [..., O] -> (mean [..., A] in [-1, 1], std [A] in [exp(-20), exp(2)]). The samples themselves are not squashed.
    """

    action_dim: int
    hidden: tuple[int, ...] = (256, 256)
    init_kind: Init = "orthogonal"
    norm: Norm = "none"

    @nn.compact
    def __call__(self, obs: Array) -> tuple[Array, Array]:
        mean = jnp.tanh(MLP((*self.hidden, self.action_dim), self.init_kind, norm=self.norm)(obs))
        log_std = self.param("log_std", nn.initializers.zeros, (self.action_dim,), jnp.float32)
        return mean, jnp.exp(jnp.clip(log_std, LOG_STD_MIN, LOG_STD_MAX))


class TanhGaussianActor(nn.Module):
    """Normal before tanh with state-dependent spread (soft actor-critic, arXiv 1801.01290, appendix C).

    obs [..., O] -> (mean [..., A], std [..., A] in [exp(-20), exp(2)]), both of the action before tanh.
    """

    action_dim: int
    hidden: tuple[int, ...] = (256, 256)
    init_kind: Init = "uniform"
    norm: Norm = "none"

    @nn.compact
    def __call__(self, obs: Array) -> tuple[Array, Array]:
        both = MLP((*self.hidden, 2 * self.action_dim), self.init_kind, norm=self.norm)(obs)
        mean, log_std = jnp.split(both, 2, axis=-1)
        return mean, jnp.exp(jnp.clip(log_std, LOG_STD_MIN, LOG_STD_MAX))


class DiffusionActor(nn.Module):
    """Predicts the noise in an action (Diffusion-QL, arXiv 2208.06193, appendix).

    (x [..., A] of unit variance, step [...] of the diffusion, obs [..., O]) -> [..., A]. The step enters through
    `time_features` (an even number above 2) sinusoidal features and two dense layers.
    """

    action_dim: int
    hidden: tuple[int, ...] = (256, 256, 256)
    time_features: int = 16
    init_kind: Init = "uniform"

    @nn.compact
    def __call__(self, x: Array, step: Array, obs: Array) -> Array:
        chex.assert_rank([x, obs], step.ndim + 1)
        chex.assert_equal_shape_prefix([x, step, obs], step.ndim)
        embed = MLP((2 * self.time_features, self.time_features), self.init_kind, mish)
        inputs = [x, embed(sinusoidal(step, self.time_features)), obs]
        return MLP((*self.hidden, self.action_dim), self.init_kind, mish)(jnp.concatenate(inputs, axis=-1))


class Critic(nn.Module):
    """One action-value network. (obs [..., O], action [..., A]) -> [...]."""

    hidden: tuple[int, ...] = (256, 256)
    init_kind: Init = "uniform"
    activation: Callable[[Array], Array] = nn.relu
    norm: Norm = "none"

    @nn.compact
    def __call__(self, obs: Array, action: Array) -> Array:
        chex.assert_equal_rank([obs, action])
        chex.assert_equal_shape_prefix([obs, action], obs.ndim - 1)
        x = jnp.concatenate([obs, action], axis=-1)
        return MLP((*self.hidden, 1), self.init_kind, self.activation, self.norm)(x)[..., 0]


class CriticEnsemble(nn.Module):
    """`members` independent critics with stacked parameters: one batched matrix product per layer (TD3's twin critics).

    (obs [..., O], action [..., A]) -> [members, ...].
    """

    members: int = 2
    hidden: tuple[int, ...] = (256, 256)
    init_kind: Init = "uniform"
    activation: Callable[[Array], Array] = nn.relu
    norm: Norm = "none"

    @nn.compact
    def __call__(self, obs: Array, action: Array) -> Array:
        stacked = nn.vmap(
            Critic, variable_axes={"params": 0}, split_rngs={"params": True}, in_axes=None, out_axes=0, axis_size=self.members
        )
        return stacked(self.hidden, self.init_kind, self.activation, self.norm, name="members")(obs, action)


def member(params: Any, index: int) -> Any:
    """Parameters of one critic of a CriticEnsemble, for `Critic.apply`."""
    return {"params": jax.tree.map(lambda p: p[index], params["params"]["members"])}


class ValueNetwork(nn.Module):
    """State-value network. obs [..., O] -> [...]."""

    hidden: tuple[int, ...] = (256, 256)
    init_kind: Init = "orthogonal"
    norm: Norm = "none"

    @nn.compact
    def __call__(self, obs: Array) -> Array:
        return MLP((*self.hidden, 1), self.init_kind, norm=self.norm)(obs)[..., 0]
