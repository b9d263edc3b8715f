"""The cloned behaviour, and training windows of denoisers that are given innovations and anchors: linear dynamics."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxpgd.diffusion.solvers import SamplerConfig
from jaxpgd.envs.linear_gaussian import collect, linear_policy, make_env
from jaxpgd.errors import InputError
from jaxpgd.synthesis.dydiff import DyDiffConfig, make_dydiff
from jaxpgd.synthesis.given import stands_still
from jaxpgd.tokens import fit_codec
from jaxpgd.training.behaviour import train_behaviour
from jaxpgd.training.denoiser import DenoiserConfig
from jaxpgd.training.innovation_windows import abstract_windows, innovation_windows
from jaxpgd.training.state_denoiser import GivenState, state_denoiser_program, train_state_denoiser, trained_state_denoiser
from jaxpgd.training.windows import Windows, state_windows
from jaxpgd.training.world_model import train_world_model
from jaxpgd.types import Transition
from jaxpgd.world_model.behaviour import BehaviourConfig
from jaxpgd.world_model.data import prepare_transitions
from jaxpgd.world_model.model import WorldModelConfig
from jaxpgd.world_model.rollouts import anchor
from jaxpgd.world_model.termination import make_rule

T, EPISODES = 8, 300
ENV = make_env([[1.0, 0.2], [0.0, 0.95]], [[0.06], [0.6]], 0.02 * np.eye(2), 0.5 * np.eye(2), horizon=T)
POLICY = linear_policy([[-0.3, -0.2]], [0.05], 0.15)
WORLD = WorldModelConfig(members=2, elites=2, hidden=(16,), reward_hidden=(8,), epochs=2, steps_per_epoch=20, batch_size=64)
CLONED = BehaviourConfig(hidden=(32,), epochs=40, steps_per_epoch=50, lr=3e-3, ema=0.99)
SAMPLER = SamplerConfig(steps=2, batch_size=4)
SMALL = DenoiserConfig(features=8, blocks=1, groups=4, steps=2, validate_every=1, validation_batches=1, batch_size=4)


def transitions():
    data, next_obs = collect(jax.random.key(0), ENV, POLICY, EPISODES)
    flat = lambda x: jnp.asarray(x).reshape(EPISODES * T, *x.shape[2:])
    return Transition(flat(data.obs), flat(data.action), flat(data.reward), flat(data.discount), flat(next_obs))


@pytest.fixture(scope="module")
def parts():
    data = transitions()
    starts = np.arange(0, EPISODES * T, T)
    train = jnp.asarray(np.concatenate([starts[:250], np.repeat(starts[:1], 50)]))  # one window counts 51 times
    windows = Windows(data, train, jnp.asarray(starts[250:]), fit_codec(data, starts, T), T)
    prepared = prepare_transitions(data, WORLD)
    behaviour, metrics = jax.jit(train_behaviour, static_argnames="config")(jax.random.key(1), prepared, config=CLONED)
    world, _ = train_world_model(jax.random.key(2), prepared, config=WORLD, terminates=make_rule("never"))
    return windows, behaviour, world, metrics


@pytest.mark.slow
def test_the_cloned_mean_leaves_the_policys_noise(parts):
    windows, behaviour, _, metrics = parts
    obs, action = windows.transitions.obs, windows.transitions.action
    exact = action - jax.vmap(POLICY.mode)(obs)
    e = behaviour.innovation(obs, action)
    assert float(jnp.sqrt(jnp.square(e - exact).mean())) < 0.2 * 0.15
    assert float(metrics["behaviour_loss"][-1]) == pytest.approx(0.15**2, rel=0.2)
    assert metrics["behaviour_stale"].shape == (40,)
    # 240 held-out transitions against some 130 features
    assert behaviour.explained.shape == (1,) and float(behaviour.explained[0]) < 0.3
    assert float(behaviour.explained_square[0]) < 0.3


def test_anchors_of_every_window_and_the_scale_of_deviations(parts):
    plain, behaviour, world, _ = parts
    windows = innovation_windows(plain, behaviour, world)
    assert windows.anchors.shape == (EPISODES, T, 2)  # a window that occurs again is rolled out once
    assert windows.given.model.disagreements is None is not world.disagreements  # checkpoints keep no more than anchors need
    for start in (0, 17 * T, 299 * T):
        own = plain.gather(start)
        e = behaviour.innovation(own.obs, own.action)
        s_hat, _, _ = anchor(world, behaviour, own.obs[0], e)
        np.testing.assert_allclose(windows.anchors[windows.row[start]], s_hat, rtol=1e-4, atol=1e-5)
        np.testing.assert_allclose(windows.tokens(jnp.asarray(start)), windows.given.encode(own.obs, e, s_hat), atol=1e-3)
    tokens = np.asarray(jax.vmap(windows.tokens)(windows.train), np.float64)
    np.testing.assert_allclose(tokens[:, 0, :2], 0.0, atol=1e-5)  # the first deviation is none
    z = np.sinh(tokens[:, 1:, :2])
    np.testing.assert_allclose(np.median(z, 0), 0.0, atol=1e-3)
    np.testing.assert_allclose(np.quantile(np.abs(z), 0.9, 0), 1.6449, atol=1e-3)  # as of a unit Gaussian
    condition = windows.given.condition(own.obs, own.action)
    np.testing.assert_allclose(windows.given.states(windows.given.encode(own.obs, e, s_hat), condition), own.obs, atol=1e-4)
    no_window = windows.tokens(jnp.asarray(1))
    assert np.isnan(no_window[:, :2]).all()
    every = np.asarray(jax.vmap(windows.tokens)(jnp.arange(0, EPISODES * T, T)))
    np.testing.assert_allclose(every[..., 2].std(), 1.0, atol=0.01)
    assert float(windows.given.clipped) == 0.0


def test_padding_is_known_and_counts_for_nothing(parts):
    plain, behaviour, world, _ = parts
    left = jnp.asarray(np.tile(np.arange(T, 0, -1), EPISODES), jnp.int32)
    late = plain.train.at[:100].add(T - 3)  # windows of three steps, then padding
    rest = dataclasses.replace(plain, train=plain.train[100:], validation=plain.train[100:])
    whole = innovation_windows(rest, behaviour, world)
    padded = innovation_windows(dataclasses.replace(plain, train=late, left=left), behaviour, world)
    tokens, known = padded.tokens(late[0]), state_windows(padded, "clean").padding(late[0])
    assert np.asarray(tokens[3:]).any() == False and np.asarray(tokens[:3, 3]).all()  # noqa: E712
    np.testing.assert_array_equal(known.known.all(1), [False] * 3 + [True] * 5)
    np.testing.assert_allclose(padded.given.spread[3:], whole.given.spread[3:], rtol=1e-3)
    assert not np.allclose(padded.given.spread[1:3], whole.given.spread[1:3], rtol=1e-3)


def test_steps_that_few_windows_reach_have_the_scale_before_and_no_scale_is_below_a_share_of_the_data(parts):
    plain, behaviour, world, _ = parts
    left = jnp.asarray(np.tile(np.arange(T, 0, -1), EPISODES), jnp.int32)
    late = plain.train.at[19:].add(T - 5)  # 19 whole windows; all others have five steps
    given = innovation_windows(dataclasses.replace(plain, train=late, left=left), behaviour, world).given
    np.testing.assert_array_equal(given.spread[5:], np.broadcast_to(given.spread[4], (3, 2)))
    np.testing.assert_allclose(given.spread[0], 1e-4 * plain.unit.std[plain.unit.obs], rtol=1e-6)


def test_an_anchor_stands_still_from_a_terminal_on_and_is_given_no_innovations(parts):
    plain, behaviour, world, _ = parts
    own = plain.gather(plain.train[0])
    e = behaviour.innovation(own.obs, own.action)
    s_hat, _, _ = anchor(world, behaviour, own.obs[0], e)
    third = np.asarray(s_hat[3])
    ending = world.replace(terminates=lambda s: jnp.abs(s - third).max() < 1e-6)
    held, ended, _ = anchor(ending, behaviour, own.obs[0], e)
    np.testing.assert_array_equal(held, np.concatenate([s_hat[:4], np.broadcast_to(third, (T - 4, 2))]))
    np.testing.assert_array_equal(stands_still(held), [False] * 3 + [True] * 5)
    np.testing.assert_array_equal(ended, [False] * 3 + [True] * 5)
    given = innovation_windows(plain, behaviour, ending).given
    tokens = given.encode(own.obs, e)
    assert (np.asarray(tokens[:3, 2]) != 0).all() and not np.asarray(tokens[3:, 2]).any()


@pytest.mark.parametrize("kind", [pytest.param("innovations", marks=pytest.mark.slow), "anchored"])
def test_training_keeps_what_the_denoiser_is_given_and_can_be_described_without_it(parts, kind):
    plain, behaviour, world, _ = parts
    chosen = state_windows(innovation_windows(plain, behaviour, world if kind == "anchored" else None), "clean")
    shapes = state_windows(abstract_windows(plain, kind, behaviour, world), "clean")
    described = jax.eval_shape(state_denoiser_program(shapes, SMALL).init, jax.random.key(0), shapes)
    made = state_denoiser_program(chosen, SMALL).init(jax.random.key(0), chosen)
    assert isinstance(made, GivenState)
    assert jax.tree.structure(made) == jax.tree.structure(described)
    assert [x.shape for x in jax.tree.leaves(made)] == [x.shape for x in jax.tree.leaves(described)]
    jax.tree.map(np.testing.assert_array_equal, made.given, chosen.given)
    assert trained_state_denoiser(made, shapes, "clean").entries.kind == kind
    denoiser, metrics = jax.jit(train_state_denoiser, static_argnames="config")(jax.random.key(0), chosen, config=SMALL)
    assert np.isfinite(metrics["validation_loss"]).all()
    synthesizer = make_dydiff(world, denoiser, DyDiffConfig(conditioning=kind, iterations=1), SAMPLER)
    found = jax.jit(lambda s, start: s(jax.random.key(1), POLICY, start))(synthesizer, plain.transitions.obs[:3]).trajectory
    assert found.obs.shape == (3, T, 2) and all(np.isfinite(x).all() for x in jax.tree.leaves(found))
    np.testing.assert_array_equal(found.obs[:, 0], plain.transitions.obs[:3])
    window = plain.gather(plain.train[0])
    with pytest.raises(ValueError, match=f"{kind} states need those that the actions were taken in"):
        denoiser.condition(window.obs[0], window.action)


def test_what_is_refused(parts):
    plain, behaviour, world, _ = parts
    with pytest.raises(InputError, match=r"conditions = 'noised': expected 'clean' or 'churned' where .* is 'anchored'"):
        state_windows(innovation_windows(plain, behaviour, world), "noised")
    lost = behaviour.replace(params=jax.tree.map(lambda x: x.at[..., 0].set(jnp.nan), behaviour.params))
    with pytest.raises(InputError, match="innovations = '2400 of 2400 are not finite': expected finite ones"):
        innovation_windows(plain, lost)
