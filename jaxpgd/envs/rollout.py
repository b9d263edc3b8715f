"""Rollouts of policies in JAX environments."""

import jax
from jax import Array

from jaxpgd.types import Environment, Policy, Trajectory, valid_steps


def rollout(
    key: Array,
    env: Environment,
    policy: Policy,
    start: Array | None = None,
    *,
    length: int | None = None,
    deterministic: bool = False,
) -> tuple[Trajectory, Array]:
    """One episode: the trajectory [T] and its next observations [T, O].

    It starts from `start` [O] (default: a reset) and has T = `length` steps (default: `env.horizon`). `deterministic` takes the
    policy's mode instead of a sample. The same key gives the same random numbers with and without `start`.
    """
    reset_key, key = jax.random.split(key)
    first = env.reset(reset_key) if start is None else start

    def advance(obs: Array, step_key: Array) -> tuple[Array, tuple[Array, ...]]:
        action_key, noise_key = jax.random.split(step_key)
        action = policy.mode(obs) if deterministic else policy.sample(action_key, obs)
        next_obs, reward, discount = env.step(noise_key, obs, action)
        return next_obs, (obs, action, reward, discount, next_obs)

    _, (obs, action, reward, discount, next_obs) = jax.lax.scan(
        advance, first, jax.random.split(key, env.horizon if length is None else length)
    )
    mask = valid_steps(discount, end_known=True)
    trajectory = Trajectory(obs=obs, action=action, reward=reward, discount=discount, mask=mask, last_obs=next_obs[-1])
    return trajectory, next_obs


@jax.jit(static_argnames="episodes")
def collect(key: Array, env: Environment, policy: Policy, episodes: int) -> tuple[Trajectory, Array]:
    """N = `episodes` rollouts: trajectories [N, T] and next observations [N, T, O]."""
    return jax.vmap(rollout, in_axes=(0, None, None))(jax.random.split(key, episodes), env, policy)
