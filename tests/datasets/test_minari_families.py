"""Files in the layouts of Minari's D4RL families: antmaze, adroit and kitchen. The originals are not at hand.

Spaces, flags and metadata are those of Farama's generation scripts (`minari-dataset-generation-scripts`, `scripts/D4RL`) and of
the tables in Minari's documentation.
"""

import json
from pathlib import Path
from typing import Any

import gymnasium
import minari
import numpy as np
import pytest
from minari.data_collector import EpisodeBuffer

from jaxpgd.datasets import load
from jaxpgd.datasets.describe import describe, format_description
from jaxpgd.datasets.export import export_minari
from jaxpgd.datasets.scores import normalized_score, score_column
from jaxpgd.simulators.environments import evaluated_in
from jaxpgd.types import Trajectory

Box, Dict = gymnasium.spaces.Box, gymnasium.spaces.Dict
# length of the goal of each sub-task, in the order of FrankaKitchen-v1's own dict
TASKS = {
    "bottom burner": 2,
    "hinge cabinet": 2,
    "kettle": 7,
    "light switch": 2,
    "microwave": 1,
    "slide cabinet": 1,
    "top burner": 2,
}


def box(size: int) -> Box:
    return Box(-np.inf, np.inf, (size,), np.float64)


@pytest.fixture(autouse=True)
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path))
    return tmp_path


def create(
    root: Path, name: str, space: gymnasium.Space, steps: list[int], actions: Box, rewards: list[float], **metadata: Any
) -> list:
    """Truncated episodes of the given lengths, random in `space`, with infos; returns the observations of each."""
    space.seed(0)
    actions.seed(0)
    buffers = []
    for length, reward in zip(steps, rewards, strict=True):
        rows = [space.sample() for _ in range(length + 1)]
        buffers.append(
            EpisodeBuffer(
                observations=stack(rows),
                actions=np.stack([actions.sample() for _ in range(length)]),
                rewards=np.full(length, reward),
                terminations=np.zeros(length, bool),
                truncations=np.arange(length) == length - 1,
                infos={"qpos": np.zeros((length + 1, 3))},
            )
        )
    minari.create_dataset_from_buffers(name, buffers, observation_space=space, action_space=actions)
    path = root / name / "data" / "metadata.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | metadata))
    return [b.observations for b in buffers]


def stack(rows: list) -> Any:
    return {k: stack([row[k] for row in rows]) for k in rows[0]} if isinstance(rows[0], dict) else np.stack(rows)


def maze_spec(maze: list) -> str:
    entry = "gymnasium_robotics.envs.maze.ant_maze_v4:AntMazeEnv"
    kwargs = {"maze_map": maze, "reward_type": "sparse", "continuing_task": True, "reset_target": False}
    return gymnasium.envs.registration.EnvSpec("AntMaze_UMaze-v4", entry, max_episode_steps=700, kwargs=kwargs).to_json()


def kitchen_space() -> Dict:
    goals = lambda: Dict({task: box(size) for task, size in TASKS.items()})
    return Dict({"achieved_goal": goals(), "desired_goal": goals(), "observation": box(59)})


def test_kitchen_goals_are_dicts_of_sub_tasks(root: Path) -> None:
    episodes = create(root, "D4RL/kitchen/complete-v2", kitchen_space(), [3, 2], Box(-1.0, 1.0, (9,), np.float64), [0.0, 4.0])
    dataset = load("D4RL/kitchen/complete-v2")
    goals = [f"{goal}/{task}" for goal in ("achieved_goal", "desired_goal") for task in TASKS]
    assert dataset.info.obs_keys == ("observation", *goals)
    assert dataset.info.obs_sizes == (59, *TASKS.values(), *TASKS.values()) and dataset.obs_dim == 93
    first = episodes[0]
    rows = [first["observation"], *(first[g][t] for g in ("achieved_goal", "desired_goal") for t in TASKS)]
    flat = np.concatenate(rows, axis=1).astype(np.float32)
    np.testing.assert_array_equal(dataset.obs[:3], flat[:-1])
    np.testing.assert_array_equal(dataset.next_obs[:3], flat[1:])
    assert dataset.timeout.tolist() == [False, False, True, False, True] and (dataset.discount == 1).all()
    # no references in the metadata: D4RL's table (kitchen: 0 to 4) is not taken instead
    assert normalized_score(dataset.info, dataset.returns())[0] is None
    assert score_column(dataset.info) == "return of D4RL/kitchen/complete-v2"
    assert "obs.desired_goal/microwave" in describe(dataset, window=2)["ranges"]


def test_antmaze_is_scored_by_minari_in_its_evaluation_environment(root: Path) -> None:
    space = Dict({"achieved_goal": box(2), "desired_goal": box(2), "observation": box(27)})
    collected, evaluated = [[1, 1, 1], [1, "g", 1], [1, 1, 1]], [[1, 1, 1], [1, "r", "g"], [1, 1, 1]]
    specs = {"env_spec": maze_spec(collected), "eval_env_spec": maze_spec(evaluated)}
    name = "D4RL/antmaze/umaze-v1"
    create(
        root, name, space, [4, 5], Box(-1.0, 1.0, (8,), np.float32), [0.0, 1.0], **specs, ref_min_score=0.0, ref_max_score=10.0
    )
    dataset = load(name)
    assert dataset.info.obs_keys == ("observation", "achieved_goal", "desired_goal") and dataset.info.obs_sizes == (27, 2, 2)
    assert dataset.lengths().tolist() == [4, 5] and (dataset.discount == 1).all() and dataset.timeout.sum() == 2
    scores, label = normalized_score(dataset.info, dataset.returns())
    assert scores is not None and scores.tolist() == [0.0, 50.0] and "minari metadata" in label
    assert score_column(dataset.info) == "score (Minari)"
    assert json.loads(dataset.info.env_spec or "")["kwargs"]["maze_map"] == collected
    found = evaluated_in(dataset.info)
    assert found.env_id == "AntMaze_UMaze-v4" and json.loads(found.env_spec or "")["kwargs"]["maze_map"] == evaluated
    assert evaluated_in(found) == found


@pytest.mark.parametrize(
    ("task", "sizes"), [("pen", (45, 24)), ("door", (39, 28)), ("hammer", (46, 26)), ("relocate", (39, 30))]
)
def test_adroit_observations_are_plain(root: Path, task: str, sizes: tuple[int, int]) -> None:
    actions = Box(-1.0, 1.0, sizes[1:], np.float32)
    (episode,) = create(root, f"D4RL/{task}/human-v2", box(sizes[0]), [6], actions, [1.0])
    dataset = load(f"D4RL/{task}/human-v2")
    np.testing.assert_array_equal(dataset.obs, episode[:-1].astype(np.float32))
    assert (dataset.obs_dim, dataset.action_dim) == sizes and dataset.info.obs_keys == ()
    assert dataset.timeout.tolist() == [False] * 5 + [True]
    assert normalized_score(dataset.info, dataset.returns())[0] is None  # D4RL's table is for another environment


def test_locally_made_datasets_say_so(root: Path) -> None:
    for name, changes in (("mujoco/hopper/medium-local-v0", {}), ("mine/hopper-v0", {"jaxpgd_local": True})):
        references = {"ref_min_score": 0.0, "ref_max_score": 6.0}
        create(root, name, box(2), [6], Box(-1.0, 1.0, (1,), np.float32), [1.0], **references, **changes)
        dataset = load(name)
        assert dataset.info.local and score_column(dataset.info) == "score (local)"
        text = format_description(describe(dataset, window=2))
        assert "made locally)" in text and "local references; made locally, not comparable with published scores" in text
    create(root, "mujoco/hopper/localised-v0", box(2), [6], Box(-1.0, 1.0, (1,), np.float32), [1.0])
    assert not load("mujoco/hopper/localised-v0").info.local


def test_nested_observations_are_exported_and_read_again(root: Path) -> None:
    create(root, "D4RL/kitchen/mixed-v2", kitchen_space(), [5], Box(-1.0, 1.0, (9,), np.float64), [1.0], ref_min_score=0.0,
           ref_max_score=4.0, eval_env_spec=maze_spec([[1]]))  # fmt: skip
    real = load("D4RL/kitchen/mixed-v2")
    ones = np.ones((1, 5), np.float32)
    made = Trajectory(obs=real.obs[None], action=real.action[None], reward=ones, discount=ones, mask=ones)
    export_minari(made, real.info, "pgd/kitchen-v0", root)
    again = load("pgd/kitchen-v0")
    np.testing.assert_array_equal(again.obs, real.obs[:4])
    np.testing.assert_array_equal(again.next_obs, real.obs[1:])
    assert (again.info.obs_keys, again.info.obs_sizes) == (real.info.obs_keys, real.info.obs_sizes)
    assert score_column(again.info) == "score (local, Minari references)"
    assert again.info.local and not real.info.local and again.info.eval_env_spec == real.info.eval_env_spec
    episode = next(iter(minari.load_dataset("pgd/kitchen-v0").iterate_episodes()))
    assert episode.observations["desired_goal"]["kettle"].shape == (5, 7)
