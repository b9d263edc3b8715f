"""Unknown keys are told what they may stand for, wherever they are given."""

import dataclasses
from pathlib import Path
from typing import Any

import pytest

from jaxpgd.errors import InputError
from jaxpgd.experiment.cli import main, read_run_arguments
from jaxpgd.experiment.config import Config
from jaxpgd.experiment.config_files import load_config
from jaxpgd.experiment.nearest import nearest
from jaxpgd.experiment.overrides import read_overrides, setting_types
from jaxpgd.experiment.studies.plan import load_study

BATCHES = "'denoiser.batch_size', 'sampler.batch_size', 'world_model.batch_size' or 'agent.batch_size'"


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"batch_size": 3}, f"unknown key 'batch_size'. Did you mean {BATCHES}?"),
        ({"agent": {"lr": 1.0}}, "unknown key 'agent.lr'. Did you mean 'agent.td3_bc.lr'?"),
        ({"agent": {"lr": 1.0, "kind": "iql"}}, "unknown key 'agent.lr'. Did you mean 'agent.iql.lr'?"),
        ({"agent": {"kind": "bc", "actor_lr": 1.0}}, "Did you mean 'agent.cql.actor_lr' or 'agent.rebrac.actor_lr'?"),
        ({"agent": {"batch_sise": 3}}, "unknown key 'agent.batch_sise'. Did you mean 'agent.batch_size'?"),
        ({"denoiser": {"lr": 1.0}}, "Did you mean 'denoiser.peak_lr' or 'denoiser.initial_lr_fraction'?"),
        ({"agent": {"gradient_clip": 1.0, "kind": "iql"}}, "Did you mean 'agent.diffusion_ql.gradient_clip'?"),
        ({"evaluation": {"seeds": 1}}, "unknown key 'evaluation.seeds'. Did you mean 'seeds'?"),
        ({"td3_bc": {"lr": 1.0}}, "unknown key 'td3_bc'. Did you mean 'agent.td3_bc'?"),
        ({"agnet": {"updates": 1}}, "unknown key 'agnet'. Did you mean 'agent'?"),
        ({"sampler": {"solver": "heun"}}, "unknown key 'sampler.solver': expected one of kind, steps, sigma_min, "),
        ({"optimiser": {"lr": 1.0}}, "unknown key 'optimiser': expected one of preset, out, seed, "),
    ],
)
def test_unknown_keys_of_a_config(values: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError) as refused:
        load_config(None, values)
    assert message in str(refused.value) and "\n" not in str(refused.value)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--batch-size", "3"], "unknown key '--batch-size'. Did you mean '--denoiser.batch_size', '--sampler.batch_size', "),
        (["--agent.lr", "1", "--agent.kind", "bc"], "unknown key '--agent.lr'. Did you mean '--agent.bc.lr'?"),
        (["--td3-bc.lr", "1"], "unknown key '--td3-bc.lr'. Did you mean '--agent.td3_bc.lr'?"),
        (["--agents.updates", "1"], "Did you mean '--agent.updates'?"),
        (["--data.no-add-terminal"], "Did you mean '--data.add_terminals'?"),
        (["--guidance.scale", "1"], "unknown key '--guidance.scale': expected one of kind, coefficient, "),
        (["--agent", "iql"], "unknown key '--agent': expected one of kind, updates, "),
    ],
)
def test_unknown_options(words: list[str], message: str) -> None:
    with pytest.raises(InputError) as refused:
        read_overrides(words)
    assert message in str(refused.value)


def test_options_are_held_against_the_kind_of_the_file(tmp_path: Path) -> None:
    (tmp_path / "c.toml").write_text('[agent]\nkind = "iql"\n', encoding="utf-8")
    with pytest.raises(InputError, match=r"'--agent.lr'. Did you mean '--agent.iql.lr'\?"):
        read_run_arguments([str(tmp_path / "c.toml"), "--agent.lr", "1"], "run")
    (tmp_path / "c.toml").write_text("batch_size = 3\n", encoding="utf-8")
    with pytest.raises(InputError, match=f"c.toml: unknown key 'batch_size'. Did you mean {BATCHES}"):
        read_run_arguments([str(tmp_path / "c.toml")], "run")


@pytest.mark.parametrize("part", ["base", "target"])
def test_unknown_keys_of_a_study(part: str, tmp_path: Path) -> None:
    text = f'title = "x"\n[{part}.agent]\nkind = "iql"\nlr = 1.0\n[axes.a]\nb = {{}}\n'
    (tmp_path / "own.toml").write_text(text, encoding="utf-8")
    with pytest.raises(InputError, match=r"own.toml.*agent.lr'. Did you mean '[a-z.]*agent.iql.lr'\?"):
        load_study(str(tmp_path / "own.toml"))


def test_unknown_settings_of_data_info(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        main(["data", "info", "point2d", "--data.size", "4"])
    assert "error: option: unknown key '--data.size'" in capsys.readouterr().err


def test_every_setting_is_found_without_its_section_and_with_a_slip() -> None:
    for name in setting_types():
        section, _, key = name.rpartition(".")
        twins = [each for each in setting_types() if each.rpartition(".")[2] == key]
        if section and key not in {field.name for field in dataclasses.fields(Config)}:
            assert set(nearest(key, Config(), {})) & set(twins), name
        if len(key) > 4:
            slip = f"{name[:-3]}{name[-2:]}"
            assert name in nearest(slip, Config(), {}) or slip in setting_types(), name
