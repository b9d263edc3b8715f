"""Rollouts of any policy in any of the JAX environments."""

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
    """One episode: Trajectory [T] and its next observations [T, O].

    From `start` [O] (default: a reset) for `length` steps (default: `env.horizon`); `deterministic` acts by the policy's mode.
    The same key gives the same actions and noise whether or not the start is given.
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
    made = Trajectory(obs=obs, action=action, reward=reward, discount=discount, mask=mask, last_obs=next_obs[-1])
    return made, next_obs


@jax.jit(static_argnames="episodes")
def collect(key: Array, env: Environment, policy: Policy, episodes: int) -> tuple[Trajectory, Array]:
    """`episodes` rollouts at once: Trajectory [N, T] and next observations [N, T, O]."""
    return jax.vmap(rollout, in_axes=(0, None, None))(jax.random.split(key, episodes), env, policy)
