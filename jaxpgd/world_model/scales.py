"""Units of world models: networks read and predict standardised numbers."""

import chex
import jax.numpy as jnp
from flax import struct
from jax import Array

from jaxpgd.tokens import unit_if_constant
from jaxpgd.types import Transition


@struct.dataclass
class Statistics:
    """Mean, standard deviation, minimum and maximum of each entry of a vector."""

    mean: Array  # [J]
    std: Array  # [J]
    low: Array  # [J]
    high: Array  # [J]

    def standardise(self, x: Array) -> Array:
        """[..., J] of zero mean and unit variance."""
        return (x - self.mean) / self.std

    def restore(self, z: Array) -> Array:
        """The inverse of `standardise`."""
        return z * self.std + self.mean


def statistics(x: Array) -> Statistics:
    """Statistics of rows [M, J]. Constant entries get a standard deviation of 1."""
    chex.assert_rank(x, 2)
    mean, std = x.mean(0), x.std(0)
    return Statistics(mean, unit_if_constant(mean, std), x.min(0), x.max(0))


@struct.dataclass
class Scales:
    """Statistics of everything that the networks read and predict."""

    obs: Statistics  # [O]
    delta: Statistics  # [O], of next_obs - obs
    reward: Statistics  # [1]

    def inputs(self, obs: Array, action: Array) -> Array:
        """Inputs of state and reward models: [..., O + A]."""
        chex.assert_equal_shape_prefix([obs, action], obs.ndim - 1)
        return jnp.concatenate([self.obs.standardise(obs), action], axis=-1)

    def terminal_inputs(self, obs: Array, action: Array, next_obs: Array) -> Array:
        """Inputs of the terminal classifier: [..., 2 O + A]."""
        chex.assert_equal_shape([obs, next_obs])
        return jnp.concatenate([self.inputs(obs, action), self.obs.standardise(next_obs)], axis=-1)

    def target_delta(self, batch: Transition) -> Array:
        """Targets of the state models: standardised changes of the observation, [..., O]."""
        return self.delta.standardise(batch.next_obs - batch.obs)

    def target_reward(self, batch: Transition) -> Array:
        """Targets of the reward model: standardised rewards, [...]."""
        return self.reward.standardise(batch.reward[..., None])[..., 0]


def fit_scales(transitions: Transition) -> Scales:
    """Scales of M transitions."""
    return Scales(
        obs=statistics(transitions.obs),
        delta=statistics(transitions.next_obs - transitions.obs),
        reward=statistics(transitions.reward[:, None]),
    )
