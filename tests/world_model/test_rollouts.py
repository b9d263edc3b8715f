"""Rollouts in a world model whose answers are computed by hand."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import struct

from jaxpgd.types import Policy
from jaxpgd.world_model.rollouts import RolloutConfig, rollout, uncertainty


@struct.dataclass
class Exact:
    """Member k moves by action + 10^k; both are sure to `std`; the episode ends above `limit`."""

    std: float = 0.0
    limit: float = 1e9
    members: int = struct.field(pytree_node=False, default=3)

    def next_states(self, obs, action):
        steps = 10.0 ** jnp.arange(self.members)
        return obs + action + steps[:, None], jnp.full((self.members, obs.shape[0]), self.std) * steps[:, None]

    def reward(self, obs, action):
        return obs[0] + 100.0 * action[0]

    def discount(self, obs, action, next_obs):
        return jnp.where(next_obs[0] > self.limit, 0.0, 1.0)

    def clip_obs(self, obs):
        return obs


def constant(action):
    return Policy(jnp.asarray([action]), lambda p, key, obs: p, lambda p, obs: p)


def roll(model, key=0, start=0.0, action=0.5, **options):
    return from_key(jax.random.key(key), model, start, action, **options)


def from_key(key, model, start=0.0, action=0.5, **options):
    config = RolloutConfig(**{"sampled": False, "length": 6, **options})
    return rollout(key, model, constant(action), jnp.asarray([start]), config)


def roll_many(model, count, **options):
    """Rollouts of `count` keys, one program."""
    return jax.vmap(lambda key: from_key(key, model, **options))(jax.random.split(jax.random.key(0), count))


@pytest.mark.parametrize("length", [1, 2, 6])
def test_a_rollout_of_h_steps_is_h_transitions(length):
    found = roll(Exact(members=1), length=length)
    assert found.obs.shape == (length, 1) and found.mask.tolist() == [True] * length
    np.testing.assert_allclose(found.last_obs, [1.5 * length])


def test_steps_rewards_and_the_last_mask_by_hand():
    found = roll(Exact(members=1))
    np.testing.assert_allclose(found.obs[:, 0], 1.5 * np.arange(6))
    np.testing.assert_allclose(found.reward, 1.5 * np.arange(6) + 50.0)
    np.testing.assert_array_equal(found.mask, [True] * 6)  # where the last step leads is known as well
    np.testing.assert_allclose(found.last_obs, [9.0])
    np.testing.assert_array_equal(found.discount, np.ones(6))


def test_everything_after_a_terminal_is_masked():
    found = roll(Exact(members=1, limit=4.0))  # 0, 1.5, 3, then 4.5: the third step ends the episode
    np.testing.assert_array_equal(found.discount[:3], [1, 1, 0])
    np.testing.assert_array_equal(found.mask, [True, True, True, False, False, False])


def moves(found):
    return np.round(np.diff(np.asarray(found.obs[..., 0])) - 0.5)


def test_an_elite_is_drawn_once_per_trajectory_or_at_every_step():
    once = moves(roll_many(Exact(), 20, elite="trajectory"))
    assert (once == once[:, :1]).all() and set(once[:, 0]) == {1.0, 10.0, 100.0}
    every = moves(roll_many(Exact(), 20, elite="step", length=31))
    assert set(every.ravel()) == {1.0, 10.0, 100.0}
    for step in (1.0, 10.0, 100.0):  # 600 draws of probability 1/3: five standard deviations are 0.096
        assert np.mean(every == step) == pytest.approx(1 / 3, abs=0.096)


def test_the_mean_of_the_elites_and_the_spread_of_their_mixture():
    assert set(moves(roll(Exact(), elite="mean"))) == {37.0}
    ends = roll_many(Exact(std=2.0), 4000, elite="mean", sampled=True, length=2).obs[:, 1, 0]
    spread = np.sqrt(np.mean([2.0**2, 20.0**2, 200.0**2]) + np.var([1.0, 10.0, 100.0]))
    assert np.std(ends) == pytest.approx(spread, rel=5 / np.sqrt(2 * 4000))  # five standard errors


def test_sampled_rollouts_have_the_members_spread():
    sample = jax.vmap(lambda k: rollout_key(k))(jax.random.split(jax.random.key(0), 4000))
    moved = sample - 0.5 - 1.0
    assert float(moved.mean()) == pytest.approx(0.0, abs=5 * 0.3 / 4000**0.5)
    assert float(moved.std()) == pytest.approx(0.3, abs=5 * 0.3 / 8000**0.5)


def rollout_key(key):
    found = rollout(key, Exact(std=0.3, members=1), constant(0.5), jnp.zeros(1), RolloutConfig(length=2))
    return found.obs[1, 0]


def test_penalty_is_the_largest_norm_over_members():
    assert float(uncertainty(jnp.array([[3.0, 4.0], [0.0, 6.0]]))) == 6.0
    plain, punished = (roll(Exact(std=0.1), penalty=p, elite="trajectory") for p in (0.0, 2.0))
    np.testing.assert_allclose(plain.reward - punished.reward, 2.0 * 10.0, rtol=1e-4)  # member 2: 0.1 * 10^2


def test_a_rollout_needs_a_length_and_one_start():
    with pytest.raises(ValueError, match=r"expected a number of steps in config.length, not 0"):
        roll(Exact(), length=0)
    with pytest.raises(AssertionError, match="rank"):
        rollout(jax.random.key(0), Exact(), constant(0.5), jnp.zeros((4, 1)), RolloutConfig(length=2))
