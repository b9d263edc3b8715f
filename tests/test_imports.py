"""Imports point one way, as the table in rooms.py says, and the library loads no file formats and no simulators."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import rooms

import jaxpgd
import jaxpgd.experiment

CONTRIBUTING = Path(__file__).parents[1] / "CONTRIBUTING.md"
# packages that only datasets, simulators and experiments may load (flax itself loads rich)
HEAVY = ("gymnasium", "minari", "h5py", "matplotlib", "tyro", "orbax", "wandb", "huggingface_hub", "jaxpgd.experiment")
LIGHT = sorted(set(rooms.LIBRARY) - {"datasets", "simulators"})


@pytest.mark.parametrize("path", rooms.modules(), ids=lambda path: str(path.relative_to(rooms.PACKAGE)))
def test_imports_point_one_way(path: Path) -> None:
    name = rooms.room_of_file(path)
    if name in rooms.FRONT_DOORS:
        return
    assert name in rooms.ROOMS, f"{path}: add the new room to tests/rooms.py"
    allowed = rooms.ROOMS[name].imports | {name} | (set(rooms.LIBRARY) if name in rooms.EXPERIMENTS else set())
    found = rooms.imported_rooms(path.read_text())
    assert found <= allowed, f"{path} may not import {sorted(found - allowed)}"


def test_the_library_never_imports_experiments() -> None:
    for name, below in rooms.edges().items():
        if not name.startswith("experiment") and name != "__main__":
            assert not [other for other in below if other.startswith("experiment")], name


def test_the_table_names_every_room_once_and_no_other() -> None:
    assert {rooms.room_of_file(path) for path in rooms.modules()} - rooms.FRONT_DOORS == set(rooms.ROOMS)
    assert not set(rooms.LIBRARY) & set(rooms.EXPERIMENTS)


def test_the_table_has_no_cycle() -> None:
    order: list[str] = []
    while len(order) < len(rooms.ROOMS):
        ready = [name for name, each in rooms.ROOMS.items() if name not in order and each.imports <= set(order)]
        assert ready, f"a cycle among {sorted(set(rooms.ROOMS) - set(order))}"
        order += ready


def test_the_reader_sees_every_form_of_import() -> None:
    source = "import jaxpgd.datasets.load, os\ndef f():\n    from jaxpgd import agents, load\n    from jaxpgd.envs.x import y"
    assert rooms.imported_rooms(source) == {"datasets", "agents", "envs", "__init__"}
    source = "from jaxpgd.experiment import Config, stages\nfrom jaxpgd.experiment.run.logs import Log\nimport jaxpgd"
    assert rooms.imported_rooms(source) == {"experiment", "experiment.stages", "experiment.run", "__init__"}


def test_contributing_shows_the_table() -> None:
    text = CONTRIBUTING.read_text()
    shown = text.partition("<!-- rooms -->")[2].partition("<!-- /rooms -->")[0].strip()
    assert shown == rooms.table(), "replace what is between the markers by the output of `python tests/rooms.py`"


LOADED = """import importlib, json, pathlib, sys
for module in json.loads(sys.argv[1]):
    importlib.import_module(module)
print(json.dumps([name for name in json.loads(sys.argv[2]) if name in sys.modules]))"""


def loaded(modules: list[str], names: tuple[str, ...]) -> list[str]:
    """Those of `names` that are imported once `modules` are, in a fresh process."""
    words = [sys.executable, "-c", LOADED, json.dumps(modules), json.dumps(names)]
    found: list[str] = json.loads(subprocess.run(words, capture_output=True, text=True, check=True).stdout)
    return found


def all_of(name: str) -> list[str]:
    """The modules of a room."""
    paths = [path.relative_to(rooms.PACKAGE.parent).with_suffix("") for path in rooms.modules()]
    return [".".join(path.parts).removesuffix(".__init__") for path in paths if path.parts[1] == name]


def test_the_package_itself_loads_nothing() -> None:
    assert loaded(["jaxpgd", "jaxpgd.experiment"], ("jax", "flax", "scipy", *HEAVY[:-1])) == []


def test_library_rooms_load_neither_file_formats_nor_simulators() -> None:
    modules = [module for name in LIGHT for module in all_of(name)]
    assert {"jaxpgd.guidance", "jaxpgd.agents", "jaxpgd.types"} <= set(modules)
    assert loaded(modules, HEAVY) == []


@pytest.mark.parametrize("package", [jaxpgd, jaxpgd.experiment], ids=lambda package: package.__name__)
def test_lazy_names_are_those_that_are_declared(package: object) -> None:
    defined: dict[str, str] = package._DEFINED_IN  # type: ignore[attr-defined]
    assert set(defined) == set(package.__all__) <= set(dir(package))  # type: ignore[attr-defined]
    for name, module in defined.items():
        assert getattr(package, name) is getattr(sys.modules[module], name)
    with pytest.raises(AttributeError, match="has no attribute 'absent'"):
        package.absent  # type: ignore[attr-defined]  # noqa: B018


def test_a_star_import_gives_every_name() -> None:
    names: dict[str, object] = {}
    exec("from jaxpgd import *", names)
    assert set(jaxpgd.__all__) <= set(names)
