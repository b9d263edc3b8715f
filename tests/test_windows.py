import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxpgd.dataset import Dataset, DatasetInfo, to_device
from jaxpgd.datasets.assemble import assemble
from jaxpgd.errors import InputError
from jaxpgd.tokens import Ends
from jaxpgd.windows import (
    DataConfig,
    choose_windows,
    coverage,
    gather_padded,
    gather_window,
    split_episodes,
    window_lengths,
    window_starts,
)


def dataset(lengths: list[int], terminal: list[bool]) -> Dataset:
    offsets = np.concatenate([[0], np.cumsum(lengths)])
    steps = np.arange(offsets[-1])
    ends = np.isin(steps, offsets[1:] - 1)
    died = np.isin(steps, offsets[1:][np.array(terminal, bool)] - 1)
    info = DatasetInfo(name="hand", source="npz", action_low=(-1.0,), action_high=(1.0,))
    column = steps[:, None].astype(float)
    return assemble(info, column, column * 0, steps * 1.0, column + 1, died, ends & ~died, offsets)


def test_starts_of_a_terminal_and_a_timeout_episode() -> None:
    data = dataset([5, 2, 6], [True, False, False])  # steps 0-4 | 5-6 | 7-12
    every = window_starts(data, 3, 1)
    assert every.tolist() == [0, 1, 2, 7, 8, 9]  # the window from 10 ends in the timeout at 12
    assert every.dtype == np.int32
    assert window_starts(data, 3, 1, allow_timeout_end=True).tolist() == [0, 1, 2, 7, 8, 9, 10]
    assert window_starts(data, 3, 4, add_episode_starts=False, add_terminals=False).tolist() == [0, 8]
    assert window_starts(data, 3, 4, add_terminals=False).tolist() == [0, 7, 8]
    assert window_starts(data, 3, 4, add_episode_starts=False).tolist() == [0, 2, 8]
    assert window_starts(data, 3, 4, episodes=np.array([2])).tolist() == [7, 8]


def test_windows_that_end_in_a_terminal_are_repeated() -> None:
    data = dataset([5, 2, 6], [True, False, False])
    assert window_starts(data, 3, 4, terminal_repeats=3).tolist() == [0, 2, 2, 2, 7, 8]
    assert window_starts(data, 3, 2, add_terminals=False, terminal_repeats=2).tolist() == [0, 2, 2, 7, 8]  # met by the stride
    with pytest.raises(InputError, match=r"data.terminal_repeats = 0: expected a number above 0"):
        window_starts(data, 3, terminal_repeats=0)


def test_windows_never_cross_an_episode() -> None:
    rng = np.random.default_rng(0)
    lengths = rng.integers(1, 9, 40).tolist()
    data = dataset(lengths, (rng.random(40) < 0.5).tolist())
    starts = window_starts(data, 4, 2, allow_timeout_end=True)
    episode = np.repeat(np.arange(40), lengths)
    assert (episode[starts] == episode[starts + 3]).all()


def test_short_episodes_are_padded_on_request() -> None:
    data = dataset([5, 2, 6, 1], [True, True, False, False])  # steps 0-4 | 5-6 | 7-12 | 13
    assert window_starts(data, 5, 4).tolist() == [0, 7]
    padded = window_starts(data, 5, 4, pad_short=True)
    assert padded.tolist() == [0, 5, 7] and padded.dtype == np.int32  # the last episode ends in a timeout
    assert window_starts(data, 5, 4, pad_short=True, allow_timeout_end=True).tolist() == [0, 5, 7, 8, 13]
    assert window_lengths(data, np.array([0, 5, 7, 8, 13]), 5).tolist() == [5, 2, 5, 5, 1]
    assert window_starts(data, 5, 4, pad_short=True, terminal_repeats=2).tolist() == [0, 0, 5, 5, 7]
    alone = {"add_episode_starts": False, "add_terminals": False}  # an episode that has no other window keeps its one
    assert window_starts(data, 5, 3, pad_short=True, **alone).tolist() == [0, 5]
    with pytest.raises(InputError, match=r"data.window = 7: expected at most 6"):
        window_starts(data, 7, pad_short=True)


def test_held_out_episodes_may_all_be_short() -> None:
    data = dataset([3] * 20 + [8] * 2, [True] * 22)
    for seed in range(5):
        config = DataConfig(window=8, pad_short=True, validation_fraction=0.1)
        train, validation, episodes = choose_windows(data, config, seed)
        held_out = np.setdiff1d(np.arange(22), episodes)
        assert validation.tolist() == data.offsets[held_out].tolist() and len(train) == 20
        assert coverage(data, train, 8, episodes) == (1.0, 1.0)


def test_a_padded_window_reads_nothing_after_its_end() -> None:
    data = to_device(dataset([2, 6, 3], [True, False, False]))
    transitions = data.transitions()
    gather = jax.jit(jax.vmap(gather_padded, in_axes=(None, 0, None, 0)), static_argnums=2)
    ends = Ends(steps=jnp.array([2, 6, 3]), terminal=jnp.array([True, False, False]))
    found = gather(transitions, jnp.array([0, 2, 8]), 6, ends)  # the last one would run over the end of the data
    assert found.obs[..., 0].tolist() == [[0, 1, 1, 1, 1, 1], [2, 3, 4, 5, 6, 7], [8, 9, 10, 10, 10, 10]]
    assert found.reward.tolist() == [[0, 1, 0, 0, 0, 0], [2, 3, 4, 5, 6, 7], [8, 9, 10, 0, 0, 0]]
    assert found.discount.tolist() == [[1, 0, 1, 1, 1, 1], [1] * 6, [1] * 6]
    assert found.mask.sum(-1).tolist() == [2, 5, 2]
    whole = gather_window(transitions, jnp.asarray(2), 6)
    for name in ("obs", "action", "reward", "discount", "mask"):
        np.testing.assert_array_equal(getattr(found, name)[1], getattr(whole, name))


def test_no_window_is_an_input_error() -> None:
    data = dataset([5, 2], [True, False])
    with pytest.raises(InputError, match=r"data.window = 6: expected at most 5"):
        window_starts(data, 6)
    with pytest.raises(InputError, match=r"at most 2"):
        window_starts(data, 3, episodes=np.array([1]))
    with pytest.raises(InputError, match=r"allow_timeout_end"):
        window_starts(data, 2, episodes=np.array([1]))


def test_a_terminal_inside_an_episode_ends_it() -> None:
    info = DatasetInfo(name="hand", source="npz", action_low=(-1.0,), action_high=(1.0,))
    x, flags = np.zeros((4, 1)), np.array([False, True, False, False])
    data = assemble(info, x, x, x[:, 0], x, flags, np.array([False, False, False, True]), np.array([0, 4]))
    assert data.offsets.tolist() == [0, 2, 4]


def test_gathered_windows_and_masks() -> None:
    data = to_device(dataset([5, 6], [True, False]))
    gather = jax.jit(jax.vmap(gather_window, in_axes=(None, 0, None)), static_argnums=2)
    windows = gather(data.transitions(), jnp.array([1, 2, 5]), 3)
    np.testing.assert_array_equal(windows.obs[..., 0], [[1, 2, 3], [2, 3, 4], [5, 6, 7]])
    np.testing.assert_array_equal(windows.reward, [[1, 2, 3], [2, 3, 4], [5, 6, 7]])
    np.testing.assert_array_equal(windows.discount, [[1, 1, 1], [1, 1, 0], [1, 1, 1]])
    np.testing.assert_array_equal(windows.mask, [[1, 1, 0], [1, 1, 1], [1, 1, 0]])


def test_everything_after_a_terminal_is_masked() -> None:
    data = to_device(dataset([2, 3], [True, True]))
    np.testing.assert_array_equal(gather_window(data.transitions(), jnp.array(0), 5).mask, [1, 1, 0, 0, 0])


def test_split_covers_all_episodes_once() -> None:
    data = dataset([2] * 20, [True] * 20)
    train, held = split_episodes(data, 0.25, 3)
    assert len(held) == 5 and sorted([*train, *held]) == list(range(20))
    np.testing.assert_array_equal(split_episodes(data, 0.25, 3)[1], held)
    assert [len(x) for x in split_episodes(data, 0.001, 0)] == [19, 1]
    assert [len(x) for x in split_episodes(data, 1.0, 0)] == [1, 19]
    assert [len(x) for x in split_episodes(data, 0.0, 0)] == [20, 0]
    assert [len(x) for x in split_episodes(dataset([2], [True]), 0.5, 0)] == [1, 0]
