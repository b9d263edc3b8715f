import dataclasses
import os
import subprocess
import sys
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import jax
import pytest

from jaxpgd import __version__, parallel
from jaxpgd.errors import InputError
from jaxpgd.experiment.arguments import Argument, Command
from jaxpgd.experiment.cli import main, read_run_arguments
from jaxpgd.experiment.command_line import COMMANDS
from jaxpgd.experiment.config import Config
from jaxpgd.experiment.config_files import to_toml
from jaxpgd.experiment.run.directory import create_run
from jaxpgd.windows import DataConfig

SMALL = ["--data.episodes", "4"]


def refused(args: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    """The message of a command that must end with code 2, and with nothing but that message."""
    with pytest.raises(SystemExit) as ended:
        main(args)
    printed = capsys.readouterr()
    assert ended.value.code == 2 and "Traceback" not in printed.err
    return printed.err


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["rnu"], "command = 'rnu': expected one of run, train-denoiser"),
        (
            ["run", "--data.name", "no-such-dataset", "--out", "{tmp}/run"],
            "data.name = 'no-such-dataset': expected a Minari id",
        ),
        (["run", "{tmp}/absent.toml"], "absent.toml': expected a readable TOML file"),
        (["run", *SMALL, "--data.window", "32", "--out", "{tmp}/run"], "data.window = 32: expected at most 16"),
        (["run", "--data.window", "18", "--out", "{tmp}/run"], "data.window = 18: expected a multiple of"),
        (["run", "--seeds", "0"], "seeds = 0: expected a number above 0"),
        (["run", "--preset", "papr"], "preset = 'papr': expected one of"),
        (["run", *SMALL, "--models-from", "{tmp}", "--out", "{tmp}/run"], "expected a run directory made by `jaxpgd run`"),
        (["data", "list"], "data = 'list': expected info NAME"),
        (["data", "info", "point3d"], "data.name = 'point3d'"),
        (["data", "info", "point2d", "--window", "x"], "--window = 'x': expected int"),
        (["data", "info"], "expected NAME as well"),
        (["evaluate", "{tmp}"], "expected a run directory made by `jaxpgd run`"),
        (["report"], "expected RUN as well"),
        (["train-agent", "{tmp}", "--arms", "real"], "option = '--arms': expected one of --arm"),
        (["synthesize", "{tmp}"], "--out = None: expected the directory of the new dataset"),
        (["synthesize", "{tmp}", "--out"], "--out = '': expected a value after it"),
        (["report", "{tmp}", "extra"], "argument = 'extra': expected no further argument"),
    ],
)
def test_bad_input_is_one_message(args: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    printed = refused([a.replace("{tmp}", str(tmp_path)) for a in args], capsys)
    assert printed.startswith("error: ") and len(printed.splitlines()) == 1
    assert message in printed
    assert not list(tmp_path.iterdir())  # nothing was written


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[sampler]\nstep = 3", "unknown key 'sampler.step'. Did you mean 'sampler.steps'?"),
        ('seeds = "four"', "seeds = 'four': expected an integer"),
    ],
)
def test_bad_config_files(text: str, message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "bad.toml").write_text(text)
    printed = refused(["run", str(tmp_path / "bad.toml")], capsys)
    assert message in printed and "bad.toml" in printed and len(printed.splitlines()) == 1


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["--sampler.step", "3"], "unknown key '--sampler.step'. Did you mean '--sampler.steps'?"),
        (["--denoiser.stpes=5"], "Did you mean '--denoiser.steps'?"),
        (["--seeds", "four"], "seeds = 'four': expected an integer"),
        (["--seeds", "1.5"], "seeds = '1.5': expected an integer"),
        (["--seeds"], "option = '--seeds': expected one value"),
        (["--seeds", "1", "2"], "option = '--seeds 1 2': expected one value"),
        (["--sampler.heun.churn", "nan"], "sampler.heun.churn = nan: expected a finite number"),
        (["--data.add-terminals", "yes"], "data.add_terminals = 'yes': expected true or false"),
        (["--data.no-add-terminals", "true"], "option = '--data.no-add-terminals true': expected no value"),
        (["--arms", "fake"], "arms[0] = 'fake': expected one of 'real'"),
        (["--resume", "seeds", "3"], "argument = '3': expected options --section.key VALUE after the config file"),
    ],
)
def test_bad_options_name_the_option(args: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    printed = refused(["run", *args], capsys)
    assert message in printed and len(printed.splitlines()) == 1


def test_commands_without_options_say_so(capsys: pytest.CaptureFixture[str]) -> None:
    assert "option = '--resume': expected no option. See `jaxpgd evaluate --help`" in refused(
        ["evaluate", "x", "--resume"], capsys
    )


@pytest.mark.parametrize(
    ("command", "left"),
    [("run", "add --resume"), ("reproduce", "the same command continues"), ("evaluate", "the same command does it again")],
)
@pytest.mark.parametrize("stop", [KeyboardInterrupt(), SystemExit(143)])
def test_what_an_interruption_leaves(
    command: str, left: str, stop: BaseException, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupted(found: dict[str, Any]) -> None:
        raise stop

    monkeypatch.setitem(COMMANDS, command, dataclasses.replace(COMMANDS[command], call=interrupted))
    with pytest.raises(SystemExit):
        main([command, "x"])
    assert left in capsys.readouterr().err


def test_options_of_every_type() -> None:
    words = [
        "--seeds=3", "--sampler.kind", "heun", "--sampler.heun.churn", "1", "--sampler.sigma-min", "1e-3",
        "--data.no-add-terminals",
        "--data.add_episode_starts", "false", "--data.allow-timeout-end", "--evaluation.coefficients", "0.5", "2",
        "--out", "7", "--agent.td3-bc.hidden", "8", "8",
    ]  # fmt: skip
    config, _ = read_run_arguments(words, "run")
    assert (config.seeds, config.sampler.heun.churn, config.sampler.sigma_min, config.out) == (3, 1.0, 1e-3, "7")
    assert (config.data.add_terminals, config.data.add_episode_starts, config.data.allow_timeout_end) == (False, False, True)
    assert (config.evaluation.coefficients, config.agent.td3_bc.hidden) == ((0.5, 2.0), (8, 8))


def test_help_of_run_lists_the_settings(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        main(["run", "--help"])
    assert stop.value.code == 0 and "--denoiser.p-high" in capsys.readouterr().out


def test_a_directory_of_another_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    create_run(Config(out=str(tmp_path / "run"), data=DataConfig(episodes=4)), resume=False)
    printed = refused(["run", *SMALL, "--out", str(tmp_path / "run"), "--seeds", "7"], capsys)
    assert "holds another run (seeds = 4 there, 7 here)" in printed
    assert "Add --resume" in refused(["run", *SMALL, "--out", str(tmp_path / "run")], capsys)


def test_options_change_a_file(tmp_path: Path) -> None:
    (tmp_path / "config.toml").write_text('preset = "paper"\nseeds = 3\n')
    arguments = [str(tmp_path / "config.toml"), "--resume", "--sampler.steps", "7", "--arms", "real", "guided"]
    config, resume = read_run_arguments(arguments, "run")
    assert resume and (config.seeds, config.sampler.steps, config.arms) == (3, 7, ("real", "guided"))
    assert config.denoiser.features == 1024
    config, resume = read_run_arguments(["--preset", "official"], "run")
    assert not resume and config.sampler.heun.predictor == "unchurned"
    assert read_run_arguments([], "run") == (Config(), False)


def test_a_saved_config_can_be_given_back(tmp_path: Path) -> None:
    config, _ = read_run_arguments(["--preset", "official", "--guidance.coefficient", "0.7"], "run")
    (tmp_path / "config.toml").write_text(to_toml(config))
    assert read_run_arguments([str(tmp_path / "config.toml")], "run")[0] == config


def test_arguments_are_converted() -> None:
    whole = Argument("trajectories", "N", "", int)
    command = Command("x", "", print, (Argument("run", "RUN", "", required=True),), (whole, Argument("out", "DIR", "", Path)))
    assert command.read(["r", "--trajectories", "5", "--out=x"]) == {"run": "r", "trajectories": 5, "out": Path("x")}
    with pytest.raises(InputError, match="--trajectories = 'five': expected int"):
        command.read(["r", "--trajectories", "five"])


def test_data_info_prints_what_is_there(capsys: pytest.CaptureFixture[str]) -> None:
    main(["data", "info", "point2d", "--episodes", "5", "--window", "8"])
    printed = capsys.readouterr().out
    assert "point2d" in printed and "80" in printed  # 5 episodes of 16 steps
    assert "windows" in printed.lower()


def test_help_lists_the_commands(capsys: pytest.CaptureFixture[str]) -> None:
    main([])
    printed = capsys.readouterr().out
    assert all(command in printed for command in COMMANDS)


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    main(["--version"])
    assert capsys.readouterr().out == f"jaxpgd {__version__}\n"


def test_as_a_process() -> None:
    """What main() does is what a shell sees."""
    done = subprocess.run([sys.executable, "-m", "jaxpgd.experiment.cli", "rnu"], capture_output=True, text=True, check=False)
    assert done.returncode == 2 and done.stdout == ""
    assert done.stderr.startswith("error: command = 'rnu'") and "Traceback" not in done.stderr


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"JAX_PLATFORMS": "cuda"}, "JAX_PLATFORMS = 'cuda': expected a platform and devices that are there"),
        ({"JAX_PLATFORMS": "nonsense"}, "JAX_PLATFORMS = 'nonsense': expected a platform and devices that are there"),
        ({"CUDA_VISIBLE_DEVICES": "70", "JAX_PLATFORMS": ""}, "CUDA_VISIBLE_DEVICES = '70': expected devices that JAX finds"),
    ],
)
def test_devices_that_are_not_there_are_one_line(given: dict[str, str], message: str) -> None:
    if given.get("JAX_PLATFORMS") == "cuda" and jax.default_backend() != "cpu":
        given = given | {"CUDA_VISIBLE_DEVICES": "-1"}
        message = message.replace("'cuda':", "'cuda', CUDA_VISIBLE_DEVICES = '-1':")
    words = [sys.executable, "-m", "jaxpgd.experiment.cli", "data", "info", "point2d", "--episodes", "4"]
    done = subprocess.run(words, capture_output=True, text=True, check=False, env=os.environ | given)
    said = [line for line in done.stderr.splitlines() if line.startswith("error:")]
    assert done.returncode == 2 and done.stdout == "" and "Traceback" not in done.stderr
    assert len(said) == 1 and message in said[0]


def test_every_command_asks_for_its_devices(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def absent() -> list[jax.Device]:
        raise RuntimeError("Unable to initialize backend 'cuda'")

    monkeypatch.setattr(jax, "local_devices", absent)
    for command in COMMANDS:
        assert "expected a platform and devices that are there (Unable" in refused([*command.split(), "x"], capsys)
    main(["study", "--help"])


@pytest.mark.parametrize(
    ("platforms", "asked", "found", "sound"),
    [("", "0,1", 2, True), ("", "0,7", 1, False), ("", "-1", 0, True), ("", "GPU-8932f937", 0, False), ("", "", 0, True),
     ("", "0,-1,1", 1, True), ("cpu", "7", 0, True)],
)  # fmt: skip
def test_as_many_devices_as_are_asked_for(
    platforms: str, asked: str, found: int, sound: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    devices = [SimpleNamespace(platform="gpu")] * found or [SimpleNamespace(platform="cpu")]
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", asked)
    monkeypatch.setattr(parallel, "jax", SimpleNamespace(
        local_devices=lambda: devices, process_count=lambda: 1, config=SimpleNamespace(jax_platforms=platforms),
    ))  # fmt: skip
    with nullcontext() if sound else pytest.raises(InputError, match=f"CUDA_VISIBLE_DEVICES = '{asked}'"):
        parallel.require_devices()


@pytest.mark.parametrize("command", [c for c in COMMANDS if c not in ("run", "train-denoiser")])
def test_help_of_a_command_is_its_part_of_the_usage(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    main([*command.split(), "--help"])
    printed = capsys.readouterr().out
    assert printed.startswith(f"usage: jaxpgd {command} ") and printed.count("usage") == 1
    assert not any(f"\n  {other} " in printed for other in COMMANDS)


@pytest.mark.parametrize("words", [("--help",), ("run", "--help")])
def test_help_into_a_pipe_that_is_closed_ends_without_a_traceback(words: tuple[str, ...]) -> None:
    command = [sys.executable, "-m", "jaxpgd", *words]
    done = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert done.stdout is not None
    done.stdout.close()
    assert done.communicate()[1] == b""
    assert done.returncode == 141
