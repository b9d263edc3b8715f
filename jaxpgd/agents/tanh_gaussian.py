"""The policy of soft actor-critic (arXiv 1812.05905, appendix C), for CQL and a stochastic TD3+BC: tanh of a normal."""

from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

from jaxpgd import draws
from jaxpgd.agents import common
from jaxpgd.networks.actor_critic import TanhGaussianActor
from jaxpgd.networks.mlp import Init, Norm
from jaxpgd.types import Policy, PyTree

_ACTION_CLIP = 1.0 - 1e-6  # actions of +-1 have no arctanh


def tanh_log_slope(pre_tanh: Array) -> Array:
    """Sum [...] of log |d tanh(u) / du| over the entries of u [..., A], exact even where 1 - tanh(u)^2 rounds to 0."""
    return 2.0 * jnp.sum(jnp.log(2.0) - pre_tanh - jax.nn.softplus(-2.0 * pre_tanh), axis=-1)


class TanhGaussian:
    """An actor and its policy. Instances are cached per structure, so that the policy's methods compare equal.

    `mode` is tanh of the normal's mean. `log_prob` is the density of the action in [-1, 1]^A, with the action clipped to 1e-6
    from the bounds, where it would not be finite. A variance of the action becomes one of the normal by the slope of tanh at
    the action, variance / (1 - action^2)^2. This is the blur to first order: good while its standard deviation is small
    compared with the distance to the bounds.
    """

    def __init__(self, action_dim: int, hidden: tuple[int, ...], init: Init = "uniform", norm: Norm = "none") -> None:
        self.action_dim = action_dim
        self.actor: Any = TanhGaussianActor(action_dim, hidden, init, norm)  # Any: flax types `apply` as more than it returns

    def draw(self, key: Array, actor: PyTree, obs: Array) -> tuple[Array, Array]:
        """Actions [..., A] at obs [..., O] and their log-densities [...]."""
        mean, std = self.actor.apply(actor, obs)
        pre_tanh = mean + std * draws.normal(key, mean.shape, mean.dtype)
        log_prob = common.gaussian_log_prob(pre_tanh, mean, jnp.square(std)) - tanh_log_slope(pre_tanh)
        return jnp.tanh(pre_tanh), log_prob

    def act(self, key: Array, actor: PyTree, obs: Array) -> Array:
        """Actions [..., A] at obs [..., O], drawn by reparameterisation."""
        return self.draw(key, actor, obs)[0]

    def sample(self, params: PyTree, key: Array, obs: Array) -> Array:
        """As `Policy.sample_fn`: an action [A] drawn at obs [O]."""
        return self.act(key, params, obs)

    def mode(self, params: PyTree, obs: Array) -> Array:
        """As `Policy.mode_fn`: tanh of the normal's mean [A] at obs [O]."""
        return jnp.tanh(self.actor.apply(params, obs)[0])

    def log_prob(self, params: PyTree, obs: Array, action: Array, variance: Array | float) -> Array:
        """As `Policy.log_prob_fn`: the log-density [] of action [A] at obs [O], blurred by `variance` ([A] or [])."""
        mean, std = self.actor.apply(params, obs)
        action = jnp.clip(action, -_ACTION_CLIP, _ACTION_CLIP)
        slope = (1.0 - action) * (1.0 + action)  # 1 - action^2 without its rounding near the bounds
        # the width is a constant of the gradient, as guidance holds the variance that it passes
        widened = jnp.square(std) + variance / jax.lax.stop_gradient(jnp.square(slope))
        return common.gaussian_log_prob(jnp.arctanh(action), mean, widened) - jnp.log(slope).sum(axis=-1)

    def make_policy(self, actor: PyTree, std: Array | float = 0.0) -> Policy:
        """The policy of actor parameters, which has a density of its own: `std` is that of actors without one."""
        return Policy(actor, self.sample, self.mode, self.log_prob)
