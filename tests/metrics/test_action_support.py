"""Distances to nearest neighbours by hand, and shares of actions that are known."""

import jax
import numpy as np
import pytest

from jaxpgd.errors import InputError
from jaxpgd.metrics.action_support import nearest, ood_actions

KEY, RNG = jax.random.key(0), np.random.default_rng(0)


def test_neighbours_of_other_groups_in_one_dimension() -> None:
    x = np.array([[[0.0], [2.2], [9.0]], [[1.4], [-1.0], [5.0]]])
    reference = np.array([[0.1], [1.0], [3.0], [5.5]])
    found = nearest(x, np.array([0, 1, 2]), reference, np.array([0, 1, 2, 3]))
    # the reference of the own group does not count: 0.1 for the first of each row, 1 for the second, 3 for the third
    np.testing.assert_allclose(found, [[1.0, 0.8, 3.5], [0.4, 1.1, 0.5]], rtol=1e-6)
    assert np.isinf(nearest(x, np.zeros(3), reference, np.zeros(4))).all()


def test_batches_change_nothing_and_near_points_keep_their_distance() -> None:
    reference = RNG.normal(size=(300, 5)) + 100.0
    x = (reference + 1e-3)[None]
    found = nearest(x, np.arange(300), reference, -1 - np.arange(300))
    np.testing.assert_allclose(found, np.full((1, 300), 1e-3 * np.sqrt(5)), rtol=2e-2)  # float32 at 100 has 8e-6


def test_shares_of_the_data_of_what_is_like_it_and_of_what_is_far_away() -> None:
    episode = np.repeat(np.arange(100), 40)
    obs = RNG.normal(size=(4000, 2))
    action = np.tanh(obs) * 0.5 + RNG.uniform(-0.05, 0.05, (4000, 2))
    like = lambda s: np.tanh(s) * 0.5 + RNG.uniform(-0.05, 0.05, s.shape)
    own = {state.tobytes(): a for state, a in zip(obs.astype(np.float32), action, strict=True)}
    act = lambda s: np.stack([[own[state.tobytes()] for state in s], like(s), np.ones_like(s), 5.0 * np.ones_like(s)])
    same, fresh, far, clipped = ood_actions(KEY, obs, action, episode, act)
    assert same == 0.05
    # binomial, of the threshold's 2,000 distances and of the 2,000 that are compared with it: 4 standard errors
    assert abs(fresh - 0.05) < 4 * np.sqrt(2 * 0.05 * 0.95 / 2000)
    assert far > 0.99 and clipped == far  # actions outside of [-1, 1] are those that the environment takes


def test_one_episode_is_its_own_reference() -> None:
    obs, action = np.arange(100.0)[:, None], np.zeros((100, 1))  # a constant action: its entry is not divided
    act = lambda s: np.stack([np.zeros_like(s), np.ones_like(s)])
    share = ood_actions(KEY, obs, action, np.zeros(100, int), act)
    assert share[0] <= 0.06 and share[1] > 0.9


def test_states_whose_episode_has_all_references_do_not_count() -> None:
    obs, action = np.zeros((4, 1)), np.zeros((4, 1))
    for key in jax.random.split(KEY, 6):  # in some of these draws both references are of the long episode
        share = ood_actions(key, obs, action, np.array([0, 0, 0, 1]), lambda s: np.ones((1, *s.shape)))
        assert share[0] == 1.0


def test_a_single_transition_is_refused() -> None:
    with pytest.raises(InputError, match="at least two transitions"):
        ood_actions(KEY, np.zeros((1, 2)), np.zeros((1, 1)), np.zeros(1, int), lambda s: np.zeros((1, len(s), 1)))
