"""A few mutated files of every kind: refused with a clear error, or read. `make fuzz` tries a thousand of each."""

import os
from pathlib import Path

import pytest

from benchmarks.robustness.fuzz import one
from benchmarks.robustness.inputs import KINDS


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folders = {name: tmp_path_factory.mktemp(name) for name in KINDS}
    for name, folder in folders.items():
        KINDS[name].make(folder)
        KINDS[name].read(folder)
    return folders


@pytest.mark.parametrize("name", KINDS)
def test_mutated_files_are_read_or_refused(name: str, sound: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MINARI_DATASETS_PATH", os.environ.get("MINARI_DATASETS_PATH", ""))  # set by the reader, restored here
    answers = [one(name, number, 0, sound[name]) for number in range(20)]
    assert all(answer == "accepted" or answer.startswith("refused: ") for answer in answers)
    assert name in ("checkpoint", "log") or any(answer.startswith("refused: ") for answer in answers)
