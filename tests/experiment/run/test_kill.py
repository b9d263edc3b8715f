"""`kill -9` in the middle of every stage, then `--resume`: the same bits as a run that was never interrupted."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import orbax.checkpoint as ocp
import pytest

STAGES = ("denoiser", "agent-real", "agent-unguided", "agent-guided", "returns", "quality")
SETTINGS = """
--seeds 2 --checkpoint-seconds 0 --data.episodes 100 --denoiser.features 16 --denoiser.groups 4 --denoiser.batch-size 16
--denoiser.steps 400 --denoiser.validate-every 20 --sampler.steps 8 --synthesis.trajectories 64 --synthesis.interval 80
--agent.updates 320 --agent.updates-per-chunk 20 --agent.batch-size 32 --agent.td3-bc.hidden 32 32
--evaluation.episodes 4 --evaluation.trajectories 64 --evaluation.coefficients 0.1 1
""".split()


def start(out: Path) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "jaxpgd.experiment.cli", "run", "--resume", "--out", str(out), *SETTINGS]
    with (out.parent / f"{out.name}.log").open("ab") as log:
        return subprocess.Popen(command, stdout=log, stderr=log)


def under_way(out: Path, stage: str, chunks: int) -> bool:
    """Whether a stage has begun: a training stage has logged `chunks` chunks; any other, its predecessor is done."""
    if stage in ("returns", "quality"):
        return (out / "stages" / f"{STAGES[STAGES.index(stage) - 1]}.json").exists()
    log = out / "metrics.jsonl"
    rows = [json.loads(line) for line in log.read_text().splitlines() if line.endswith("}")] if log.exists() else []
    return sum(row["stage"] == stage for row in rows) >= chunks


def kill_within(out: Path, stage: str, chunks: int) -> None:
    process = start(out)
    deadline = time.monotonic() + 300
    while not under_way(out, stage, chunks):
        assert process.poll() is None, f"ended before {stage}: see {out}.log"
        assert time.monotonic() < deadline, f"{stage} did not begin within 300 s"
        time.sleep(0.005)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    assert not (out / "stages" / f"{stage}.json").exists(), f"killed after {stage} instead of within it"


def final_checkpoints(out: Path) -> dict[str, np.ndarray]:
    found = {}
    for stage in sorted((out / "checkpoints").iterdir()):
        newest = max((p for p in stage.iterdir() if p.name.isdigit()), key=lambda p: int(p.name))
        with ocp.StandardCheckpointer() as reader:
            values = reader.restore(newest.absolute())
        found |= {f"{stage.name}/{newest.name}/{name}": np.asarray(value) for name, value in values.items()}
    return found


@pytest.mark.slow
def test_kill_in_every_stage_then_resume_gives_the_same_bits(tmp_path: Path) -> None:
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    assert start(whole).wait() == 0, (tmp_path / "whole.log").read_text()
    for i, stage in enumerate(STAGES):
        kill_within(killed, stage, chunks=3 + 2 * i)
    assert start(killed).wait() == 0, (tmp_path / "killed.log").read_text()
    expected, found = final_checkpoints(whole), final_checkpoints(killed)
    assert expected.keys() == found.keys()
    assert any("replay" in name for name in expected) and any("optimiser" in name for name in expected)
    for name, value in expected.items():
        np.testing.assert_array_equal(value, found[name], err_msg=name)
    assert json.loads((whole / "results.json").read_text()) == json.loads((killed / "results.json").read_text())
