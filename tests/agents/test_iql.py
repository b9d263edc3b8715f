"""IQL's losses, order of updates and policy against hand computations."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from batches import random_batch
from scipy.stats import norm

from jaxpgd.agents import iql, replace_hypers
from jaxpgd.agents.iql import advantage_weight, expectile_loss
from jaxpgd.networks.actor_critic import CriticEnsemble, GaussianActor, ValueNetwork, member

HIDDEN = (8,)
AGENT = iql(action_dim=2, hidden=HIDDEN)
ACTOR, CRITICS, VALUE = GaussianActor(2, HIDDEN), CriticEnsemble(2, HIDDEN), ValueNetwork(HIDDEN)
BATCH = random_batch()
FLAT = jax.tree.map(lambda x: x[0], BATCH)


def make_state(**hypers):
    return AGENT.init(jax.random.key(0), jax.tree.map(lambda x: x[0], FLAT), replace_hypers(AGENT.hypers, **hypers))


def test_expectile_loss_by_hand():
    np.testing.assert_allclose(expectile_loss(jnp.array([2.0, -2.0, 0.0]), 0.7), [0.7 * 4, 0.3 * 4, 0.0], rtol=1e-6)


def test_advantage_weight_is_bounded_even_where_exp_overflows():
    out = advantage_weight(jnp.array([-1.0, 0.0, 1.0, 2.0, 1e4]), 3.0, 100.0)
    np.testing.assert_allclose(out, [np.exp(-3), 1.0, np.exp(3), 100.0, 100.0], rtol=1e-5)


def test_one_update_by_hand():
    """The actor and the critics use the value after its step; the advantage comes from the target critics."""
    state = make_state(lr=0.01, tau=0.8, beta=2.0, gamma=0.9, polyak=0.25, advantage_clip=1.5)
    state = state.replace(target_critic=jax.tree.map(lambda p: 1.5 * p, state.critic))  # tell them apart
    new, metrics = jax.jit(AGENT.update)(jax.random.key(1), state, BATCH)
    q = np.min(CRITICS.apply(state.target_critic, FLAT.obs, FLAT.action), axis=0)
    error = q - VALUE.apply(state.value, FLAT.obs)
    assert metrics["value_loss"] == pytest.approx(float(np.mean(np.where(error < 0, 0.2, 0.8) * error**2)), rel=1e-4)
    weight = np.minimum(np.exp(2.0 * (q - VALUE.apply(new.value, FLAT.obs))), 1.5)
    assert metrics["weight_mean"] == pytest.approx(float(weight.mean()), rel=1e-4)
    mean, std = ACTOR.apply(state.actor, FLAT.obs)
    log_prob = norm(mean, std).logpdf(FLAT.action).sum(-1)
    assert metrics["actor_loss"] == pytest.approx(float(-(weight * log_prob).mean()), rel=1e-4)
    y = FLAT.reward + 0.9 * FLAT.discount * VALUE.apply(new.value, FLAT.next_obs)
    loss = np.square(CRITICS.apply(state.critic, FLAT.obs, FLAT.action) - y).mean(-1).sum()
    assert metrics["critic_loss"] == pytest.approx(float(loss), rel=1e-4)
    expected = jax.tree.map(lambda t, o: 0.75 * t + 0.25 * o, state.target_critic, new.critic)
    chex.assert_trees_all_close(new.target_critic, expected, rtol=1e-7, atol=1e-6)


def test_the_actors_learning_rate_decays_as_a_cosine():
    """Adam's first step is lr; at a quarter of the decay's length the factor is (1 + cos(pi/4)) / 2; the critics keep lr."""
    update = jax.jit(AGENT.update)
    for done, factor in ((0, 1.0), (25, 0.5 + np.sqrt(2) / 4), (100, 0.0)):
        state = make_state(lr=1e-3, decay_updates=100.0).replace(updates=jnp.asarray(done))
        new, _ = update(jax.random.key(1), state, BATCH)
        for name, expected in (("actor", factor), ("critic", 1.0), ("value", 1.0)):
            step = jax.tree.map(lambda a, b: jnp.abs(a - b).max(), getattr(new, name), getattr(state, name))
            assert max(jax.tree.leaves(step)) == pytest.approx(expected * 1e-3, rel=0.02, abs=1e-9)
        assert new.updates == done + 1


@pytest.mark.parametrize("variance", [0.0, 0.5])
def test_log_prob_is_the_actors_normal(variance):
    state = make_state()
    state.actor["params"]["log_std"] = jnp.array([-0.5, 0.3])
    policy, obs, action = AGENT.policy(state), FLAT.obs[0], FLAT.action[0]
    scale = np.sqrt(np.exp([-1.0, 0.6]) + variance)
    assert policy.log_prob(obs, action, variance) == pytest.approx(norm(policy.mode(obs), scale).logpdf(action).sum(), rel=1e-5)


def test_samples_are_the_clipped_normal():
    state = make_state()
    state.actor["params"]["log_std"] = jnp.log(jnp.array([0.01, 1.0]))
    policy, obs = AGENT.policy(state), FLAT.obs[0]
    samples = np.asarray(jax.vmap(lambda k: policy.sample(k, obs))(jax.random.split(jax.random.key(2), 4000)))
    mean = np.asarray(policy.mode(obs))
    assert np.abs(samples).max() == 1.0
    assert samples[:, 0].mean() == pytest.approx(mean[0], abs=4 * 0.01 / np.sqrt(4000))
    assert samples[:, 0].std() == pytest.approx(0.01, rel=4 / np.sqrt(2 * 4000))
    at_bound = (samples[:, 1] == 1.0).mean()
    p = norm(mean[1], 1.0).sf(1.0)
    assert at_bound == pytest.approx(p, abs=4 * np.sqrt(p * (1 - p) / 4000))


def test_a_stale_value_makes_advantages_and_targets():
    """As PGD's released code: actor and critics use the value before its step, which is taken all the same."""
    agent = iql(action_dim=2, hidden=HIDDEN, stale_value=True)
    state = make_state(lr=0.01, beta=2.0, gamma=0.9, advantage_clip=1.5)
    (new, metrics), (usual, _) = (jax.jit(a.update)(jax.random.key(1), state, BATCH) for a in (agent, AGENT))
    chex.assert_trees_all_equal(new.value, usual.value)
    q = np.min(CRITICS.apply(state.target_critic, FLAT.obs, FLAT.action), axis=0)
    advantage = q - VALUE.apply(state.value, FLAT.obs)
    assert metrics["advantage_mean"] == pytest.approx(float(advantage.mean()), rel=1e-4)
    assert metrics["weight_mean"] == pytest.approx(float(np.minimum(np.exp(2.0 * advantage), 1.5).mean()), rel=1e-4)
    y = FLAT.reward + 0.9 * FLAT.discount * VALUE.apply(state.value, FLAT.next_obs)
    assert metrics["target_mean"] == pytest.approx(float(y.mean()), rel=1e-4)
    assert abs(float(metrics["target_mean"] - usual_target(usual))) > 1e-4


def usual_target(state):
    return (FLAT.reward + 0.9 * FLAT.discount * VALUE.apply(state.value, FLAT.next_obs)).mean()


def test_the_initialiser_is_that_of_all_networks():
    """Orthogonal columns have squared norms of 2; Flax's default has a variance of 1/n in every layer."""
    for init, variance in (("orthogonal", 2.0), ("lecun_normal", 1.0)):
        agent = iql(action_dim=2, hidden=(256, 256), init=init)
        state = agent.init(jax.random.key(0), jax.tree.map(lambda x: x[0], FLAT))
        networks = (state.actor["params"], state.value["params"], member(state.critic, 0)["params"])
        for kernel in (k["MLP_0"]["Dense_1"]["kernel"] for k in networks):
            assert float(jnp.var(kernel)) * 256 == pytest.approx(variance, rel=0.05)
