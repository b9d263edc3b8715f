import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxpgd.synthesis.replay import (
    draw_mixed,
    init_replay,
    insert,
    resample,
    sample_mixed,
    sample_real,
    sample_synthetic,
    take,
)  # fmt: skip
from jaxpgd.types import Trajectory, Transition, valid_steps

add = jax.jit(insert)
draw = jax.jit(sample_mixed, static_argnums=(3, 4))


def rows(*names: int, terminal: dict[int, int] | None = None, length: int = 3) -> Trajectory:
    """Trajectories whose observation at step t is 10 * name + t; `terminal` maps a name to its terminal step."""
    terminal = terminal or {}
    steps = jnp.asarray(names)[:, None] * 10.0 + jnp.arange(length)
    ends = [[0.0 if terminal.get(n) == t else 1.0 for t in range(length)] for n in names]
    discount = jnp.asarray(ends)
    return Trajectory(
        obs=steps[..., None], action=-steps[..., None], reward=steps + 0.5, discount=discount, mask=valid_steps(discount)
    )


def real(size: int = 7) -> Transition:
    steps = -100.0 - jnp.arange(size)
    return Transition(
        obs=steps[:, None], action=steps[:, None], reward=steps, discount=jnp.ones(size), next_obs=steps[:, None] - 1
    )


def test_only_usable_steps_are_drawn_with_their_own_successors() -> None:
    replay = init_replay(rows(1, 2, 3, terminal={2: 2, 3: 0}))
    assert int(replay.count) == 2 + 3 + 1
    drawn = jax.jit(sample_synthetic, static_argnums=2)(jax.random.key(0), replay, 6000)
    obs = np.asarray(drawn.obs[:, 0])
    assert sorted(set(obs)) == [10, 11, 20, 21, 22, 30]  # 12 and everything after 30 are never drawn
    alive = np.asarray(drawn.discount) == 1
    np.testing.assert_array_equal(drawn.next_obs[alive, 0], obs[alive] + 1)
    assert sorted(set(obs[~alive])) == [22, 30]  # terminals, the one at the end of a trajectory included
    np.testing.assert_array_equal(drawn.reward, obs + 0.5)
    np.testing.assert_array_equal(drawn.action[:, 0], -obs)
    counts = np.unique(obs, return_counts=True)[1]
    assert (np.abs(counts - 1000) < 5 * np.sqrt(1000 * 5 / 6)).all()  # uniform over steps


def rollouts(*names: int, terminal: dict[int, int] | None = None, length: int = 3) -> Trajectory:
    """The same, known to lead to 10 * name + `length` after their last step."""
    made = rows(*names, terminal=terminal, length=length)
    mask = valid_steps(made.discount, end_known=True)
    return dataclasses.replace(made, mask=mask, last_obs=made.obs[:, -1] + 1.0)


@pytest.mark.parametrize("length", [3, 1])
def test_every_step_of_a_rollout_is_drawn_as_often_with_its_own_successor(length: int) -> None:
    replay = init_replay(rollouts(1, 2, 3, terminal={2: length - 1, 3: 0}, length=length), capacity=4)
    places = [10.0 + i for i in range(length)] + [20.0 + i for i in range(length)] + [30.0]
    assert int(replay.count) == len(places)
    drawn = jax.jit(sample_synthetic, static_argnums=2)(jax.random.key(0), replay, 1000 * len(places))
    obs, counts = np.unique(drawn.obs, return_counts=True)
    np.testing.assert_array_equal(obs, places)
    assert (np.abs(counts - 1000) < 5 * np.sqrt(1000)).all()
    np.testing.assert_array_equal(drawn.next_obs, drawn.obs + 1)  # of the last step and after terminals, too
    np.testing.assert_array_equal(drawn.discount == 0, np.isin(drawn.obs[:, 0], [20.0 + length - 1, 30.0]))
    np.testing.assert_array_equal(drawn.reward, drawn.obs[:, 0] + 0.5)


@pytest.mark.parametrize("made", [rows, rollouts])
def test_batches_have_the_next_actions_of_trajectories_where_the_real_transitions_have_theirs(made) -> None:
    """The action at a step of the fixtures is minus its observation. The last step of a trajectory has no next action."""
    replay = init_replay(made(1, 2, 3, terminal={2: 2, 3: 0}))
    own = real().replace(next_action=real().action - 1, has_next_action=jnp.arange(7) < 6)
    batch, plain = (draw(jax.random.key(0), each, replay, 600, 300) for each in (own, real()))
    assert plain.next_action is None and plain.has_next_action is None
    for field in ("obs", "action", "reward", "discount", "next_obs"):
        np.testing.assert_array_equal(getattr(batch, field), getattr(plain, field))
    obs, known = np.asarray(batch.obs[:, 0]), np.asarray(batch.has_next_action)
    np.testing.assert_array_equal(known, np.where(obs < 0, obs > -106, obs % 10 < 2))
    np.testing.assert_array_equal(batch.next_action[known, 0], np.where(obs < 0, obs - 1, -(obs + 1))[known])
    assert set(obs[~known]) == {-106, 22} | ({12} if made is rollouts else set())


def test_rollouts_and_whole_trajectories_share_a_replay() -> None:
    """Each keeps what was usable of it, as far as there is room for where its last step leads."""
    replay = add(init_replay(rollouts(1, 2), capacity=3), rows(3))
    assert int(replay.count) == 3 + 3 + 2
    replay = add(init_replay(rows(1, 2, terminal={1: 2}), capacity=3), rollouts(3, terminal={3: 1}))
    assert int(replay.count) == 3 + 2 + 2 and replay.trajectory.last_obs is None
    assert int(add(replay, rollouts(4)).count) == 2 + 2 + 2


def test_insertion_replaces_the_oldest() -> None:
    replay = init_replay(rows(1, 2, 3, 4))
    names = lambda r: (r.trajectory.obs[:, 0, 0] / 10).astype(int).tolist()
    replay = add(replay, rows(5, 6))
    assert names(replay) == [5, 6, 3, 4] and int(replay.position) == 2
    replay = add(replay, rows(7, 8, 9, terminal={7: 0}))
    assert names(replay) == [9, 6, 7, 8] and int(replay.position) == 1
    assert int(replay.count) == 2 + 2 + 1 + 2  # usable steps are counted anew
    drawn = sample_synthetic(jax.random.key(0), replay, 500)
    assert set(np.asarray(drawn.obs[:, 0])) == {90, 91, 60, 61, 70, 80, 81}
    replay = add(replay, rows(11, 12, 13, 14))
    assert sorted(names(replay)) == [11, 12, 13, 14]


def test_more_than_the_capacity_does_not_fit() -> None:
    with pytest.raises(ValueError, match="3 trajectories do not fit into a replay of 2"):
        insert(init_replay(rows(1, 2)), rows(3, 4, 5))


def test_real_draws_are_uniform() -> None:
    drawn = sample_real(jax.random.key(1), real(), 7000)
    values, counts = np.unique(drawn.reward, return_counts=True)
    assert values.tolist() == sorted(real().reward.tolist())
    assert (np.abs(counts - 1000) < 5 * np.sqrt(1000 * 6 / 7)).all()
    np.testing.assert_array_equal(drawn.next_obs, drawn.obs - 1)


@pytest.mark.parametrize("synthetic", [0, 5, 12, 16])
def test_proportions_of_a_mixed_batch(synthetic: int) -> None:
    batch = draw(jax.random.key(0), real(), init_replay(rows(1, 2)), 16, synthetic)
    made = np.asarray(batch.obs[:, 0]) > 0
    assert made.sum() == synthetic and made[16 - synthetic :].all()
    assert {x.shape[0] for x in jax.tree.leaves(batch)} == {16}


def test_without_a_replay_everything_is_real() -> None:
    assert (np.asarray(sample_mixed(jax.random.key(0), real(), None, 16, 12).obs) < 0).all()


def test_a_seed_axis_leaves_real_data_shared() -> None:
    replays = jax.vmap(init_replay)(jax.tree.map(lambda *x: jnp.stack(x), rows(1, 2), rows(3, 4)))
    keys = jax.random.split(jax.random.key(0), 2)
    batch = jax.vmap(sample_mixed, in_axes=(0, None, 0, None, None))(keys, real(), replays, 8, 4)
    synthetic = np.asarray(batch.obs[:, 4:, 0])
    assert (synthetic[0] < 30).all() and (synthetic[1] >= 30).all()


def test_resampling_follows_the_weights_and_keeps_equal_ones() -> None:
    rewards = jnp.arange(4.0)
    made = Trajectory(
        obs=jnp.zeros((4, 2, 1)),
        action=jnp.zeros((4, 2, 1)),
        reward=jnp.stack([rewards, rewards], 1),
        discount=jnp.ones((4, 2)),
        mask=jnp.ones((4, 2), bool),
    )
    equal = resample(jax.random.key(0), made, jnp.full(4, -3.0))
    np.testing.assert_array_equal(equal.reward[:, 0], [0, 1, 2, 3])
    weighted = resample(jax.random.key(1), made, jnp.log(jnp.array([0.5, 0.0, 0.25, 0.25])))  # 4 x weight = 2, 0, 1, 1
    np.testing.assert_array_equal(weighted.reward[:, 0], [0, 0, 2, 3])


def test_draws_of_many_batches_at_once_are_those_one_by_one() -> None:
    data, replay = real(), init_replay(rows(1, 2, 3, 4))
    keys = jax.random.split(jax.random.key(2), 5)
    draws = jax.vmap(lambda k: draw_mixed(k, data, replay, 8, 6))(keys)
    assert draws.real.shape == (5, 2) and draws.synthetic is not None and draws.synthetic.shape == (5, 6)
    for i, key in enumerate(keys):
        expected = sample_mixed(key, data, replay, 8, 6)
        found = take(jax.tree.map(lambda x, i=i: x[i], draws), data, replay)
        jax.tree.map(np.testing.assert_array_equal, found, expected)
    assert draw_mixed(keys[0], data, None, 8, 6).synthetic is None
