from pathlib import Path

import h5py
import numpy as np
import pytest

from jaxpgd.data import load
from jaxpgd.data.scores import score_column
from jaxpgd.errors import InputError


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
    data = raw(next_observations=np.arange(12, dtype=np.float32).reshape(6, 2) + 100)
    dataset = load(save(tmp_path, data, name))
    assert dataset.offsets.tolist() == [0, 3, 5, 6]
    assert dataset.discount.tolist() == [1, 1, 0, 1, 1, 1]
    assert dataset.timeout.tolist() == [False, False, False, False, True, True]
    np.testing.assert_array_equal(dataset.next_obs, data["next_observations"])
    np.testing.assert_allclose(dataset.returns(), [3, 7, 5])
    assert dataset.info.source == ("npz" if name.endswith("npz") else "d4rl")
    assert dataset.obs.dtype == dataset.action.dtype == np.float32


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
    assert (info.env_id, info.ref_max, info.ref_source) == ("Hopper-v5", 3234.3, "D4RL table")
    info = load(save(tmp_path, sized(17, 6), "walker_mixed.hdf5")).info
    assert (info.env_id, info.ref_min, info.ref_max) == ("Walker2d-v5", 1.629008, 4592.3)
    assert load(save(tmp_path, raw(), "hopper_other.hdf5")).info.env_id is None


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
