from pathlib import Path

import gymnasium
import h5py
import minari
import numpy as np
import pytest
from minari.data_collector import EpisodeBuffer

from jaxpgd.data import load
from jaxpgd.errors import InputError

Box, Dict = gymnasium.spaces.Box, gymnasium.spaces.Dict
SHARED = Path(__file__).parents[2] / ".." / "shared" / "datasets"


def unbounded(size: int) -> gymnasium.Space:
    return Box(-np.inf, np.inf, (size,), np.float64)


def create(name: str, space: gymnasium.Space, observations: list, terminated: list[bool], action_scale: float = 1.0) -> None:
    """A dataset whose episode e has the given observations, actions of +scale / 2 and reward 1 per step."""
    buffers = []
    for obs, ended in zip(observations, terminated, strict=True):
        steps = len(next(iter(obs.values())) if isinstance(obs, dict) else obs) - 1
        last = np.arange(steps) == steps - 1
        buffers.append(
            EpisodeBuffer(
                observations=obs,
                actions=np.full((steps, 1), action_scale / 2, np.float32),
                rewards=np.ones(steps),
                terminations=last & ended,
                truncations=last & (not ended),
            )
        )
    box = Box(-action_scale, action_scale, (1,), np.float32)
    minari.create_dataset_from_buffers(name, buffers, observation_space=space, action_space=box)


@pytest.fixture(autouse=True)
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path))
    return tmp_path


def test_next_observations_ends_and_scaling() -> None:
    a, b = np.arange(6.0).reshape(3, 2), np.arange(10.0, 18.0).reshape(4, 2)
    create("test/plain-v0", unbounded(2), [a, b], [True, False], action_scale=4.0)
    dataset = load("test/plain-v0")
    np.testing.assert_array_equal(dataset.obs, np.concatenate([a[:-1], b[:-1]]))
    np.testing.assert_array_equal(dataset.next_obs, np.concatenate([a[1:], b[1:]]))
    assert dataset.discount.tolist() == [1, 0, 1, 1, 1]
    assert dataset.timeout.tolist() == [False, False, False, False, True]
    assert dataset.offsets.tolist() == [0, 2, 5]
    np.testing.assert_allclose(dataset.action, 0.5)
    assert dataset.info.action_high == (4.0,) and dataset.info.ref_min is None


def test_dict_observations_are_concatenated_in_the_documented_order() -> None:
    parts = {"desired_goal": 1, "zeta": 1, "observation": 2, "alpha": 1, "achieved_goal": 1}
    value = {"observation": 0.0, "achieved_goal": 1.0, "desired_goal": 2.0, "alpha": 3.0, "zeta": 4.0}
    observations = {key: np.full((3, size), value[key]) for key, size in parts.items()}
    create("test/goal-v0", Dict({k: unbounded(n) for k, n in parts.items()}), [observations], [False])
    dataset = load("test/goal-v0")
    assert dataset.info.obs_keys == ("observation", "achieved_goal", "desired_goal", "alpha", "zeta")
    assert dataset.info.obs_sizes == (2, 1, 1, 1, 1)
    np.testing.assert_array_equal(dataset.obs, [[0, 0, 1, 2, 3, 4]] * 2)


def test_a_plain_dict_is_alphabetical() -> None:
    observations = {"b": np.full((3, 1), 2.0), "a": np.full((3, 1), 1.0)}
    create("test/dict-v0", Dict({"b": unbounded(1), "a": unbounded(1)}), [observations], [False])
    dataset = load("test/dict-v0")
    assert dataset.info.obs_keys == ("a", "b")
    np.testing.assert_array_equal(dataset.obs, [[1, 2]] * 2)


def test_nan_in_the_last_observation_is_found() -> None:
    obs = np.zeros((3, 1))
    obs[2] = np.nan
    create("test/nan-v0", unbounded(1), [obs], [False])
    with pytest.raises(InputError, match="episode 0"):
        load("test/nan-v0")


@pytest.mark.parametrize("key", ["terminations", "truncations"])
def test_flags_that_are_none_are_refused(root: Path, key: str) -> None:
    create("test/flags-v0", unbounded(1), [np.zeros((3, 1))], [True])
    with h5py.File(root / "test" / "flags-v0" / "data" / "main_data.hdf5", "a") as file:
        del file[f"episode_0/{key}"]
        file[f"episode_0/{key}"] = np.array([0.0, np.nan])
    with pytest.raises(InputError, match=rf"{key} of test/flags-v0 = nan at index \(1,\): expected 0 or 1; 1 of 2 entries"):
        load("test/flags-v0")


def test_unknown_names_list_near_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    create("test/plain-v0", unbounded(1), [np.zeros((3, 1))], [True])

    def offline(name: str) -> None:
        raise ConnectionError("no route")

    monkeypatch.setattr(minari, "download_dataset", offline)
    with pytest.raises(InputError, match=r"'test/plane-v0'.*no route.*test/plain-v0"):
        load("test/plane-v0")


def test_a_damaged_dataset_is_an_input_error(root: Path) -> None:
    create("test/plain-v0", unbounded(1), [np.zeros((3, 1))], [True])
    (root / "test/plain-v0/data/main_data.hdf5").write_bytes(b"broken")
    with pytest.raises(InputError, match="test/plain-v0"):
        load("test/plain-v0")


@pytest.mark.skipif(not SHARED.exists(), reason="no shared datasets")
def test_real_mujoco_data(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(SHARED / "minari"))
    dataset = load("mujoco/hopper/medium-local-v0")
    assert (dataset.size, dataset.episodes, dataset.info.env_id) == (100_210, 312, "Hopper-v5")
    assert (dataset.discount == 0).sum() == 312 and not dataset.timeout.any()
