import importlib.util
import json
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest

from jaxpgd.errors import InputError
from jaxpgd.training.logs import MetricsLog, plain, require_wandb
from jaxpgd.training.progress import StageProgress, clock


def test_rows_come_back_as_plain_numbers(tmp_path: Path) -> None:
    log = MetricsLog(tmp_path / "metrics.jsonl")
    assert log.read() == []
    log.write("agent", 1, {"loss": jnp.asarray(0.5), "returns": np.array([1.0, 2.0]), "step": 10})
    assert log.read() == [{"stage": "agent", "chunk": 1, "loss": 0.5, "returns": [1.0, 2.0], "step": 10}]


def test_rewind_drops_what_a_stage_does_again(tmp_path: Path) -> None:
    log = MetricsLog(tmp_path / "metrics.jsonl")
    for stage, chunk in (("denoiser", 1), ("denoiser", 2), ("agent", 1), ("agent", 2), ("agent", 3)):
        log.write(stage, chunk, {})
    log.rewind("agent", 1)
    assert [(r["stage"], r["chunk"]) for r in log.read()] == [("denoiser", 1), ("denoiser", 2), ("agent", 1)]
    log.rewind("agent", 0)
    assert [r["stage"] for r in log.read()] == ["denoiser", "denoiser"]


def test_a_line_cut_by_a_crash_is_left_out(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    log = MetricsLog(path)
    log.write("agent", 1, {})
    log.write("agent", 2, {"loss": 1.25})
    path.write_text(path.read_text()[:-8])
    assert [r["chunk"] for r in log.read()] == [1]
    log.rewind("agent", 2)
    log.write("agent", 2, {"loss": 1.25})
    assert [json.loads(line)["chunk"] for line in path.read_text().splitlines()] == [1, 2]


def test_plain_values() -> None:
    made = plain({"a": (jnp.asarray(1), np.float32(0.5)), "b": [np.bool_(True), "text", None], "c": jnp.zeros((1, 2))})
    assert json.loads(json.dumps(made)) == {"a": [1, 0.5], "b": [True, "text", None], "c": [[0.0, 0.0]]}


@pytest.mark.skipif(importlib.util.find_spec("wandb") is not None, reason="wandb is installed")
def test_wandb_is_asked_for_by_name() -> None:
    require_wandb("")
    with pytest.raises(InputError, match=r"wandb_project = 'mine'.*jaxpgd\[wandb\]"):
        require_wandb("mine")


def test_progress_prints_rate_and_time_left(capsys: pytest.CaptureFixture[str]) -> None:
    with StageProgress("denoiser", 100, "steps", done=40, every=0.0) as progress:
        progress.advance(30, "loss 0.5")
        progress.advance(30)
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "denoiser: 40/100 steps, compiling"
    assert "70/100 steps" in lines[1] and "left, loss 0.5" in lines[1] and "100/100" in lines[2]
    assert [clock(s) for s in (0, 59.6, 61, 3661)] == ["0:00", "1:00", "1:01", "1:01:01"]
