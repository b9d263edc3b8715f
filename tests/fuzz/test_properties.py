"""What holds for every structure of episodes: windows, discounts, packing, filters, files."""

import tempfile
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from jaxpgd.dataset import Dataset, DatasetInfo, from_env_action, to_env_action
from jaxpgd.datasets.assemble import assemble
from jaxpgd.datasets.export import export_npz
from jaxpgd.datasets.flat_files import load_flat
from jaxpgd.errors import InputError
from jaxpgd.synthesis.filters import FilterConfig, make_filter, returns
from jaxpgd.tokens import fit_codec
from jaxpgd.types import Trajectory, valid_steps
from jaxpgd.windows import gather_window, split_episodes, window_starts

episodes = st.lists(st.tuples(st.integers(1, 9), st.booleans()), min_size=1, max_size=8)  # steps, ends in a terminal
INFO = DatasetInfo(name="hand", source="npz", action_low=(-2.0, 0.0), action_high=(2.0, 1.0))


def dataset(structure: list[tuple[int, bool]]) -> Dataset:
    """Step i has observation (i, -i), reward i; its next observation is that of the step after."""
    offsets = np.concatenate([[0], np.cumsum([steps for steps, _ in structure])])
    steps = np.arange(offsets[-1])
    ends = np.isin(steps, offsets[1:] - 1)
    died = np.isin(steps, offsets[1:][[terminal for _, terminal in structure]] - 1)
    obs = np.stack([steps, -steps], axis=1).astype(float)
    action = np.stack([np.cos(steps) * 2.0, np.sin(steps) ** 2], axis=1)
    return assemble(INFO, obs, action, steps * 1.0, obs + 1.0, died, ends & ~died, offsets)


@given(episodes)
def test_discounts_are_zero_at_terminals_alone_and_timeouts_end_the_others(structure: Any) -> None:
    data = dataset(structure)
    last = data.offsets[1:] - 1
    np.testing.assert_array_equal(
        np.flatnonzero(data.discount == 0), [i for i, (_, t) in zip(last, structure, strict=True) if t]
    )
    np.testing.assert_array_equal(np.flatnonzero(data.timeout), [i for i, (_, t) in zip(last, structure, strict=True) if not t])
    assert data.lengths().tolist() == [steps for steps, _ in structure]


@given(episodes, st.integers(1, 9), st.integers(1, 4), st.booleans(), st.booleans(), st.booleans(), st.integers(1, 3))
def test_windows_are_those_that_the_rules_say(
    structure: Any, window: int, stride: int, starts: bool, terminals: bool, timeouts: bool, repeats: int
) -> None:
    data = dataset(structure)
    wanted = []
    for (steps, terminal), first in zip(structure, data.offsets[:-1], strict=True):
        for start in range(first, first + steps - window + 1):
            at_end = start + window == first + steps
            chosen = start % stride == 0 or (starts and start == first) or (terminals and at_end and terminal)
            if chosen and (terminal or not at_end or timeouts):
                wanted += [start] * (repeats if at_end and terminal else 1)
    try:
        found = window_starts(data, window, stride, starts, terminals, timeouts, repeats).tolist()
    except InputError:
        found = []
    assert found == wanted


@given(episodes, st.floats(0.0, 1.0), st.integers(0, 100))
def test_every_episode_trains_or_validates(structure: Any, fraction: float, seed: int) -> None:
    train, held = split_episodes(dataset(structure), fraction, seed)
    assert sorted([*train, *held]) == list(range(len(structure))) and len(train) > 0


@given(st.lists(st.booleans(), min_size=1, max_size=12))
def test_valid_steps_follow_no_terminal_and_know_where_they_lead(ends: list[bool]) -> None:
    discount = 1.0 - np.array(ends, np.float32)
    wanted = [not any(ends[:t]) and (t < len(ends) - 1 or ends[t]) for t in range(len(ends))]
    assert np.asarray(valid_steps(jnp.asarray(discount))).tolist() == wanted


@given(episodes, st.data())
def test_tokens_are_windows_and_back(structure: Any, data: Any) -> None:
    whole = dataset(structure)
    length = data.draw(st.integers(1, max(steps for steps, _ in structure)))
    fitting = [first for (steps, _), first in zip(structure, whole.offsets[:-1], strict=True) if steps >= length]
    starts = np.array(fitting)
    codec = fit_codec(whole.transitions(), starts, length)
    window = gather_window(whole.transitions(), jnp.asarray(starts[0]), length)
    again = codec.decode(codec.encode(window))
    np.testing.assert_array_equal(window.obs, np.asarray(whole.obs)[starts[0] : starts[0] + length])
    np.testing.assert_array_equal(again.discount, window.discount)
    np.testing.assert_array_equal(again.mask, window.mask)
    for name in ("obs", "reward"):
        np.testing.assert_allclose(getattr(again, name), getattr(window, name), atol=1e-3)
    np.testing.assert_allclose(again.action, np.clip(window.action, -0.999, 0.999), atol=1e-3)


values = st.lists(st.floats(-100, 100, width=32) | st.just(float("nan")), min_size=1, max_size=12)


@given(values, st.sampled_from(["none", "hardmax", "softmax"]), st.data())
def test_filters_keep_so_many_each_once_and_the_sound_first(rewards: list[float], kind: Any, data: Any) -> None:
    size = len(rewards)
    count = data.draw(st.integers(1, size))
    number = jnp.arange(size, dtype=jnp.float32)
    made = Trajectory(obs=number[:, None, None], action=jnp.zeros((size, 1, 1)), reward=jnp.array(rewards)[:, None],
                      discount=jnp.ones((size, 1)), mask=jnp.ones((size, 1), bool))  # fmt: skip
    kept = make_filter(FilterConfig(kind=kind))(jax.random.key(data.draw(st.integers(0, 9))), made, count)
    chosen = np.asarray(kept.obs)[:, 0, 0].astype(int).tolist()
    assert len(chosen) == count == len(set(chosen))
    sound = [i for i, r in enumerate(rewards) if np.isfinite(r)]
    if kind != "none":
        assert len(set(chosen) & set(sound)) == min(count, len(sound))
    if kind == "hardmax" and count <= len(sound):
        best = np.sort(np.array(rewards, np.float32)[sound])[::-1][:count]
        np.testing.assert_array_equal(np.sort(np.asarray(returns(kept)))[::-1], best)


@given(st.lists(st.lists(st.booleans(), min_size=3, max_size=3), min_size=1, max_size=5))
def test_what_is_exported_is_loaded_again(ends: list[list[bool]]) -> None:
    shape = (len(ends), 3)
    rng = np.random.default_rng(len(ends))
    made = Trajectory(
        obs=rng.normal(size=(*shape, 2)).astype(np.float32), action=rng.uniform(-1, 1, (*shape, 2)).astype(np.float32),
        reward=rng.normal(size=shape).astype(np.float32), discount=1.0 - np.array(ends, np.float32), mask=np.ones(shape, bool),
    )  # fmt: skip
    with tempfile.TemporaryDirectory() as folder:
        loaded = load_flat(export_npz(made, INFO, Path(folder) / "made.npz"))
    kept = [(i, t) for i, row in enumerate(ends) for t in range(3) if not any(row[:t]) and (t < 2 or row[t])]
    assert loaded.size == len(kept) and loaded.episodes == len(ends)
    for field in ("obs", "reward", "discount"):
        np.testing.assert_array_equal(getattr(loaded, field), [getattr(made, field)[at] for at in kept])
    np.testing.assert_allclose(loaded.action, [made.action[at] for at in kept], atol=1e-6)


@given(st.lists(st.floats(-1, 1), min_size=2, max_size=2))
def test_actions_go_to_the_environment_and_back(action: list[float]) -> None:
    there = to_env_action(INFO, np.array(action))
    assert (there >= INFO.action_low).all() and (there <= INFO.action_high).all()
    np.testing.assert_allclose(from_env_action(INFO, there), action, atol=1e-12)
