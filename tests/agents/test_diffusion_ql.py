"""Diffusion-QL's denoiser, losses, averages and policy against the published expressions and hand computations."""

import itertools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from batches import random_batch
from scipy.stats import norm

from jaxpgd.agents import common, diffusion_ql, replace_hypers
from jaxpgd.agents.action_diffusion import key_of
from jaxpgd.agents.diffusion_ql import DiffusionQLConfig, _structure
from jaxpgd.diffusion.edm import vp_sigmas
from jaxpgd.errors import InputError
from jaxpgd.guidance.likelihood import log_likelihood
from jaxpgd.networks.activations import mish
from jaxpgd.networks.actor_critic import CriticEnsemble, DiffusionActor
from jaxpgd.options import structure

HIDDEN, STEPS = (8, 8), 5
SETTINGS = {"steps": 5, "candidates": 16, "choice": "best", "ema_every": 3, "time_features": 4}


def structure_of(**changes):
    return _structure(2, structure(DiffusionQLConfig(hidden=HIDDEN, **SETTINGS | changes)))


AGENT, STRUCTURE = diffusion_ql(action_dim=2, hidden=HIDDEN, **SETTINGS), structure_of()
ACTOR, CRITICS = DiffusionActor(2, HIDDEN, 4), CriticEnsemble(2, HIDDEN, activation=mish)
BATCH = random_batch(size=16)
FLAT = jax.tree.map(lambda x: x[0], BATCH)
OBS, ACTION = FLAT.obs[0], FLAT.action[0]
UPDATE, ACTOR_LOSS = jax.jit(AGENT.update), jax.jit(STRUCTURE.actor_loss)  # compiled once
MODE = jax.jit(lambda policy, obs: policy.mode(obs))


def published_abar():
    """abar_1 ... abar_5 from the published steps beta_i."""
    i = np.arange(1, STEPS + 1)
    return np.cumprod(np.exp(-0.1 / STEPS - 0.5 * (10.0 - 0.1) * (2 * i - 1) / STEPS**2))


def make_state(**hypers):
    state = AGENT.init(jax.random.key(0), jax.tree.map(lambda x: x[0], FLAT), replace_hypers(AGENT.hypers, **hypers))
    last = state.actor["params"]["MLP_1"]["Dense_2"]
    last["kernel"] = 4 * last["kernel"]  # a network whose answers matter
    return state


def deaf(critic):
    """Critics that do not hear the action."""
    kernel = critic["params"]["members"]["MLP_0"]["Dense_0"]["kernel"]
    mute = lambda p: p.at[..., 3:].set(0.0) if p is kernel else p
    return jax.tree.map(mute, critic)


def test_denoised_action_is_that_of_the_published_noise_prediction():
    """x_t = sqrt(abar) a + sqrt(1 - abar) n; the network sees x_t and t - 1; a is recovered from its n."""
    state, noise = make_state(), np.array([0.3, -1.2])
    network = jax.jit(lambda x, step: ACTOR.apply(state.actor, x, step, OBS))
    denoise = jax.jit(lambda x, sigma, clip: STRUCTURE.denoise(state.actor, state.hypers, OBS, clip=clip)(x, sigma),
                      static_argnums=2)  # fmt: skip
    for t, abar in enumerate(published_abar(), start=1):
        x_t = np.sqrt(abar) * np.asarray(ACTION) + np.sqrt(1 - abar) * noise
        predicted = np.asarray(network(jnp.asarray(x_t, jnp.float32), jnp.asarray(t - 1.0)))
        expected = (x_t - np.sqrt(1 - abar) * predicted) / np.sqrt(abar)
        x, sigma = jnp.asarray(x_t / np.sqrt(abar), jnp.float32), jnp.asarray(np.sqrt(1 / abar - 1), jnp.float32)
        np.testing.assert_allclose(denoise(x, sigma, False), expected, rtol=1e-3, atol=1e-4)
        np.testing.assert_allclose(denoise(x, sigma, True), np.clip(expected, -1, 1), rtol=1e-3, atol=1e-4)


def test_cloning_loss_is_the_error_of_the_predicted_noise_at_uniform_steps():
    state, count = make_state(), 20_000
    many = jax.tree.map(lambda x: jnp.broadcast_to(x[0], (count, *x.shape[1:])), FLAT)
    loss = jax.jit(STRUCTURE.cloning_loss)(jax.random.key(1), state.actor, many, state.hypers)
    rng = np.random.default_rng(0)
    t, noise = rng.integers(0, STEPS, count), rng.normal(size=(count, 2))
    abar = published_abar()[t][:, None]
    x_t = np.sqrt(abar) * np.asarray(ACTION) + np.sqrt(1 - abar) * noise
    predicted = jax.vmap(lambda x, t: ACTOR.apply(state.actor, x, t, OBS))(jnp.asarray(x_t), jnp.asarray(t, jnp.float32))
    errors = np.square(np.asarray(predicted) - noise).mean(1)
    by_step = [errors[t == i].mean() for i in range(STEPS)]
    spread = 4 * errors.std() * np.sqrt(2 / count)
    assert abs(loss - errors.mean()) < spread
    assert max(by_step) - min(by_step) > 4 * spread  # one step alone would show


def test_q_term_is_one_critic_over_the_size_of_the_other():
    state = make_state(eta=0.7)
    critic = deaf(state.critic)
    q = np.asarray(CRITICS.apply(critic, FLAT.obs, FLAT.action))
    expected = [q[0].mean() / np.abs(q[1]).mean(), q[1].mean() / np.abs(q[0]).mean()]
    picked = []
    for key in jax.random.split(jax.random.key(3), 12):
        loss, metrics = ACTOR_LOSS(key, state.actor, critic, FLAT, state.hypers)
        picked.append(int(np.abs(metrics["q_gain"] - np.array(expected)).argmin()))
        assert metrics["q_gain"] == pytest.approx(expected[picked[-1]], rel=1e-4)
        assert loss == pytest.approx(float(metrics["bc_loss"] - 0.7 * metrics["q_gain"]), rel=1e-4)
    assert set(picked) == {0, 1}


def test_gradient_passes_through_the_whole_chain():
    """Against a difference quotient, which knows nothing of stopped gradients."""
    state, keys = make_state(), jax.random.split(jax.random.key(4), 8)

    def actions(shift):
        actor = jax.tree.map(lambda p: p, state.actor)
        actor["params"]["MLP_1"]["Dense_2"]["bias"] += shift
        return jax.vmap(lambda k: STRUCTURE.chain(k, actor, state.hypers, OBS))(keys)

    jacobian, value = jax.jit(jax.jacfwd(actions))(0.0), jax.jit(actions)
    backward = jax.jit(jax.grad(lambda s: actions(s).sum()))(0.0)
    quotient = (value(2e-3) - value(-2e-3)) / 4e-3
    free = np.abs(value(0.0)) < 0.98  # the others are clipped
    assert free.sum() >= 4
    np.testing.assert_allclose(jacobian, quotient, rtol=0.05, atol=0.02)
    assert backward == pytest.approx(float(jacobian.sum()), rel=1e-3)
    last_step_alone = -float(vp_sigmas(STEPS, 0.1, 10.0)[-2])
    assert np.abs(np.asarray(jacobian)[free] - last_step_alone).max() > 0.05


def test_targets_by_hand_and_from_the_averaged_actor():
    state = make_state(gamma=0.6)
    targets = jax.jit(STRUCTURE.targets)
    silent = state.replace(target_critic=deaf(jax.tree.map(lambda p: 1.5 * p, state.critic)))
    q = CRITICS.apply(silent.target_critic, FLAT.next_obs, FLAT.action).min(0)
    expected = FLAT.reward + 0.6 * FLAT.discount * q
    np.testing.assert_allclose(targets(jax.random.key(1), silent, FLAT), expected, rtol=1e-4, atol=1e-5)
    double = jax.tree.map(lambda p: 2 * p, state.actor)
    first = targets(jax.random.key(1), state, FLAT)
    np.testing.assert_array_equal(first, targets(jax.random.key(1), state.replace(actor=double), FLAT))
    assert not np.allclose(first, targets(jax.random.key(1), state.replace(ema_actor=double), FLAT))


def test_averages_move_when_due():
    old = state = make_state(ema=0.9, polyak=0.25, lr=1e-2)
    for i in range(3):
        before, (state, metrics) = state, UPDATE(jax.random.key(i), state, BATCH)
        target = jax.tree.map(lambda t, o: 0.75 * t + 0.25 * o, before.target_critic, state.critic)
        chex.assert_trees_all_close(state.target_critic, target, rtol=1e-7, atol=1e-6)
        rate = 0.1 if i == 2 else 0.0
        average = jax.tree.map(lambda t, o, rate=rate: t + rate * (o - t), old.ema_actor, state.actor)
        chex.assert_trees_all_close(state.ema_actor, average, rtol=1e-7, atol=1e-6)
        assert all(np.isfinite(m) for m in metrics.values())
    assert int(state.updates) == 3


@pytest.mark.parametrize(("clip", "moves"), [(0.0, True), (5.0, True), (1e-13, False)])
def test_gradients_of_both_networks_are_clipped(clip, moves):
    """Adam undoes the scale of a gradient until it is far below its epsilon."""
    state = make_state(gradient_clip=clip, lr=1e-3, critic_lr=1e-3)
    new, _ = UPDATE(jax.random.key(1), state, BATCH)
    for name in ("actor", "critic"):
        step = jax.tree.map(lambda a, b: jnp.abs(a - b).max(), getattr(new, name), getattr(state, name))
        largest = max(jax.tree.leaves(step))
        assert largest == pytest.approx(1e-3, rel=0.01) if moves else largest < 1e-6


def test_learning_rate_decays_as_a_cosine():
    """Adam's first step is the rate; at a quarter of the decay's length the factor is (1 + cos(pi/4)) / 2, past its end 0."""
    for done, factor in ((0, 1.0), (25, 0.5 + np.sqrt(2) / 4), (100, 0.0), (150, 0.0)):
        state = make_state(lr=1e-3, critic_lr=2e-3, decay_updates=100.0).replace(updates=jnp.asarray(done))
        new, _ = UPDATE(jax.random.key(1), state, BATCH)
        for name, rate in (("actor", 1e-3), ("critic", 2e-3)):
            step = jax.tree.map(lambda a, b: jnp.abs(a - b).max(), getattr(new, name), getattr(state, name))
            assert max(jax.tree.leaves(step)) == pytest.approx(factor * rate, rel=0.01, abs=1e-9)


def test_a_rate_of_zero_leaves_its_own_networks_alone():
    state = make_state(lr=1e-3, critic_lr=0.0)
    new, _ = UPDATE(jax.random.key(1), state, BATCH)
    chex.assert_trees_all_equal(new.critic, state.critic)
    assert not np.allclose(*(jax.tree.leaves(s.actor)[-1] for s in (new, state)), atol=1e-4)


def test_the_clip_bounds_the_gradient_that_enters_the_step():
    """Adam's first average of gradients is a tenth of the first one, clipped to the limit or as it is below it."""
    for clip in (0.01, 0.5, 1e3):
        new, metrics = UPDATE(jax.random.key(1), make_state(gradient_clip=clip), BATCH)
        for name, opt in (("actor", new.actor_opt), ("critic", new.critic_opt)):
            found = float(metrics[f"{name}_gradient_norm"])
            assert 10 * common.norm(opt.mu) == pytest.approx(min(found, clip), rel=1e-3)


def test_targets_of_the_largest_of_several_values_by_hand():
    """Each critic takes its own largest value of the same ten draws; the smaller of the two counts."""
    ten = structure_of(max_q_backup=10)
    state = make_state(gamma=0.6)
    many = jnp.repeat(FLAT.next_obs, 10, axis=0)
    action = jax.jit(ten.draw)(jax.random.key(1), state.ema_actor, state.hypers, many)
    q = np.asarray(CRITICS.apply(state.target_critic, many, action)).reshape(2, 16, 10)
    expected = FLAT.reward + 0.6 * FLAT.discount * np.minimum(q[0].max(1), q[1].max(1))
    found = jax.jit(ten.targets)(jax.random.key(1), state, FLAT)
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)
    assert np.ptp(q, axis=2).min() > 1e-4  # the draws differ


def test_samples_stay_in_bounds_and_mode_is_the_best_of_many():
    state = make_state()
    policy = AGENT.policy(state.replace(critic=jax.tree.map(jnp.zeros_like, state.critic)))  # the target critics choose
    samples = jax.jit(jax.vmap(lambda k: policy.sample(k, OBS)))(jax.random.split(jax.random.key(2), 300))
    assert np.abs(samples).max() <= 1.0 and len(np.unique(np.asarray(samples), axis=0)) > 100
    at = lambda action: jnp.broadcast_to(OBS, (*action.shape[:-1], 3))
    q = lambda action: np.asarray(CRITICS.apply(state.target_critic, at(action), action)).min(0)
    mode = MODE(policy, OBS)
    assert q(mode) >= np.quantile(q(samples), 0.7)  # the best of 16 draws is below that with probability 0.7^16 = 0.003
    np.testing.assert_array_equal(mode, MODE(policy, OBS))
    worst = policy.replace(params=policy.params.replace(critic=jax.tree.map(lambda p: p, state.target_critic)))
    last = worst.params.critic["params"]["members"]["MLP_0"]["Dense_2"]
    last["kernel"], last["bias"] = -last["kernel"], -last["bias"]
    assert q(MODE(worst, OBS)) < q(mode)


def test_softmax_choice_takes_each_candidate_with_its_probability():
    """Mean Q of the choices at many observations, all but the same, against the weights written out over other draws."""
    state, count = make_state(), 2000
    last = state.target_critic["params"]["members"]["MLP_0"]["Dense_2"]
    last["kernel"] = 20 * last["kernel"]  # the weights differ
    policy = diffusion_ql(action_dim=2, hidden=HIDDEN, **SETTINGS | {"choice": "softmax"}).policy(state)
    near = OBS + 1e-4 * jax.random.normal(jax.random.key(5), (count, *OBS.shape))
    q = lambda action: np.asarray(
        CRITICS.apply(state.target_critic, jnp.broadcast_to(OBS, (*action.shape[:-1], 3)), action), np.float64
    ).min(0)
    chosen = q(jax.jit(jax.vmap(policy.mode))(near))
    keys = jax.random.split(jax.random.key(6), (count, 16))
    drawn = q(jax.jit(jax.vmap(jax.vmap(lambda k: policy.sample(k, OBS))))(keys))
    weights = np.exp(drawn) / np.exp(drawn).sum(1, keepdims=True)
    expected = (weights * drawn).sum(1)
    bound = 4 * np.sqrt((chosen.var() + expected.var()) / count)
    assert abs(chosen.mean() - expected.mean()) < bound
    assert drawn.mean() + 2 * bound < expected.mean() < drawn.max(1).mean() - 2 * bound  # neither any nor the best


def test_noise_of_the_mode_is_another_at_every_observation():
    """Shared noise would shift all actions of an episode alike."""
    keys = jax.vmap(lambda obs: jax.random.key_data(key_of(obs)))
    near = OBS + 1e-6 * jnp.arange(50)[:, None] * jnp.eye(OBS.shape[0])[0]
    others = jnp.concatenate([near, jnp.roll(near, 1, axis=1), near.at[:, 0].multiply(-1.0), near.at[:, :2].multiply(-1.0)])
    distinct = len(np.unique(np.asarray(others), axis=0))
    assert distinct > 100 and len(np.unique(np.asarray(keys(others)), axis=0)) == distinct
    np.testing.assert_array_equal(keys(others), keys(others))


def test_centre_is_where_the_gaussian_that_stands_for_the_policy_is_highest():
    policy = diffusion_ql(action_dim=2, hidden=HIDDEN, **SETTINGS | {"choice": "centre"}).policy(make_state())
    mode = MODE(policy, OBS)
    np.testing.assert_allclose(jax.grad(lambda a: policy.log_prob(OBS, a, 0.1))(mode), 0.0, atol=1e-5)
    deaf_to_q = policy.replace(params=policy.params.replace(critic=jax.tree.map(jnp.zeros_like, policy.params.critic)))
    np.testing.assert_array_equal(mode, MODE(deaf_to_q, OBS))


@pytest.mark.parametrize("variance", [0.0, 0.5])
def test_log_prob_is_a_gaussian_around_the_chain_without_noise(variance):
    state = make_state(policy_std=0.7)
    state = state.replace(actor=state.ema_actor)  # the network before it was scaled up
    policy, x = AGENT.policy(state), np.zeros(2)
    sigmas = np.asarray(vp_sigmas(STEPS, 0.1, 10.0), np.float64)
    for step, (sigma, after) in zip(reversed(range(STEPS)), itertools.pairwise(sigmas), strict=True):
        scaled = jnp.asarray(x / np.sqrt(1 + sigma**2), jnp.float32)
        noise = np.asarray(ACTOR.apply(state.actor, scaled, jnp.asarray(float(step)), OBS))
        x0 = np.clip(x - sigma * noise, -1, 1)
        x = x0 + (after / sigma) ** 2 * (x - x0)
    expected = norm(x, np.sqrt(0.49 + variance)).logpdf(np.asarray(ACTION)).sum()
    log_prob = jax.jit(lambda policy: policy.log_prob(OBS, ACTION, variance))
    assert log_prob(policy) == pytest.approx(expected, rel=1e-3)
    assert np.abs(x).max() < 1.0  # not at the bounds, where any chain would end


def test_its_own_score_is_that_of_the_noised_policy():
    """(D(a) - a) / sigma^2 at the level of the variance, within the schedule; guidance follows it, action by action."""
    agent = diffusion_ql(action_dim=2, hidden=HIDDEN, **SETTINGS, own_score=True)
    state = make_state()
    policy, levels = agent.policy(state), np.asarray(vp_sigmas(STEPS, 0.1, 10.0))[:-1]
    for variance in (0.0, 1.3, 1e6):
        sigma = jnp.clip(jnp.sqrt(variance), levels.min(), levels.max())
        denoised = STRUCTURE.denoise(state.actor, state.hypers, OBS, clip=False)(ACTION, sigma)
        wanted = (denoised - ACTION) / sigma**2
        np.testing.assert_allclose(policy.score(OBS, ACTION, variance), wanted, rtol=1e-5)
        gradient = jax.grad(lambda a, v=variance: log_likelihood(policy, OBS[None], a[None], v))(ACTION)
        np.testing.assert_allclose(gradient, wanted, rtol=1e-5)
    assert AGENT.policy(state).score_fn is None


def test_one_step_reconstruction_is_the_closed_form():
    """(x_t - sqrt(1 - abar) n) / sqrt(abar) of noised action and predicted noise, kept in [-1, 1], for Q and cloning."""
    one_step = structure_of(action_reconstruction="one_step")
    state = make_state(eta=0.7)
    key_cloning, _, key_pick = jax.random.split(jax.random.key(5), 3)
    key_step, key_noise = jax.random.split(key_cloning)
    size = FLAT.reward.shape[0]
    sigma = np.asarray(jax.random.choice(key_step, vp_sigmas(STEPS, 0.1, 10.0)[:-1], (size,)))
    noise = np.stack([jax.random.normal(key, (2,)) for key in jax.random.split(key_noise, size)])
    abar = 1 / (1 + sigma**2)
    t = [int(np.abs(published_abar() - a).argmin()) for a in abar]
    root, rest = np.sqrt(abar)[:, None], np.sqrt(1 - abar)[:, None]
    x_t = root * np.asarray(FLAT.action) + rest * noise
    predicted = jax.vmap(lambda x, t, o: ACTOR.apply(state.actor, x, t, o))(
        jnp.asarray(x_t), jnp.asarray(t, jnp.float32), FLAT.obs
    )
    action = np.clip((x_t - rest * np.asarray(predicted)) / root, -1, 1)
    loss, metrics = jax.jit(one_step.actor_loss)(jax.random.key(5), state.actor, state.critic, FLAT, state.hypers)
    q = np.asarray(CRITICS.apply(state.critic, FLAT.obs, jnp.asarray(action, jnp.float32)))
    pick = int(jax.random.bernoulli(key_pick))
    gain = q[pick].mean() / np.abs(q[1 - pick]).mean()
    assert metrics["bc_loss"] == pytest.approx(float(np.square(np.asarray(predicted) - noise).mean()), rel=1e-3)
    assert metrics["q_gain"] == pytest.approx(float(gain), rel=1e-3)
    assert loss == pytest.approx(float(metrics["bc_loss"] - 0.7 * metrics["q_gain"]), rel=1e-4)
    assert not np.isclose(
        metrics["q_gain"], ACTOR_LOSS(jax.random.key(5), state.actor, state.critic, FLAT, state.hypers)[1]["q_gain"]
    )


def test_the_average_stays_as_initialised_until_its_start():
    """It starts at update 6 here, is due at every third, and before that is what targets are drawn from."""
    first = state = make_state(ema=0.9, ema_start=6.0, lr=1e-2)
    for i in range(6):
        before, (state, _) = state, UPDATE(jax.random.key(i), state, BATCH)
        still = jax.tree.map(lambda a, b: np.array_equal(a, b), state.ema_actor, first.ema_actor)
        assert all(jax.tree.leaves(still)) == (i < 5)
    average = jax.tree.map(lambda t, o: t + 0.1 * (o - t), before.ema_actor, state.actor)
    chex.assert_trees_all_close(state.ema_actor, average, rtol=1e-7, atol=1e-6)


def test_critics_may_have_layers_and_activation_of_their_own():
    agent = diffusion_ql(action_dim=2, hidden=HIDDEN, critic_hidden=(6,), critic_activation="relu")
    state = agent.init(jax.random.key(0), jax.tree.map(lambda x: x[0], FLAT))
    relu = CriticEnsemble(2, (6,))
    assert jax.tree.map(jnp.shape, state.critic) == jax.tree.map(jnp.shape, relu.init(jax.random.key(0), OBS, ACTION))
    made = structure_of(critic_hidden=(6,), critic_activation="relu").critics
    np.testing.assert_array_equal(made.apply(state.critic, OBS, ACTION), relu.apply(state.critic, OBS, ACTION))
    with pytest.raises(InputError, match="critic_activation = 'tanh': expected one of 'mish', 'relu'"):
        diffusion_ql(action_dim=2, critic_activation="tanh")
    with pytest.raises(InputError, match="action_reconstruction = 'two_steps': expected one of 'chain', 'one_step'"):
        diffusion_ql(action_dim=2, action_reconstruction="two_steps")
