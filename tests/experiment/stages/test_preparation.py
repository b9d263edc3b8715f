"""What can be known before compute is refused before compute, and what can be drawn or trained is."""

import dataclasses
import errno
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import pytest

from jaxpgd.errors import EnvironmentFailure, InputError
from jaxpgd.experiment.cli import main
from jaxpgd.experiment.commands.run import run_all
from jaxpgd.experiment.commands.train_denoiser import run_denoiser
from jaxpgd.experiment.config import Config
from jaxpgd.experiment.config_files import load_config
from jaxpgd.experiment.run.directory import create_run
from jaxpgd.experiment.studies.identity import settings_of


class Straight(gymnasium.Env[Any, Any]):
    """A point on a line; a step's reward is 1."""

    def __init__(self) -> None:
        self.observation_space = gymnasium.spaces.Box(-np.inf, np.inf, (1,), np.float32)
        self.action_space = gymnasium.spaces.Box(-1.0, 1.0, (1,), np.float32)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[np.ndarray, dict[str, Any]]:
        super().reset(seed=seed)
        self.x = np.zeros(1, np.float32)
        return self.x, {}

    def step(self, action: np.ndarray) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        self.x = self.x + action
        return self.x, 1.0, False, False, {}


gymnasium.register("jaxpgd/Straight-v0", lambda **given: Straight())
gymnasium.register("jaxpgd/StraightFor9-v0", lambda **given: Straight(), max_episode_steps=9)


@pytest.fixture
def line(tmp_path: Path) -> str:
    """Four episodes of eight steps."""
    rng, path = np.random.default_rng(0), tmp_path / "line.npz"
    action = rng.uniform(-1, 1, (32, 1)).astype(np.float32)
    obs = np.concatenate([np.cumsum(part, axis=0) - part for part in np.split(action, 4)])
    timeouts = np.arange(32) % 8 == 7
    np.savez(path, observations=obs, actions=action, rewards=np.ones(32, np.float32), terminals=np.zeros(32, bool),
             timeouts=timeouts, action_low=-np.ones(1), action_high=np.ones(1))  # fmt: skip
    return str(path)


def real(out: Path, data: dict[str, Any], **evaluation: Any) -> Config:
    """Seconds of training on real data alone."""
    return load_config(None, {
        "out": str(out), "seeds": 1, "arms": ["real"], "data": {"window": 4, **data},
        "agent": {"updates": 4, "updates_per_chunk": 2, "batch_size": 8, "td3_bc": {"hidden": [8]}},
        "evaluation": {"episodes": 2, "every": 2, "intermediate_episodes": 1, **evaluation},
    })  # fmt: skip


def test_an_environment_without_a_limit_is_refused_before_training(line: str, tmp_path: Path) -> None:
    out, data = tmp_path / "run", {"name": line, "env_id": "jaxpgd/Straight-v0"}
    message = "evaluation.max_steps = 0: expected a number of steps. jaxpgd/Straight-v0 has no step limit of its own."
    for command in (run_all, run_denoiser):
        with pytest.raises(InputError, match=message):
            command(real(out, data))
        assert not out.exists()


@pytest.mark.parametrize(("env_id", "steps", "length"), [("Straight", 7, 7), ("StraightFor9", 7, 7), ("StraightFor9", 12, 9)])
def test_max_steps_ends_episodes(env_id: str, steps: int, length: int, line: str, tmp_path: Path) -> None:
    data = {"name": line, "env_id": f"jaxpgd/{env_id}-v0"}
    path = run_all(real(tmp_path / "run", data, max_steps=steps))
    found = json.loads((path / "returns.json").read_text(encoding="utf-8"))["real"]
    assert found["lengths"] == [[length, length]] and found["returns"] == [[float(length)] * 2]
    assert f"episodes of at most {steps} steps" in found["score_label"]
    rows = [json.loads(text) for text in (path / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    assert [row["returns"] for row in rows if "returns" in row] == [[float(length)]] * 2


class Breaks(Straight):
    """A line whose steps cannot be taken."""

    def step(self, action: np.ndarray) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        raise OSError("no licence")


def test_an_environment_that_breaks_is_one_line(line: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    gymnasium.register("jaxpgd/Breaks-v0", lambda **given: Breaks(), max_episode_steps=9)
    small = ["--data.window", "4", "--agent.updates", "2", "--agent.updates-per-chunk", "2"]
    with pytest.raises(SystemExit) as ended:
        main(["run", *small, "--data.name", line, "--data.env-id", "jaxpgd/Breaks-v0", "--arms", "real",
              "--agent.td3-bc.hidden", "8", "--seeds", "1", "--out", str(tmp_path / "run")])  # fmt: skip
    assert ended.value.code == 1
    assert capsys.readouterr().err == "error: An environment jaxpgd/Breaks-v0 failed: OSError: no licence\n"


@pytest.mark.slow
def test_max_steps_caps_a_built_in_environment(tmp_path: Path) -> None:
    for steps, length in ((5, 5), (40, 16)):
        path = run_all(real(tmp_path / f"run-{steps}", {"episodes": 4}, max_steps=steps))
        found = json.loads((path / "returns.json").read_text(encoding="utf-8"))["real"]
        assert np.max(found["lengths"]) == length


def test_max_steps_is_in_no_key_at_its_default() -> None:
    assert "max_steps" not in settings_of(Config())["evaluation"]
    changed = load_config(None, {"evaluation": {"max_steps": 7}})
    assert settings_of(changed)["evaluation"]["max_steps"] == 7


@pytest.mark.slow
def test_a_single_window_is_enough(few_rollouts: None, tmp_path: Path) -> None:
    small = {"features": 8, "blocks": 1, "block": "plain", "groups": 4, "steps": 4, "validate_every": 2, "batch_size": 4}
    changes: dict[str, Any] = {
        "out": str(tmp_path / "run"), "seeds": 1, "arms": ["unguided", "dydiff"], "data": {"episodes": 1, "window": 16},
        "denoiser": small,
        "sampler": {"kind": "euler", "steps": 3, "batch_size": 8}, "guidance": {"kind": "reconstruction"},
        "synthesis": {"trajectories": 8, "interval": 4}, "world_model": {"members": 2, "elites": 1, "hidden": [8], "epochs": 2},
        "agent": {"updates": 8, "updates_per_chunk": 4, "batch_size": 16, "td3_bc": {"hidden": [8]}},
        "evaluation": {"episodes": 1, "trajectories": 8},
    }  # fmt: skip
    path = run_all(load_config(None, changes))
    assert json.loads((path / "quality.json").read_text(encoding="utf-8"))["reference"]["windows"] == 0
    assert (path / "report.html").is_file()


@pytest.mark.slow
@pytest.mark.parametrize("backend", ["inline-of-a-kernel", "module://nothing.there"])
def test_figures_need_no_backend(backend: str) -> None:
    code = (
        "import io, os, jaxpgd.experiment.studies.run, jaxpgd.experiment.commands.run; "
        "from jaxpgd.experiment.report.figure import panels; "
        "panels(1, width=2.0, height=2.0)[0].savefig(io.BytesIO(), format='png'); print(os.environ['MPLBACKEND'])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False,
                          env=os.environ | {"MPLBACKEND": backend})  # fmt: skip
    assert done.returncode == 0 and done.stdout.strip() == backend, done.stderr


def test_an_actor_of_other_sizes_is_refused_before_training(tmp_path: Path) -> None:
    sizes = {"w0": (3, 4), "b0": (4,), "w1": (4, 4), "b1": (4,), "w2": (4, 4), "b2": (4,)}
    np.savez(tmp_path / "actor.npz", **{name: np.zeros(size, np.float32) for name, size in sizes.items()})
    config = real(tmp_path / "run", {"episodes": 4})
    config = dataclasses.replace(
        config, evaluation=dataclasses.replace(config.evaluation, behaviour=str(tmp_path / "actor.npz"))
    )
    with pytest.raises(InputError, match=r"evaluation.behaviour = .*actor.npz': expected 2 inputs and 4 outputs, not 3 and 4"):
        run_all(config)
    np.savez(tmp_path / "actor.npz", **{name: np.zeros(size, np.float32) for name, size in (sizes | {"b1": (3,)}).items()})
    with pytest.raises(InputError, match=r"b1 of .*actor.npz = \(3,\): expected one for each column of w1"):
        run_all(config)
    assert not (tmp_path / "run").exists()


def test_a_simulator_that_cannot_be_made_shows_before_training(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def failing(info: Any) -> None:
        raise EnvironmentFailure("no licence")

    monkeypatch.setattr("jaxpgd.experiment.stages.score_synthesizers.make_simulator", failing)
    config = dataclasses.replace(real(tmp_path / "run", {"episodes": 4}), arms=("world_model",))
    with pytest.raises(EnvironmentFailure, match="no licence"):
        run_all(config)
    assert not (tmp_path / "run").exists()


COMMANDS = ("synthesize", "compare-rollouts", "frontier", "pareto")


@pytest.fixture
def runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Run directories of the arms real, and unguided, of which nothing may be computed or read."""
    found = []
    for arm in ("real", "unguided"):
        found.append(str(tmp_path / arm))
        create_run(dataclasses.replace(real(tmp_path / arm, {"episodes": 4}), arms=(arm,)), resume=False).lock.release()
    monkeypatch.setattr("jaxpgd.experiment.stages.load.load_models", lambda *given: pytest.fail("models were read"))
    for module in ("stages.load", "commands.synthesize"):
        monkeypatch.setattr(f"jaxpgd.experiment.{module}.require_models", lambda run: None)
    return found


def refusal(words: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    with pytest.raises(SystemExit) as ended:
        main(words)
    said = capsys.readouterr().err
    assert ended.value.code == 2 and len(said.splitlines()) == 1
    return said


@pytest.mark.parametrize("command", COMMANDS)
def test_commands_refuse_what_they_could_not_use_or_write(
    command: str, runs: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    words = [command, runs[1], "--out", str(tmp_path / "out")]
    for seed in ("-1", "4294967296"):
        assert f"--seed = {seed}: expected a number from 0 to 2^31 - 1" in refusal([*words, "--seed", seed], capsys)
    (tmp_path / "file").touch()
    if command != "pareto":  # which reads the model first
        said = refusal([*words[:3], str(tmp_path / "file" / "out")], capsys)
        assert "expected a directory that can be written" in said or "expected a new or empty directory" in said

        def refuse(**given: Any) -> None:
            raise OSError(errno.EROFS, "Read-only file system")

        monkeypatch.setattr(tempfile, "TemporaryFile", refuse)
        assert "out': expected a directory that can be written (Read-only file system)" in refusal(words, capsys)


def test_commands_refuse_runs_without_what_they_measure(runs: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    denoiser = f"RUN = {runs[0]!r}: expected a run with a trajectory denoiser"
    assert denoiser in refusal(["frontier", runs[1], runs[0]], capsys)
    assert denoiser in refusal(["pareto", runs[0]], capsys)
    assert "expected a run with a world model or a denoiser" in refusal(["compare-rollouts", runs[0]], capsys)
    assert "--coefficients = (nan,): expected finite numbers" in refusal(["frontier", runs[1], "--coefficients", "nan"], capsys)
