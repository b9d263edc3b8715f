"""Imports point one way: what each part of the package may import, read from the sources."""

import ast
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "jaxpgd"
BASE = {"types", "errors", "weights"}
ALLOWED = {
    "errors": set(),
    "files": {"errors"},
    "__main__": {"cli"},
    "types": set(),
    "weights": set(),
    "settings": set(),
    "parallel": {"errors"},
    "compilation": set(),
    "precision": set(),
    "ranges": {"errors", "settings"},
    "nearest": set(),
    "published": {"errors", "data"},
    "published_dydiff": {"errors"},
    "used_settings": {"errors", "settings", "ranges"},
    "config": {"errors", "settings", "ranges", "nearest", "published", "published_dydiff", "used_settings"},
    "overrides": {"errors", "settings", "nearest"},
    "packing": {*BASE, "settings"},
    "networks": {"types", "errors"},
    "diffusion": {"types", "weights", "packing", "parallel", "networks", "settings"},
    "dynamics": {*BASE, "packing", "networks", "settings"},
    "agents": {*BASE, "networks", "diffusion"},
    "sweep": {"errors", "settings", "config", "agents"},
    "envs": {*BASE, "packing"},
    "data": {*BASE, "files", "packing", "envs", "settings"},
    "synthesis": {*BASE, "diffusion", "dynamics", "packing", "parallel", "settings", "ranges", "config"},
    "training": {*BASE, "files", "data", "synthesis", "diffusion", "dynamics", "networks", "packing", "parallel", "settings",
                 "ranges", "config"},
    "evaluation": {*BASE, "files", "data", "dynamics", "envs", "packing"},
    "pipeline": {*BASE, "files", "packing", "networks", "diffusion", "dynamics", "agents", "envs", "data", "synthesis",
                 "training", "evaluation", "settings", "ranges", "config", "parallel", "precision", "sweep"},
    "studies": {*BASE, "files", "diffusion", "envs", "data", "synthesis", "training", "evaluation", "pipeline", "settings",
                "ranges", "config", "used_settings", "parallel", "precision", "sweep"},
    "cli": {"overrides", "config", "settings", "ranges", "errors", "data", "evaluation", "pipeline", "studies", "parallel",
            "compilation", "precision"},
}  # fmt: skip
MODULES = sorted(p.relative_to(PACKAGE) for p in PACKAGE.rglob("*.py") if p != PACKAGE / "__init__.py")


def room(path: Path) -> str:
    return path.parts[0].removesuffix(".py")


def imported_rooms(source: str) -> set[str]:
    """The parts of jaxpgd that a source imports, inside functions too."""
    found = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            names = [a.name for a in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are absolute"
            names = [f"{node.module}.{a.name}" for a in node.names]
        else:
            continue
        found |= {n.split(".")[1] if "." in n else "" for n in names if n.split(".")[0] == "jaxpgd"}
    return found


@pytest.mark.parametrize("path", MODULES, ids=str)
def test_imports_point_one_way(path: Path) -> None:
    assert room(path) in ALLOWED, f"{path}: say in this test what the new part may import"
    found = imported_rooms((PACKAGE / path).read_text()) - {room(path)}
    assert found <= ALLOWED[room(path)], f"{path} may not import {sorted(found - ALLOWED[room(path)])}"


def test_the_reader_sees_every_form_of_import() -> None:
    source = "import jaxpgd.datasets.load, os\ndef f():\n    from jaxpgd import agents\n    from jaxpgd.envs.x import y"
    assert imported_rooms(source) == {"data", "agents", "envs"}


def test_the_rules_have_no_cycle() -> None:
    order: list[str] = []
    while len(order) < len(ALLOWED):
        ready = [r for r, below in ALLOWED.items() if r not in order and below <= set(order)]
        assert ready, f"a cycle among {sorted(set(ALLOWED) - set(order))}"
        order += ready
