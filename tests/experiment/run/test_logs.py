import importlib
import importlib.util
import io
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest

from jaxpgd.errors import InputError
from jaxpgd.experiment.cli import main
from jaxpgd.experiment.config import Config
from jaxpgd.experiment.run import progress
from jaxpgd.experiment.run.directory import ClaimedRun
from jaxpgd.experiment.run.logs import MetricsLog, plain, require_wandb
from jaxpgd.experiment.run.progress import StageProgress, clock, evaluation_progress


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


def strict(text: str) -> Any:
    """JSON without the words that Python adds to it."""

    def refuse(word: str) -> None:
        raise AssertionError(f"{word} is not JSON")

    return json.loads(text, parse_constant=refuse)


def test_numbers_that_are_not_finite_are_null_and_read_as_nan(tmp_path: Path) -> None:
    log = MetricsLog(tmp_path / "metrics.jsonl")
    log.write("agent", 1, {"loss": np.nan, "returns": np.array([1.0, np.inf]), "nested": {"a": (jnp.asarray(-jnp.inf), 2)}})
    log.rewind("agent", 1)  # written once more
    row = strict(log.path.read_text(encoding="utf-8"))
    assert row == {"stage": "agent", "chunk": 1, "loss": None, "returns": [1.0, None], "nested": {"a": [None, 2]}}
    with log.path.open("a", encoding="utf-8") as file:
        file.write('{"stage": "agent", "chunk": 2, "loss": NaN}\n')
    first, older = log.read()
    assert np.isnan([first["loss"], first["returns"][1], first["nested"]["a"][0], older["loss"]]).all()


def test_results_are_json_whatever_the_numbers(tmp_path: Path) -> None:
    run = ClaimedRun(tmp_path, Config())
    run.write_json("returns.json", {"real": {"returns": np.array([[np.nan, 1.0]]), "score": None, "error": float("inf")}})
    run.finish("agent", {"seconds": np.float32(np.nan), "peak_memory_bytes": None})
    assert strict((tmp_path / "returns.json").read_text(encoding="utf-8"))["real"]["returns"] == [[None, 1.0]]
    assert strict((tmp_path / "stages" / "agent.json").read_text(encoding="utf-8"))["seconds"] is None
    found = run.read_json("returns.json")["real"]
    assert found["score"] is None and np.isnan([found["returns"][0][0], found["error"]]).all()
    assert run.facts("agent")["peak_memory_bytes"] is None and np.isnan(run.facts("agent")["seconds"])


def test_plain_values() -> None:
    made = plain({"a": (jnp.asarray(1), np.float32(0.5)), "b": [np.bool_(True), "text", None], "c": jnp.zeros((1, 2))})
    assert json.loads(json.dumps(made)) == {"a": [1, 0.5], "b": [True, "text", None], "c": [[0.0, 0.0]]}


@pytest.mark.skipif(importlib.util.find_spec("wandb") is not None, reason="wandb is installed")
def test_wandb_is_asked_for_by_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    require_wandb("")
    with pytest.raises(InputError, match=r"wandb_project = 'mine'.*jaxpgd\[wandb\]"):
        require_wandb("mine")
    (tmp_path / "wandb").mkdir()  # a folder of logs
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(InputError, match=r"wandb_project = 'mine'.*jaxpgd\[wandb\]"):
        require_wandb("mine")


FAKE = """
import os
lines = []
class Run:
    def log(self, values):
        if len(lines) == 2:
            raise ConnectionError("gone\\nfor good")
        lines.append(values)
def init(**given):
    if os.environ.get("WANDB_MODE") != "offline":
        raise OSError("api_key not configured (no-tty)\\nmore")
    lines.append(given)
    return Run()
"""


@pytest.fixture
def fake_wandb(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A package wandb that is as strict as the real one without a key, and whose log fails at the second line."""
    (tmp_path / "site" / "wandb").mkdir(parents=True)
    (tmp_path / "site" / "wandb" / "__init__.py").write_text(FAKE, encoding="utf-8")
    monkeypatch.syspath_prepend(tmp_path / "site")
    monkeypatch.delitem(sys.modules, "wandb", raising=False)
    yield
    sys.modules.pop("wandb", None)


def test_wandb_that_refuses_is_one_line(tmp_path: Path, fake_wandb: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("WANDB_MODE", raising=False)
    with pytest.raises(InputError) as raised:
        MetricsLog(tmp_path / "metrics.jsonl", "mine", "run").start()
    assert str(raised.value).startswith("wandb_project = 'mine': expected Weights & Biases to start (OSError: api_key not conf")
    assert "\n" not in str(raised.value) and "WANDB_MODE=offline" in str(raised.value)


def test_a_mirror_that_fails_does_not_end_the_run(
    tmp_path: Path, fake_wandb: None, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("WANDB_MODE", "offline")
    log = MetricsLog(tmp_path / "metrics.jsonl", "mine", "run")
    log.start()
    log.start()  # once is enough
    for chunk in (1, 2, 3):
        log.write("agent", chunk, {"loss": [1.0, 3.0]})
    sent = importlib.import_module("wandb").lines
    assert sent == [{"project": "mine", "name": "run"}, {"agent/chunk": float(1), "agent/loss": 2.0}]
    assert [row["chunk"] for row in log.read()] == [1, 2, 3]
    said = capsys.readouterr().err.splitlines()
    assert len(said) == 1 and said[0].startswith("warning: Weights & Biases is not logged to any more (ConnectionError: gone")


def test_wandb_starts_before_anything_is_computed(
    tmp_path: Path, fake_wandb: None, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delenv("WANDB_MODE", raising=False)
    words = ["run", "--data.episodes", "4", "--wandb-project", "mine", "--out", str(tmp_path / "run"), "--denoiser.steps", "10"]
    with pytest.raises(SystemExit) as ended:
        main([*words, "--denoiser.validate-every", "10"])
    printed = capsys.readouterr()
    assert ended.value.code == 2 and "denoiser" not in printed.out and len(printed.err.splitlines()) == 1
    assert "expected Weights & Biases to start" in printed.err and not (tmp_path / "run").exists()


def test_progress_prints_rate_and_time_left(capsys: pytest.CaptureFixture[str]) -> None:
    with StageProgress("denoiser", 100, "steps", done=40, every=0.0) as progress:
        progress.advance(30, "loss 0.5")
        progress.advance(30)
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "denoiser: 40/100 steps, compiling"
    assert "70/100 steps" in lines[1] and "left, loss 0.5" in lines[1] and "100/100" in lines[2]
    assert [clock(s) for s in (0, 59.6, 61, 3661)] == ["0:00", "1:00", "1:01", "1:01:01"]


def test_progress_of_an_evaluation_is_a_line_now_and_then(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    now = [0.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])

    def steps(seconds: float) -> list[str]:
        with evaluation_progress("returns, real", every=5.0) as watch:
            for step in range(1, 11):
                now[0] += seconds
                watch(step, 10, step // 5, 2)
        return capsys.readouterr().out.splitlines()

    assert steps(0.2) == []  # a short one says nothing
    lines = steps(2.0)
    assert [line.split(",")[1] for line in lines] == [" real: 4/10 steps", " real: 7/10 steps", " real: 10/10 steps"]
    assert lines[1].endswith("0.5/s, 0:06 left, 1/2 episodes ended")
    with evaluation_progress("again", every=0.0) as watch:
        for step in (1, 2, 3, 1, 2):  # begun again in one process
            watch(step, 10, 0, 2)
    assert [line.split()[1] for line in capsys.readouterr().out.splitlines()] == ["1/10", "2/10", "3/10", "1/10", "2/10"]


def test_progress_within_progress_shares_a_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    monkeypatch.setattr(sys, "stdout", Terminal())
    with StageProgress("agent-real", 4, "updates") as outer:
        with evaluation_progress("agent-real, evaluation") as watch:
            watch(1, 10, 0, 2)
            assert outer.bar is not None and [task.description for task in outer.bar.tasks] == [
                "agent-real", "agent-real, evaluation",
            ]  # fmt: skip
        assert len(outer.bar.tasks) == 1 and outer.bar.live.is_started
        outer.advance(4)
    assert not StageProgress._open and not outer.bar.live.is_started
