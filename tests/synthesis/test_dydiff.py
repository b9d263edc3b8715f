"""DyDiff with answers computed by hand, and every synthesizer with every kind of policy."""

import dataclasses

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from batches import with_next_actions
from flax import struct

from jaxpgd.agents import AGENTS, make_agent
from jaxpgd.diffusion.single_step import EDMConfig
from jaxpgd.diffusion.solvers import SamplerConfig
from jaxpgd.errors import InputError
from jaxpgd.guidance.kinds import GuidanceConfig
from jaxpgd.synthesis.diffusion import make_synthesizer
from jaxpgd.synthesis.dydiff import DyDiffConfig, StateDenoiser, known_entries, make_dydiff
from jaxpgd.synthesis.replay import init_replay, sample_synthetic
from jaxpgd.synthesis.world_model import make_world_model_synthesizer
from jaxpgd.tokens import TokenCodec, fit_codec
from jaxpgd.training.agent import AgentConfig
from jaxpgd.training.denoiser import (
    DenoiserConfig,
    denoiser_program,
    trained_denoiser,
)
from jaxpgd.training.state_denoiser import trained_state_denoiser
from jaxpgd.training.windows import Windows, state_windows
from jaxpgd.training.world_model import trained_world_model, world_model_program
from jaxpgd.types import Policy, Transition
from jaxpgd.world_model.data import prepare_transitions
from jaxpgd.world_model.model import WorldModelConfig
from jaxpgd.world_model.rollouts import RolloutConfig
from jaxpgd.world_model.termination import make_rule

T = 4
CODEC = TokenCodec(jnp.array([1.0, 0.0, 0.0, 0.0]), jnp.array([2.0, 1.0, 1.0, 1.0]), 1, 1)
SAMPLER = SamplerConfig(steps=6, batch_size=8)


@struct.dataclass
class Doubling:
    """s' = 2 s whatever the action; reward s + a; the episode ends above 30."""

    members: int = struct.field(pytree_node=False, default=1)

    def next_states(self, obs, action):
        return 2.0 * obs[None], jnp.zeros((1, 1))

    def reward(self, obs, action):
        return obs[0] + action[0]

    def discount(self, obs, action, next_obs):
        return jnp.where(next_obs[0] > 30.0, 0.0, 1.0)

    def clip_obs(self, obs):
        return obs


@struct.dataclass
class Says:
    """A denoiser that is sure of the normalised states `z` [T], whatever the conditions."""

    z: jax.Array

    def given(self, x, sigma, condition):
        return condition.impose(jnp.stack([self.z, jnp.zeros(T)], axis=1))


HALF = Policy(jnp.zeros(()), lambda p, key, obs: 0.01 * obs, lambda p, obs: 0.01 * obs)  # acts by the state


def dydiff(z, **settings):
    denoiser = StateDenoiser(Says(jnp.asarray(z, jnp.float32)), CODEC, T, "clean")
    return make_dydiff(Doubling(), denoiser, DyDiffConfig(**settings), SAMPLER)


def test_no_iteration_is_the_first_rollout():
    synthetic = dydiff([0.0] * T, iterations=0)(jax.random.key(0), HALF, jnp.array([[3.0]])).trajectory
    np.testing.assert_allclose(synthetic.obs[0, :, 0], [3, 6, 12, 24])
    np.testing.assert_allclose(synthetic.action[0, :, 0], [0.03, 0.06, 0.12, 0.24], rtol=1e-6)


@pytest.mark.parametrize(("iterations", "mix", "states"), [
    (1, 0.5, [3, (6 + 5) / 2, (12 + 7) / 2, (24 + 9) / 2]),  # z = 2, 3, 4 are the states 5, 7, 9
    (2, 0.5, [3, (6 + 3 * 5) / 4, (12 + 3 * 7) / 4, (24 + 3 * 9) / 4]),
    (1, 0.0, [3, 5, 7, 9]),
    (1, 0.25, [3, 0.25 * 6 + 0.75 * 5, 0.25 * 12 + 0.75 * 7, 0.25 * 24 + 0.75 * 9]),
    (3, 1.0, [3, 6, 12, 24]),
])  # fmt: skip
def test_mixing_with_the_previous_states_by_hand(iterations, mix, states):
    synthesizer = dydiff([9.0, 2.0, 3.0, 4.0], iterations=iterations, mix=mix)
    synthetic = synthesizer(jax.random.key(0), HALF, jnp.array([[3.0]])).trajectory
    np.testing.assert_allclose(synthetic.obs[0, :, 0], states, rtol=1e-4)
    np.testing.assert_allclose(synthetic.action[0, :, 0], 0.01 * np.asarray(states), rtol=1e-4)  # the policy acts again
    np.testing.assert_allclose(synthetic.reward[0], 1.01 * np.asarray(states), rtol=1e-4)


def test_the_mean_is_one_evaluation_at_the_largest_noise_level():
    class Level:
        def given(self, x, sigma, condition):
            return condition.impose(jnp.full_like(x, jnp.log(sigma)))

    def states(how):
        config = DyDiffConfig(iterations=1, mix=0.0, states=how)
        made = make_dydiff(Doubling(), StateDenoiser(Level(), CODEC, T, "clean"), config, SAMPLER)
        return made(jax.random.key(0), HALF, jnp.array([[3.0]])).trajectory.obs[0, 1:, 0]

    np.testing.assert_allclose(states("mean"), 1.0 + 2.0 * np.log(SAMPLER.sigma_max), rtol=1e-5)  # in the codec's units
    assert (states("sampled") < 1.0).all()  # the last evaluation is at sigma_min


@pytest.mark.parametrize("common", [False, True])
def test_the_spread_that_mixing_leaves(common):
    """Of states N(0, 1) whatever the conditions: new noise is averaged over the iterations, common noise is not."""

    class Normal:
        def given(self, x, sigma, condition):
            return condition.impose(x / (1.0 + sigma**2))

    def spread(**settings):
        denoiser = StateDenoiser(Normal(), CODEC, T, "clean")
        made = make_dydiff(Doubling(), denoiser, DyDiffConfig(**settings), SAMPLER)
        states = made(jax.random.key(0), HALF, jnp.zeros((n, 1))).trajectory.obs[:, 1:, 0]
        return np.std(states, axis=0)  # the rollouts that are mixed with stay at 0, as does the policy

    n, iterations, mix = 4000, 3, 0.5
    left = 1 - mix**iterations if common else np.sqrt((1 - mix) / (1 + mix) * (1 - mix ** (2 * iterations)))
    ratio = spread(iterations=iterations, mix=mix, common_noise=common) / spread(iterations=1, mix=0.0)
    np.testing.assert_allclose(ratio, left, rtol=5 * np.sqrt(2 / (2 * n)))


def test_chained_windows_by_hand():
    """Two windows of 4 steps for 6: the second starts at the last state of the first."""
    synthesizer = make_dydiff(Doubling(), StateDenoiser(Says(jnp.array([9.0, 2.0, 3.0, 4.0])), CODEC, T, "clean"),
                              DyDiffConfig(iterations=1, chained=True), SAMPLER, length=6)  # fmt: skip
    synthetic = synthesizer(jax.random.key(0), HALF, jnp.array([[3.0]])).trajectory
    first = [3, (6 + 5) / 2, (12 + 7) / 2, (24 + 9) / 2]
    states = [*first, (2 * first[-1] + 5) / 2, (4 * first[-1] + 7) / 2]
    np.testing.assert_allclose(synthetic.obs[0, :, 0], states, rtol=1e-4)
    np.testing.assert_allclose(synthetic.action[0, :, 0], 0.01 * np.asarray(states), rtol=1e-4)


def test_a_chain_has_every_length_and_is_no_other_where_one_window_suffices():
    denoiser, noisy = StateDenoiser(Says(jnp.arange(4.0)), CODEC, T, "clean"), acts_with_noise()

    def rolled(chained, length):
        config = DyDiffConfig(iterations=2, chained=chained)
        synthesizer = make_dydiff(Doubling(), denoiser, config, SAMPLER, length=length)
        return synthesizer(jax.random.key(0), noisy, jnp.array([[3.0]])).trajectory

    chex.assert_trees_all_equal(rolled(True, T), rolled(False, T))
    for length in (5, 7, 8):
        found = rolled(True, length)
        chex.assert_shape(found.obs, (1, length, 1))
        noise = np.asarray(found.action - 0.01 * found.obs)
        assert len(np.unique(np.round(noise, 4))) == length  # every step has its own, where windows meet, too


def acts_with_noise():
    return Policy(jnp.zeros(()), lambda p, key, obs: 0.01 * obs + jax.random.normal(key, (1,)), lambda p, obs: 0.01 * obs)


def test_the_policys_noise_is_the_same_in_every_iteration():
    """The states stay (mix 1), so the actions must: with new noise they would not be those that led to the states."""
    noisy = acts_with_noise()
    start = jnp.array([[3.0], [1.0]])
    first, refined = (dydiff([0.0] * T, iterations=i, mix=1.0)(jax.random.key(0), noisy, start).trajectory for i in (0, 2))
    np.testing.assert_allclose(refined.obs, first.obs, rtol=1e-6)
    np.testing.assert_allclose(refined.action, first.action, rtol=1e-5)
    assert len(np.unique(np.round(first.action - 0.01 * first.obs, 4))) == first.action.size  # every step has its own


@pytest.mark.parametrize("kind", ["dydiff", "world_model"])
def test_rollouts_take_the_policys_mode_where_it_is_asked_for(kind):
    noisy = Policy(jnp.zeros(()), lambda p, key, obs: 0.01 * obs + jax.random.normal(key, (1,)), lambda p, obs: 0.01 * obs)
    start = jnp.array([[3.0], [1.0]])
    make = {
        "dydiff": lambda actions: dydiff([1.0] * T, iterations=2, actions=actions),
        "world_model": lambda actions: make_world_model_synthesizer(Doubling(), RolloutConfig(actions=actions), length=T),
    }[kind]
    mode, drawn = (make(actions)(jax.random.key(0), noisy, start).trajectory for actions in ("mode", "sampled"))
    np.testing.assert_allclose(mode.action, 0.01 * mode.obs, rtol=1e-5)
    assert np.abs(drawn.action - 0.01 * drawn.obs).min() > 1e-4


def test_conditions_must_be_those_of_the_training():
    clean, noised = (StateDenoiser(Says(jnp.zeros(T)), CODEC, T, c) for c in ("clean", "noised"))
    assert make_dydiff(Doubling(), noised).denoiser.conditions == "noised"
    assert make_dydiff(Doubling(), clean, DyDiffConfig(conditions="churned")).denoiser.conditions == "churned"
    with pytest.raises(InputError, match=r"conditions = 'clean': expected noised"):
        make_dydiff(Doubling(), noised, DyDiffConfig())
    with pytest.raises(InputError, match=r"conditions = 'noised': expected clean or churned"):
        make_dydiff(Doubling(), clean, DyDiffConfig(conditions="noised"))


def test_terminals_come_from_the_rule_at_the_refined_states_and_mask_the_rest():
    z = [(s - 1.0) / 2.0 for s in (3.0, 10.0, 31.0, 5.0)]
    synthetic = dydiff(z, iterations=1, mix=0.0)(jax.random.key(0), HALF, jnp.array([[3.0]])).trajectory
    np.testing.assert_array_equal(synthetic.discount[0], [1, 0, 1, 1])  # the step that leads to 31
    np.testing.assert_array_equal(synthetic.mask[0], [True, True, False, False])


def test_conditions_are_the_first_state_and_all_actions():
    np.testing.assert_array_equal(known_entries(CODEC, 3), [[True, True], [False, True], [False, True]])
    denoiser = StateDenoiser(Says(jnp.zeros(T)), CODEC, T)
    condition = denoiser.condition(jnp.array([5.0]), jnp.full((T, 1), 0.5))
    assert float(condition.value[0, 0]) == 2.0
    np.testing.assert_allclose(condition.value[:, 1], np.arctanh(0.5), rtol=1e-6)


@struct.dataclass
class Linear:
    """The exact conditional denoiser of s' = 0.9 s + a + 0.3 noise from a known start, actions known."""

    def given(self, x, sigma, condition):
        start, actions = condition.value[0, 0], jnp.tanh(condition.value[:, 1])
        mean = [start]
        for t in range(T - 1):
            mean.append(0.9 * mean[-1] + actions[t])
        lower = jnp.array([[0.3 * 0.9 ** float(t - s) if s <= t else 0.0 for s in range(1, T)] for t in range(1, T)])
        cov = lower @ lower.T
        mean = jnp.stack(mean)[1:]
        states = mean + cov @ jnp.linalg.solve(cov + sigma**2 * jnp.eye(T - 1), x[1:, 0] - mean)
        return condition.impose(jnp.stack([jnp.append(start, states), x[:, 1]], axis=1))


def test_sampled_states_follow_the_conditional_distribution():
    codec = TokenCodec(jnp.zeros(4), jnp.ones(4), 1, 1)
    synthetic = make_dydiff(
        Doubling(),
        StateDenoiser(Linear(), codec, T),
        DyDiffConfig(),
        SamplerConfig("heun", steps=24, heun=EDMConfig(churn=10.0)),
    )
    actions, size = jnp.array([[0.5], [-0.5], [0.25], [0.0]]), 2000
    draw = jax.jit(jax.vmap(lambda k: synthetic.sample_states(k, jnp.array([1.0]), actions)[:, 0]))
    states = np.asarray(draw(jax.random.split(jax.random.key(0), size)))
    np.testing.assert_array_equal(states[:, 0], 1.0)
    mean = [1.0]
    for a in (0.5, -0.5, 0.25):
        mean.append(0.9 * mean[-1] + a)
    std = [0.3 * np.sqrt(sum(0.9 ** (2 * i) for i in range(t))) for t in range(1, T)]
    np.testing.assert_allclose(states.mean(0)[1:], mean[1:], atol=5 * max(std) / np.sqrt(size) + 0.01)
    np.testing.assert_allclose(states.std(0)[1:], std, atol=5 * max(std) / np.sqrt(2 * size) + 0.02)


# every synthesizer with every kind of policy, and every agent on one synthetic batch

OBS, ACT = 3, 2
SMALL = DenoiserConfig(features=8, blocks=2, groups=4, steps=1, validate_every=1, validation_batches=1, batch_size=4)
KINDS = ("unguided", "guided", "world_model", "dydiff")
AGENT_KINDS = sorted(AGENTS)


def transitions(size=64):
    rng = np.random.default_rng(0)
    draw = lambda *shape: jnp.asarray(rng.normal(size=shape), jnp.float32)
    return Transition(draw(size, OBS), jnp.tanh(draw(size, ACT)), draw(size), jnp.ones(size), draw(size, OBS))


@pytest.fixture(scope="module")
def synthesizers():
    data, key = transitions(), jax.random.key(0)
    starts = np.arange(0, 64 - T, T)
    windows = Windows(data, jnp.asarray(starts), jnp.asarray(starts), fit_codec(data, starts, T), T)
    denoiser = trained_denoiser(denoiser_program(windows, SMALL).init(key, windows), windows)
    chosen = state_windows(windows, "clean")
    states = trained_state_denoiser(denoiser_program(chosen, SMALL).init(key, chosen), chosen, "clean")
    small = WorldModelConfig(members=2, elites=2, hidden=(8,), reward_hidden=(8,))
    known, rule = prepare_transitions(data, small), make_rule("never")
    world = trained_world_model(world_model_program(known, small, rule).init(key, known), known, small, rule)
    sampler = SamplerConfig(steps=2, batch_size=4)
    return {
        "unguided": make_synthesizer(denoiser, sampler),
        "guided": make_synthesizer(denoiser, sampler, GuidanceConfig("reconstruction", coefficient=0.1)),
        "world_model": make_world_model_synthesizer(world, RolloutConfig(penalty=0.1), length=T),
        "dydiff": make_dydiff(world, states, DyDiffConfig(), sampler),
    }


def small_agent(kind):
    section = getattr(AgentConfig(), kind)
    hidden = {"hidden": (8, 8)} if hasattr(section, "hidden") else {}
    return make_agent(kind, dataclasses.replace(section, **hidden), ACT)


# a deterministic policy for every synthesizer, a Gaussian one for those that take its gradient or iterate; the other agents'
# policies are of the same kinds, or take long to compile
FEW = [("guided", "iql"), ("dydiff", "iql"), *((kind, "td3_bc") for kind in KINDS)]
PAIRS = [(kind, agent_kind) for kind in KINDS for agent_kind in AGENT_KINDS]


@pytest.mark.parametrize(
    ("kind", "agent_kind"), [pytest.param(*pair, marks=() if pair in FEW else pytest.mark.slow) for pair in PAIRS]
)
def test_every_synthesizer_follows_every_agents_policy(synthesizers, kind, agent_kind):
    agent, data = small_agent(agent_kind), transitions()
    policy = agent.policy(agent.init(jax.random.key(1), jax.tree.map(lambda x: x[0], data)))
    synthetic = jax.jit(lambda s, p: s(jax.random.key(2), p, data.obs[:5]))(synthesizers[kind], policy)
    assert synthetic.trajectory.obs.shape == (5, T, OBS) and synthetic.trajectory.action.shape == (5, T, ACT)
    assert all(np.isfinite(x).all() for x in jax.tree.leaves(synthetic.trajectory))
    assert float(jnp.abs(synthetic.trajectory.action).max()) <= 1.0
    if kind in ("world_model", "dydiff"):
        np.testing.assert_array_equal(synthetic.trajectory.obs[:, 0], data.obs[:5])


@pytest.mark.parametrize(
    "agent_kind", [pytest.param(kind, marks=() if kind == "td3_bc" else pytest.mark.slow) for kind in AGENT_KINDS]
)
def test_every_agent_learns_from_rollouts_of_one_step(synthesizers, agent_kind):
    agent, data = small_agent(agent_kind), transitions()
    short = make_world_model_synthesizer(synthesizers["world_model"].model, RolloutConfig(length=1), length=T)
    replay = init_replay(short(jax.random.key(0), small_policy(), data.obs[:8]).trajectory)
    assert replay.trajectory.reward.shape == (8, 1) and int(replay.count) == 8
    batch = sample_synthetic(jax.random.key(3), replay, 24)
    assert (np.asarray(batch.next_obs) != np.asarray(batch.obs)).all()
    stacked = jax.tree.map(lambda x: jnp.broadcast_to(x, (agent.batches, *x.shape)), batch)
    if agent.next_actions:  # of which rollouts of one step have none
        stacked = with_next_actions(stacked, share=0.0)
    state = agent.init(jax.random.key(1), jax.tree.map(lambda x: x[0], data))
    update, changed = jax.jit(agent.update), state
    for key in jax.random.split(jax.random.key(2)):  # some actors move in every second update only
        changed, metrics = update(key, changed, stacked)
    assert all(np.isfinite(m).all() for m in jax.tree.leaves(metrics))
    moved = jax.tree.map(lambda a, b: not np.array_equal(a, b), agent.policy(state).params, agent.policy(changed).params)
    assert any(jax.tree.leaves(moved))


def small_policy():
    return Policy(jnp.zeros(()), lambda p, key, obs: jnp.tanh(obs[:ACT]), lambda p, obs: jnp.tanh(obs[:ACT]))
