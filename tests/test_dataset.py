"""The transitions of a dataset."""

import numpy as np

from jaxpgd.dataset import DatasetInfo, to_device
from jaxpgd.datasets.assemble import assemble


def test_next_actions_are_those_of_the_same_episode_and_only_given_where_asked_for() -> None:
    offsets, ends = np.array([0, 3, 4, 6]), np.array([0, 0, 1, 1, 0, 1], bool)
    died = ends & (np.arange(6) == 2)  # the first episode ends in a terminal, the others in timeouts
    info = DatasetInfo(name="hand", source="npz", action_low=(-1.0,), action_high=(1.0,))
    action = np.arange(6)[:, None] / 8
    data = assemble(info, np.arange(6.0)[:, None], action, np.zeros(6), np.arange(6.0)[:, None], died, ends & ~died, offsets)
    for each in (data, to_device(data)):
        plain, found = each.transitions(), each.transitions(next_actions=True)
        assert plain.next_action is None and plain.has_next_action is None
        known = np.asarray(found.has_next_action)
        np.testing.assert_array_equal(known, [1, 1, 0, 0, 1, 0])
        assert found.next_action.shape == (6, 1) and np.isfinite(found.next_action).all()
        np.testing.assert_allclose(np.asarray(found.next_action)[known, 0], np.array([1, 2, 5]) / 8, atol=1e-6)
        for field in ("obs", "action", "reward", "discount", "next_obs"):
            np.testing.assert_array_equal(getattr(found, field), getattr(plain, field))
