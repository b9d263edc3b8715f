"""Faults: the stage that a run is in; one fault of each kind, slowly."""

import os
from pathlib import Path

import pytest

from benchmarks.robustness import faults, sandbox


def test_the_stage_that_a_run_is_in(tmp_path: Path) -> None:
    assert sandbox.stage_of(tmp_path) == "denoiser"
    (tmp_path / "stages").mkdir()
    for stage in ("denoiser", "world-model", "state-denoiser"):
        (tmp_path / "stages" / f"{stage}.json").touch()
    assert sandbox.stage_of(tmp_path) == "agent-guided"


@pytest.mark.slow
def test_one_fault_of_each_kind_is_survived() -> None:
    root = os.geteuid() == 0
    found = faults.run(kills=1, damages=2, disks=int(root))
    assert [row["lost"] for row in found["table"]] == [0] * len(found["table"]), found["faults"]
    assert sum(row["tried"] for row in found["table"]) == 3 + root
