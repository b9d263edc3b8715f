"""TD3+BC's targets, losses and policy against hand computations."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from batches import random_batch
from scipy.stats import norm
from targets import check_targets_moved

from jaxpgd.agents import common, replace_hypers, td3_bc
from jaxpgd.agents.td3_bc import TD3BCConfig, _structure
from jaxpgd.errors import InputError
from jaxpgd.networks.actor_critic import Critic, CriticEnsemble, TanhActor, TanhGaussianActor, member
from jaxpgd.options import structure
from jaxpgd.types import Transition

HIDDEN = (8,)
AGENT = td3_bc(action_dim=1, hidden=HIDDEN)
STRUCTURE = _structure(1, structure(TD3BCConfig(hidden=HIDDEN)))
ACTOR, CRITICS, CRITIC = TanhActor(1, HIDDEN), CriticEnsemble(2, HIDDEN), Critic(HIDDEN)


BATCH = random_batch(2, action_dim=1)


def make_state(agent=AGENT, **hypers):
    return agent.init(jax.random.key(0), jax.tree.map(lambda x: x[0, 0], BATCH), replace_hypers(agent.hypers, **hypers))


def test_targets_without_noise_by_hand():
    state = make_state(policy_noise=1e3, noise_clip=0.0, gamma=0.6)
    q = CRITICS.apply(state.target_critic, BATCH.next_obs, ACTOR.apply(state.target_actor, BATCH.next_obs))
    expected = np.asarray(BATCH.reward) + 0.6 * np.asarray(BATCH.discount) * np.minimum(q[0], q[1])
    np.testing.assert_allclose(STRUCTURE.targets(jax.random.key(1), state, BATCH), expected, rtol=1e-5)


def test_target_actions_are_clipped_to_the_bounds():
    state = make_state(policy_noise=1e4, noise_clip=10.0, gamma=1.0)
    out = STRUCTURE.targets(jax.random.key(1), state, BATCH) - BATCH.reward
    at = [CRITICS.apply(state.target_critic, BATCH.next_obs, jnp.full((2, 32, 1), a)).min(0) for a in (-1.0, 1.0)]
    gap = jnp.minimum(*(jnp.abs(out - BATCH.discount * q) for q in at))
    assert gap.max() < 1e-5


def test_target_noise_is_clipped_and_fresh_for_every_batch():
    twice = jax.tree.map(lambda x: jnp.stack([x[0], x[0]]), BATCH).replace(discount=jnp.ones((2, 32)))
    target = lambda noise: STRUCTURE.targets(jax.random.key(1), make_state(policy_noise=noise, noise_clip=0.1), twice)
    assert not np.allclose(target(0.05)[0], target(0.05)[1])
    np.testing.assert_array_equal(target(1e4), target(1e5))  # all noise is at +-0.1


def test_one_update_by_hand():
    state = make_state(alpha=1.7, polyak=0.25)
    new, metrics = jax.jit(AGENT.update)(jax.random.key(1), state, BATCH)
    action = ACTOR.apply(state.actor, BATCH.obs[1])  # old actor, last batch, updated critic
    q = CRITIC.apply(member(new.critic, 0), BATCH.obs[1], action)
    weight, cloning = 1.7 / np.abs(q).mean(), np.square(action - BATCH.action[1]).mean()
    assert metrics["q_weight"] == pytest.approx(float(weight), rel=1e-4)
    assert metrics["bc_loss"] == pytest.approx(float(cloning), rel=1e-4)
    assert metrics["actor_loss"] == pytest.approx(float(cloning - weight * np.mean(q)), rel=1e-4)
    check_targets_moved(state, new, 0.25)


def test_first_critic_step_moves_down_the_summed_squared_error():
    """Adam's first step is lr * sign(gradient) where the gradient is far above epsilon."""
    agent = td3_bc(action_dim=1, hidden=HIDDEN, critic_updates=1)
    state = make_state(agent, lr=1e-3, policy_noise=0.0)
    part = jax.tree.map(lambda x: x[:1], BATCH)
    q = CRITICS.apply(state.target_critic, part.next_obs, ACTOR.apply(state.target_actor, part.next_obs)).min(0)
    y = part.reward + 0.99 * part.discount * q
    loss = lambda p: sum(jnp.square(CRITIC.apply(member(p, i), part.obs, part.action) - y).mean() for i in range(2))
    value, grads = jax.jit(jax.value_and_grad(loss))(state.critic)
    new, metrics = jax.jit(agent.update)(jax.random.key(1), state, part)
    assert metrics["critic_loss"] == pytest.approx(float(value), rel=1e-5)
    expected = jax.tree.map(lambda p, g: p - 1e-3 * g / (jnp.abs(g) + 1e-5), state.critic, grads)
    chex.assert_trees_all_close(new.critic, expected, rtol=1e-7, atol=2e-6)


@pytest.mark.parametrize("updates", [1, 3])
def test_one_critic_step_per_batch_and_one_actor_step(updates):
    agent = td3_bc(action_dim=1, hidden=HIDDEN, critic_updates=updates)
    new, _ = jax.jit(agent.update)(jax.random.key(1), make_state(agent), random_batch(updates, action_dim=1))
    assert (agent.batches, int(new.critic_opt.count), int(new.actor_opt.count)) == (updates, updates, 1)


@pytest.mark.parametrize("variance", [0.0, 0.5])
def test_log_prob_is_a_gaussian_around_the_action(variance):
    agent = td3_bc(action_dim=2, hidden=HIDDEN)
    example = Transition(jnp.zeros(3), jnp.zeros(2), jnp.zeros(()), jnp.ones(()), jnp.zeros(3))
    policy = agent.policy(agent.init(jax.random.key(0), example, replace_hypers(agent.hypers, policy_std=0.7)))
    obs, action = jnp.array([0.3, -1.0, 2.0]), jnp.array([0.9, -0.2])
    expected = norm(policy.mode(obs), np.sqrt(0.49 + variance)).logpdf(action).sum()
    assert policy.log_prob(obs, action, variance) == pytest.approx(expected, rel=1e-5)
    by_dimension = norm(policy.mode(obs), np.sqrt(0.49 + np.array([variance, 1.0]))).logpdf(action).sum()
    assert policy.log_prob(obs, action, jnp.array([variance, 1.0])) == pytest.approx(by_dimension, rel=1e-5)
    np.testing.assert_array_equal(policy.sample(jax.random.key(3), obs), policy.mode(obs))


def test_actor_first_by_hand():
    """PGD's released code: targets move, the actor steps by the critics as they were, then all critic steps, on one batch."""
    agent = td3_bc(action_dim=1, hidden=HIDDEN, critic_updates=2, actor_first=True)
    part = jax.tree.map(lambda x: x[:1], BATCH)
    state = make_state(agent, alpha=1.7, polyak=0.25, policy_noise=0.0, lr=1e-3)
    state = state.replace(target_critic=jax.tree.map(lambda p: 1.5 * p, state.critic))  # tell them apart
    new, metrics = jax.jit(agent.update)(jax.random.key(1), state, part)
    assert (agent.batches, int(new.critic_opt.count), int(new.actor_opt.count)) == (1, 2, 1)
    targets = jax.tree.map(lambda t, o: 0.75 * t + 0.25 * o, state.target_critic, state.critic)
    chex.assert_trees_all_close(new.target_critic, targets, rtol=1e-7, atol=1e-6)
    chex.assert_trees_all_close(new.target_actor, state.actor, rtol=1e-7, atol=1e-6)
    obs, action = part.obs[0], part.action[0]
    q = CRITIC.apply(member(state.critic, 0), obs, ACTOR.apply(state.actor, obs))
    assert metrics["q_mean"] == pytest.approx(float(q.mean()), rel=1e-5)  # the critic before its steps
    y = CRITICS.apply(targets, part.next_obs[0], ACTOR.apply(state.actor, part.next_obs[0])).min(0)
    y = part.reward[0] + 0.99 * part.discount[0] * y
    assert metrics["target_mean"] == pytest.approx(float(y.mean()), rel=1e-5)

    def loss(params):
        return jnp.square(CRITICS.apply(params, obs, action) - y).mean(-1).sum()

    critic, opt, losses = state.critic, common.adam_init(state.critic), []
    for _ in range(2):
        value, grads = jax.value_and_grad(loss)(critic)
        critic, opt = common.adam_step(grads, opt, critic, 1e-3, 1e-5)
        losses.append(float(value))
    assert metrics["critic_loss"] == pytest.approx(np.mean(losses), rel=1e-4)
    chex.assert_trees_all_close(new.critic, critic, rtol=1e-7, atol=2e-6)


def test_the_initialiser_is_that_of_actor_and_critics():
    """Flax's default has a variance of 1/n, the uniform one a third of that; biases are 0 either way."""
    wide = {"action_dim": 1, "hidden": (256, 256)}
    for init, variance in (("uniform", 1 / 3), ("lecun_normal", 1.0)):
        state = make_state(td3_bc(**wide, init=init))
        for kernel in (
            k["Dense_1"]["kernel"] for k in (state.actor["params"]["MLP_0"], member(state.critic, 0)["params"]["MLP_0"])
        ):
            assert float(jnp.var(kernel)) * 256 == pytest.approx(variance, rel=0.05)


@pytest.mark.parametrize("actor_first", [False, True])
def test_delayed_updates_move_actor_and_targets_in_every_so_many_th_only(actor_first):
    """In the last of every k where critics come first, in the first where the actor does; critics move always."""
    agent = td3_bc(action_dim=1, hidden=HIDDEN, critic_updates=2, policy_delay=3, actor_first=actor_first)
    update, state = jax.jit(agent.update), make_state(agent, lr=1e-2, polyak=0.5)
    batch = jax.tree.map(lambda x: x[: agent.batches], BATCH)
    moved = []
    for i in range(6):
        new, metrics = update(jax.random.key(i), state, batch)
        same = lambda name, a=state, b=new: all(
            jax.tree.leaves(jax.tree.map(np.array_equal, getattr(a, name), getattr(b, name)))
        )
        assert not same("critic") and np.isfinite(metrics["actor_loss"])
        slow = ("actor", "actor_opt") if actor_first else ("actor", "actor_opt", "target_actor", "target_critic")
        moved.append(not same("actor"))
        assert {same(name) for name in slow} == {not moved[-1]}
        state = new
    assert moved == ([True, False, False] * 2 if actor_first else [False, False, True] * 2)


def test_half_of_the_cloning_term_acts_like_twice_the_alpha():
    """The gradient is half as long, which Adam undoes: 2.5 with a half is 5 with the whole."""
    state = make_state()
    one = jax.tree.map(lambda x: x[1], BATCH)
    gradient = jax.grad(lambda params, h: STRUCTURE.actor_loss(jax.random.key(0), params, state.critic, one, h)[0])
    halved, whole = (gradient(state.actor, make_state(alpha=a, cloning=c).hypers) for a, c in ((2.5, 0.5), (5.0, 1.0)))
    chex.assert_trees_all_close(halved, jax.tree.map(lambda x: 0.5 * x, whole), rtol=1e-5, atol=1e-7)
    loss, metrics = STRUCTURE.actor_loss(jax.random.key(0), state.actor, state.critic, one, make_state(cloning=0.5).hypers)
    assert loss == pytest.approx(float(0.5 * metrics["bc_loss"] - metrics["q_weight"] * metrics["q_mean"]), rel=1e-5)


STOCHASTIC = td3_bc(action_dim=1, hidden=HIDDEN, critic_updates=1, policy_delay=2, actor="tanh_gaussian")
DRAWS = _structure(1, structure(TD3BCConfig(hidden=HIDDEN, critic_updates=1, policy_delay=2, actor="tanh_gaussian")))


def test_a_stochastic_actor_draws_the_actions_of_targets_and_loss():
    state, part = make_state(STOCHASTIC, policy_noise=0.0, gamma=0.6), jax.tree.map(lambda x: x[:1], BATCH)
    draw = lambda key, params, obs: DRAWS.behaviour.act(key, params, obs)
    mean, std = TanhGaussianActor(1, HIDDEN).apply(state.target_actor, part.next_obs)
    noise = jax.random.normal(jax.random.fold_in(jax.random.key(1), 2), mean.shape)
    q = CRITICS.apply(state.target_critic, part.next_obs, jnp.tanh(mean + std * noise)).min(0)
    targets = DRAWS.targets(jax.random.key(1), state, part)
    np.testing.assert_allclose(targets, part.reward + 0.6 * part.discount * q, rtol=1e-5)
    assert not np.allclose(targets, DRAWS.targets(jax.random.key(2), state, part))
    one = jax.tree.map(lambda x: x[0], part)
    _, metrics = DRAWS.actor_loss(jax.random.key(3), state.actor, state.critic, one, state.hypers)
    action = draw(jax.random.key(3), state.actor, one.obs)
    assert metrics["q_mean"] == pytest.approx(float(CRITIC.apply(member(state.critic, 0), one.obs, action).mean()), rel=1e-5)
    gradient = jax.grad(lambda p: DRAWS.actor_loss(jax.random.key(3), p, state.critic, one, state.hypers)[0])(state.actor)
    assert np.abs(jax.tree.leaves(gradient)[-1]).min() > 0  # of the spread, too: the draw is differentiated


def test_the_policy_of_a_stochastic_actor_has_a_density_of_its_own():
    policy = STOCHASTIC.policy(make_state(STOCHASTIC, policy_std=0.7))
    obs = BATCH.obs[0, 0]
    mean, std = TanhGaussianActor(1, HIDDEN).apply(policy.params, obs)
    np.testing.assert_allclose(policy.mode(obs), np.tanh(mean), rtol=1e-6)
    samples = np.arctanh(np.asarray(jax.vmap(policy.sample, in_axes=(0, None))(jax.random.split(jax.random.key(0), 2000), obs)))
    assert abs(samples.mean() - mean[0]) < 5 * std[0] / np.sqrt(2000) and abs(samples.std() / std[0] - 1) < 0.1
    expected = norm(mean, std).logpdf(np.arctanh(0.3)).sum() - np.log(1 - 0.3**2)
    assert policy.log_prob(obs, jnp.array([0.3])) == pytest.approx(float(expected), rel=1e-5)


def test_a_critic_with_layer_normalisation_is_the_one_that_the_actor_climbs():
    options = {"hidden": HIDDEN, "critic_norm": "layer", "actor_norm": "layer"}
    agent, own = td3_bc(action_dim=1, **options), _structure(1, structure(TD3BCConfig(**options)))
    state, one = make_state(agent, policy_noise=0.0), jax.tree.map(lambda x: x[0], BATCH)
    pi = TanhActor(1, HIDDEN, norm="layer").apply(state.actor, one.obs)
    critics = CriticEnsemble(2, HIDDEN, norm="layer")
    _, metrics = own.actor_loss(jax.random.key(3), state.actor, state.critic, one, state.hypers)
    assert metrics["q_mean"] == pytest.approx(float(critics.apply(state.critic, one.obs, pi)[0].mean()), rel=1e-5)
    target = TanhActor(1, HIDDEN, norm="layer").apply(state.target_actor, one.next_obs)
    q = critics.apply(state.target_critic, one.next_obs, target).min(0)
    np.testing.assert_allclose(own.targets(jax.random.key(1), state, one), one.reward + 0.99 * one.discount * q, rtol=1e-4)


@pytest.mark.parametrize(("name", "value"), [("actor", "gaussian"), ("policy_delay", 0)])
def test_what_td3_bc_cannot_be_is_refused(name, value):
    with pytest.raises(InputError, match=f"{name} = "):
        td3_bc(action_dim=1, **{name: value})
