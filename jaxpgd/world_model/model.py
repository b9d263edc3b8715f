"""A learned one-step model of an environment: an ensemble for the next state, a reward model, and a rule for terminals."""

from collections.abc import Callable
from typing import Any, Literal

import jax
import jax.numpy as jnp
from flax import struct
from jax import Array

from jaxpgd.networks.ensemble import GaussianRegressor, ScalarRegressor
from jaxpgd.tokens import usable_steps
from jaxpgd.types import Policy, PyTree, Trajectory, Transition

Terminates = Callable[[Array], Array]  # next_obs [O] -> [] bool


@struct.dataclass
class Statistics:
    """Mean and standard deviation of a vector's entries, and the range that they had."""

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
    mean, std = x.mean(0), x.std(0)
    std = jnp.where(std < 1e-6 * jnp.maximum(1.0, jnp.abs(mean)), 1.0, std)
    return Statistics(mean, std, x.min(0), x.max(0))


@struct.dataclass
class Scales:
    """Statistics of everything that the models read and predict."""

    obs: Statistics  # [O]
    delta: Statistics  # [O], of next_obs - obs
    reward: Statistics  # [1]

    def inputs(self, obs: Array, action: Array) -> Array:
        """What state and reward models read: [..., O + A]."""
        return jnp.concatenate([self.obs.standardise(obs), action], axis=-1)

    def terminal_inputs(self, obs: Array, action: Array, next_obs: Array) -> Array:
        """What the terminal classifier reads: [..., 2 O + A]."""
        return jnp.concatenate([self.inputs(obs, action), self.obs.standardise(next_obs)], axis=-1)

    def target_delta(self, batch: Transition) -> Array:
        """What the state models predict: [..., O]."""
        return self.delta.standardise(batch.next_obs - batch.obs)

    def target_reward(self, batch: Transition) -> Array:
        """What the reward model predicts: [...]."""
        return self.reward.standardise(batch.reward[..., None])[..., 0]


def fit_scales(transitions: Transition) -> Scales:
    """Scales of M transitions."""
    return Scales(
        obs=statistics(transitions.obs),
        delta=statistics(transitions.next_obs - transitions.obs),
        reward=statistics(transitions.reward[:, None]),
    )


@struct.dataclass
class WorldModel:
    """K elite state models, a reward model and a terminal rule or classifier, as data: parameters are leaves."""

    elites: PyTree  # parameters, leading axis K
    reward_params: PyTree
    terminal_params: PyTree  # None where `terminates` is a known rule
    scales: Scales
    state_network: GaussianRegressor = struct.field(pytree_node=False)
    reward_network: ScalarRegressor = struct.field(pytree_node=False)
    terminal_network: ScalarRegressor = struct.field(pytree_node=False)
    terminates: Terminates | None = struct.field(pytree_node=False, default=None)

    @property
    def members(self) -> int:
        """K."""
        return int(jax.tree.leaves(self.elites)[0].shape[0])

    def next_states(self, obs: Array, action: Array) -> tuple[Array, Array]:
        """Mean and standard deviation [K, O] of the next observation by every elite, at obs [O], action [A]."""
        x = self.scales.inputs(obs, action)
        apply: Any = self.state_network.apply
        mean, log_variance = jax.vmap(apply, in_axes=(0, None))(self.elites, x)
        std = jnp.exp(0.5 * log_variance) * self.scales.delta.std
        return obs + self.scales.delta.restore(mean), std

    def reward(self, obs: Array, action: Array) -> Array:
        """Expected reward [] at obs [O], action [A]."""
        apply: Any = self.reward_network.apply
        z: Array = apply(self.reward_params, self.scales.inputs(obs, action))
        return z * self.scales.reward.std[0] + self.scales.reward.mean[0]

    def discount(self, obs: Array, action: Array, next_obs: Array) -> Array:
        """0 where the step ends the episode, else 1; [] at obs [O], action [A], next_obs [O]."""
        if self.terminates is not None:
            return 1.0 - self.terminates(next_obs).astype(jnp.float32)
        apply: Any = self.terminal_network.apply
        logit = apply(self.terminal_params, self.scales.terminal_inputs(obs, action, next_obs))
        return (logit <= 0).astype(jnp.float32)

    def within_reach(self, obs: Array) -> Array:
        """obs [..., O] clipped to the data's range, widened by its width on both sides: long rollouts stay finite."""
        s = self.scales.obs
        return jnp.clip(obs, 2 * s.low - s.high, 2 * s.high - s.low)


def penalty(std: Array) -> Array:
    """MOPO's uncertainty []: the largest norm of the elites' standard deviations std [K, O] (arXiv 2005.13239, section 4.3)."""
    return jnp.linalg.norm(std, axis=-1).max()


@struct.dataclass
class Imagination:
    """How a policy is rolled out in a world model.

    `penalty` is MOPO's coefficient (0: none). `elite`: which member predicts, drawn at every step or once per trajectory.
    `sampled`: next states are drawn from the member's Gaussian rather than its mean.
    """

    penalty: Array | float = 0.0
    elite: Literal["step", "trajectory"] = struct.field(pytree_node=False, default="step")
    sampled: bool = struct.field(pytree_node=False, default=True)
    length: int = struct.field(pytree_node=False, default=1)

    def rollout(
        self, key: Array, model: WorldModel, policy: Policy, start: Array, action_keys: Array | None = None
    ) -> Trajectory:
        """One trajectory [T] from start [O], the policy acting at every state, and where its last step leads.

        All T transitions are usable, up to a terminal. `action_keys` [T] are the policy's keys (default: drawn from `key`).
        """
        key_member, key = jax.random.split(key)
        fixed = jax.random.randint(key_member, (), 0, model.members)

        def advance(obs: Array, keys: tuple[Array, Array | None]) -> tuple[Array, tuple[Array, ...]]:
            key_action, key_member, key_noise = jax.random.split(keys[0], 3)
            key_action = key_action if keys[1] is None else keys[1]
            action = policy.sample(key_action, obs)
            means, stds = model.next_states(obs, action)
            member = fixed if self.elite == "trajectory" else jax.random.randint(key_member, (), 0, model.members)
            noise = stds[member] * jax.random.normal(key_noise, obs.shape, obs.dtype) if self.sampled else 0.0
            next_obs = model.within_reach(means[member] + noise)
            reward = model.reward(obs, action) - self.penalty * penalty(stds)
            return next_obs, (obs, action, reward, model.discount(obs, action, next_obs))

        last, steps = jax.lax.scan(advance, start, (jax.random.split(key, self.length), action_keys))
        obs, action, reward, discount = steps
        return Trajectory(obs, action, reward, discount, usable_steps(discount, end_known=True), last)
