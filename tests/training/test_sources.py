"""Agents of several sources as one program against each source alone."""

import dataclasses
from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import struct
from jax import Array
from training.counting import COUNTING, REAL, Stamp

from jaxpgd.agents import rebrac, td3_bc
from jaxpgd.experiment.run.seeds import over_seeds
from jaxpgd.synthesis.replay import SynthesisConfig
from jaxpgd.training.agent import AgentConfig, agent_program
from jaxpgd.training.experience import Experience
from jaxpgd.training.program import fit
from jaxpgd.training.sources import join_sources, sources_program
from jaxpgd.types import Policy, Synthesis, Synthesizer, Transition

CONFIG = AgentConfig(updates=30, batch_size=16, updates_per_chunk=5)
SYNTHESIS = SynthesisConfig(trajectories=8, interval=10, fraction=0.25, synthetic_ratio=0.75)
NAMES = ("real", "unguided", "guided")
SOURCES = (Experience(REAL), Experience(REAL, Stamp()), Experience(REAL, Stamp(1000.0), Stamp(-1.0)))


def test_real_agents_see_real_data_and_others_what_their_own_source_made() -> None:
    program = sources_program(COUNTING, CONFIG, SYNTHESIS, NAMES, 2)
    assert program.seeds == 6
    state, metrics = fit(jax.random.key(0), program, join_sources(SOURCES))
    real, first, second = np.asarray(metrics["real"]).reshape(6, 3, 2).transpose(1, 0, 2)
    assert (real == 16).all() and (first == 4).all() and (second == 4).all()
    seen = np.asarray(metrics["synthetic_reward_seen"]).reshape(6, 3, 2)[:, :, 0]
    assert np.isneginf(seen[:, 0]).all()
    # rewards say after how many updates their policy made them: refreshes come before chunks 2 and 4
    np.testing.assert_array_equal(seen[:, 1], [0, 0, 10, 10, 20, 20])
    np.testing.assert_array_equal(seen[:, 2], [-1, -1, 1010, 1010, 1020, 1020])
    held = np.asarray(metrics["synthetic_transitions"]).reshape(6, 3, 2)
    assert (held[:, 0] == 0).all() and (held[:, 1:] > 0).all()
    assert state.agent.updates.shape == (6,) and (np.asarray(state.agent.updates) == 30).all()


@pytest.mark.parametrize(
    ("make", "regime"),
    [pytest.param(*each, marks=pytest.mark.slow) for each in ((rebrac, "periodic"), (td3_bc, "periodic"), (td3_bc, "fifo"))],
)
def test_every_source_trains_as_it_does_alone(make: Any, regime: str) -> None:
    keys = jax.random.split(jax.random.key(1), 3)
    real = Transition(
        obs=jax.random.normal(keys[0], (50, 1)), action=jax.random.uniform(keys[1], (50, 1), minval=-1.0),
        reward=jax.random.normal(keys[2], (50,)), discount=jnp.ones(50), next_obs=jax.random.normal(keys[0], (50, 1)),
    )  # fmt: skip
    agent = make(action_dim=1, hidden=(8,))
    if agent.next_actions:
        real = dataclasses.replace(real, next_action=-real.action, has_next_action=real.reward < 1)
    synthesis = dataclasses.replace(SYNTHESIS, regime=regime)
    stamp = lambda offset: ZeroStamp(jnp.asarray(offset))
    sources = [Experience(real), Experience(real, stamp(0.5)), Experience(real, stamp(2.0), stamp(-1.0))]
    key = jax.random.key(2)
    together, metrics = fit(key, sources_program(agent, CONFIG, synthesis, NAMES, 2), join_sources(sources))
    for i, source in enumerate(sources):
        alone = over_seeds(lambda _: agent_program(agent, CONFIG, synthesis), {"none": jnp.zeros(1)}, 1, 2)
        state, own = fit(key, alone, source)
        part = jax.tree.map(lambda x, i=i: x[2 * i : 2 * i + 2], together)
        chex.assert_trees_all_close(state.agent, part.agent, rtol=1e-5, atol=1e-6)
        np.testing.assert_allclose(own["critic_loss"], metrics["critic_loss"][:, 2 * i : 2 * i + 2], rtol=1e-5)
        assert jax.random.key_data(state.key).tolist() == jax.random.key_data(part.key).tolist()


@struct.dataclass
class Rollouts(Synthesizer):
    """`Stamp`, known to lead somewhere after its last step."""

    def __call__(self, key: Array, policy: Policy, start: Array) -> Synthesis:
        made = Stamp()(key, policy, start)
        whole = dataclasses.replace(made.trajectory, mask=jnp.ones((len(start), 3), bool), last_obs=jnp.ones((len(start), 1)))
        return dataclasses.replace(made, trajectory=whole)


def test_rollouts_beside_whole_trajectories_keep_their_last_step() -> None:
    sources = join_sources([Experience(REAL), Experience(REAL, Stamp()), Experience(REAL, Rollouts())])
    program = sources_program(COUNTING, CONFIG, SYNTHESIS, NAMES, 1)
    _, metrics = fit(jax.random.key(0), program, sources)
    np.testing.assert_array_equal(metrics["synthetic_transitions"], [[0, 8 * 2, 8 * 3]] * 6)


@pytest.mark.parametrize("regime", ["periodic", "oneoff"])
def test_one_program_for_all_chunks(regime: str) -> None:
    program = sources_program(COUNTING, CONFIG, dataclasses.replace(SYNTHESIS, regime=regime), NAMES, 2)
    data = join_sources(SOURCES)
    chex.clear_trace_counter()
    step = jax.jit(chex.assert_max_traces(program.chunk, n=1))
    state = jax.jit(program.init)(jax.random.key(0), data)
    for i in range(4):
        state, _ = step(state, data, jnp.asarray(i))


def test_sources_that_are_all_real_are_refused() -> None:
    with pytest.raises(ValueError, match="at least one with a synthesizer"):
        join_sources([Experience(REAL)])


class ZeroStamp(Stamp):
    """A synthesizer of one kind of trajectory, whatever the policy; its rewards are `offset`."""

    def __call__(self, key, policy, start):
        return super().__call__(key, dataclasses.replace(policy, params=jnp.zeros(())), start)


jax.tree_util.register_dataclass(ZeroStamp, ["offset"], [])
