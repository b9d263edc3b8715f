from pathlib import Path

import h5py
import numpy as np
import pytest

from jaxpgd.datasets import flat_files, load
from jaxpgd.datasets.describe import describe, format_description
from jaxpgd.datasets.scores import score_column
from jaxpgd.errors import InputError
from jaxpgd.experiment.cli import main
from jaxpgd.windows import window_starts


def raw(steps: int = 6, **changes: np.ndarray) -> dict[str, np.ndarray]:
    """Three episodes of 3, 2 and 1 steps: a terminal, a timeout, and an unfinished end."""
    data = {
        "observations": np.arange(steps * 2, dtype=np.float32).reshape(steps, 2),
        "actions": np.linspace(-1, 1, steps)[:, None],
        "rewards": np.arange(steps, dtype=np.float32),
        "terminals": np.array([0, 0, 1, 0, 0, 0], bool)[:steps],
        "timeouts": np.array([0, 0, 0, 0, 1, 0], bool)[:steps],
    }
    return {**data, **changes}


def save(tmp_path: Path, data: dict[str, np.ndarray], name: str = "data.npz") -> str:
    path = tmp_path / name
    if path.suffix == ".npz":
        np.savez(path, **data)
    else:
        with h5py.File(path, "w") as file:
            for key, value in data.items():
                file[key] = value
    return str(path)


@pytest.mark.parametrize("name", ["data.npz", "data.hdf5", "data.h5"])
def test_next_observations_are_kept_and_the_unfinished_end_is_a_timeout(tmp_path: Path, name: str) -> None:
    after = np.arange(2, 14, dtype=np.float32).reshape(6, 2)
    after[[2, 4, 5]] = 100.0  # where episodes end
    data = raw(next_observations=after)
    dataset = load(save(tmp_path, data, name))
    assert dataset.offsets.tolist() == [0, 3, 5, 6]
    assert dataset.discount.tolist() == [1, 1, 0, 1, 1, 1]
    assert dataset.timeout.tolist() == [False, False, False, False, True, True]
    np.testing.assert_array_equal(dataset.next_obs, data["next_observations"])
    np.testing.assert_allclose(dataset.returns(), [3, 7, 5])
    assert dataset.info.source == ("npz" if name.endswith("npz") else "d4rl")
    assert dataset.obs.dtype == dataset.action.dtype == np.float32


def walks(lengths: tuple[int, ...], dim: int = 3) -> tuple[dict[str, np.ndarray], np.ndarray]:
    """Random walks that begin anew after so many steps, stored with next observations and flags of 0; where they end."""
    rng, steps = np.random.default_rng(0), sum(lengths)
    path = [np.cumsum(rng.normal(size=(n + 1, dim)), axis=0).astype(np.float32) for n in lengths]
    data = {
        "observations": np.concatenate([p[:-1] for p in path]),
        "next_observations": np.concatenate([p[1:] for p in path]),
        "actions": rng.uniform(-1, 1, (steps, 1)),
        "rewards": rng.normal(size=steps),
        "terminals": np.zeros(steps, bool),
        "timeouts": np.zeros(steps, bool),
    }
    return data, np.cumsum(lengths)


@pytest.mark.parametrize("missing", [False, True])
def test_episodes_are_cut_where_rows_do_not_follow(tmp_path: Path, missing: bool, capsys: pytest.CaptureFixture[str]) -> None:
    data, ends = walks((40, 40, 7, 1, 40, 40, 32))
    data["terminals"][ends[0] - 1] = True  # the one end that a flag tells
    if missing:
        del data["timeouts"]
    name = save(tmp_path, data)
    dataset = load(name)
    assert dataset.offsets.tolist() == [0, *ends]
    assert np.flatnonzero(dataset.timeout).tolist() == [e - 1 for e in ends[1:]]
    assert np.flatnonzero(dataset.discount == 0).tolist() == [39]
    starts = window_starts(dataset, 16, allow_timeout_end=True)
    np.testing.assert_array_equal(  # no window crosses an end
        np.stack([dataset.obs[starts + i + 1] for i in range(15)]), np.stack([dataset.next_obs[starts + i] for i in range(15)])
    )
    load(name)
    said = capsys.readouterr().err
    assert said.count("5 episodes are cut") == 1 and dataset.info.cut == 5  # the last one's end is the file's
    assert "5 of the timeouts are cuts where next_observations" in format_description(describe(dataset))


def test_rows_are_compared_across_the_blocks_that_they_are_read_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data, ends = walks((15, 17, 1, 15, 16, 6))  # with ends before, at and after the end of a block
    name, whole = save(tmp_path, data), load(save(tmp_path, data)).offsets.tolist()
    assert whole == [0, *ends]
    for block in (1, 16, 69, 70):
        monkeypatch.setattr(flat_files, "_BLOCK", block)
        assert load(name).offsets.tolist() == whole


def test_sound_rows_are_not_cut_whatever_precision_they_are_stored_in(tmp_path: Path) -> None:
    data, ends = walks((50, 60))
    data["timeouts"][ends - 1] = True
    for dtype in (np.float16, np.float32, np.float64):
        rounded = {**data, "next_observations": data["next_observations"].astype(dtype)}
        dataset = load(save(tmp_path, rounded, f"{np.dtype(dtype)}.npz"))
        assert dataset.offsets.tolist() == [0, *ends] and dataset.info.cut == 0
        assert "cuts" not in format_description(describe(dataset))


def test_shuffled_rows_are_refused(tmp_path: Path) -> None:
    data, _ = walks((100, 100))
    order = 77 * np.arange(200) % 200  # each row once, none after the one before it
    shuffled = {key: value[order] for key, value in data.items()}
    with pytest.raises(InputError, match=r"next_observations of .* = '199 of 199 steps lead elsewhere .*unshuffled"):
        load(save(tmp_path, shuffled))


@pytest.mark.parametrize("suffix", [".npz", ".hdf5"])
def test_files_with_other_keys_are_told_what_they_have(tmp_path: Path, suffix: str) -> None:
    with pytest.raises(InputError) as refused:
        load(save(tmp_path, {"obs": np.zeros(3), "acts": np.zeros(3)}, f"other{suffix}"))
    assert "= ['acts', 'obs']: expected D4RL's layout, with observations, actions" in str(refused.value)
    assert "'observations' is missing" in str(refused.value) and "\n" not in str(refused.value)
    old = {k: v for k, v in raw().items() if k != "timeouts"} | {"infos": np.zeros(6)}
    with pytest.raises(InputError) as refused:
        load(save(tmp_path, old, f"old{suffix}"))
    assert "= ['actions', 'infos', 'observations', 'rewards', 'terminals']" in str(refused.value)
    assert "timeouts is 1 at the last row of every episode" in str(refused.value)
    with pytest.raises(InputError, match=r"'k18', 'k19', 'and 10 more'\]"):
        load(save(tmp_path, {f"k{i:02}": np.zeros(1) for i in range(30)}, f"many{suffix}"))


def test_without_next_observations_steps_shift_within_episodes(tmp_path: Path) -> None:
    dataset = load(save(tmp_path, raw()))
    # step 4 (timeout) and step 5 (unfinished) have no next observation; step 2 is terminal and needs none
    assert dataset.reward.tolist() == [0, 1, 2, 3]
    assert dataset.offsets.tolist() == [0, 3, 4]
    assert dataset.timeout.tolist() == [False, False, False, True]
    np.testing.assert_array_equal(dataset.next_obs, [[2, 3], [4, 5], [4, 5], [8, 9]])


def test_bounds_in_the_file_rescale_actions(tmp_path: Path) -> None:
    data = raw(actions=np.linspace(0, 4, 6)[:, None], action_low=np.array([0.0]), action_high=np.array([4.0]))
    data["terminals"] = np.array([0, 0, 0, 0, 0, 1], bool)
    data["timeouts"] = np.zeros(6, bool)
    np.testing.assert_allclose(load(save(tmp_path, data)).action[:, 0], np.linspace(-1, 1, 6), atol=1e-6)


def test_tiny_excess_is_clipped_and_more_is_refused(tmp_path: Path) -> None:
    action = np.zeros((6, 1))
    action[3] = 1.001
    assert load(save(tmp_path, raw(actions=action))).action.max() == 1.0
    action[3] = 1.1
    with pytest.raises(InputError, match=r"action of .* = 1.1 at index \(3, 0\).*1 of \d entries"):
        load(save(tmp_path, raw(actions=action), "other.npz"))


def test_actions_that_leave_their_bounds_are_clipped_on_request(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    action = np.array([-5.0, -1.0, 0.5, 1.1, 1.0, 0.0])[:, None]
    name = save(tmp_path, raw(actions=action, action_low=np.array([-1.0]), action_high=np.array([1.0])))
    with pytest.raises(InputError, match=r"2 of 4 entries are outside.*clip actions with data.clip_actions = true"):
        load(name)
    np.testing.assert_array_equal(load(name, clip_actions=True).action[:, 0], [-1.0, -1.0, 0.5, 1.0])
    with pytest.raises(InputError, match=r"action of .*expected finite numbers"):
        load(save(tmp_path, raw(actions=np.where(action > 1, np.nan, action)), "nan.npz"), clip_actions=True)
    main(["data", "info", name, "--window", "2", "--data.clip-actions", "true"])
    assert "action         mean" in capsys.readouterr().out


def test_bad_values_are_named(tmp_path: Path) -> None:
    obs = raw()["observations"].copy()
    obs[1, 1] = np.nan
    obs[2, 0] = np.inf
    with pytest.raises(InputError, match=r"obs of .* index \(1, 1\).*2 of 8"):
        load(save(tmp_path, raw(observations=obs)))
    with pytest.raises(InputError, match=r"reward of .*5 steps|reward of .*6 steps"):
        load(save(tmp_path, raw(rewards=np.zeros(5)), "b.npz"))
    with pytest.raises(InputError, match="'timeouts' is missing"):
        load(save(tmp_path, {k: v for k, v in raw().items() if k != "timeouts"}, "c.npz"))
    with pytest.raises(InputError, match="at least one step"):
        load(save(tmp_path, {k: v[:0] for k, v in raw().items()}, "d.npz"))


@pytest.mark.parametrize("key", ["terminals", "timeouts"])
def test_flags_are_0_or_1_of_any_type(tmp_path: Path, key: str) -> None:
    for dtype in (bool, np.int8, np.uint8, np.int64, np.float16, np.float64):
        path = save(tmp_path, raw(**{key: np.array([0, 0, 0, 0, 1, 0]).astype(dtype)}), f"{np.dtype(dtype)}.npz")
        assert load(path).offsets.tolist() == ([0, 5] if key == "terminals" else [0, 3, 4])
    for bad in (np.nan, np.inf, -np.inf, 0.01, -1.0, 2.0, 1e-30):
        flags = np.array([0, 0, 0, bad, 1, 0])
        with pytest.raises(InputError, match=rf"{key} of .* = {bad:g}.* at index \(3,\): expected 0 or 1; 1 of 6 entries"):
            load(save(tmp_path, raw(**{key: flags}), "bad.npz"))
    with pytest.raises(InputError, match=rf"{key} of .*3 of 6 entries"):
        load(save(tmp_path, raw(**{key: np.array([2, 255, 7, 0, 0, 1], np.uint8)}), "bad.npz"))


def test_unreadable_files_and_names(tmp_path: Path) -> None:
    for name in ("bad.npz", "bad.hdf5"):
        (tmp_path / name).write_bytes(b"not a data file")
        with pytest.raises(InputError, match="readable"):
            load(str(tmp_path / name))
    np.savez(tmp_path / "pickle.npz", **raw(observations=np.array([{}], object)))
    with pytest.raises(InputError, match="readable"):
        load(str(tmp_path / "pickle.npz"))
    with pytest.raises(InputError, match="existing file"):
        load(str(tmp_path / "absent.npz"))
    with pytest.raises(InputError, match="Minari id"):
        load("hopper")


def sized(obs: int, action: int, **changes: np.ndarray) -> dict[str, np.ndarray]:
    """Data whose rows have those entries."""
    return raw(observations=np.zeros((6, obs)), actions=np.zeros((6, action)), **changes)


def test_environment_and_reference_follow_from_the_name(tmp_path: Path) -> None:
    info = load(save(tmp_path, sized(11, 3), "hopper_medium-v2.hdf5")).info
    assert (info.env_id, info.ref_max, info.ref_source) == ("Hopper-v4", 3234.3, "D4RL table")
    info = load(save(tmp_path, sized(17, 6), "walker_mixed.hdf5")).info
    assert (info.env_id, info.ref_min, info.ref_max) == ("Walker2d-v4", 1.629008, 4592.3)
    assert load(save(tmp_path, raw(), "hopper_other.hdf5")).info.env_id is None
    assert load(save(tmp_path, sized(11, 3), "hopper_other.hdf5")).info.env_id == "Hopper-v5"  # Gymnasium's, whose data it is
    assert load(save(tmp_path, sized(12, 3), "hopper_medium-v2.hdf5")).info.env_id is None


@pytest.mark.parametrize(
    ("name", "obs", "action", "reference"),
    [
        ("hopper_medium-v2.hdf5", 11, 3, 3234.3),
        ("hopper_medium-v2.hdf5", 12, 3, None),
        ("hopper_medium-v2.hdf5", 11, 2, None),
        ("hopper_other-v2.hdf5", 11, 3, None),
        ("Ant_maze_u-maze_noisy_multistart_False_multigoal_False_sparse.hdf5", 29, 8, 1.0),
        ("Ant_maze_u-maze_noisy_multistart_False_multigoal_False_sparse.hdf5", 111, 8, None),
        ("mini_kitchen_microwave_kettle_light_slider-v0.hdf5", 60, 9, 4.0),
        ("kitchen.hdf5", 2, 1, None),
    ],
)
def test_a_name_scores_only_data_of_the_sizes_of_its_environment(
    tmp_path: Path, name: str, obs: int, action: int, reference: float | None
) -> None:
    info = load(save(tmp_path, sized(obs, action), name)).info
    assert info.ref_max == reference
    assert score_column(info) == ("score (D4RL)" if reference is not None else f"return of {info.name}")


def test_files_made_locally_do_not_stand_with_d4rl(tmp_path: Path) -> None:
    names = ("hopper_medium-v2.hdf5", "hopper_medium-local.hdf5")
    columns = [score_column(load(save(tmp_path, sized(11, 3), name)).info) for name in names]
    marked = sized(11, 3, jaxpgd_local=np.array(True))
    assert columns == ["score (D4RL)", "score (local, D4RL references)"]
    assert score_column(load(save(tmp_path, marked, "hopper_medium-v1.npz")).info) == "score (local, D4RL references)"
