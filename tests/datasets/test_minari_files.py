import importlib.util
import json
import socket
from pathlib import Path

import gymnasium
import h5py
import minari
import numpy as np
import pytest
from minari.data_collector import EpisodeBuffer

from jaxpgd.datasets import load, minari_files
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
    monkeypatch.setattr(minari_files, "_require_network", lambda: None)
    with pytest.raises(InputError, match=r"'test/plane-v0'.*no route.*Did you mean test/plain-v0, which is there") as refused:
        load("test/plane-v0")
    assert refused.value.__suppress_context__ and refused.value.__cause__ is None  # one line, not the network's own code
    with pytest.raises(InputError, match=r"no route\)\. There are test/plain-v0\. MINARI"):
        load("other/thing/altogether-v0")


def test_without_a_network_names_that_are_not_there_are_refused_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    def unknown(*args: object) -> None:
        raise socket.gaierror(-2, "Name or service not known")

    for name in ("MINARI_REMOTE", *(f"{kind}_proxy" for kind in ("http", "https", "all"))):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)
    monkeypatch.setattr(socket, "getaddrinfo", unknown)
    monkeypatch.setattr(minari, "download_dataset", lambda name: pytest.fail("asked the network"))
    assert "no network: huggingface.co is not found (Name or service not known)" in refusal("test/plane-v0")
    monkeypatch.setenv("HTTPS_PROXY", "http://proxy:1")  # which finds addresses itself
    monkeypatch.setattr(minari, "download_dataset", lambda name: None)
    assert "a dataset that can be downloaded" in refusal("test/plane-v0")


def test_images_are_refused_whatever_space_holds_them() -> None:
    image, matrix = Box(0, 255, (4, 4, 3), np.uint8), Box(-np.inf, np.inf, (2, 3), np.float64)
    create("test/image-v0", image, [np.zeros((3, 4, 4, 3), np.uint8)], [True])
    assert "observation space of test/image-v0 = (4, 4, 3): expected one axis" in refusal("test/image-v0")
    space = Dict({"flat": unbounded(2), "deep": Dict({"seen": matrix})})
    create("test/dict-v0", space, [{"flat": np.zeros((3, 2)), "deep": {"seen": np.zeros((3, 2, 3))}}], [True])
    assert "key 'deep/seen' = (2, 3): expected one axis" in refusal("test/dict-v0")


def test_actions_that_leave_their_bounds_are_clipped_on_request(root: Path) -> None:
    create("test/wild-v0", unbounded(1), [np.zeros((3, 1))], [True])
    with h5py.File(root / "test" / "wild-v0" / "data" / "main_data.hdf5", "a") as file:
        file["episode_0/actions"][...] = [[3.0], [-0.5]]
    assert "data.clip_actions = true" in refusal("test/wild-v0")
    assert load("test/wild-v0", clip_actions=True).action.tolist() == [[1.0], [-0.5]]


def refusal(name: str) -> str:
    """The one line in which a dataset is refused."""
    with pytest.raises(InputError) as refused:
        load(name)
    assert name in str(refused.value) and "\n" not in str(refused.value)
    return str(refused.value)


def change_metadata(root: Path, name: str, **changes: object) -> None:
    path = root / name / "data" / "metadata.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def test_a_damaged_download_is_to_be_downloaded_again(root: Path) -> None:
    create("test/plain-v0", unbounded(1), [np.zeros((3, 1))], [True])
    (root / "test/plain-v0/data/main_data.hdf5").write_bytes(b"broken")
    assert "If it was downloaded, delete that folder" in refusal("test/plain-v0")
    (root / "test/plain-v0/data/metadata.json").unlink()
    assert "delete that folder" in refusal("test/plain-v0")


def test_what_a_download_would_not_mend_is_not_to_be_deleted(root: Path) -> None:
    for name in ("test/own-local-v0", "test/marked-v0", "test/version-v0", "test/arrow-v0"):
        create(name, unbounded(1), [np.zeros((3, 1))], [True])
        (root / name / "data" / "main_data.hdf5").write_bytes(b"broken")
    change_metadata(root, "test/marked-v0", jaxpgd_local=True)
    change_metadata(root, "test/version-v0", minari_version="99.0.0")
    change_metadata(root, "test/arrow-v0", data_format="arrow")
    said = {name: refusal(f"test/{name}-v0") for name in ("own-local", "marked", "version", "arrow")}
    assert not any("delete" in text.lower() for text in said.values())
    assert "another version of minari: it was written by 99.0.0" in said["version"]
    if importlib.util.find_spec("pyarrow") is None:
        assert "pip install" in said["arrow"]


@pytest.mark.parametrize(
    "name", ["hopper-medium-v2", "antmaze-umaze-v0", "walker_mixed", "D4RL/pen-human-v1", "./hopper_medium-v2"]
)
def test_d4rl_names_are_refused_at_once(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.setattr(minari, "download_dataset", lambda name: pytest.fail("asked the network"))
    said = refusal(name)
    assert 'expected the path of a D4RL file, such as "' in said and '.hdf5"' in said


def test_a_minari_dataset_called_like_one_of_d4rl_is_loaded() -> None:
    create("hopper-medium-v2", unbounded(1), [np.zeros((3, 1))], [True])
    assert load("hopper-medium-v2").size == 2


@pytest.mark.skipif(not SHARED.exists(), reason="no shared datasets")
def test_real_mujoco_data(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(SHARED / "minari"))
    dataset = load("mujoco/hopper/medium-local-v0")
    assert (dataset.size, dataset.episodes, dataset.info.env_id) == (100_210, 312, "Hopper-v5")
    assert (dataset.discount == 0).sum() == 312 and not dataset.timeout.any()
