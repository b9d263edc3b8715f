"""`python -m benchmarks`: which suites run, what is written, what is refused."""

import importlib
import json

import pytest

from benchmarks import __main__ as cli


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
