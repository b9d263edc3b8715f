"""Policies from distributions of distrax: to guide towards, to roll out, or to score actions with."""

from collections.abc import Callable
from typing import Any

import distrax
import jax.numpy as jnp
from flax import struct
from jax import Array

from jaxpgd.types import Policy, PyTree

_EDGE = 1.0 - 1e-6  # tanh distributions have no density at the bounds themselves

Make = Callable[[PyTree, Array], distrax.Distribution]


@struct.dataclass
class _Sample:
    make: Make = struct.field(pytree_node=False)

    def __call__(self, params: PyTree, key: Array, obs: Array) -> Array:
        return jnp.clip(self.make(params, obs).sample(seed=key), -1.0, 1.0)


@struct.dataclass
class _Mode:
    make: Make = struct.field(pytree_node=False)

    def __call__(self, params: PyTree, obs: Array) -> Array:
        return jnp.clip(_mode(self.make(params, obs)), -1.0, 1.0)


@struct.dataclass
class _LogProb:
    make: Make = struct.field(pytree_node=False)

    def __call__(self, params: PyTree, obs: Array, action: Array, variance: Array | float) -> Array:
        distribution = self.make(params, obs)
        shape = (*distribution.batch_shape, *distribution.event_shape)
        if shape != action.shape:
            raise ValueError(f"policy's distribution: expected the shape {action.shape} of an action, not {shape}")
        value: Any = _blurred(distribution, variance).log_prob(_inside(distribution, action))
        return jnp.sum(value)  # over independent entries, where the distribution does not


def distribution_policy(make: Make, params: PyTree) -> Policy:
    """The policy whose actions [A] at obs [O] have the distribution `make(params, obs)`: one event [A], or A independent ones.

    Pass the same function object as `make` every time: a new one means a new trace. Samples and modes are clipped to [-1, 1];
    the mode of a squashed distribution is the squashed mode of its base. `log_prob` blurs normal distributions by the variance
    that it is given. It does not blur others, and guidance towards them is therefore too strong at high noise levels.
    Raises ValueError where a distribution has not the shape of an action, NotImplementedError where distrax has no mode.
    """
    return Policy(params=params, sample_fn=_Sample(make), mode_fn=_Mode(make), log_prob_fn=_LogProb(make))


def _mode(distribution: Any) -> Array:
    if isinstance(distribution, distrax.Independent):
        return _mode(distribution.distribution)
    if isinstance(distribution, distrax.Transformed):
        squashed: Array = distribution.bijector.forward(_mode(distribution.distribution))
        return squashed
    mode: Array = distribution.mode()
    return mode


def _blurred(distribution: Any, variance: Array | float) -> Any:
    if isinstance(distribution, distrax.Normal):
        return distrax.Normal(distribution.loc, jnp.sqrt(jnp.square(distribution.scale) + variance))
    if isinstance(distribution, distrax.MultivariateNormalDiag):
        return distrax.MultivariateNormalDiag(distribution.loc, jnp.sqrt(jnp.square(distribution.scale_diag) + variance))
    if isinstance(distribution, distrax.Independent):
        return distrax.Independent(_blurred(distribution.distribution, variance), distribution.reinterpreted_batch_ndims)
    return distribution


def _inside(distribution: Any, action: Array) -> Array:
    """Actions clipped to the open interval (-1, 1) for squashed distributions, unchanged for others."""
    inner = distribution.distribution if isinstance(distribution, distrax.Independent) else distribution
    normal = isinstance(inner, distrax.MultivariateNormalFromBijector)  # a Transformed that is unbounded
    return jnp.clip(action, -_EDGE, _EDGE) if isinstance(inner, distrax.Transformed) and not normal else action
