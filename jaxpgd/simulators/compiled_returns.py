"""Returns of policies in pure-JAX environments, by compiled rollouts."""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from flax import struct
from jax import Array

from jaxpgd.errors import InputError, check
from jaxpgd.types import Environment, Policy


@struct.dataclass
class Returns:
    """Results of an evaluation, one row per seed. Rewards are those of the environment."""

    returns: Any  # [S, episodes] undiscounted
    lengths: Any  # [S, episodes] in steps
    successes: Any = None  # [S, episodes] bool; None if the environment does not report them
    start: Any = None  # [S, episodes, O] first observations
    cut: Any = None  # [S, episodes] bool: ended by a limit of steps, without a terminal
    discounted: Any = None  # [S, episodes] discounted returns from `start`; None without a discount factor


_ONE = "Of a single policy make one by jax.tree.map(lambda x: x[None], policy)."


def seeds_of(policy: Policy) -> int:
    """S of a batch of policies. Raises InputError if the parameters have no common leading axis."""
    shapes = [jnp.shape(leaf) for leaf in jax.tree.leaves(policy.params)]
    batched = len({shape[:1] for shape in shapes}) == 1 and shapes[0] != ()
    check(batched, "policy", shapes, "parameters that all have a leading axis, of the seeds", _ONE)
    return int(shapes[0][0])


def check_modes(policy: Policy, obs_dim: int, action_dim: int) -> None:
    """Raise InputError unless the modes of a batch of policies are actions [S, A]."""
    expected = (seeds_of(policy), action_dim)
    obs = jax.ShapeDtypeStruct((obs_dim,), jnp.float32)
    wanted = f"modes [seeds, action_dim] = {list(expected)} of observations of {obs_dim} numbers"
    try:
        found = jax.eval_shape(jax.vmap(lambda policy, obs: policy.mode(obs), in_axes=(0, None)), policy, obs).shape
    except (TypeError, ValueError) as error:
        raise InputError(f"policy: expected {wanted} ({error}). {_ONE}") from error
    check(found == expected, "policy", found, wanted, _ONE)


@partial(jax.jit, static_argnames=("episodes", "horizon"))
def rollout_returns(
    key: Array, env: Environment, policy: Policy, episodes: int, horizon: int | None = None, gamma: Array | None = None
) -> Returns:
    """Undiscounted returns of a batch of policies, each in its own episodes, and with gamma [S] the discounted ones.

    `env` is a pytree (a struct dataclass with a static horizon). `policy` has a leading axis S on its leaves; its mode
    acts. An episode ends where the environment's discount is 0, or after `horizon` steps (default: the environment's). New
    parameters of the same shape reuse the compiled program. Raises InputError if `policy` has no axis S or other actions.
    """
    check_modes(policy, env.obs_dim, env.action_dim)
    seeds = seeds_of(policy)
    keys = jax.random.split(key, (seeds, episodes))
    one = partial(_episode, horizon=env.horizon if horizon is None else horizon)
    over_episodes = jax.vmap(one, in_axes=(0, None, None, None))
    found: Returns = jax.vmap(over_episodes, in_axes=(0, None, 0, None if gamma is None else 0))(keys, env, policy, gamma)
    return found


def _episode(key: Array, env: Environment, policy: Policy, gamma: Array | None, horizon: int) -> Returns:
    """Everything of one episode, []; `start` is [O]."""
    reset_key, step_key = jax.random.split(key)
    Carry = tuple[Array, Array, Array, Array, Any]

    def step(carry: Carry, key: Array) -> tuple[Carry, None]:
        obs, going, total, length, discounted = carry
        next_obs, reward, discount = env.step(key, obs, policy.mode(obs))
        # `where`, not a product: after its end an episode may reach states whose reward is not finite
        total = jnp.where(going, total + reward, total)
        if gamma is not None:
            discounted = jnp.where(going, discounted + gamma**length * reward, discounted)
        return (next_obs, going & (discount > 0), total, length + going, discounted), None

    first = env.reset(reset_key)
    start = (first, jnp.array(True), jnp.float32(0), jnp.int32(0), None if gamma is None else jnp.float32(0))
    (_, going, total, length, discounted), _ = jax.lax.scan(step, start, jax.random.split(step_key, horizon))
    return Returns(returns=total, lengths=length, start=first, cut=going, discounted=discounted)
