"""CQL's conservative term, losses and tanh-Gaussian policy against hand computations, quadrature and distrax."""

import chex
import distrax
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from batches import random_batch
from scipy.special import logsumexp
from scipy.stats import norm

from jaxpgd.agents import cql, replace_hypers
from jaxpgd.agents.cql import CQLConfig, _structure, log_integral
from jaxpgd.agents.tanh_gaussian import tanh_log_slope
from jaxpgd.networks.actor_critic import Critic, CriticEnsemble, TanhGaussianActor, member
from jaxpgd.options import structure

HIDDEN, N = (8,), 3
OPTIONS = CQLConfig(hidden=HIDDEN, n_actions=N)
AGENT, STRUCTURE = cql(OPTIONS, action_dim=2), _structure(2, structure(OPTIONS))
ACTOR, CRITICS, CRITIC = TanhGaussianActor(2, HIDDEN), CriticEnsemble(2, HIDDEN), Critic(HIDDEN)
BATCH = random_batch(size=16)
FLAT = jax.tree.map(lambda x: x[0], BATCH)


def make_state(agent=AGENT, example=None, **hypers):
    example = jax.tree.map(lambda x: x[0], FLAT) if example is None else example
    return agent.init(jax.random.key(0), example, replace_hypers(agent.hypers, **hypers))


def one_dimension(mean, std):
    """A policy of one action with this normal before tanh, whatever the observation."""
    agent = cql(action_dim=1, hidden=HIDDEN)
    state = make_state(agent, jax.tree.map(lambda x: x[0], FLAT).replace(action=jnp.zeros(1)))
    last = state.actor["params"]["MLP_0"]["Dense_1"]
    last["kernel"], last["bias"] = jnp.zeros_like(last["kernel"]), jnp.array([mean, np.log(std)])
    policy = agent.policy(state)
    return policy, jax.jit(jax.vmap(lambda a, v: policy.log_prob(jnp.zeros(3), a[None], v), in_axes=(0, None)))


def test_log_integral_by_hand():
    """A constant Q has the integral 2^A exp(Q), and uniform draws find it without error."""
    q, log_density = jnp.full((2, 5, 4), 1.3), jnp.full((5, 4), -2 * np.log(2.0))
    np.testing.assert_allclose(log_integral(q, log_density, 1.0), 1.3 + np.log(4.0), rtol=1e-5)
    np.testing.assert_allclose(log_integral(q, log_density, 0.5), 1.3 + 0.5 * np.log(4.0), rtol=1e-5)
    q, log_density = np.array([[1.0], [2.0], [-1.0]]), np.array([[-0.3], [0.7], [0.1]])
    expected = np.log(np.mean([np.exp(1.3), np.exp(1.3), np.exp(-1.1)]))
    np.testing.assert_allclose(log_integral(jnp.asarray(q), jnp.asarray(log_density), 1.0), [expected], rtol=1e-5)


def test_proposals_carry_their_own_densities():
    state = make_state()
    action, log_density = jax.jit(STRUCTURE.proposals)(jax.random.key(1), state.actor, FLAT)
    assert action.shape == (3 * N, 16, 2) and log_density.shape == (3 * N, 16)
    np.testing.assert_allclose(log_density[:N], -2 * np.log(2.0), rtol=1e-6)
    policy = AGENT.policy(state)
    log_prob = jax.jit(jax.vmap(jax.vmap(policy.log_prob), in_axes=(None, 0)))
    np.testing.assert_allclose(log_density[N : 2 * N], log_prob(FLAT.obs, action[N : 2 * N]), rtol=1e-3, atol=1e-3)
    np.testing.assert_allclose(log_density[2 * N :], log_prob(FLAT.next_obs, action[2 * N :]), rtol=1e-3, atol=1e-3)
    assert len(np.unique(np.asarray(action).round(5))) == action.size  # every draw is one of its own


def test_critic_loss_by_hand():
    """Squared error plus weight times (log-mean-exp of Q minus log-density, less Q of the data), one critic at a time."""
    state = make_state(weight=3.0, cql_temperature=0.7)
    proposals = STRUCTURE.proposals(jax.random.key(1), state.actor, FLAT)
    targets = FLAT.reward + 0.5
    loss, metrics = jax.jit(STRUCTURE.critic_loss)(state.critic, FLAT, targets, proposals, state.hypers)
    errors, gaps = [], []
    for i in range(2):
        q = np.asarray(CRITIC.apply(member(state.critic, i), FLAT.obs, FLAT.action))
        sampled = np.stack([CRITIC.apply(member(state.critic, i), FLAT.obs, a) for a in proposals[0]])
        soft = 0.7 * (logsumexp(sampled / 0.7 - np.asarray(proposals[1]), axis=0) - np.log(3 * N))
        errors.append(np.square(q - np.asarray(targets)).mean())
        gaps.append((soft - q).mean())
    assert metrics["q_error"] == pytest.approx(sum(errors), rel=1e-4)
    assert metrics["conservative_gap"] == pytest.approx(sum(gaps), rel=1e-4)
    assert loss == pytest.approx(sum(errors) + 3.0 * sum(gaps), rel=1e-4)


def test_one_update_by_hand():
    """A policy of almost no spread makes every draw from it its mode; the actor sees the critics after their step."""
    state = make_state(critic_lr=0.01, gamma=0.9, polyak=0.25, initial_alpha=0.5, alpha_lr=0.1, target_entropy=-1.5)
    state = state.replace(target_critic=jax.tree.map(lambda p: 1.5 * p, state.critic))  # tell them apart
    state.actor["params"]["MLP_0"]["Dense_1"]["bias"] = jnp.array([0.0, 0.0, -12.0, -12.0])
    new, metrics = jax.jit(AGENT.update)(jax.random.key(1), state, BATCH)
    mode = lambda obs: jnp.tanh(ACTOR.apply(state.actor, obs)[0])
    q = CRITICS.apply(state.target_critic, FLAT.next_obs, mode(FLAT.next_obs)).min(0)
    targets = FLAT.reward + 0.9 * FLAT.discount * q  # no entropy bonus
    assert metrics["target_mean"] == pytest.approx(float(targets.mean()), rel=1e-3)
    error = jnp.square(CRITICS.apply(state.critic, FLAT.obs, FLAT.action) - targets).mean(-1).sum()
    assert metrics["q_error"] == pytest.approx(float(error), rel=1e-3)
    q = CRITICS.apply(new.critic, FLAT.obs, mode(FLAT.obs)).min(0)
    assert metrics["actor_loss"] == pytest.approx(float(-0.5 * metrics["entropy"] - q.mean()), rel=1e-3)
    # entropy is far below its target of 2 * -1.5: the temperature rises by the whole of Adam's first step
    assert metrics["entropy"] < -10
    assert metrics["alpha"] == pytest.approx(0.5 * np.exp(0.1), rel=1e-4)
    expected = jax.tree.map(lambda t, o: 0.75 * t + 0.25 * o, state.target_critic, new.critic)
    chex.assert_trees_all_close(new.target_critic, expected, rtol=1e-7, atol=1e-6)


def test_the_actor_clones_the_data_at_first():
    """While it clones, the log-density of the data's actions stands where Q does afterwards; the critics are the same."""
    clone = make_state(cloning_updates=2.0, initial_alpha=0.5)
    log_prob = jax.vmap(AGENT.policy(clone).log_prob)(FLAT.obs, FLAT.action)
    update = jax.jit(AGENT.update)
    new, metrics = update(jax.random.key(1), clone, BATCH)
    assert metrics["actor_loss"] == pytest.approx(float(-0.5 * metrics["entropy"] - log_prob.mean()), rel=1e-4)
    raised, other = update(jax.random.key(1), make_state(initial_alpha=0.5), BATCH)
    chex.assert_trees_all_equal(new.critic, raised.critic)
    past, metrics = update(jax.random.key(1), clone.replace(updates=jnp.asarray(2)), BATCH)
    assert metrics["actor_loss"] == other["actor_loss"] and past.updates == 3
    chex.assert_trees_all_equal(past.actor, raised.actor)


@pytest.mark.parametrize(("mean", "std"), [(0.3, 0.5), (-1.0, 0.8)])
def test_log_prob_integrates_to_one_and_is_that_of_distrax(mean, std):
    policy, log_prob = one_dimension(mean, std)
    action = np.linspace(-1, 1, 20_001)
    density = np.exp(np.asarray(log_prob(jnp.asarray(action)[1:-1], 0.0), np.float64))
    assert density.sum() * (action[1] - action[0]) == pytest.approx(1.0, abs=1e-3)
    reference = distrax.Transformed(distrax.Normal(mean, std), distrax.Tanh())
    points = jnp.array([-0.99, -0.5, 0.0, 0.3, 0.9])
    np.testing.assert_allclose(log_prob(points, 0.0), reference.log_prob(points), rtol=1e-3, atol=1e-4)
    samples = np.asarray(jax.vmap(lambda k: policy.sample(k, jnp.zeros(3)))(jax.random.split(jax.random.key(2), 4000)))
    before = np.arctanh(samples[:, 0].astype(np.float64))
    assert before.mean() == pytest.approx(mean, abs=4 * std / np.sqrt(4000))
    assert before.std() == pytest.approx(std, rel=4 / np.sqrt(2 * 4000))
    assert policy.mode(jnp.zeros(3))[0] == pytest.approx(np.tanh(mean), rel=1e-5)


def test_variance_of_the_action_is_that_of_the_blurred_policy_where_it_is_narrow():
    """Against the density of action + noise by quadrature; the first order is good to the curvature of tanh over the noise."""
    _, log_prob = one_dimension(0.2, 0.1)
    noise, points = 0.1, np.array([0.1, 0.2, 0.3])
    action = np.linspace(-0.999, 0.999, 20_001)
    density = np.exp(np.asarray(log_prob(jnp.asarray(action), 0.0), np.float64))
    blurred = (density * norm(points[:, None], noise).pdf(action)).sum(1) * (action[1] - action[0])
    got = np.asarray(log_prob(jnp.asarray(points), noise**2))
    np.testing.assert_allclose(got, np.log(blurred), atol=0.03)
    assert np.abs(np.asarray(log_prob(jnp.asarray(points), 0.0)) - np.log(blurred)).max() > 0.3  # the blur shows


@pytest.mark.parametrize("variance", [0.0, 0.1])
@pytest.mark.parametrize("std", [1e-3, 1.0])
def test_log_prob_and_its_gradients_are_finite_at_the_bounds(variance, std):
    policy, log_prob = one_dimension(0.4, std)
    bounds = jnp.array([-1.0, 1.0])
    assert np.isfinite(log_prob(bounds, variance)).all()
    grad = jax.vmap(jax.grad(lambda a: policy.log_prob(jnp.zeros(3), a[None], variance)))
    assert np.isfinite(grad(0.999999 * bounds)).all() and np.isfinite(grad(bounds)).all()


def test_slope_of_tanh_where_it_underflows():
    expected = np.log(1 - np.tanh([0.5, 1.0]) ** 2).sum()
    np.testing.assert_allclose(tanh_log_slope(jnp.array([[0.5, -1.0]])), [expected], rtol=1e-5)
    np.testing.assert_allclose(tanh_log_slope(jnp.array([[40.0], [-40.0]])), 2 * (np.log(2) - 40.0), rtol=1e-6)
