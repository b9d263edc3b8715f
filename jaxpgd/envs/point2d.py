"""The illustrative environment of PGD's figure 2 (arXiv 2404.06356): a point in the plane, two goals, two policies.

The behaviour policy heads for one goal, the target policy for the other, which the reward prefers. The behaviour policy is so
noisy that its rollouts, weighted by the target policy's likelihood, show what policy guidance should generate.
"""

import dataclasses

import jax
import jax.numpy as jnp
from flax import struct
from jax import Array

from jaxpgd.envs.rollout import collect as collect
from jaxpgd.envs.rollout import rollout as rollout
from jaxpgd.types import Policy, Trajectory

BEHAVIOUR_GOAL = (1.0, 0.0)
TARGET_GOAL = (0.0, 1.0)
BEHAVIOUR_STD = 0.5
TARGET_STD = 0.45
SPEED = 0.6  # length of the mean action far from the goal, below 1 to leave room for noise
SLOWDOWN = 0.2  # distance from the goal at which the mean action has fallen to SPEED / sqrt(2)


@struct.dataclass
class Point2D:
    """A `types.Environment`: obs [2] is the position, action [2] in [-1, 1] the velocity.

    The reward is minus the distance of the new position from `goal`. There are no terminals; an episode has `horizon` steps.
    """

    step_size: Array | float = 0.15  # distance per step at action length 1; episodes cover most of the way to the goal
    noise_std: Array | float = 0.01  # of the position, per step
    start_std: Array | float = 0.1  # of the first position, around the origin
    goal: tuple[Array | float, Array | float] = TARGET_GOAL
    horizon: int = struct.field(pytree_node=False, default=16)
    obs_dim: int = struct.field(pytree_node=False, default=2)
    action_dim: int = struct.field(pytree_node=False, default=2)

    def reset(self, key: Array) -> Array:
        """First position [2]."""
        return self.start_std * jax.random.normal(key, (2,), jnp.float32)

    def mean_step(self, obs: Array, action: Array) -> Array:
        """The next position [2] from obs [2] and action [2], without noise."""
        return obs + self.step_size * jnp.clip(action, -1.0, 1.0)

    def reward(self, next_obs: Array) -> Array:
        """Reward [] of arriving at next_obs [2]."""
        reward: Array = -jnp.linalg.norm(next_obs - jnp.asarray(self.goal, next_obs.dtype))
        return reward

    def step(self, key: Array, obs: Array, action: Array) -> tuple[Array, Array, Array]:
        """obs [2], action [2] -> next_obs [2], reward [], discount [] (always 1)."""
        next_obs = self.mean_step(obs, action) + self.noise_std * jax.random.normal(key, (2,), jnp.float32)
        return next_obs, self.reward(next_obs), jnp.ones((), jnp.float32)

    def without_noise(self) -> "Point2D":
        """The same task with exact steps."""
        return dataclasses.replace(self, noise_std=0.0)


@struct.dataclass
class GoalParams:
    """Parameters of a noisy policy towards a goal."""

    goal: Array  # [2]
    std: Array  # []
    speed: Array  # []


def goal_mode(params: GoalParams, obs: Array) -> Array:
    """The mean action [2] at obs [2]: towards the goal, slower near it."""
    away = params.goal - obs
    return params.speed * away / jnp.sqrt(jnp.sum(away**2) + SLOWDOWN**2)


def goal_sample(params: GoalParams, key: Array, obs: Array) -> Array:
    """An action [2] from the Gaussian around the mode, truncated to [-1, 1].

    Clipping, unlike truncation, would create atoms at the bounds, which a denoiser would have to reproduce.
    """
    mode = goal_mode(params, obs)
    noise = jax.random.truncated_normal(key, (-1.0 - mode) / params.std, (1.0 - mode) / params.std, dtype=mode.dtype)
    return jnp.clip(mode + params.std * noise, -1.0, 1.0)


def goal_log_prob(params: GoalParams, obs: Array, action: Array, variance: Array | float = 0.0) -> Array:
    """Log-density [] of the action [2] under the Gaussian before truncation, blurred by `variance` ([] or [2])."""
    total = params.std**2 + variance
    squares = (action - goal_mode(params, obs)) ** 2 / total
    return -0.5 * jnp.sum(squares + jnp.log(2.0 * jnp.pi * total))


def goal_policy(goal: tuple[float, float] | Array, std: float | Array, speed: float | Array = SPEED) -> Policy:
    """A policy that heads for `goal` [2], with Gaussian noise of standard deviation `std`."""
    params = GoalParams(
        goal=jnp.asarray(goal, jnp.float32), std=jnp.asarray(std, jnp.float32), speed=jnp.asarray(speed, jnp.float32)
    )
    return Policy(params=params, sample_fn=goal_sample, mode_fn=goal_mode, log_prob_fn=goal_log_prob)


def behaviour_policy(env: Point2D) -> Policy:
    """The policy that collected the dataset. It heads for (1, 0)."""
    return goal_policy(BEHAVIOUR_GOAL, BEHAVIOUR_STD)


def target_policy(env: Point2D) -> Policy:
    """The policy for guidance. It heads for the goal of `env`."""
    return goal_policy(jnp.asarray(env.goal, jnp.float32), TARGET_STD)


def importance_truth(
    key: Array, env: Point2D, policy: Policy, coefficient: float | Array, samples: int
) -> tuple[Trajectory, Array]:
    """Behaviour rollouts [N, T] and log weights [N]: coefficient * sum over t of log pi(a_t | s_t).

    The weighted rollouts follow PGD's target p_off(x) q(x)^coefficient (section 4), up to sampling error. `policy` needs a
    `log_prob`.
    """
    trajectory, _ = collect(key, env, behaviour_policy(env), samples)
    log_prob = jax.vmap(jax.vmap(policy.log_prob))(trajectory.obs, trajectory.action)
    return trajectory, coefficient * jnp.sum(log_prob, axis=-1)
