"""Rollouts that are cut where the members of an ensemble disagree, with members that are known to."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import struct

from jaxpgd.agents import bc
from jaxpgd.errors import InputError
from jaxpgd.synthesis.filters import returns
from jaxpgd.synthesis.replay import SynthesisConfig, draw_mixed, init_replay, sample_synthetic, take
from jaxpgd.synthesis.world_model import make_world_model_synthesizer
from jaxpgd.training.agent import AgentConfig, train_agent
from jaxpgd.training.experience import Experience, refresh_metrics
from jaxpgd.types import Policy, Transition
from jaxpgd.world_model.rollouts import RolloutConfig, rollout
from jaxpgd.world_model.scales import Scales, statistics
from jaxpgd.world_model.truncation import disagreement, threshold, truncation

T = 6
STILL = Policy(jnp.zeros(1), lambda p, key, obs: p, lambda p, obs: p)
UNITS = statistics(jnp.asarray([[-2.0], [2.0]]))  # of standard deviation 2


@struct.dataclass
class Apart:
    """Two members that move by 1, and are as far apart as the state: at s they disagree by s / 2. The end is above `limit`."""

    limit: float = 1e9
    disagreements: jax.Array | None = struct.field(default_factory=lambda: jnp.linspace(0.0, 2.0, 21))
    scales: Scales = struct.field(default_factory=lambda: Scales(UNITS, UNITS, UNITS))
    members: int = struct.field(pytree_node=False, default=2)

    def next_states(self, obs, action):
        return obs + 1.0 + jnp.asarray([[-1.0], [1.0]]) * obs, jnp.zeros((2, 1))

    def reward(self, obs, action):
        return 10.0 + obs[0]

    def discount(self, obs, action, next_obs):
        return jnp.where(next_obs[0] > self.limit, 0.0, 1.0)

    def clip_obs(self, obs):
        return obs


RUN = jax.jit(lambda synthesizer, start: synthesizer(jax.random.key(0), STILL, start))


def made(model, start=(0.0,), **options):
    config = RolloutConfig(**{"sampled": False, "elite": "mean", **options})
    return RUN(make_world_model_synthesizer(model, config, length=T), jnp.asarray(start)[:, None])


def test_disagreement_by_hand():
    mean = jnp.asarray([[1.0, 10.0], [3.0, 10.0], [5.0, 40.0]])  # standard deviations sqrt(8 / 3) and sqrt(200)
    found = disagreement(mean, jnp.asarray([2.0, 10.0]))
    assert float(found) == pytest.approx(np.sqrt((8 / 3 / 4 + 200 / 100) / 2), rel=1e-6)
    np.testing.assert_allclose(disagreement(jnp.stack([mean, mean], 1), jnp.asarray([2.0, 10.0])), [found, found])
    assert float(disagreement(mean[:1], jnp.ones(2))) == 0.0


def test_the_threshold_is_a_quantile_and_at_0_there_is_none():
    values = np.sort(np.random.default_rng(0).exponential(size=1001)).astype(np.float32)
    quantiles = jnp.asarray([1e-3, 0.25, 0.5, 0.9, 0.99, 0.9995, 1.0])
    found = jax.vmap(threshold, in_axes=(None, 0))(jnp.asarray(values), quantiles)
    np.testing.assert_allclose(found, np.quantile(values, quantiles), rtol=1e-4)
    assert float(found[-1]) == values[-1] and np.isinf(threshold(jnp.asarray(values), 0.0))
    assert float(threshold(jnp.asarray([3.0]), 0.5)) == 3.0


def test_a_rollout_ends_before_the_first_step_of_too_much_disagreement():
    """From 0 disagreements are 0, 0.5, 1, 1.5, ...: the quantile 0.6 of those on data is 1.2, and step 3 the first above."""
    found = made(Apart(), truncate=0.6)
    trajectory = jax.tree.map(lambda x: np.asarray(x[0]), found.trajectory)
    np.testing.assert_allclose(trajectory.obs[:, 0], np.arange(T))
    np.testing.assert_array_equal(trajectory.mask, [True, True, True, False, False, False])
    np.testing.assert_array_equal(trajectory.discount, np.ones(T))
    np.testing.assert_allclose(trajectory.reward, [10, 11, 12, 0, 0, 0])
    np.testing.assert_allclose(returns(found.trajectory), [33.0])
    assert (float(found.info["truncated"]), float(found.info["length"])) == (1.0, 3.0)
    drawn = jax.jit(sample_synthetic, static_argnums=2)(jax.random.key(1), init_replay(found.trajectory), 64)
    np.testing.assert_array_equal(drawn.next_obs, drawn.obs + 1.0)  # the last one leads to the state that is not acted in
    assert set(np.asarray(drawn.obs[:, 0])) == {0.0, 1.0, 2.0}


def test_several_quantiles_in_one_program():
    quantiles = jnp.asarray([0.0, 0.2, 0.25, 0.5, 1.0])
    masks = jax.jit(jax.vmap(lambda q: made(Apart(), truncate=q).trajectory.mask[0]))(quantiles)
    np.testing.assert_array_equal(masks.sum(1), [T, 1, 2, 3, 5])  # limits: none, 0.4, 0.5 (which is not above itself), 1, 2
    np.testing.assert_array_equal(masks, np.arange(T) < np.asarray(masks.sum(1))[:, None])


def test_a_terminal_before_the_cut_stays_and_one_after_it_is_none():
    ended, cut = (made(Apart(limit=limit), truncate=0.6) for limit in (2.5, 3.5))  # steps 2 and 3 would end the episode
    np.testing.assert_array_equal(ended.trajectory.discount[0], [1, 1, 0, 1, 1, 1])
    np.testing.assert_array_equal(cut.trajectory.discount[0], np.ones(T))
    for found in (ended, cut):
        np.testing.assert_array_equal(found.trajectory.mask[0], [True, True, True, False, False, False])
    assert [float(found.info["truncated"]) for found in (ended, cut)] == [0.0, 1.0]
    assert [float(found.info["terminal_rate"]) for found in (ended, cut)] == [1.0, 0.0]


def test_without_truncation_nothing_is_added():
    config = RolloutConfig(length=T, sampled=True)
    roll = jax.jit(lambda limit: rollout(jax.random.key(3), Apart(), STILL, jnp.zeros(1), config, limit=limit))
    jax.tree.map(np.testing.assert_array_equal, roll(None), roll(jnp.asarray(jnp.inf)))
    off = make_world_model_synthesizer(Apart(), config)
    assert off.limit is None and not off.may_be_empty and not {"truncated", "length"} & made(Apart()).info.keys()
    assert make_world_model_synthesizer(Apart(), RolloutConfig(truncate=1.0)).may_be_empty
    unknown = Apart(disagreements=None)
    make_world_model_synthesizer(unknown, config)
    with pytest.raises(InputError, match=r"synthesis.world_model.truncate = 0.5: expected 0 with a world model that has no"):
        make_world_model_synthesizer(unknown, RolloutConfig(truncate=0.5))


def real(size=7):
    steps = -100.0 - jnp.arange(size)
    return Transition(steps[:, None], steps[:, None], steps, jnp.ones(size), steps[:, None] - 1)


def test_where_every_rollout_is_cut_at_once_batches_are_real():
    """They are those that would be drawn without a replay; where one step is left, it is learned from again."""
    found = made(Apart(), start=(5.0, 6.0), truncate=1.0)  # disagreements of 2.5 and 3, above all of the data
    assert not found.trajectory.mask.any() and dict(truncation(found.trajectory)) == {"truncated": 1.0, "length": 0.0}
    batch = jax.jit(lambda replay: take(draw_mixed(jax.random.key(0), real(), replay, 16, 12, or_real=True), real(), replay))
    jax.tree.map(np.testing.assert_array_equal, batch(init_replay(found.trajectory)), batch(None))
    some = made(Apart(), start=(5.0, 4.0), truncate=1.0)
    drawn = batch(init_replay(some.trajectory))
    np.testing.assert_array_equal(drawn.obs[4:], np.full((12, 1), 4.0))


def test_metrics_of_a_refresh_are_of_the_steps_that_are_learned_from():
    """The density is exp(-|s|): rollouts from 0 are cut above 4, as 5 / 2 is above all of the data."""
    density = STILL.replace(log_prob_fn=lambda p, obs, action, variance: -obs[0])
    found = made(Apart(), truncate=1.0)
    metrics = refresh_metrics(density, real(), found.trajectory, jnp.zeros(1))
    np.testing.assert_array_equal(found.trajectory.mask, [[True] * 5 + [False]])
    assert float(metrics["log_likelihood"]) == pytest.approx(-np.mean([0, 1, 2, 3, 4]))
    none = made(Apart(), start=(5.0,), truncate=1.0)
    assert float(refresh_metrics(density, real(), none.trajectory, jnp.zeros(1))["log_likelihood"]) == 0.0


@pytest.mark.slow
@pytest.mark.parametrize("first", [True, False])
def test_a_source_that_cuts_may_follow_one_that_does_not(first):
    cuts, whole = (make_world_model_synthesizer(Apart(), RolloutConfig(truncate=t), length=T) for t in (1.0, 0.0))
    data = Experience(real(), cuts, first=whole if first else None)
    config, synthesis = AgentConfig(updates=4, updates_per_chunk=2), SynthesisConfig(trajectories=4, interval=2)
    agent = bc(action_dim=1, hidden=(4,))
    _, metrics = jax.jit(lambda: train_agent(jax.random.key(0), data, agent=agent, config=config, synthesis=synthesis))()
    assert (np.asarray(metrics["synthetic_truncated"]) > 0).tolist() == [not first, True]
    after = dataclasses.replace(synthesis, after_terminal=True)
    with pytest.raises(InputError, match=r"synthesis.after_terminal = True: expected false where rollouts are cut"):
        train_agent(jax.random.key(0), data, agent=agent, config=config, synthesis=after)
