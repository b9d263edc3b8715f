import dataclasses
import json
import subprocess
import sys
from pathlib import Path

import jax
import pytest

from jaxpgd.diffusion.solvers import SamplerConfig
from jaxpgd.errors import InputError
from jaxpgd.experiment.commands.evaluate import run_evaluation
from jaxpgd.experiment.commands.report import run_report
from jaxpgd.experiment.commands.train_agent import run_agents
from jaxpgd.experiment.config import Config, EvaluationConfig
from jaxpgd.experiment.config_files import load_config
from jaxpgd.experiment.run.directory import create_run, write_atomic
from jaxpgd.experiment.run.versions import versions
from jaxpgd.experiment.run.view import RunView, open_run
from jaxpgd.experiment.stages.prepare import prepare


def config(path: Path) -> Config:
    return Config(out=str(path / "run"), sampler=SamplerConfig(steps=5))


def test_a_new_run_keeps_its_config_and_versions(tmp_path: Path) -> None:
    run = create_run(config(tmp_path), resume=False)
    assert load_config(run.path / "config.toml") == config(tmp_path) == open_run(run.path).config
    assert {"python", "device", "jax"} <= json.loads((run.path / "versions.json").read_text()).keys()


def test_precision_is_stated_and_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A run says what its products were taken at; one from before there was the setting goes on."""
    run = create_run(config(tmp_path), resume=False)
    assert json.loads((run.path / "versions.json").read_text())["matmul_precision"] == "float32"  # on CPU
    exact = dataclasses.replace(config(tmp_path), matmul_precision="float32")
    with pytest.raises(InputError, match=r"holds another run \(matmul_precision = 'tensorfloat32' there, 'float32' here\)"):
        create_run(exact, resume=True)
    text = (run.path / "config.toml").read_text()
    (run.path / "config.toml").write_text(text.replace('matmul_precision = "tensorfloat32"\n', ""))
    assert "matmul_precision" in text and "matmul_precision" not in (run.path / "config.toml").read_text()
    create_run(config(tmp_path), resume=True)
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    assert versions("tensorfloat32")["matmul_precision"] == "tensorfloat32"
    assert versions("tensorfloat32", "float32", "float32")["matmul_precision"] == "float32, tensorfloat32"


def test_stages_leave_markers(tmp_path: Path) -> None:
    run = create_run(config(tmp_path), resume=False)
    assert not run.is_done("denoiser")
    with pytest.raises(InputError, match=r"stage 'denoiser' is not finished. Run `this` first"):
        run.require("denoiser", "this")
    run.finish("denoiser", {"seconds": 1.5})
    run.require("denoiser", "this")
    assert run.is_done("denoiser") and run.facts("denoiser") == {"seconds": 1.5}
    assert run.read_json("absent.json") == {}


def test_unfinished_finished_and_other_runs(tmp_path: Path) -> None:
    run = create_run(config(tmp_path), resume=False)
    with pytest.raises(InputError, match=r"unfinished run of this config. Add --resume"):
        create_run(config(tmp_path), resume=False)
    create_run(config(tmp_path), resume=True)
    other = dataclasses.replace(config(tmp_path), sampler=SamplerConfig(steps=6))
    for resume in (False, True):
        with pytest.raises(InputError, match=r"holds another run \(sampler.steps = 5 there, 6 here\).*--out"):
            create_run(other, resume=resume)
    create_run(dataclasses.replace(config(tmp_path), checkpoint_seconds=1.0), resume=True)  # changes no result
    create_run(dataclasses.replace(config(tmp_path), evaluation=EvaluationConfig(processes=3)), resume=True)  # nor does this
    run.finish("report", {})
    create_run(config(tmp_path), resume=False)


def test_foreign_directories_are_left_alone(tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    create_run(config(tmp_path), resume=False)  # an empty one is fine
    elsewhere = dataclasses.replace(config(tmp_path), out=str(tmp_path / "mine"))
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("precious")
    with pytest.raises(InputError, match=r"out = .*mine.*expected a new or empty directory. Choose another with --out"):
        create_run(elsewhere, resume=True)
    assert [p.name for p in (tmp_path / "mine").iterdir()] == ["thesis.txt"]


def test_a_directory_that_cannot_be_made(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match=r"out = .*expected a directory that can be written"):
        create_run(dataclasses.replace(config(tmp_path), out=str(tmp_path / "file" / "run")), resume=False)


def test_a_run_killed_while_it_was_made_can_begin_again(tmp_path: Path) -> None:
    run = create_run(config(tmp_path), resume=False)
    (run.path / "config.toml").unlink()
    assert create_run(config(tmp_path), resume=True).path == run.path


def test_commands_say_what_has_to_come_first(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"expected a run directory made by `jaxpgd run`"):
        open_run(tmp_path)
    path = str(create_run(config(tmp_path), resume=False).path)
    with pytest.raises(InputError, match=r"stage 'denoiser' is not finished. Run `jaxpgd run .*--resume` first"):
        run_agents(path)
    with pytest.raises(InputError, match=r"stage 'agent-real' is not finished. Run `jaxpgd train-agent"):
        run_evaluation(path)
    with pytest.raises(InputError, match=r"stage 'returns' is not finished. Run `jaxpgd evaluate"):
        run_report(path)
    with pytest.raises(InputError, match=r"--arm = 'other': expected one of real, unguided, guided"):
        run_agents(path, "other")


def test_readers_never_see_half_a_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_atomic(tmp_path / "deep" / "file", "old")
    write_atomic(tmp_path / "deep" / "file", "new")
    assert [p.read_text() for p in (tmp_path / "deep").iterdir()] == ["new"]
    monkeypatch.setattr(Path, "replace", lambda self, target: (_ for _ in ()).throw(OSError("killed")))
    with pytest.raises(OSError, match=r"killed"):
        write_atomic(tmp_path / "deep" / "file", "newer")
    assert (tmp_path / "deep" / "file").read_text() == "new"


def test_environment_of_a_dataset_that_names_none(tmp_path: Path) -> None:
    """`data.env_id` replaces what the dataset says; an unknown one is refused before anything is written."""
    settings = load_config(None, {"out": str(tmp_path / "run"), "data": {"env_id": "NoSuchEnvironment-v0"}})
    with pytest.raises(InputError, match="NoSuchEnvironment-v0"):
        prepare(settings)
    assert not (tmp_path / "run").exists()


def test_who_waits_for_a_stage_is_told_who_writes(tmp_path: Path) -> None:
    (tmp_path / "run.lock").touch()
    hold = "import fcntl, os, sys; f = open(sys.argv[1], 'a+'); fcntl.flock(f, fcntl.LOCK_EX); f.truncate(0); "
    hold += "f.write(str(os.getpid())); f.flush(); print('held', flush=True); sys.stdin.read()"
    run = RunView(tmp_path, Config())
    command = [sys.executable, "-c", hold, str(tmp_path / "run.lock")]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout is not None and other.stdout.readline() == "held\n"
        with pytest.raises(InputError, match=rf"not finished, and another process \(number {other.pid}\) is writing there"):
            run.require("agent-real", "jaxpgd run")
        other.communicate("")
    with pytest.raises(InputError, match="Run `jaxpgd run` first"):
        run.require("agent-real", "jaxpgd run")
