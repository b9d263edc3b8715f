import dataclasses
import os
from pathlib import Path

import gymnasium
import jax
import minari
import numpy as np
import pytest

from jaxpgd.dataset import Dataset, DatasetInfo
from jaxpgd.datasets import load
from jaxpgd.datasets.export import export_minari, export_npz
from jaxpgd.errors import InputError
from jaxpgd.types import Trajectory

INFO = DatasetInfo(
    name="hand",
    source="minari",
    action_low=(-2.0, 0.0),
    action_high=(2.0, 1.0),
    env_id="Pendulum-v1",
    env_spec=gymnasium.spec("Pendulum-v1").to_json(),
    ref_min=0.0,
    ref_max=10.0,
    ref_source="minari metadata",
)
GOAL = dataclasses.replace(INFO, obs_keys=("observation", "achieved_goal", "desired_goal"), obs_sizes=(3, 1, 1))


def trajectories() -> Trajectory:
    """Three of four steps: one truncated, one ending in a terminal at step 1, one at step 3."""
    rng = np.random.default_rng(0)
    discount = np.ones((3, 4), np.float32)
    discount[1, 1] = discount[2, 3] = 0
    action = rng.uniform(-1, 1, (3, 4, 2)).astype(np.float32)
    action[0, 0] = [-1, 1]
    obs = rng.normal(size=(3, 4, 5)).astype(np.float32)
    return Trajectory(
        obs=obs, action=action, reward=rng.normal(size=(3, 4)).astype(np.float32), discount=discount, mask=discount
    )


def check_same(dataset: Dataset, t: Trajectory) -> None:
    steps = ([0, 0, 0, 1, 1, 2, 2, 2, 2], [0, 1, 2, 0, 1, 0, 1, 2, 3])
    following = ([0, 0, 0, 1, 1, 2, 2, 2, 2], [1, 2, 3, 1, 1, 1, 2, 3, 3])  # the last one repeats at a terminal
    np.testing.assert_array_equal(dataset.obs, t.obs[steps])
    np.testing.assert_array_equal(dataset.next_obs, t.obs[following])
    np.testing.assert_array_equal(dataset.reward, t.reward[steps])
    np.testing.assert_allclose(dataset.action, t.action[steps], atol=1e-6)
    assert dataset.discount.tolist() == [1, 1, 1, 1, 0, 1, 1, 1, 0]
    assert dataset.timeout.tolist() == [False, False, True] + [False] * 6
    assert dataset.offsets.tolist() == [0, 3, 5, 9]


@pytest.mark.parametrize("info", [INFO, GOAL])
def test_minari_round_trip(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, info: DatasetInfo) -> None:
    monkeypatch.setenv("MINARI_DATASETS_PATH", "before")
    target = export_minari(trajectories(), info, "pgd/pendulum/guided-v0", tmp_path, description="hand-made", author="a")
    assert target == tmp_path / "pgd/pendulum/guided-v0" and os.environ["MINARI_DATASETS_PATH"] == "before"
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path))
    loaded = load("pgd/pendulum/guided-v0")
    check_same(loaded, trajectories())
    assert (loaded.info.obs_keys, loaded.info.obs_sizes) == (info.obs_keys, info.obs_sizes)
    assert loaded.info.env_id == "Pendulum-v1" and loaded.info.ref_max == 10.0
    assert (loaded.info.action_low, loaded.info.action_high) == (info.action_low, info.action_high)


@pytest.mark.parametrize("info", [INFO, GOAL])
def test_minari_itself_reads_the_episodes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, info: DatasetInfo) -> None:
    export_minari(trajectories(), info, "pgd/guided-v1", tmp_path)
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path))
    dataset = minari.load_dataset("pgd/guided-v1")
    assert (dataset.total_episodes, dataset.total_steps) == (3, 9)
    assert dataset.spec.env_spec.id == "Pendulum-v1"
    for episode, ends in zip(dataset.iterate_episodes(), ("truncations", "terminations", "terminations"), strict=True):
        assert getattr(episode, ends)[-1] and episode.truncations.sum() + episode.terminations.sum() == 1
        assert all(dataset.action_space.contains(a) for a in episode.actions)
        obs = episode.observations
        rows = [{k: v[i] for k, v in obs.items()} for i in range(len(obs["observation"]))] if info.obs_keys else list(obs)
        assert len(rows) == len(episode.actions) + 1
        assert all(dataset.observation_space.contains(row) for row in rows)


def rollouts(length: int = 4) -> Trajectory:
    """The same as rollouts, whose every step is known to lead to the next observation."""
    made = jax.tree.map(lambda x: x[:, :length], trajectories())
    last = np.random.default_rng(1).normal(size=(3, 5)).astype(np.float32)
    return dataclasses.replace(made, last_obs=last)


@pytest.mark.parametrize("length", [4, 1])
def test_rollouts_keep_all_their_transitions(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, length: int) -> None:
    made = rollouts(length)
    steps = [4, 2, 4] if length == 4 else [1, 1, 1]
    following = np.append(made.obs, np.asarray(made.last_obs)[:, None], axis=1)
    export_minari(made, INFO, "pgd/rollouts-v0", tmp_path)
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path))
    for n, episode in enumerate(minari.load_dataset("pgd/rollouts-v0").iterate_episodes()):
        assert len(episode.actions) == steps[n]
        np.testing.assert_array_equal(episode.observations, following[n, : steps[n] + 1])  # after a terminal, too
        assert bool(episode.terminations[-1]) == bool((made.discount[n] == 0).any()) != bool(episode.truncations[-1])
    for name in ("pgd/rollouts-v0", str(export_npz(made, INFO, tmp_path / "rollouts.npz"))):
        loaded = load(name)
        np.testing.assert_array_equal(loaded.lengths(), steps)
        np.testing.assert_array_equal(loaded.next_obs, np.concatenate([following[n, 1 : k + 1] for n, k in enumerate(steps)]))
        np.testing.assert_array_equal(loaded.discount, np.concatenate([made.discount[n, :k] for n, k in enumerate(steps)]))


def test_npz_round_trip(tmp_path: Path) -> None:
    path = export_npz(trajectories(), INFO, tmp_path / "new" / "guided.npz")
    check_same(load(str(path)), trajectories())
    assert [p.name for p in path.parent.iterdir()] == ["guided.npz"]


def test_existing_targets_and_bad_ids_are_refused(tmp_path: Path) -> None:
    export_minari(trajectories(), INFO, "pgd/a-v0", tmp_path)
    before = (tmp_path / "pgd/a-v0/data/main_data.hdf5").read_bytes()
    with pytest.raises(InputError, match="no existing dataset"):
        export_minari(trajectories(), INFO, "pgd/a-v0", tmp_path)
    assert (tmp_path / "pgd/a-v0/data/main_data.hdf5").read_bytes() == before
    export_minari(trajectories(), INFO, "pgd/b-v0", tmp_path)  # beside it, in the same namespace
    with pytest.raises(InputError, match="Minari id"):
        export_minari(trajectories(), INFO, "not an id", tmp_path)
    export_npz(trajectories(), INFO, tmp_path / "a.npz")
    with pytest.raises(InputError, match="no existing file"):
        export_npz(trajectories(), INFO, tmp_path / "a.npz")
    short = jax.tree.map(lambda x: x[:, :1], trajectories())
    with pytest.raises(InputError, match="at least one trajectory"):
        export_npz(dataclasses.replace(short, discount=np.ones((3, 1))), INFO, tmp_path / "b.npz")
