"""A policy rolled out in a world model, step by step (PETS, MBPO): MOPO's penalty of uncertain steps, NEUBAY's truncation."""

from typing import Literal

import chex
import jax
import jax.numpy as jnp
from jax import Array

from jaxpgd import draws
from jaxpgd.options import nonnegative, option, options, share
from jaxpgd.types import Policy, Trajectory, valid_steps
from jaxpgd.world_model.acting import Actions
from jaxpgd.world_model.behaviour import Behaviour
from jaxpgd.world_model.model import WorldModel
from jaxpgd.world_model.truncation import cut, disagreement

Elite = Literal["step", "trajectory", "mean"]


@options
class RolloutConfig:
    """Rollouts of the policy in the world model: the arm `world_model`."""

    length: int = nonnegative(0, "steps per rollout; 0: synthesis.length, or data.window where that is 0")
    sampled: bool = option(True, "draw next states from the elite's Gaussian; false: its mean")
    elite: Elite = option("step", "draw the elite that predicts at every step, or once per trajectory; mean: all of them")
    actions: Actions = option("sampled", "the policy's actions: sampled, or its mode")
    penalty: float = nonnegative(
        0.0, "lambda of MOPO: times the largest norm of the elites' standard deviations, subtracted from the reward; 0: none"
    )
    truncate: float = share(
        0.0, "cut a rollout before the step at which elites disagree more than in this share of held-out transitions; 0: never"
    )


def uncertainty(std: Array) -> Array:
    """MOPO's u(s, a) = max_k ||std_k(s, a)||, [], of the elites' standard deviations [K, O] (arXiv 2005.13239, section 4.3)."""
    chex.assert_rank(std, 2)
    norms: Array = jnp.linalg.norm(std, axis=-1)
    return norms.max()


def rollout(
    key: Array,
    model: WorldModel,
    policy: Policy,
    start: Array,
    config: RolloutConfig,
    action_keys: Array | None = None,
    limit: Array | None = None,
) -> Trajectory:
    """One trajectory of T = `config.length` steps from start [O], and where its last step leads.

    At each step a ~ pi(s), s' ~ N(mean_k, std_k^2) for a random elite k, or of the mean and the variance of their mixture, and
    r = r(s, a) - lambda u(s, a) (MOPO, arXiv 2005.13239, section 4; lambda is `config.penalty`). All T transitions are valid,
    up to a terminal, or with a `limit` [] to the first step at which the elites disagree more (`truncation`;
    `config.truncate` is not read here: `limit` is the `threshold` of that share). The policy acts as it is given, whatever
    `config.actions` says (`acting`); `action_keys` [T] are its random keys (default: drawn from `key`).
    Raises ValueError for a length of 0.
    """
    chex.assert_rank(start, 1)
    if config.length == 0:
        raise ValueError("rollout: expected a number of steps in config.length, not 0")
    key_member, key = jax.random.split(key)
    fixed = jax.random.randint(key_member, (), 0, model.members)

    def step(s: Array, keys: tuple[Array, Array | None]) -> tuple[Array, tuple[tuple[Array, ...], Array]]:
        key_action, key_member, key_noise = jax.random.split(keys[0], 3)
        a = policy.sample(key_action if keys[1] is None else keys[1], s)
        mean, std = model.next_states(s, a)
        if config.elite == "mean":
            chosen, width = mean.mean(0), jnp.sqrt(jnp.square(std).mean(0) + mean.var(0))
        else:
            k = fixed if config.elite == "trajectory" else jax.random.randint(key_member, (), 0, model.members)
            chosen, width = mean[k], std[k]
        noise = width * draws.normal(key_noise, s.shape, s.dtype) if config.sampled else 0.0
        next_s = model.clip_obs(chosen + noise)
        r = model.reward(s, a) - config.penalty * uncertainty(std)
        apart = jnp.zeros((), jnp.float32) if limit is None else disagreement(mean, model.scales.obs.std)
        return next_s, ((s, a, r, model.discount(s, a, next_s)), apart)

    keys = jax.random.split(key, config.length), action_keys
    last, ((obs, action, reward, discount), apart) = jax.lax.scan(step, start, keys)
    found = Trajectory(obs, action, reward, discount, valid_steps(discount, end_known=True), last)
    return found if limit is None else cut(found, apart, limit)


def anchor(model: WorldModel, behaviour: Behaviour, start: Array, e: Array) -> tuple[Array, Array, Array]:
    """The ensemble's rollout of the behaviour from start [O] with innovations e [T, A]: states s_hat [T, O].

        s_hat_0 = start,   s_hat_{t+1} = mean_k(s_hat_t, mu_b(s_hat_t) + e_t), averaged over the elites

    A function of start and innovations alone. Actions stay within [-1, 1] and states near the data (`WorldModel.clip_obs`).
    From a terminal on the anchor stands still: no data say how it would go on. Also returns which of its states [T] are at or
    behind a terminal, bool, and the share [] of its T O entries that were clipped.
    """
    chex.assert_rank([start, e], [1, 2])

    def step(at: tuple[Array, Array], e: Array) -> tuple[tuple[Array, Array], tuple[Array, Array, Array]]:
        at, (s, share) = _anchor_step(model, behaviour, at, e)
        return at, (s, ~at[1], share)

    _, (later, ended, clipped) = jax.lax.scan(step, (start, jnp.asarray(True)), e[:-1])
    return jnp.concatenate([start[None], later]), jnp.append(False, ended), clipped.sum() / e.shape[0]


def anchor_of_policy(
    model: WorldModel, behaviour: Behaviour, policy: Policy, action_keys: Array, start: Array, deviation: Array
) -> tuple[Array, Array, Array]:
    """The `anchor` of the innovations of a policy that acts in s_hat + deviation [T, O]: s_hat [T, O] and e [T, A].

    Also returns which of its states [T] are at or behind a terminal, bool.

        s_t = s_hat_t + deviation_t,   e_t = pi(s_t) - mu_b(s_t)

    `action_keys` [T] are the policy's. The loop is closed: without deviation it is the ensemble's rollout of the policy.
    """
    chex.assert_rank([start, deviation], [1, 2])

    def step(at: tuple[Array, Array], given: tuple[Array, Array]) -> tuple[tuple[Array, Array], tuple[Array, Array, Array]]:
        s = model.clip_obs(at[0] + given[0])
        e = behaviour.innovation(s, policy.sample(given[1], s))
        return _anchor_step(model, behaviour, at, e)[0], (at[0], e, ~at[1])

    _, (s_hat, e, ended) = jax.lax.scan(step, (start, jnp.asarray(True)), (deviation, action_keys))
    return s_hat, e, ended


def _anchor_step(
    model: WorldModel, behaviour: Behaviour, at: tuple[Array, Array], e: Array
) -> tuple[tuple[Array, Array], tuple[Array, Array]]:
    """From a state [O], and whether the anchor goes on from there, to the next; the state again, and its clipped share."""
    s, goes_on = at
    a = jnp.clip(behaviour.mean(s) + e, -1.0, 1.0)
    free = model.next_states(s, a)[0].mean(0)
    clipped = model.clip_obs(free)
    later = jnp.where(goes_on, clipped, s)
    share = jnp.where(goes_on, (clipped != free).mean(dtype=jnp.float32), 0.0)
    return (later, goes_on & (model.discount(s, a, later) > 0)), (later, share)
