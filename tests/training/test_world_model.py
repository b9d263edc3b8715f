"""The world model on systems whose dynamics, rewards and terminals are known."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxpgd.errors import InputError
from jaxpgd.training.program import fit
from jaxpgd.training.world_model import _learners, steps_per_epoch, train_world_model, trained_world_model, world_model_program
from jaxpgd.types import Transition
from jaxpgd.world_model.data import prepare_transitions
from jaxpgd.world_model.losses import gaussian_loss
from jaxpgd.world_model.model import WorldModelConfig
from jaxpgd.world_model.termination import make_rule
from jaxpgd.world_model.truncation import threshold

A = np.array([[0.9, 0.2], [-0.1, 0.8]], np.float32)
B = np.array([[0.5], [1.0]], np.float32)
NOISE = 0.1
CONFIG = WorldModelConfig(
    members=3, elites=2, hidden=(32, 32), reward_hidden=(32,), epochs=12, batch_size=64, steps_per_epoch=60, patience=4, lr=3e-3
)


def linear(size=4000, noise=NOISE):
    """s' = A s + B a + noise; reward s_1 - a; the episode ends where s'_1 > 1."""
    rng = np.random.default_rng(0)
    obs, action = rng.normal(size=(size, 2)).astype(np.float32), rng.uniform(-1, 1, (size, 1)).astype(np.float32)
    next_obs = obs @ A.T + action @ B.T + noise * rng.normal(size=(size, 2)).astype(np.float32)
    discount = (next_obs[:, 0] <= 1.0).astype(np.float32)
    return Transition(obs, action, obs[:, 0] - action[:, 0], discount, next_obs.astype(np.float32))


@functools.cache
def trained():
    data = prepare_transitions(linear(), CONFIG)
    return jax.jit(lambda key: train_world_model(key, data, config=CONFIG))(jax.random.key(0))


def test_it_learns_next_state_noise_reward_and_terminals():
    model, metrics = trained()
    test = linear(size=500, noise=0.0)
    mean, std = jax.vmap(model.next_states)(test.obs, test.action)
    assert mean.shape == (500, CONFIG.elites, 2)
    error = np.asarray(mean.mean(1)) - test.next_obs
    assert np.sqrt(np.mean(error**2)) < 0.06  # of a spread of 1, with noise of 0.1 in the data
    assert float(jnp.median(std)) == pytest.approx(NOISE, rel=0.3)
    reward = jax.vmap(model.reward)(test.obs, test.action)
    assert np.sqrt(np.mean((reward - test.reward) ** 2)) < 0.1
    ended = jax.vmap(model.discount)(test.obs, test.action, test.next_obs)
    assert np.mean(np.asarray(ended) == test.discount) > 0.97 and 0.05 < np.mean(test.discount == 0) < 0.3
    assert metrics["state_loss"].shape == (CONFIG.epochs,) and metrics["terminal_loss"][-1] < metrics["terminal_loss"][0]


@pytest.mark.slow
def test_a_known_rule_replaces_the_classifier():
    data = prepare_transitions(linear(), CONFIG)
    short = dataclasses.replace(CONFIG, epochs=1, steps_per_epoch=2)
    program = world_model_program(data, short, make_rule("hopper"))
    state, metrics = fit(jax.random.key(0), program, data)
    assert state.terminal is None and "terminal_loss" not in metrics
    model = trained_world_model(state, data, short, make_rule("hopper"))
    fallen, upright = jnp.array([0.5, 0.0]), jnp.array([1.2, 0.0])  # z 0.5 is below 0.7
    assert [float(model.discount(fallen, jnp.zeros(1), x)) for x in (fallen, upright)] == [0.0, 1.0]


def test_elites_are_the_members_of_least_held_out_loss():
    data = prepare_transitions(linear(), CONFIG)
    short = dataclasses.replace(CONFIG, epochs=1, steps_per_epoch=2)
    state, _ = fit(jax.random.key(0), world_model_program(data, short, make_rule("never")), data)
    state = state.replace(state=state.state.replace(best_loss=jnp.array([0.3, 0.1, 0.2])))
    model = trained_world_model(state, data, short, make_rule("never"))
    for elite, all_members in zip(jax.tree.leaves(model.elites), jax.tree.leaves(state.state.best), strict=True):
        np.testing.assert_array_equal(elite, all_members[jnp.array([1, 2])])


def test_early_stopping_keeps_the_best_and_freezes_what_has_stopped():
    """A learning rate of 0 never improves after the first epoch: every part stops after `patience` more."""
    data = prepare_transitions(linear(400), CONFIG)
    still = dataclasses.replace(CONFIG, lr=0.0, weight_decay=0.0, steps_per_epoch=1, epochs=8, patience=3)
    program = world_model_program(data, still)
    state, metrics = fit(jax.random.key(0), program, data)
    np.testing.assert_array_equal(metrics["state_stale"], [0, 1, 2, 3, 3, 3, 3, 3])
    np.testing.assert_array_equal(metrics["reward_stale"], [0, 1, 2, 3, 3, 3, 3, 3])
    jax.tree.map(np.testing.assert_array_equal, state.state.best, state.state.params)
    assert np.isfinite(state.state.best_loss).all()


def test_the_best_parameters_are_not_the_last_where_training_makes_things_worse():
    """Ten examples to train on, many epochs: networks overfit, and what counts is from before."""
    data = prepare_transitions(linear(400, noise=1.0), dataclasses.replace(CONFIG, holdout=0.9))
    long = dataclasses.replace(CONFIG, lr=1e-2, weight_decay=0.0, steps_per_epoch=40, epochs=12, patience=50, batch_size=32)
    state, metrics = fit(jax.random.key(0), world_model_program(data, long), data)
    learner = _learners(long, data.transitions.obs.shape[-1], True)[0]
    last, best = (learner._held_out(p, data) for p in (state.state.params, state.state.best))
    np.testing.assert_allclose(best, state.state.best_loss, rtol=1e-4)
    assert (last > best).all() and (metrics["state_stale"][-1] > 0)


def test_ends_without_a_next_observation_are_left_out():
    """Files without next observations repeat the last one at a terminal: a model must not learn that nothing moves there."""
    seen = linear(100)
    ends = np.arange(100) % 10 == 9
    blind = seen.replace(discount=(~ends).astype(np.float32), next_obs=np.where(ends[:, None], seen.obs, seen.next_obs))
    data = prepare_transitions(blind, CONFIG)
    assert data.transitions.reward.shape == (90,) and (data.transitions.discount == 1).all()
    with pytest.raises(InputError, match=r"world_model.termination = 'learned': expected a known rule"):
        prepare_transitions(blind, dataclasses.replace(CONFIG, termination="learned"))
    seen = seen.replace(discount=blind.discount)
    assert prepare_transitions(seen, dataclasses.replace(CONFIG, termination="learned")).transitions.reward.shape == (100,)


def test_same_key_same_bits():
    data = prepare_transitions(linear(400), CONFIG)
    short = dataclasses.replace(CONFIG, epochs=2, steps_per_epoch=3)
    run = jax.jit(lambda key: fit(key, world_model_program(data, short), data)[0])
    first, again, other = run(jax.random.key(1)), run(jax.random.key(1)), run(jax.random.key(2))
    jax.tree.map(np.testing.assert_array_equal, first.state.params, again.state.params)
    assert not np.array_equal(first.state.best_loss, other.state.best_loss)


def test_holdout_and_epoch_sizes():
    data = prepare_transitions(linear(100), dataclasses.replace(CONFIG, holdout=0.2))
    assert (len(data.train), len(data.held_out)) == (80, 20)
    assert not set(np.asarray(data.train)) & set(np.asarray(data.held_out))
    capped = prepare_transitions(linear(100), dataclasses.replace(CONFIG, holdout=0.2, holdout_most=5))
    assert len(capped.held_out) == 5
    assert steps_per_epoch(dataclasses.replace(CONFIG, steps_per_epoch=0), 130) == 3


def test_nothing_is_learned_from_episodes_that_are_held_out():
    """They measure, as many as are asked for; episodes that would leave nothing to either side give way to transitions."""
    transitions, held_out = linear(100), np.arange(100) % 4 == 1
    far = transitions.replace(obs=np.where(held_out[:, None], 50.0 + transitions.obs, transitions.obs).astype(np.float32))
    data = prepare_transitions(far, CONFIG, held_out=held_out)
    np.testing.assert_array_equal(np.sort(data.train), np.flatnonzero(~held_out))
    np.testing.assert_array_equal(np.sort(data.held_out), np.flatnonzero(held_out))
    np.testing.assert_array_equal(data.scales.obs.high, transitions.obs[~held_out].max(0))
    few = prepare_transitions(far, dataclasses.replace(CONFIG, holdout_most=5), held_out=held_out)
    assert len(few.held_out) == 5 and held_out[np.asarray(few.held_out)].all()
    np.testing.assert_array_equal(few.train, data.train)
    single = prepare_transitions(far, CONFIG)
    for none in (np.zeros(100, bool), np.ones(100, bool)):
        jax.tree.map(np.testing.assert_array_equal, prepare_transitions(far, CONFIG, held_out=none), single)
    still = transitions.replace(discount=1.0 - held_out, next_obs=np.where(held_out[:, None], far.obs, far.next_obs))
    assert len(prepare_transitions(still.replace(obs=far.obs), CONFIG, held_out=held_out).held_out) == 8  # a tenth of 75


class Constant:
    """A network that predicts its parameters for every input."""

    @staticmethod
    def apply(params, x):
        p = params["params"]
        shape = (len(x), len(p["mean"]))
        return jnp.broadcast_to(p["mean"], shape), jnp.broadcast_to(p["log_variance"], shape)


def test_the_loss_of_state_models_by_hand():
    """Means 0, variances 4 and 1/4, errors 1 and 2: beta-NLL, whose weights are constants."""
    params = {"mean": jnp.zeros(2), "log_variance": jnp.log(jnp.array([4.0, 0.25]))}
    bounds = {"max_log_variance": jnp.array([1.0, 1.0]), "min_log_variance": jnp.array([0.0, -1.0])}
    x, y = jnp.zeros((1, 1)), jnp.array([[1.0, 2.0]])
    of = lambda p, beta: gaussian_loss(Constant, {"params": p | bounds}, x, y, beta)
    likelihood = np.array([1 / 4 + np.log(4), 4 / 0.25 - np.log(4)])
    for beta in (0.0, 0.5, 1.0):
        weight = np.array([4.0, 0.25]) ** beta
        loss, square = of(params, beta)
        assert float(loss) == pytest.approx((weight * likelihood).mean() + 0.01 * 3, rel=1e-5) and float(square) == 2.5
        gradient = jax.grad(lambda p, beta=beta: of(p, beta)[0])(params)
        np.testing.assert_allclose(gradient["mean"], weight * [-1 / 4, -2 / 0.25], rtol=1e-5)  # -2 error / variance / 2
        np.testing.assert_allclose(gradient["log_variance"], weight * [1 - 1 / 4, 1 - 16] / 2, rtol=1e-5)


@pytest.mark.slow
def test_averaged_weights_predict_and_forget_their_start():
    """With a decay of 0 they are the weights; with one, a mean of the path in which the first steps count for little."""
    data = prepare_transitions(linear(400), CONFIG)
    short = dataclasses.replace(CONFIG, epochs=1, steps_per_epoch=5, ema=0.0)
    state, _ = fit(jax.random.key(0), world_model_program(data, short), data)
    jax.tree.map(np.testing.assert_array_equal, state.state.ema_params, state.state.params)
    np.testing.assert_array_equal(state.state.step, 5)
    paths = [
        fit(jax.random.key(0), world_model_program(data, dataclasses.replace(short, epochs=1, steps_per_epoch=n)), data)[0]
        for n in (1, 2)
    ]
    first, second = (jax.tree.leaves(state.state.params)[0] for state in paths)
    averaged, _ = fit(
        jax.random.key(0), world_model_program(data, dataclasses.replace(short, steps_per_epoch=2, ema=0.9)), data
    )
    start = jax.tree.leaves(world_model_program(data, short).init(jax.random.key(0), data).state.params)[0]
    expected = 2 / 11 * (0.1 * start + 0.9 * first) + 9 / 11 * second  # decays 1/10 and 2/11
    found = jax.tree.leaves(averaged.state.ema_params)[0]
    assert np.array_equal(jax.tree.leaves(averaged.state.params)[0], second)
    np.testing.assert_allclose(found, expected, atol=1e-6)


def test_the_error_is_that_of_the_mean_of_the_elites():
    model, _ = trained()
    data = prepare_transitions(linear(), CONFIG)
    held_out = jax.tree.map(lambda a: a[data.held_out], data.transitions)
    mean = jax.vmap(model.next_states)(held_out.obs, held_out.action)[0].mean(1)
    np.testing.assert_allclose(model.error, jnp.sqrt(jnp.square(mean - held_out.next_obs).mean(0)), rtol=1e-3)
    np.testing.assert_allclose(model.error, NOISE, rtol=0.2)
    reward = jax.vmap(model.reward)(held_out.obs, held_out.action)
    np.testing.assert_allclose(model.reward_error, jnp.sqrt(jnp.square(reward - held_out.reward).mean()), rtol=1e-3)


def test_disagreements_are_those_of_the_elites_on_held_out_transitions():
    model, _ = trained()
    data = prepare_transitions(linear(), CONFIG)
    held_out = jax.tree.map(lambda a: a[data.held_out], data.transitions)
    mean = np.asarray(jax.vmap(model.next_states)(held_out.obs, held_out.action)[0], np.float64)  # [H, K, O]
    apart = np.sqrt(np.square(mean.std(1) / np.asarray(data.transitions.obs).std(0)).mean(-1))
    np.testing.assert_allclose(model.disagreements, np.sort(apart), rtol=2e-3, atol=1e-5)
    for quantile in (0.5, 0.99, 1.0):
        np.testing.assert_allclose(threshold(model.disagreements, quantile), np.quantile(apart, quantile), rtol=2e-3)
