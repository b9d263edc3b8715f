import dataclasses
from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import struct
from scipy.stats import norm
from training.counting import COUNTING, REAL, Gain, Stamp

from jaxpgd.agents import TD3BCConfig, rebrac, td3_bc
from jaxpgd.envs.linear_gaussian import linear_policy
from jaxpgd.errors import InputError
from jaxpgd.options import numeric
from jaxpgd.synthesis.replay import SynthesisConfig, no_replay
from jaxpgd.training.agent import (
    AgentConfig,
    agent_program,
    make_schedule,
    refresh,
    train_agent,
    value_excess,
)
from jaxpgd.training.experience import Experience, learned_from, refresh_metrics
from jaxpgd.training.program import fit
from jaxpgd.types import Synthesis, Synthesizer, Trajectory, Transition, valid_steps

DATA = Experience(REAL, Stamp(), Stamp(-1.0))
CONFIG = AgentConfig(updates=30, batch_size=16, updates_per_chunk=5)
SYNTHESIS = SynthesisConfig(trajectories=8, interval=10, fraction=0.25, synthetic_ratio=0.75)


def stamps(synthesis: SynthesisConfig, data: Experience = DATA) -> list[list[int]]:
    """What the rows of the replay say after each chunk."""
    chex.clear_trace_counter()
    program = agent_program(COUNTING, CONFIG, synthesis)
    state = jax.jit(program.init)(jax.random.key(0), data)
    chunk, found = jax.jit(chex.assert_max_traces(program.chunk, n=1)), []  # a refresh traces nothing again
    for index in range(program.chunks):
        state, _ = chunk(state, data, jnp.asarray(index))
        found.append(state.replay.trajectory.reward[:, 0].astype(int).tolist())
    return found


def test_oneoff_never_refreshes() -> None:
    assert stamps(dataclasses.replace(SYNTHESIS, regime="oneoff")) == [[-1] * 8] * 6


def test_periodic_replaces_everything_when_due() -> None:
    expected = [[-1] * 8] * 2 + [[10] * 8] * 2 + [[20] * 8] * 2
    assert stamps(dataclasses.replace(SYNTHESIS, regime="periodic")) == expected


def test_continuous_replaces_the_oldest_quarter() -> None:
    """Due at every chunk here; five refreshes of two rows wrap around a ring of eight."""
    found = stamps(dataclasses.replace(SYNTHESIS, regime="continuous", interval=5))
    assert found[0] == [-1] * 8
    assert found[1] == [5, 5, -1, -1, -1, -1, -1, -1]
    assert found[4] == [5, 5, 10, 10, 15, 15, 20, 20]
    assert found[5] == [25, 25, 10, 10, 15, 15, 20, 20]


def test_without_a_first_synthesizer_the_policy_fills_the_replay() -> None:
    found = stamps(dataclasses.replace(SYNTHESIS, regime="oneoff"), Experience(REAL, Stamp()))
    assert found == [[0] * 8] * 6


def test_schedules() -> None:
    schedule = make_schedule(CONFIG, dataclasses.replace(SYNTHESIS, regime="continuous", fraction=0.3))
    assert (schedule.chunks, schedule.chunk_updates, schedule.refresh_chunks) == (6, 5, 2)
    assert (schedule.capacity, schedule.refresh_count) == (8, 2)  # 0.3 of 8, rounded
    assert make_schedule(CONFIG, dataclasses.replace(SYNTHESIS, regime="oneoff")).refresh_chunks == 0
    tiny = make_schedule(CONFIG, dataclasses.replace(SYNTHESIS, regime="continuous", fraction=0.0))
    assert tiny.refresh_count == 1  # a refresh always makes something


ENDS = jnp.array([[1.0, 1.0, 1.0, 0.0], [1.0, 0.0, 1.0, 1.0], [1.0, 1.0, 1.0, 1.0]])  # discounts of three trajectories
LEARNED = {  # (drop_last, after_terminal): the steps that agents learn from
    (False, False): [[1, 1, 1, 1], [1, 1, 0, 0], [1, 1, 1, 0]],
    (True, False): [[1, 1, 1, 0], [1, 1, 0, 0], [1, 1, 1, 0]],
    (False, True): [[1, 1, 1, 1], [1, 1, 1, 0], [1, 1, 1, 0]],
    (True, True): [[1, 1, 1, 0], [1, 1, 1, 0], [1, 1, 1, 0]],  # as PGD's released code
}


@struct.dataclass
class Ending(Synthesizer):
    """Trajectories that end as `ENDS`, in turn."""

    def __call__(self, key: Any, policy: Any, start: Any) -> Synthesis:
        discount = ENDS[jnp.arange(start.shape[0]) % 3]
        zeros = jnp.zeros((*discount.shape, 1))
        made = Trajectory(zeros, zeros, discount, discount, valid_steps(discount))
        return Synthesis(made, jnp.zeros(start.shape[0]), {})


@pytest.mark.parametrize(("drop_last", "after_terminal"), LEARNED)
def test_steps_that_agents_learn_from(drop_last: bool, after_terminal: bool) -> None:
    """Of the first generation and of those that replace it."""
    how = {"drop_last": drop_last, "after_terminal": after_terminal}
    synthesis = dataclasses.replace(SYNTHESIS, trajectories=3, **how)
    program, data = agent_program(COUNTING, CONFIG, synthesis), Experience(REAL, Ending())
    expected = np.array(LEARNED[drop_last, after_terminal], bool)
    first = program.init(jax.random.key(0), data)
    again = refresh(first.replace(replay=no_replay(first.replay).replace(position=jnp.zeros((), jnp.int32))), data,
                    COUNTING, make_schedule(CONFIG, synthesis))  # fmt: skip
    for state in (first, again):
        np.testing.assert_array_equal(state.replay.trajectory.mask, expected)
        assert int(state.replay.count) == expected.sum()


def test_the_known_end_of_a_rollout_is_learned_from_unless_dropped() -> None:
    rollout = Ending()(None, None, jnp.zeros((3, 1))).trajectory.replace(last_obs=jnp.ones((3, 1)))
    assert learned_from(rollout, drop_last=False, after_terminal=True).mask.all()
    np.testing.assert_array_equal(learned_from(rollout, drop_last=True, after_terminal=True).mask, LEARNED[True, True])


@pytest.mark.parametrize(("ratio", "real"), [(0.75, 4), (1.0, 0)])
def test_batches_mix_as_set(ratio: float, real: int) -> None:
    synthesis = dataclasses.replace(SYNTHESIS, synthetic_ratio=ratio)
    _, metrics = jax.jit(lambda k: train_agent(k, DATA, agent=COUNTING, config=CONFIG, synthesis=synthesis))(jax.random.key(0))
    np.testing.assert_array_equal(metrics["real"], np.full(6, real))
    # the updates of a chunk see what was made before them
    np.testing.assert_array_equal(metrics["synthetic_reward_seen"], [-1, -1, 10, 10, 20, 20])
    np.testing.assert_array_equal(metrics["synthetic_transitions"], np.full(6, 16))  # two of three steps are usable
    np.testing.assert_allclose(metrics["synthetic_reward"], [-1, -1, 10, 10, 20, 20])


def test_raw_keys_draw_what_typed_ones_do() -> None:
    train = jax.jit(lambda k: train_agent(k, DATA, agent=COUNTING, config=CONFIG, synthesis=SYNTHESIS))
    chex.assert_trees_all_equal(train(jax.random.PRNGKey(0)), train(jax.random.key(0)))


def test_refreshes_have_metrics() -> None:
    """Likelihoods of a linear policy by hand, over steps up to a terminal; effective size of weights 3 : 1."""
    real = Transition(jnp.array([[1.0]]), jnp.array([[0.2]]), jnp.zeros(1), jnp.ones(1), jnp.zeros((1, 1)))
    obs, action = jnp.array([[[1.0], [2.0]], [[0.5], [7.0]]]), jnp.array([[[0.3], [1.0]], [[0.1], [-1.0]]])
    discount = jnp.array([[1.0, 1.0], [0.0, 1.0]])  # the second trajectory ends at its first step
    made = Trajectory(obs, action, jnp.zeros((2, 2)), discount, jnp.ones((2, 2), bool))
    metrics = refresh_metrics(linear_policy([[0.4]], [0.0], 0.5), real, made, jnp.log(jnp.array([3.0, 1.0])))
    log_prob = lambda s, a: norm.logpdf(a, 0.4 * s, 0.5)
    np.testing.assert_allclose(metrics["data_log_likelihood"], log_prob(1.0, 0.2), rtol=1e-5)
    after = np.mean([log_prob(1.0, 0.3), log_prob(2.0, 1.0), log_prob(0.5, 0.1)])
    np.testing.assert_allclose(metrics["log_likelihood"], after, rtol=1e-5)
    np.testing.assert_allclose([metrics["ess"], metrics["clipped_actions"]], [0.8, 0.5], rtol=1e-5)


def test_real_experience_needs_no_replay() -> None:
    program = agent_program(COUNTING, CONFIG, SYNTHESIS)
    state, metrics = jax.jit(lambda k: fit(k, program, Experience(REAL)))(jax.random.key(0))
    assert state.replay is None and int(state.agent.updates) == 30
    np.testing.assert_array_equal(metrics["real"], np.full(6, 16))


def test_fit_equals_driven_chunks_bit_for_bit() -> None:
    program = agent_program(COUNTING, CONFIG, SYNTHESIS)
    state, metrics = jax.jit(lambda k: fit(k, program, DATA))(jax.random.key(4))
    driven, chunk = jax.jit(program.init)(jax.random.key(4), DATA), jax.jit(program.chunk)
    for index in range(program.chunks):
        driven, row = chunk(driven, DATA, jnp.asarray(index))
    assert row == jax.tree.map(lambda x: x[-1], metrics)
    np.testing.assert_array_equal(jax.random.key_data(driven.key), jax.random.key_data(state.key))
    chex.assert_trees_all_equal(driven.replace(key=0), state.replace(key=0))


def test_keys_and_hypers_vmap() -> None:
    train = jax.jit(jax.vmap(lambda k, h: train_agent(k, DATA, h, agent=COUNTING, config=CONFIG, synthesis=SYNTHESIS)))
    state, metrics = train(jax.random.split(jax.random.key(0), 3), Gain(jnp.array([0.0, 0.5, 2.0])))
    np.testing.assert_allclose(state.total, [0, 15, 60])
    assert metrics["real"].shape == (3, 6)


def test_a_real_agent_over_keys_and_learning_rates() -> None:
    rng = np.random.default_rng(0)
    real = Transition(
        obs=jnp.asarray(rng.normal(size=(50, 2)), jnp.float32), action=jnp.asarray(rng.uniform(-1, 1, (50, 1)), jnp.float32),
        reward=jnp.zeros(50), discount=jnp.ones(50), next_obs=jnp.zeros((50, 2)),
    )  # fmt: skip
    agent = td3_bc(action_dim=1, hidden=(4,))
    config = AgentConfig(updates=4, batch_size=8, updates_per_chunk=2)
    axes = dataclasses.replace(agent.hypers, **dict.fromkeys(numeric(TD3BCConfig), None) | {"lr": 0})
    hypers = dataclasses.replace(agent.hypers, lr=jnp.array([0.0, 1e-2, 1e-2]))
    keys = jnp.stack([jax.random.key(i) for i in (7, 7, 8)])
    train: Any = jax.jit(
        jax.vmap(lambda k, h: train_agent(k, Experience(real), h, agent=agent, config=config), in_axes=(0, axes))
    )
    state, metrics = train(keys, hypers)
    obs = jnp.array([0.3, -0.2])
    mode = jax.jit(lambda s: agent.policy(s).mode(obs))
    modes = [mode(jax.tree.map(lambda x, i=i: x[i], state)) for i in range(3)]
    fresh = jax.jit(agent.init)(jax.random.split(keys[0], 3)[1], jax.tree.map(lambda x: x[0], real))
    np.testing.assert_allclose(modes[0], mode(fresh), rtol=1e-5)  # learning rate 0: as it started
    assert len(np.unique(np.asarray(modes))) == 3
    assert all(np.isfinite(m).all() and m.shape == (3, 2) for m in metrics.values())
    again, _ = train(keys, hypers)
    chex.assert_trees_all_equal(state, again)  # same keys, same bits


@pytest.mark.parametrize(
    ("config", "synthesis", "message"),
    [
        ({"updates": 300}, {}, "agent.updates = 300: expected a multiple of agent.updates_per_chunk = 500"),
        ({"updates": 0}, {}, "agent.updates = 0: expected a number above 0"),
        ({}, {"interval": 200}, "synthesis.interval = 200: expected a multiple of agent.updates_per_chunk"),
        ({}, {"regime": "one-off"}, "synthesis.regime = 'one-off': expected one of"),
        ({}, {"synthetic_ratio": 50.0}, "synthesis.synthetic_ratio = 50.0: expected a number from 0 to 1"),
    ],
)
def test_settings_that_would_train_otherwise_are_refused(config: dict, synthesis: dict, message: str) -> None:
    with pytest.raises(InputError, match=message):
        train_agent(
            jax.random.key(0), DATA, agent=COUNTING, config=AgentConfig(**config), synthesis=SynthesisConfig(**synthesis)
        )


def test_data_on_the_host_trains_without_being_compiled_outside() -> None:
    real = jax.tree.map(np.asarray, REAL)
    config = AgentConfig(updates=2, updates_per_chunk=2, batch_size=16)
    state, metrics = train_agent(jax.random.key(0), Experience(real), agent=COUNTING, config=config)
    expected, _ = train_agent(jax.random.key(0), Experience(REAL), agent=COUNTING, config=config)
    chex.assert_trees_all_equal(state, expected)
    assert all(len(value) == 1 for value in metrics.values())


def test_rewards_that_span_nothing_flag_no_critic() -> None:
    data = lambda reward: dataclasses.replace(REAL, reward=jnp.full_like(REAL.reward, reward))
    for value in (0.004, 0.05, -0.05, 30.0):
        assert float(value_excess(data(0.0), 0.99, jnp.asarray(value))) == 0.0
    # a constant reward is worth from 0 (an episode that ends at once) to 10 times itself
    for reward, value, excess in ((2.0, 20.0, 0.0), (2.0, 40.0, 1.0), (2.0, -5.0, 0.25), (-2.0, -60.0, 2.0), (-2.0, 10.0, 0.5)):
        assert float(value_excess(data(reward), 0.9, jnp.asarray(value))) == pytest.approx(excess, abs=1e-5)


def test_next_actions_that_an_agent_needs_are_asked_for_before_anything_is_trained() -> None:
    with pytest.raises(InputError, match=r"real.next_action = None: expected the actions that follow, which rebrac needs. Use"):
        train_agent(jax.random.key(0), DATA, agent=rebrac(action_dim=1, hidden=(4,)), config=CONFIG, synthesis=SYNTHESIS)


def test_a_critic_of_rewards_of_0_is_not_called_diverging() -> None:
    agent = td3_bc(action_dim=1, hidden=(8,))
    real = dataclasses.replace(REAL, reward=jnp.zeros_like(REAL.reward))
    _, metrics = jax.jit(
        lambda key: train_agent(key, Experience(real), agent=agent, config=AgentConfig(updates=4, updates_per_chunk=2))
    )(jax.random.key(0))
    assert float(jnp.abs(metrics["target_mean"]).max()) > 0.0
    np.testing.assert_array_equal(metrics["value_excess"], 0.0)
