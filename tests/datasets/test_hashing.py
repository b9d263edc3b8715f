"""Telling data that has changed from data that has not."""

from pathlib import Path

import pytest

from jaxpgd.datasets.hashing import data_hash, file_hash


def test_every_file_of_a_minari_dataset_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path))
    folder = tmp_path / "mine" / "walk-v0" / "data"
    assert data_hash("mine/walk-v0") == ""
    folder.mkdir(parents=True)
    (folder / "metadata.json").write_text('{"ref_max_score": 1}')
    (folder / "episode-0.arrow").write_bytes(b"123")
    found = [data_hash("mine/walk-v0")]
    for name, content in (("metadata.json", b'{"ref_max_score": 2}'), ("episode-0.arrow", b"124"), ("episode-1.arrow", b"")):
        (folder / name).write_bytes(content)
        found.append(data_hash("mine/walk-v0"))
    assert len(set(found)) == 4 and all(found) and found[-1] == data_hash("mine/walk-v0")


def test_a_file_is_known_by_its_content(tmp_path: Path) -> None:
    one, other = tmp_path / "one.npz", tmp_path / "other.npz"
    one.write_bytes(b"123")
    other.write_bytes(b"123")
    assert file_hash(one) == file_hash(other) == data_hash(str(one))
    other.write_bytes(b"124")
    assert file_hash(one) != file_hash(other)
    assert data_hash("point2d") == ""
