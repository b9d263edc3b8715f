"""The accounts of long runs and of faults; one fault of each kind, slowly."""

import os
from pathlib import Path

import pytest

from benchmarks import __main__ as cli
from benchmarks import faults, soak


def test_the_account_of_a_long_run() -> None:
    # 100 updates a second for 400 s, the last quarter at half of that; memory grows from 1000 to 1100 MB after 300 s
    samples, updates = [], 0
    for second in range(1, 401):
        updates += 50 if second > 300 else 100
        samples.append((float(second), updates, (1100 if second > 300 else 1000) * 2**20))
    found = soak.account(samples, 400.0)
    assert found["memory_settled_mb"] == 1000 and found["memory_end_mb"] == 1100
    assert found["memory_change_percent"] == pytest.approx(10)
    assert found["last_against_second_quarter_percent"] == pytest.approx(-50, abs=2)
    assert found["updates"] == updates and len(found["samples"]) <= 400


def test_the_stage_that_a_run_is_in(tmp_path: Path) -> None:
    assert faults.stage_of(tmp_path) == "denoiser"
    (tmp_path / "stages").mkdir()
    for stage in ("denoiser", "dynamics", "state-denoiser"):
        (tmp_path / "stages" / f"{stage}.json").touch()
    assert faults.stage_of(tmp_path) == "agent-guided"


def test_options_belong_to_their_suite(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        cli.main(["agents", "--minutes", "3"])
    assert "--minutes: not an option of agents" in capsys.readouterr().err


@pytest.mark.slow
def test_one_fault_of_each_kind_is_survived() -> None:
    root = os.geteuid() == 0
    found = faults.run(kills=1, damages=2, disks=int(root))
    assert [row["lost"] for row in found["table"]] == [0] * len(found["table"]), found["faults"]
    assert sum(row["tried"] for row in found["table"]) == 3 + root
