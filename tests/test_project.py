"""What the repository promises outside of its modules: constraints, configs, documents, no traces of a machine."""

import ast
import importlib
import re
import subprocess
import tomllib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tiny import TINY

import jaxpgd
import jaxpgd.experiment
from jaxpgd.experiment import Config
from jaxpgd.experiment.command_line import COMMANDS
from jaxpgd.experiment.config_files import apply_values, load_config, to_dict
from jaxpgd.experiment.presets import PRESETS
from jaxpgd.experiment.presets.dydiff import BASE_AGENTS, DYDIFF, dydiff_values
from jaxpgd.experiment.validation import validate
from jaxpgd.options import get
from jaxpgd.synthesis.filters import make_filter
from jaxpgd.training.agent import make_schedule

ROOT = Path(__file__).parents[1]
CONFIGS = sorted((ROOT / "configs").rglob("*.toml"))
PUBLISHED = [p for p in CONFIGS if p.parent.name in ("paper", "official") and p.stem.startswith("pgd")]
OF_DYDIFF = [p for p in CONFIGS if p.parent.name == "paper" and p.stem.startswith("dydiff")]
PINNED = re.compile(r'[A-Za-z0-9][A-Za-z0-9._-]*==[A-Za-z0-9.!+]+(; python_version [<>=]+ "3\.\d+")?')
MACHINE_PATH = re.compile(r"(?<![\w./:])/(?:work|root|home)/")


def project() -> dict[str, Any]:
    return tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


PAGES = [*sorted((ROOT / "docs").glob("*.md")), ROOT / "docs" / "api" / "index.md"]
MARKDOWN = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "CHANGELOG.md", ROOT / "configs" / "README.md"]
COPIED = {"contributing", "changelog"}  # pages that the build copies from elsewhere in the repository


def written_pages() -> list[Path]:
    return [page for page in PAGES if page.stem not in COPIED]


def documents() -> str:
    """README and the pages of the documentation."""
    return "\n".join(page.read_text(encoding="utf-8") for page in [ROOT / "README.md", *written_pages()])


def python_blocks(page: str) -> list[str]:
    return re.findall(r"```python\n(.*?)```", (ROOT / page).read_text(encoding="utf-8"), flags=re.DOTALL)


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
    wanted = {requirement_name(r) for r in project()["dependencies"] + extras["mujoco"] + extras["test"] + extras["docs"]}
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
    assert config.data.name.startswith(Config().data.name) == ("point2d" in path.stem)
    assert [p for p in CONFIGS if p != path and load_config(p).out == config.out] == []


@pytest.mark.parametrize("path", PUBLISHED, ids=lambda p: f"{p.parent.name}/{p.name}")
def test_published_configs_have_the_published_values(path):
    config = load_config(path)
    assert config.preset == path.parent.name
    # what the file repeats of its preset, it must repeat rightly
    restored = apply_values(config, PRESETS[config.preset].settings, "preset")
    assert to_dict(restored) == to_dict(config)
    assert config.agent.kind in path.stem
    assert set(config.arms) == {"real", "unguided", "guided"}
    assert 3 <= config.seeds <= 10
    synthetic = round(config.synthesis.synthetic_ratio * config.agent.batch_size)
    assert (synthetic, config.agent.batch_size, config.synthesis.trajectories) == (240, 256, 8192)
    assert (config.agent.td3_bc.alpha, config.agent.iql.tau, config.agent.iql.beta) == (2.5, 0.7, 3.0)


@pytest.mark.parametrize("path", OF_DYDIFF, ids=lambda p: p.name)
def test_published_configs_of_dydiff_have_the_published_values_alone(path):
    config = load_config(path)
    assert config.preset == "paper" and config.agent.kind in path.stem and config.arms == ("real", "world_model", "dydiff")
    assert config.data.name == f"{path.stem.split('_')[1]}_medium_expert-v2.hdf5"
    free = {"out", "seeds", "data.name", "agent.kind", "evaluation.episodes", "evaluation.every", "preset"}
    preset = load_config(None, {"preset": "dydiff", "agent": {"kind": config.agent.kind}})
    assert {name for name in leaves(to_dict(config)) if get(config, name) != get(preset, name)} <= free
    kept = make_schedule(config.agent, config.synthesis).refresh_count
    assert make_filter(config.synthesis.filter).needed(kept) == 2048
    assert config.synthesis.trajectories * config.data.window == 2_000_000


def leaves(values: dict[str, Any], prefix: str = "") -> list[str]:
    found = [leaves(v, f"{prefix}{k}.") if isinstance(v, dict) else [prefix + k] for k, v in values.items()]
    return [name for names in found for name in names]


@pytest.mark.parametrize("agent", sorted(BASE_AGENTS))
def test_the_table_of_dydiffs_published_settings_is_that_of_the_preset(agent):
    """Each row of docs/presets.md: settings, then the value of all agents, or those of TD3+BC, CQL and Diffusion-QL."""
    text = (ROOT / "docs" / "presets.md").read_text(encoding="utf-8")
    rows = [line.split("|")[1:3] for line in text[text.index("## DyDiff") :].splitlines() if line.startswith("| `")]
    config, told = load_config(None, {"preset": "dydiff", "agent": {"kind": agent}}), set()
    for names, cell in rows:
        for name, value in zip(re.findall("`([^`]+)`", names), re.findall("`([^`]+)`", cell), strict=True):
            if name.split(".")[1:2] and name.split(".")[1] in set(BASE_AGENTS) - {agent}:
                continue
            by_agent = tomllib.loads(f"x = {value}")["x"]
            wanted = by_agent[agent] if isinstance(by_agent, dict) else by_agent
            found = get(config, name)
            assert (list(found) if isinstance(found, tuple) else found) == wanted, name
            told.add(name)
    preset = {*leaves(DYDIFF), *leaves(dydiff_values(agent))}
    assert preset - told == set()  # every setting of the preset is in the table


def test_published_configs_cover_every_environment_with_both_agents():
    names = {p.stem for p in PUBLISHED if p.parent.name == "paper"}
    for environment in ("halfcheetah", "hopper", "walker2d", "pointmaze_umaze"):
        assert {f"pgd_{environment}_td3_bc", f"pgd_{environment}_iql"} <= names


def test_documents_name_commands_targets_and_configs_that_exist():
    code = re.findall(r"^```[^\n]*\n(.*?)^```|`([^`\n]+)`", documents(), flags=re.DOTALL | re.MULTILINE)
    lines = [line for block, span in code for line in (block or span).splitlines()]
    started = [re.match(r"(?:\w+=\S+ )?(jaxpgd|make) ([a-z][a-z-]+)", line) for line in lines]
    used = {m.groups() for m in started if m}
    targets = re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), flags=re.MULTILINE)
    assert used <= {("jaxpgd", c.split()[0]) for c in COMMANDS} | {("make", t) for t in targets}
    assert {("make", "run"), ("make", "test"), *(("jaxpgd", c.split()[0]) for c in COMMANDS)} <= used
    missing = [name for name in re.findall(r"configs/[\w/]+\.toml", documents()) if not (ROOT / name).is_file()]
    assert missing == []


def test_the_readme_opens_with_the_two_commands_and_is_read_in_minutes():
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    assert 120 <= len(text.splitlines()) <= 150
    assert text.index("make run") < text.index("make test") < text.index("## ")


@pytest.mark.parametrize("page", [*written_pages(), *MARKDOWN], ids=lambda p: str(p.relative_to(ROOT)))
def test_links_of_documents_lead_to_files(page):
    targets = re.findall(r"\]\((?![a-z]+:|#)([^)#\s]+)", page.read_text(encoding="utf-8"))
    assert [target for target in targets if not (page.parent / target).exists()] == []


def test_every_page_and_notebook_is_in_a_table_of_contents():
    blocks = re.findall(r"```{toctree}\n(.*?)```", (ROOT / "docs" / "index.md").read_text(encoding="utf-8"), flags=re.DOTALL)
    listed = [line for block in blocks for line in block.splitlines() if line and not line.startswith(":")]
    pages = {str(page.relative_to(ROOT / "docs").with_suffix("")) for page in written_pages()} - {"index"}
    books = {f"notebooks/{book.stem}" for book in (ROOT / "notebooks").glob("*.ipynb")}
    assert sorted(listed) == sorted({*pages, *books, *COPIED, "benchmarks/README", "benchmarks/results/README"})


@pytest.mark.parametrize("page", [ROOT / "README.md", *written_pages()], ids=lambda p: p.name)
def test_settings_that_documents_name_exist(page):
    known = leaves(to_dict(Config()))
    sections = {name.split(".")[0] for name in known if "." in name}
    spans = re.findall(r"`(?:--)?([a-z0-9_]+(?:\.[a-z0-9_-]+)+)(?:[ =][^`]*)?`", page.read_text(encoding="utf-8"))
    named = {span.replace("-", "_") for span in spans if span.split(".")[0] in sections}
    assert [name for name in sorted(named) if not any(k == name or k.startswith(name + ".") for k in known)] == []


@pytest.mark.parametrize("page", ["equations.md", "architecture.md"])
def test_pages_name_functions_that_exist_where_they_say(page):
    text = (ROOT / "docs" / page).read_text(encoding="utf-8")
    named = re.findall(r"\[`(\w+)`\]\(\.\./(jaxpgd/[\w/]+\.py)\)", text)
    assert len(named) > 25
    for name, path in named:
        found = [n for n in ast.walk(ast.parse((ROOT / path).read_text())) if isinstance(n, ast.FunctionDef | ast.ClassDef)]
        assert name in {node.name for node in found}, (name, path)


def test_the_paths_through_the_code_are_short():
    text = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    batch, coefficient = (len(re.findall(r"^\d+\. ", part, flags=re.MULTILINE)) for part in text.split("\n## From ")[1:])
    assert 0 < batch <= 25 and 0 < coefficient <= 6


@pytest.mark.parametrize("page", ["README.md", *(str(p.relative_to(ROOT)) for p in written_pages())])
def test_python_examples_compile_and_import_what_exists(page):
    for block in python_blocks(page):
        for node in ast.walk(ast.parse(block)):
            if isinstance(node, ast.ImportFrom) and str(node.module).startswith("jaxpgd"):
                module = importlib.import_module(str(node.module))
                assert [name.name for name in node.names if not hasattr(module, name.name)] == []
            if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "jaxpgd":
                assert hasattr(jaxpgd, node.attr), node.attr


@pytest.mark.slow
def test_python_example_of_dydiff_runs(monkeypatch):
    models = {"world_model": {"members": 2, "elites": 1, "hidden": [8], "reward_hidden": [8], "epochs": 1, "patience": 1}}
    tiny = apply_values(Config(), TINY | models, "tiny")
    validate(tiny)
    monkeypatch.setattr(jaxpgd.experiment, "load_config", lambda path: tiny)
    names: dict[str, Any] = {}
    (block,) = python_blocks("docs/dydiff.md")
    exec(compile(block, "dydiff.md", "exec"), names)
    made = names["trajectories"]
    assert made.obs.shape == (256, 8, 2) and np.isfinite(np.asarray(made.obs)).all()
    np.testing.assert_allclose(made.obs[:, 0], names["data"].obs[:256], atol=1e-5)


@pytest.fixture
def tiny_defaults(monkeypatch):
    tiny = apply_values(Config(), TINY, "tiny")
    validate(tiny)
    monkeypatch.setattr(jaxpgd.experiment, "Config", lambda: tiny)


@pytest.mark.slow
def test_python_example_of_getting_started_runs(tiny_defaults):
    names: dict[str, Any] = {}
    (block,) = python_blocks("docs/getting_started.md")
    exec(compile(block, "getting_started.md", "exec"), names)
    returns = np.asarray(names["returns"])
    assert returns.shape == (2, 4)  # two hyperparameters, four seeds
    assert np.isfinite(returns).all()
    # 16 steps of minus a distance, from near the origin at distance 1 from the goal
    assert ((returns < 0) & (returns > -16 * 4)).all()
    assert len(np.unique(returns)) == 8


@pytest.mark.slow
def test_python_example_of_the_readme_runs(tiny_defaults):
    names: dict[str, Any] = {}
    (block,) = python_blocks("README.md")
    assert len(block.splitlines()) <= 16 and "guidance" in block
    exec(compile(block, "README.md", "exec"), names)
    made = names["trajectories"]
    assert made.obs.shape == (256, 8, 2) and np.isfinite(np.asarray(made.obs)).all()


@pytest.mark.slow
def test_an_agent_of_ones_own_learns_as_documented(tiny_defaults):
    names: dict[str, Any] = {}
    (block,) = python_blocks("docs/agents.md")
    exec(compile(block, "agents.md", "exec"), names)
    losses = np.asarray(names["metrics"]["loss"])
    assert np.isfinite(losses).all() and losses[-1] < losses[0]


def test_the_schedule_of_tests_names_files_that_exist():
    """Names of before a move would be passed over in silence."""
    tree = ast.parse((ROOT / "tests" / "conftest.py").read_text(encoding="utf-8"))
    named = {node.targets[0].id: node.value for node in tree.body if isinstance(node, ast.Assign)}
    files = list((ROOT / "tests").rglob("test_*.py"))
    for name in ast.literal_eval(named["FINISHED"]):
        found = [path for path in files if path.as_posix().endswith(name)]
        assert found and all("finished" in path.read_text(encoding="utf-8") for path in found), name
    for part in ast.literal_eval(named["LONG"]):
        assert any(part in path.relative_to(ROOT).parts for path in files), part
