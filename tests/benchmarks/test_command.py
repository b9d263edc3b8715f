"""`python -m benchmarks`: which suites run, what is written, what is refused."""

import importlib
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks import __main__ as cli

ROOT = Path(__file__).parents[2]


def test_without_a_name_every_speed_suite_is_run_and_kept(tmp_path, monkeypatch, capsys):
    modules = {name: importlib.import_module(f"benchmarks.speed.{name}") for name in cli.SPEED}
    assert set(modules) == {"agents", "denoiser", "dydiff", "end_to_end", "evaluation", "refresh", "sampling", "scaling"}
    out = tmp_path / "all.json"
    for name, module in modules.items():
        monkeypatch.setattr(module, "run", lambda name=name: {"suite": name, "before": out.exists()})
    cli.main(["--out", str(out)])
    found = json.loads(out.read_text())
    assert found == json.loads(capsys.readouterr().out) and set(found) == set(modules) == set(cli.SPEED)
    assert [found[name]["before"] for name in cli.SPEED] == [False] + [True] * (len(modules) - 1)


def test_unknown_suite_and_folder_are_refused(tmp_path):
    for arguments in (["nonsense"], ["agents", "--out", str(tmp_path / "missing" / "out.json")]):
        with pytest.raises(SystemExit) as error:
            cli.main(arguments)
        assert error.value.code == 2


def test_options_belong_to_their_suite(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        cli.main(["agents", "--minutes", "3"])
    assert "--minutes: not an option of agents" in capsys.readouterr().err


@pytest.mark.parametrize(("arguments", "code"), [(["--help"], 0), (["accelerator", "--predict"], 141)])
def test_a_reader_that_has_read_enough_gets_no_traceback(arguments, code, tmp_path):
    reading, writing = os.pipe()
    os.close(reading)
    command = [sys.executable, "-m", "benchmarks", *arguments, "--out", str(tmp_path / "out.md")]
    with os.fdopen(writing, "w") as closed:
        done = subprocess.run(command, stdout=closed, stderr=subprocess.PIPE, text=True, check=False, cwd=ROOT)
    assert (done.returncode, done.stderr) == (code, "")
    assert (tmp_path / "out.md").exists() == (code == 141)  # written before anything is printed
