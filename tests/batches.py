"""Random batches for the tests of agents."""

import jax
import jax.numpy as jnp

from jaxpgd.types import Transition


def random_batch(batches=1, size=32, action_dim=2, next_actions=False):
    """Transitions [batches, size] of three observation entries, half of them terminal; half have the `next_actions`."""
    k, lead = jax.random.split(jax.random.key(7), 5), (batches, size)
    batch = Transition(
        obs=jax.random.normal(k[0], (*lead, 3)),
        action=jax.random.uniform(k[1], (*lead, action_dim), minval=-1.0),
        reward=jax.random.normal(k[2], lead),
        discount=jax.random.bernoulli(k[3], 0.5, lead).astype(jnp.float32),
        next_obs=jax.random.normal(k[4], (*lead, 3)),
    )
    return with_next_actions(batch, share=0.5) if next_actions else batch


def with_next_actions(batch, share=1.0):
    """The same transitions with uniform next actions, which so large a share of them has."""
    key_action, key_known = jax.random.split(jax.random.key(8))
    action = jax.random.uniform(key_action, batch.action.shape, minval=-1.0)
    return batch.replace(next_action=action, has_next_action=jax.random.bernoulli(key_known, share, batch.reward.shape))
