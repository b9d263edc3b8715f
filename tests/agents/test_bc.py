"""Behaviour cloning against hand computations."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from batches import random_batch
from scipy.stats import norm

from jaxpgd.agents import bc, replace_hypers
from jaxpgd.networks.actor_critic import TanhActor

HIDDEN = (8,)
AGENT, ACTOR = bc(action_dim=2, hidden=HIDDEN), TanhActor(2, HIDDEN)
BATCH = random_batch()
EXAMPLE = jax.tree.map(lambda x: x[0, 0], BATCH)


def make_state(**hypers):
    return AGENT.init(jax.random.key(0), EXAMPLE, replace_hypers(AGENT.hypers, **hypers))


def test_one_update_by_hand():
    """Adam's first step is lr * sign(gradient) where the gradient is far above epsilon."""
    state = make_state(lr=1e-3)
    loss = lambda p: jnp.square(ACTOR.apply(p, BATCH.obs[0]) - BATCH.action[0]).mean()
    value, grads = jax.jit(jax.value_and_grad(loss))(state.actor)
    new, metrics = jax.jit(AGENT.update)(jax.random.key(1), state, BATCH)
    assert metrics["actor_loss"] == pytest.approx(float(value), rel=1e-5)
    expected = jax.tree.map(lambda p, g: p - 1e-3 * g / (jnp.abs(g) + 1e-8), state.actor, grads)
    chex.assert_trees_all_close(new.actor, expected, rtol=1e-7, atol=2e-6)


def test_nothing_but_observations_and_actions_matters():
    update, state = jax.jit(AGENT.update), make_state()
    other = BATCH.replace(reward=BATCH.reward + 3, discount=0 * BATCH.discount, next_obs=BATCH.next_obs + 1)
    first, second = update(jax.random.key(1), state, BATCH), update(jax.random.key(2), state, other)
    chex.assert_trees_all_equal(first, second)


@pytest.mark.parametrize("variance", [0.0, 0.5])
def test_log_prob_is_a_gaussian_around_the_action(variance):
    policy = AGENT.policy(make_state(policy_std=0.7))
    obs, action = jnp.array([0.3, -1.0, 2.0]), jnp.array([0.9, -0.2])
    expected = norm(policy.mode(obs), np.sqrt(0.49 + variance)).logpdf(action).sum()
    assert policy.log_prob(obs, action, variance) == pytest.approx(expected, rel=1e-5)
    np.testing.assert_array_equal(policy.sample(jax.random.key(3), obs), policy.mode(obs))
