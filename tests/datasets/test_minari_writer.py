"""Datasets appear when they are whole, and not before."""

import os
from pathlib import Path

import gymnasium
import minari
import numpy as np
import pytest
from minari.data_collector import EpisodeBuffer
from minari.namespace import list_local_namespaces

from jaxpgd.datasets import minari_writer
from jaxpgd.datasets.minari_writer import new_dataset
from jaxpgd.errors import InputError

BOX = gymnasium.spaces.Box(-1.0, 1.0, (1,), np.float32)


def episode(steps: int, value: float) -> EpisodeBuffer:
    column = np.full((steps + 1, 1), value, np.float32)
    ends = np.arange(steps) == steps - 1
    return EpisodeBuffer(
        observations=column, actions=column[1:], rewards=column[1:, 0], terminations=ends, truncations=np.zeros(steps, bool)
    )


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path / "sets"))
    return tmp_path / "sets"


def test_episodes_are_written_in_order_and_only_so_many_are_held(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(minari_writer, "_STEPS_AT_ONCE", 5)
    with new_dataset(root, "aa/b/c-v3", BOX, BOX, None) as writer:
        for index in range(7):
            writer.add(episode(2, index / 10))
            assert len(writer._waiting) <= 2
        writer.metadata = {"description": "seven", "jaxpgd_local": True}
        assert minari.list_local_datasets() == {} and not (root / "aa").exists()
    loaded = minari.load_dataset("aa/b/c-v3")
    assert (loaded.total_episodes, loaded.total_steps) == (7, 14)
    np.testing.assert_allclose([e.observations[0, 0] for e in loaded.iterate_episodes()], np.arange(7) / 10, rtol=1e-6)
    assert loaded.storage.metadata["description"] == "seven" and loaded.storage.metadata["jaxpgd_local"] is True
    assert list(minari.list_local_datasets()) == ["aa/b/c-v3"] and list_local_namespaces() == ["aa", "aa/b"]
    assert sorted(p.name for p in root.iterdir()) == ["aa"]


@pytest.mark.parametrize("error", [KeyboardInterrupt, SystemExit, ValueError])
def test_nothing_is_left_of_what_was_interrupted(root: Path, error: type[BaseException]) -> None:
    with pytest.raises(error), new_dataset(root, "aa/c-v0", BOX, BOX, None) as writer:
        writer.add(episode(3, 0.5))
        writer.flush()
        assert [p.name.startswith(".unfinished-") for p in root.iterdir()] == [True]
        raise error
    assert list(root.iterdir()) == []
    assert os.environ["MINARI_DATASETS_PATH"] == str(root)


def test_a_dataset_that_another_process_finished_first_stays(root: Path) -> None:
    with pytest.raises(InputError, match="no existing dataset"), new_dataset(root, "aa/c-v0", BOX, BOX, None) as slow:
        slow.add(episode(3, 0.5))
        with new_dataset(root, "aa/c-v0", BOX, BOX, None) as fast:
            fast.add(episode(1, 0.25))
    assert minari.load_dataset("aa/c-v0").total_steps == 1
    assert sorted(p.name for p in root.iterdir()) == ["aa"]


@pytest.mark.parametrize("dataset_id", ["not an id", "aa/b", "../b-v0", ""])
def test_ids(root: Path, dataset_id: str) -> None:
    with pytest.raises(InputError, match="a Minari id such as"), new_dataset(root, dataset_id, BOX, BOX, None):
        pass
    assert not root.exists()


def test_a_file_in_the_way(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with (
        pytest.raises(InputError, match="a directory that can be written"),
        new_dataset(tmp_path / "file", "b-v0", BOX, BOX, None),
    ):
        pass
