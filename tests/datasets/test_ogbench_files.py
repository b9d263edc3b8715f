"""OGBench's layout: rows of (observation, action, terminal, qpos, ...), T + 1 for T transitions, without rewards."""

import sys
import types
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import pytest

from jaxpgd.datasets import load, ogbench_store
from jaxpgd.datasets.describe import describe, format_description
from jaxpgd.datasets.export import export_minari
from jaxpgd.datasets.scores import normalized_score, score_column
from jaxpgd.errors import InputError
from jaxpgd.types import Trajectory

NAME = "ogbench/pointmaze-tiny-navigate-singletask-task1-v0"
GOAL = np.array([3.0, 0.0])


class TinyMaze(gymnasium.Env):
    """A stand-in for OGBench's environment: observations are positions, and the task is to be within 1 of the goal."""

    def __init__(self) -> None:
        self.observation_space = gymnasium.spaces.Box(-np.inf, np.inf, (2,), np.float64)
        self.action_space = gymnasium.spaces.Box(-1.0, 1.0, (2,), np.float32)


def relabel_dataset(env_name: str, env: Any, dataset: dict[str, np.ndarray]) -> None:
    """What OGBench's own does for mazes, from the states before the actions."""
    assert env_name == env.spec.id == "pointmaze-tiny-singletask-task1-v0"
    near = np.linalg.norm(dataset["qpos"][:, :2] - GOAL, axis=-1) <= 1.0
    dataset["rewards"], dataset["masks"] = near - np.float32(1), 1 - near.astype(np.float32)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty data folder, and a package `ogbench` that has one task and cannot download."""
    package, inner = types.ModuleType("ogbench"), types.ModuleType("ogbench.relabel_utils")

    def download_datasets(names: list[str], directory: str) -> None:
        raise ConnectionError(f"no route for {names}")

    package.download_datasets, inner.relabel_dataset = download_datasets, relabel_dataset  # type: ignore[attr-defined]
    package.TinyMaze = TinyMaze  # type: ignore[attr-defined]
    package.__spec__ = types.SimpleNamespace(name="ogbench")  # type: ignore[assignment]
    monkeypatch.setitem(sys.modules, "ogbench", package)
    monkeypatch.setitem(sys.modules, "ogbench.relabel_utils", inner)
    monkeypatch.setitem(gymnasium.registry, "pointmaze-tiny-singletask-task1-v0", spec())
    monkeypatch.setenv("OGBENCH_DATA_DIR", str(tmp_path))
    return tmp_path


def spec() -> Any:
    kwargs: dict[str, Any] = {"max_episode_steps": 9, "disable_env_checker": True}
    return gymnasium.envs.registration.EnvSpec("pointmaze-tiny-singletask-task1-v0", entry_point="ogbench:TinyMaze", **kwargs)


def rows() -> dict[str, np.ndarray]:
    """Two trajectories of 5 and 3 transitions along x; the first passes the goal and goes on, the second does not move."""
    x = np.array([0, 1, 2, 3, 4, 5, 0, 0, 0, 0], np.float32)
    position = np.stack([x, 0 * x], axis=1)
    return {
        "observations": position,
        "actions": np.linspace(-1, 1, 20, dtype=np.float32).reshape(10, 2),
        "terminals": np.array([0, 0, 0, 0, 0, 1, 0, 0, 0, 1], bool),
        "qpos": position,
        "qvel": 0 * position,
    }


def save(folder: Path, stem: str = "pointmaze-tiny-navigate-v0", **changes: Any) -> None:
    arrays = {k: v for k, v in {**rows(), **changes}.items() if v is not None}
    np.savez(folder / f"{stem}.npz", **arrays)


def test_trajectories_rewards_and_ends(folder: Path) -> None:
    save(folder)
    dataset, raw = load(NAME), rows()
    start = [0, 1, 2, 3, 4, 6, 7, 8]  # the last row of a trajectory starts no transition
    np.testing.assert_array_equal(dataset.obs, raw["observations"][start])
    np.testing.assert_array_equal(dataset.next_obs, raw["observations"][np.array(start) + 1])
    np.testing.assert_allclose(dataset.action, raw["actions"][start], atol=1e-6)
    # the state before the step counts: x = 2, 3 and 4 are within 1 of the goal
    assert dataset.reward.tolist() == [-1, -1, 0, 0, 0, -1, -1, -1]
    assert dataset.discount.tolist() == [1, 1, 0, 0, 0, 1, 1, 1]
    assert dataset.timeout.tolist() == [False] * 7 + [True]
    assert dataset.offsets.tolist() == [0, 3, 4, 5, 8]
    assert (dataset.info.env_id, dataset.info.source) == ("pointmaze-tiny-singletask-task1-v0", "ogbench")
    assert dataset.info.action_low == (-1.0, -1.0)


def test_names_splits_and_the_optional_prefix(folder: Path) -> None:
    save(folder)
    save(folder, "pointmaze-tiny-navigate-v0-val", observations=rows()["observations"] + 1)
    assert load(NAME.removeprefix("ogbench/")).info.name == NAME
    np.testing.assert_array_equal(load(f"{NAME}-val").obs, load(NAME).obs + 1)
    assert ogbench_store.parse_name("ogbench/puzzle-3x3-play-singletask-v0") == (
        "puzzle-3x3-singletask-v0",
        "puzzle-3x3-play-v0",
    )
    assert ogbench_store.parse_name("humanoidmaze-large-stitch-singletask-task5-v0-val") == (
        "humanoidmaze-large-singletask-task5-v0",
        "humanoidmaze-large-stitch-v0-val",
    )


def test_scores_are_success_rates(folder: Path) -> None:
    save(folder)
    dataset = load(NAME)
    score, label = normalized_score(dataset.info, np.zeros((1, 4)), np.array([[True, False, True, True]]))
    assert score is not None and score.mean() == 75 and "success rate in percent" in label
    assert normalized_score(dataset.info, np.zeros(4))[0] is None
    assert score_column(dataset.info) == "success rate % (OGBench)"
    assert "success rate % (OGBench)" in format_description(describe(dataset, window=2))


def test_export_keeps_how_it_is_scored(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save(folder)
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(folder))
    real = load(NAME)
    ones = np.ones((1, 3), np.float32)
    made = Trajectory(obs=real.obs[None, :3], action=real.action[None, :3], reward=ones, discount=ones, mask=ones)
    export_minari(made, real.info, "pgd/maze-v0", folder)
    info = load("pgd/maze-v0").info
    assert score_column(info) == "success rate % (local, OGBench tasks)" and info.env_id == real.info.env_id


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("ogbench/antmaze-large-navigate-v0", "ogbench/antmaze-large-navigate-singletask-task1-v0'.*hold no rewards"),
        ("ogbench/cube-single-play-oraclerep-v0", "hold no rewards"),
        ("ogbench/visual-cube-single-play-singletask-v0", "not images"),
        ("ogbench/pointmaze-tinny-navigate-singletask-task1-v0", "has no .*Near ones: pointmaze-tiny-singletask-task1-v0"),
        (NAME, r"pointmaze-tiny-navigate-v0.npz.*no route for \['pointmaze-tiny-navigate-v0'\].*OGBENCH_DATA_DIR"),
        (f"{NAME}-val", r"no route for \['pointmaze-tiny-navigate-v0'\]"),
    ],
)
def test_names_that_cannot_be_loaded(folder: Path, name: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        load(name)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"qpos": None}, "under qpos and button_states; the file has"),
        ({"terminals": None}, "with terminals"),
        ({"terminals": np.ones(10, bool)}, "at least one transition"),
        ({"terminals": np.array([0, 0, 0, 0, 0, 1, 0, 0, 0.5, 1])}, r"terminals of .* = 0.5 at index \(8,\): expected 0 or 1"),
        ({"actions": np.zeros((9, 2))}, "9 rows"),
        ({"observations": np.zeros((10, 3))}, r"observations of .* = \(3,\): expected \(2,\)"),
        ({"observations": np.array([None] * 10, object)}, "expected numbers"),  # pickled objects are not loaded
    ],
)
def test_files_that_cannot_be_used(folder: Path, changes: dict[str, Any], message: str) -> None:
    save(folder, **changes)
    with pytest.raises(InputError, match=message):
        load(NAME)


def test_a_missing_package_says_how_to_install_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ogbench_store.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(InputError, match=r'pip install "jaxpgd\[ogbench\]"'):
        load("ogbench/cube-single-play-singletask-v0")


def write_recording(folder: Path, stem: str, env_id: str, at_goal: slice) -> None:
    """Random actions in the real environment, in OGBench's layout, with some of the positions moved to the task's goal."""
    env = gymnasium.make(env_id)
    found: dict[str, list] = {"observations": [], "actions": [], "terminals": [], "qpos": []}
    for seed in range(2):
        obs, _ = env.reset(seed=seed)
        for step in range(20):
            action = env.action_space.sample()
            for key, value in zip(found, (obs, action, step == 19, env.unwrapped.data.qpos.copy()), strict=True):
                found[key].append(value)
            obs = env.step(action)[0]
    arrays = {key: np.array(value) for key, value in found.items()}
    arrays["qpos"][at_goal, :2] = env.unwrapped.cur_goal_xy
    for split in ("", "-val"):
        np.savez(folder / f"{stem}{split}.npz", **arrays)


def test_agrees_with_ogbench_itself(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ogbench = pytest.importorskip("ogbench", reason="the extra `ogbench` is not installed")
    monkeypatch.setenv("OGBENCH_DATA_DIR", str(tmp_path))
    write_recording(tmp_path, "pointmaze-medium-navigate-v0", "pointmaze-medium-singletask-task2-v0", slice(5, 9))
    name = "pointmaze-medium-navigate-singletask-task2-v0"
    ours = load(name)
    theirs = ogbench.make_env_and_datasets(name, dataset_dir=str(tmp_path))[1]
    pairs = {
        "obs": "observations",
        "next_obs": "next_observations",
        "action": "actions",
        "reward": "rewards",
        "discount": "masks",
    }
    for field, key in pairs.items():
        np.testing.assert_allclose(getattr(ours, field), theirs[key], atol=1e-6)
    assert (ours.discount == 0).sum() == 4
    np.testing.assert_array_equal(ours.timeout, theirs["terminals"] > 0)
