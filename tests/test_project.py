"""What the repository promises outside of its modules: constraints, configs, documents, no traces of a machine."""

import re
import subprocess
import tomllib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tiny import TINY

import jaxpgd
from jaxpgd.cli import COMMANDS
from jaxpgd.config import PRESETS, apply_values, load_config, to_dict, validate
from jaxpgd.synthesis.filters import make_filter
from jaxpgd.training.agent import make_schedule

ROOT = Path(__file__).parents[1]
CONFIGS = sorted((ROOT / "configs").rglob("*.toml"))
PUBLISHED = [p for p in CONFIGS if p.parent.name in ("paper", "official") and p.stem.startswith("pgd")]
DYDIFF = [p for p in CONFIGS if p.parent.name == "paper" and p.stem.startswith("dydiff")]
PINNED = re.compile(r'[A-Za-z0-9][A-Za-z0-9._-]*==[A-Za-z0-9.!+]+(; python_version [<>=]+ "3\.\d+")?')
MACHINE_PATH = re.compile(r"(?<![\w./:])/(?:work|root|home)/")


def project() -> dict[str, Any]:
    return tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


def readme() -> str:
    return (ROOT / "README.md").read_text()


def requirement_name(text: str) -> str:
    return re.split(r"[\[<>=!~; ]", text)[0].lower().replace("_", "-")


def tracked_files() -> list[Path]:
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=False)
    if listed.returncode != 0:
        pytest.skip("not a git checkout")
    return [ROOT / name for name in listed.stdout.split("\0") if name and (ROOT / name).is_file()]


def machine_paths(text: str) -> list[str]:
    return [line.strip()[:80] for line in text.splitlines() if MACHINE_PATH.search(line)]


def test_constraints_are_names_and_versions_and_cover_what_is_required():
    lines = [line for line in (ROOT / "constraints.txt").read_text().splitlines() if line and not line.startswith("#")]
    assert [line for line in lines if not PINNED.fullmatch(line)] == []
    names = [requirement_name(line) for line in lines]
    assert len(names) == len(set(names))
    extras = project()["optional-dependencies"]
    wanted = {requirement_name(r) for r in project()["dependencies"] + extras["mujoco"] + extras["test"]}
    assert wanted - set(names) == set()


@pytest.mark.parametrize("line", ["numpy", "numpy>=2", "numpy @ https://host/numpy.whl", "-e .", "--index-url https://host"])
def test_a_line_that_is_no_pin_is_noticed(line):
    assert PINNED.fullmatch(line) is None


def test_no_tracked_file_mentions_a_path_of_a_machine():
    texts = {p.relative_to(ROOT): p.read_bytes() for p in tracked_files() if p != Path(__file__)}
    found = {str(p): machine_paths(t.decode()) for p, t in texts.items() if b"\0" not in t}
    assert {p: lines for p, lines in found.items() if lines} == {}


@pytest.mark.parametrize(
    ("text", "count"), [("see /home/me/x", 1), ('"/root/x"', 1), ("docs/home/x", 0), ("http://a/home/", 0)]
)
def test_a_path_of_a_machine_is_noticed(text, count):
    assert len(machine_paths(text)) == count


def test_version_is_that_of_the_package_metadata_and_in_the_changelog():
    assert jaxpgd.__version__ == project()["version"]
    headings = re.findall(r"^## \[(.+?)\]", (ROOT / "CHANGELOG.md").read_text(), flags=re.MULTILINE)
    assert headings[0] == "Unreleased"
    assert jaxpgd.__version__ in (ROOT / "CHANGELOG.md").read_text()


@pytest.mark.parametrize("path", CONFIGS, ids=lambda p: str(p.relative_to(ROOT)))
def test_every_shipped_config_loads_into_a_directory_of_its_own(path):
    config = load_config(path)
    assert config.data.name.startswith(jaxpgd.Config().data.name) == ("point2d" in path.stem)
    assert [p for p in CONFIGS if p != path and load_config(p).out == config.out] == []


@pytest.mark.parametrize("path", PUBLISHED, ids=lambda p: f"{p.parent.name}/{p.name}")
def test_published_configs_have_the_published_values(path):
    config = load_config(path)
    assert config.preset == path.parent.name
    # what the file repeats of its preset, it must repeat rightly
    restored = apply_values(config, PRESETS[config.preset], "preset")
    assert to_dict(restored) == to_dict(config)
    assert config.agent.kind in path.stem
    assert set(config.arms) == {"real", "unguided", "guided"}
    assert 3 <= config.seeds <= 10
    synthetic = round(config.synthesis.synthetic_ratio * config.agent.batch_size)
    assert (synthetic, config.agent.batch_size, config.synthesis.trajectories) == (240, 256, 8192)
    assert (config.agent.td3_bc.alpha, config.agent.iql.tau, config.agent.iql.beta) == (2.5, 0.7, 3.0)


@pytest.mark.parametrize("path", DYDIFF, ids=lambda p: p.name)
def test_published_settings_of_dydiff(path):
    config = load_config(path)
    y, s = config.synthesis, config.sampler
    assert config.agent.kind in path.stem and config.arms == ("real", "world_model", "dydiff")
    assert (s.kind, s.steps, s.churn, s.churn_min, s.churn_max, s.churn_noise) == ("heun", 34, 60.0, 0.37, 52.2, 1.002)
    assert (config.data.window, y.dydiff.iterations, y.dydiff.mix, y.synthetic_ratio) == (100, 2, 0.5, 0.4)
    assert (y.dydiff.conditions, config.denoiser.sigma_data) == ("churned", 0.5)
    assert (y.filter.kind, y.filter.keep, y.filter.temperature) == ("softmax", 0.6, 0.05)
    kept = make_schedule(config.agent, y).refresh_count
    assert make_filter(y.filter).needed(kept) == 2048 and y.trajectories * config.data.window == 2_000_000
    assert (config.dynamics.members, config.dynamics.elites, config.dynamics.hidden) == (7, 5, (200,) * 4)
    assert config.agent.updates_per_chunk == y.interval == (250 if config.agent.kind == "diffusion_ql" else 500)


def test_published_configs_cover_every_environment_with_both_agents():
    names = {p.stem for p in PUBLISHED if p.parent.name == "paper"}
    for environment in ("halfcheetah", "hopper", "walker2d", "pointmaze_umaze"):
        assert {f"pgd_{environment}_td3_bc", f"pgd_{environment}_iql"} <= names


def test_readme_names_commands_targets_and_configs_that_exist():
    code = re.findall(r"^```\w*\n(.*?)^```|`([^`\n]+)`", readme(), flags=re.DOTALL | re.MULTILINE)
    lines = [line for block, span in code for line in (block or span).splitlines()]
    started = [re.match(r"(?:\w+=\S+ )?(jaxpgd|make) ([a-z][a-z-]+)", line) for line in lines]
    used = {m.groups() for m in started if m}
    targets = re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), flags=re.MULTILINE)
    assert used <= {("jaxpgd", c) for c in COMMANDS} | {("make", t) for t in targets}
    assert {("make", "run"), ("make", "test"), *(("jaxpgd", c) for c in COMMANDS)} <= used
    missing = [name for name in re.findall(r"configs/[\w/]+\.toml", readme()) if not (ROOT / name).is_file()]
    assert missing == []


def python_blocks() -> list[str]:
    return re.findall(r"```python\n(.*?)```", readme(), flags=re.DOTALL)


@pytest.mark.slow
def test_python_example_of_dydiff_runs(monkeypatch):
    models = {"dynamics": {"members": 2, "elites": 1, "hidden": [8], "reward_hidden": [8], "epochs": 1, "patience": 1}}
    tiny = apply_values(jaxpgd.Config(), TINY | models, "tiny")
    validate(tiny)
    monkeypatch.setattr(jaxpgd, "load_config", lambda path: tiny)
    names: dict[str, Any] = {}
    (block,) = [b for b in python_blocks() if "make_dydiff" in b]
    exec(compile(block, "README.md", "exec"), names)
    made = names["trajectories"]
    assert made.obs.shape == (256, 8, 2) and np.isfinite(np.asarray(made.obs)).all()
    np.testing.assert_allclose(made.obs[:, 0], names["data"].obs[:256], atol=1e-5)


@pytest.mark.slow
def test_python_example_of_the_readme_runs(monkeypatch):
    tiny = apply_values(jaxpgd.Config(), TINY, "tiny")
    validate(tiny)
    monkeypatch.setattr(jaxpgd, "Config", lambda: tiny)
    names: dict[str, Any] = {}
    exec(compile(python_blocks()[0], "README.md", "exec"), names)
    returns = np.asarray(names["returns"])
    assert returns.shape == (2, 4)  # two hyperparameters, four seeds
    assert np.isfinite(returns).all()
    # 16 steps of minus a distance, from near the origin at distance 1 from the goal
    assert ((returns < 0) & (returns > -16 * 4)).all()
    assert len(np.unique(returns)) == 8
