"""Rollouts in a world model whose answers are computed by hand."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import struct

from jaxpgd.types import Policy, Transition
from jaxpgd.world_model.networks import GaussianRegressor
from jaxpgd.world_model.rollouts import RolloutConfig, rollout, uncertainty
from jaxpgd.world_model.scales import fit_scales, statistics


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
    config = RolloutConfig(**{"sampled": False, "length": 6, **options})
    return rollout(jax.random.key(key), model, constant(action), jnp.asarray([start]), config)


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
    return np.round(np.diff(np.asarray(found.obs[:, 0])) - 0.5)


def test_an_elite_is_drawn_once_per_trajectory_or_at_every_step():
    once = [moves(roll(Exact(), key=k, elite="trajectory")) for k in range(20)]
    assert all(len(set(m)) == 1 for m in once) and {m[0] for m in once} == {1.0, 10.0, 100.0}
    every = np.concatenate([moves(roll(Exact(), key=k, elite="step", length=31)) for k in range(20)])
    assert set(every) == {1.0, 10.0, 100.0}
    for step in (1.0, 10.0, 100.0):  # 600 draws of probability 1/3: five standard deviations are 0.096
        assert np.mean(every == step) == pytest.approx(1 / 3, abs=0.096)


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


def test_scales_standardise_and_constant_entries_stay_finite():
    rng = np.random.default_rng(0)
    x = jnp.asarray(np.stack([rng.normal(3.0, 2.0, 500), np.full(500, 7.0)], axis=1), jnp.float32)
    found = statistics(x)
    z = found.standardise(x)
    np.testing.assert_allclose(z.mean(0), 0.0, atol=1e-4)
    np.testing.assert_allclose(z.std(0), [1.0, 0.0], atol=1e-4)
    np.testing.assert_allclose(found.restore(z), x, rtol=1e-5, atol=1e-5)
    batch = Transition(x, jnp.zeros((500, 1)), jnp.arange(500.0), jnp.ones(500), x + 1.0)
    scales = fit_scales(batch)
    assert scales.inputs(batch.obs, batch.action).shape == (500, 3)
    np.testing.assert_allclose(scales.target_delta(batch), 0.0, atol=1e-2)  # a constant change is its mean
    np.testing.assert_allclose(scales.target_reward(batch).std(), 1.0, rtol=1e-4)


def test_log_variance_stays_between_its_bounds():
    network = GaussianRegressor(2, (8,))
    params = network.init(jax.random.key(0), jnp.zeros(3))
    _, log_variance = network.apply(params, 1e4 * jax.random.normal(jax.random.key(1), (100, 3)))
    assert float(log_variance.max()) <= 0.5 + 1e-3 and float(log_variance.min()) >= -10.0 - 1e-3
    assert float(log_variance.max()) > 0.4 and float(log_variance.min()) < -9.9  # inputs this large reach both
