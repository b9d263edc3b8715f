"""The notebooks: the quickstart's code runs, and each is a whole document that fits the package as it is."""

import ast
import importlib
import json
import re
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny import TINY

import jaxpgd
from jaxpgd.experiment.config import Config
from jaxpgd.experiment.config_files import apply_values
from jaxpgd.experiment.validation import validate

ROOT = Path(__file__).parents[1]
BOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
PNG = b"\x89PNG\r\n\x1a\n"
every_book = pytest.mark.parametrize("path", BOOKS, ids=lambda p: p.stem)


def read(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text(encoding="utf-8"))


def text(cell: dict[str, Any]) -> str:
    source = cell["source"]
    return source if isinstance(source, str) else "".join(source)


def code(cell: dict[str, Any]) -> str:
    """A code cell without lines that only IPython understands."""
    return "".join(line for line in text(cell).splitlines(keepends=True) if not line.startswith("%"))


def code_cells(book: dict[str, Any], tag: str = "") -> list[dict[str, Any]]:
    found = [cell for cell in book["cells"] if cell["cell_type"] == "code"]
    return [cell for cell in found if not tag or tag in cell["metadata"].get("tags", [])]


def assigned(source: str) -> set[str]:
    """Names that the statements of a cell assign."""
    targets = [t for node in ast.parse(source).body if isinstance(node, ast.Assign) for t in node.targets]
    return {node.id for target in targets for node in ast.walk(target) if isinstance(node, ast.Name)}


def tiny_settings() -> dict[str, Any]:
    config = apply_values(Config(), TINY, "tiny")
    validate(config)
    return {
        "config": config,
        "denoiser_settings": config.denoiser,
        "sampler": config.sampler,
        "td3_bc": config.agent.td3_bc,
        "agent_settings": config.agent,
        "synthesis": config.synthesis,
        "coefficients": (0.3,),
        "sample_count": 8,
        "seeds": 2,
        "episodes": 3,
    }


@pytest.mark.slow
def test_quickstart_runs_with_small_settings(tmp_path, monkeypatch):
    (tmp_path / "figures").mkdir()
    monkeypatch.chdir(tmp_path)
    book, small = read(ROOT / "notebooks/quickstart.ipynb"), tiny_settings()
    (settings,) = code_cells(book, "settings")
    assert assigned(code(settings)) == set(small)
    names: dict[str, Any] = {}
    for cell in code_cells(book):
        exec(compile(code(cell), "quickstart.ipynb", "exec"), names)
        if cell is settings:
            names.update(small)
    assert set(names["samples"]) == {"unguided", "coefficient 0.3"}
    for trajectory in names["samples"].values():
        assert trajectory.obs.shape == (8, 8, 2) and np.isfinite(np.asarray(trajectory.obs)).all()
    assert set(names["states"]) == {"real", "guided"}
    returns = np.asarray(names["result"].returns)
    assert returns.shape == (2, 3)
    # 16 steps of minus a distance, from near the origin at distance 1 from the goal
    assert ((returns < 0) & (returns > -16 * 4)).all()
    assert (tmp_path / "figures/quickstart.png").read_bytes().startswith(PNG)


def test_the_documentation_lists_every_notebook():
    listed = (ROOT / "docs" / "getting_started.md").read_text(encoding="utf-8")
    assert len(BOOKS) >= 5
    assert [p.name for p in BOOKS if f"notebooks/{p.name}" not in listed] == []


@every_book
def test_it_is_a_notebook_that_ran_from_top_to_bottom_without_errors(path):
    book = read(path)
    assert (book["nbformat"], book["nbformat_minor"]) == (4, 5)
    ids = [cell["id"] for cell in book["cells"]]
    assert len(set(ids)) == len(ids)
    cells = code_cells(book)
    assert [cell["execution_count"] for cell in cells] == list(range(1, len(cells) + 1))
    outputs = [output for cell in cells for output in cell["outputs"]]
    assert {output["output_type"] for output in outputs} <= {"stream", "display_data", "execute_result"}
    assert {output["name"] for output in outputs if output["output_type"] == "stream"} == {"stdout"}
    assert path.stat().st_size < 1_000_000


@every_book
def test_it_opens_with_a_figure_of_its_own_and_ends_with_what_to_try_next(path):
    cells = read(path)["cells"]
    first, last = cells[0], cells[-1]
    assert first["cell_type"] == last["cell_type"] == "markdown"
    assert re.match(r"# .+\n\n!\[[^\]]+\]\(figures/\w+\.png\)\n\n\w", text(first))
    (figure,) = re.findall(r"figures/\w+\.png", text(first))
    assert (path.parent / figure).read_bytes().startswith(PNG)
    assert any(f'savefig("{figure}"' in text(cell) for cell in code_cells(read(path)))
    assert re.match(r"## What to try next\n\n- ", text(last))


@every_book
def test_its_code_compiles_and_imports_what_exists(path):
    for cell in code_cells(read(path)):
        for node in ast.walk(ast.parse(code(cell))):
            if isinstance(node, ast.ImportFrom) and str(node.module).startswith("jaxpgd"):
                module = importlib.import_module(str(node.module))
                assert [name.name for name in node.names if not hasattr(module, name.name)] == []


@every_book
def test_its_text_names_files_that_exist(path):
    words = "\n".join(text(cell) for cell in read(path)["cells"] if cell["cell_type"] == "markdown")
    books, configs = re.findall(r"\w+\.ipynb", words), re.findall(r"configs/[\w/]+\.toml", words)
    assert [name for name in books if not (path.parent / name).is_file()] == []
    assert [name for name in configs if not (ROOT / name).is_file()] == []


def test_own_denoiser_and_own_agent_plug_in_with_fewer_than_30_lines_each():
    cells = [code(cell) for cell in code_cells(read(ROOT / "notebooks/bring_your_own.ipynb"), "plug-in")]
    denoiser, agent = cells
    assert max(len(cell.splitlines()) for cell in cells) < 30
    assert "nn.Module" in denoiser and "denoising_error(" in denoiser and "jax.lax.scan" in denoiser
    assert "jaxpgd.Agent(" in agent and "jaxpgd.Policy(" in agent


def test_own_agent_learns_the_actions_that_it_sees():
    book = read(ROOT / "notebooks/bring_your_own.ipynb")
    names: dict[str, Any] = {"data": SimpleNamespace(action_dim=1)}
    for cell in (code_cells(book)[0], code_cells(book, "plug-in")[1]):
        exec(compile(code(cell), "bring_your_own.ipynb", "exec"), names)
    obs = jax.random.normal(jax.random.key(0), (256, 3))
    wanted = 0.5 * jnp.tanh(obs[:, :1])
    seen = jaxpgd.Transition(obs, wanted, jnp.ones(256), jnp.zeros(256), obs)
    batch, agent = jax.tree.map(lambda x: x[None], seen), names["agent"]
    state = agent.init(jax.random.key(1), jax.tree.map(lambda x: x[0], seen))
    update = lambda state, key: (agent.update(key, state, batch)[0], None)
    state, _ = jax.jit(partial(jax.lax.scan, update))(state, jax.random.split(jax.random.key(2), 400))
    policy = agent.policy(state)
    assert float(jnp.abs(jax.vmap(policy.mode)(obs) - wanted).mean()) < 0.1  # an untrained one is about 0.3 off
    # a Gaussian of variance 0.25 + 0.75 at its own centre
    centre = policy.log_prob(obs[0], policy.mode(obs[0]), 0.75)
    np.testing.assert_allclose(centre, -0.5 * np.log(2 * np.pi), rtol=1e-5)
