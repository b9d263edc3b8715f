"""The lists of an accelerator's pack cover all that is imported; the pack and its script fail in one line; what comes back."""

import ast
import importlib.metadata as metadata
import os
import shutil
import subprocess
import sys
import textwrap
import tomllib
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from benchmarks import accelerator_check, accelerator_pack

ROOT = Path(__file__).parents[2]
LISTED = {*accelerator_pack.PRESENT, *accelerator_pack.TRAVELS}
LEFT_OUT = {
    "huggingface-hub": "downloads datasets: there is no network",
    "wandb": "reports to a service: there is no network",
    "ogbench": "its datasets are not part of a pack",
    "gymnasium-robotics": "its environments are not part of a pack",
}
PYTHON312 = {"python_version": "3.12", "python_full_version": "3.12.3", "sys_platform": "linux", "platform_machine": "x86_64",
             "platform_system": "Linux", "os_name": "posix", "implementation_name": "cpython",
             "platform_python_implementation": "CPython"}  # fmt: skip


def imported(source: str) -> set[str]:
    """Top-level names of the modules that a source imports, inside functions too, and by `import_module("name...")`."""
    found = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            found.add(str(node.module))
        elif isinstance(node, ast.Call) and getattr(node.func, "attr", "") == "import_module":
            found |= {str(a.value) for a in node.args if isinstance(a, ast.Constant)}
    return {name.partition(".")[0] for name in found}


def third_party() -> set[str]:
    sources = [path for package in ("jaxpgd", "benchmarks") for path in (ROOT / package).rglob("*.py")]
    names = set().union(*(imported(path.read_text()) for path in sources))
    return {name for name in names if name not in sys.stdlib_module_names and name not in ("jaxpgd", "benchmarks")}


def required(name: str, extra: str = "") -> set[str]:
    """What an installed distribution requires on such a machine."""
    needs = [Requirement(text) for text in metadata.requires(name) or []]
    applies = [r for r in needs if r.marker is None or r.marker.evaluate(PYTHON312 | {"extra": extra})]
    return {canonicalize_name(r.name) for r in applies}


def test_imports_are_seen_in_every_form() -> None:
    source = "import a.b, os\ndef f():\n    from c.d import e\n    importlib.import_module('g.h')"
    assert imported(source) == {"a", "os", "c", "g"}


def test_the_lists_cover_what_is_imported() -> None:
    distributions = metadata.packages_distributions()
    found = {name: {canonicalize_name(d) for d in distributions.get(name, [name.replace("_", "-")])} for name in third_party()}
    assert {"jax", "distrax", "minari", "mujoco", "tyro", "wandb"} <= set(found)
    assert {name: d for name, d in found.items() if not d & (LISTED | set(LEFT_OUT))} == {}


def test_the_lists_cover_what_is_required() -> None:
    declared = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["dependencies"]
    needs = {text: {canonicalize_name(Requirement(text).name)} for text in declared}
    needs |= {name: required(name) for name in accelerator_pack.TRAVELS} | {
        "gymnasium[mujoco]": required("gymnasium", "mujoco")
    }
    assert needs["dm-tree"] == {"absl-py", "attrs", "numpy", "wrapt"} and "imageio" in needs["gymnasium[mujoco]"]
    assert {name: missing for name, found in needs.items() if (missing := found - LISTED)} == {}


def test_the_lists_are_apart_and_all_versions_are_pinned() -> None:
    assert not set(accelerator_pack.PRESENT) & set(accelerator_pack.TRAVELS)
    assert LISTED <= set(accelerator_pack.pinned())
    assert accelerator_pack.MACHINE.items() <= (accelerator_pack.pinned() | accelerator_pack.MACHINE).items()
    with accelerator_pack.constraints() as file:
        lines = Path(file).read_text().splitlines()
    assert "jax==0.11.2" in lines and len([line for line in lines if line.startswith("jax==")]) == 1


def make_wheel(folder: Path, name: str, version: str) -> Path:
    path = folder / f"{name.replace('-', '_')}-{version}-py3-none-any.whl"
    about = f"{name.replace('-', '_')}-{version}.dist-info"
    with zipfile.ZipFile(path, "w") as file:
        file.writestr(f"{about}/METADATA", f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
        file.writestr(f"{about}/WHEEL", "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        file.writestr(f"{about}/RECORD", f"{about}/METADATA,,\n{about}/WHEEL,,\n{about}/RECORD,,\n")
        file.writestr(f"only_in_{name.replace('-', '_')}.py", "")
    return path


@pytest.fixture
def datasets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of Minari datasets with one in it, and downloads that make tiny wheels."""
    data = tmp_path / "minari" / "family" / "set-v0" / "data"
    data.mkdir(parents=True)
    (data / "main_data.hdf5").write_bytes(b"0" * 1000)
    (tmp_path / "minari" / "family" / "namespace_metadata.json").write_text("{}")
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path / "minari"))
    pairs = lambda requirements: (r.split("==") for r in requirements)
    make = lambda requirements, folder: [make_wheel(folder, name, version) for name, version in pairs(requirements)]
    monkeypatch.setattr(accelerator_pack, "download", make)
    return tmp_path / "minari"


def test_a_pack_holds_datasets_and_one_wheel_of_each(
    datasets: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pack, flat = tmp_path / "pack", tmp_path / "some.hdf5"
    flat.write_bytes(b"1" * 2000)
    accelerator_pack.build(["family/set-v0", str(flat)], pack)
    assert (pack / "datasets.txt").read_text() == "family/set-v0\nsome.hdf5\n"
    inside = {str(p.relative_to(pack / "datasets")): p.stat().st_size for p in (pack / "datasets").rglob("*") if p.is_file()}
    assert inside == {"family/set-v0/data/main_data.hdf5": 1000, "family/namespace_metadata.json": 2, "some.hdf5": 2000}
    wheels = sorted((pack / "wheels").iterdir())
    assert len(wheels) == len(accelerator_pack.TRAVELS)
    assert f"in {len(wheels) + 4} files; with the checkout" in capsys.readouterr().out
    (pack / "wheels" / "six-1.0-py3-none-any.whl").touch()  # of an older list
    wheels[0].unlink()
    asked = []
    make = accelerator_pack.download
    monkeypatch.setattr(accelerator_pack, "download", lambda names, folder: (asked.append(names), make(names, folder)))
    accelerator_pack.build(["family/set-v0"], pack)
    assert asked == [[f"cloudpickle=={wheels[0].name.split('-')[1]}"]] and wheels[0].name.startswith("cloudpickle")
    assert sorted((pack / "wheels").iterdir()) == wheels and not (pack / "datasets" / "some.hdf5").exists()


def one_line(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    """The only line that the command says before it ends with exit code 2."""
    with pytest.raises(SystemExit) as stop:
        accelerator_pack.main(arguments)
    (line,) = capsys.readouterr().err.splitlines()
    assert stop.value.code == 2
    return line


@pytest.mark.usefixtures("datasets")
def test_what_stands_in_the_way_is_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    build = ("build", "--pack", str(tmp_path / "pack"))
    assert one_line(capsys, *build, "family/other-v0").startswith("error: no dataset family/other-v0 in ")
    assert one_line(capsys, *build, "../minari/family/set-v0").startswith("error: no dataset ../")
    assert one_line(capsys, *build, "absent.npz") == "error: no dataset absent.npz: expected an existing file."
    assert "is no Python 3.12" in one_line(capsys, "environment", str(tmp_path / "python"), str(tmp_path / "venv"))
    assert not (tmp_path / "pack").exists()
    with monkeypatch.context() as small:
        small.setattr(accelerator_pack, "MOST_BYTES", 4000)
        assert one_line(capsys, *build, "family/set-v0").startswith("error: the pack is too large: it is 0.0 MiB")
        small.setattr(accelerator_pack, "MOST_BYTES", 400)
        assert one_line(capsys, *build, "family/set-v0").startswith("error: the pack is too large: its datasets are 0.0 MiB")
    with monkeypatch.context() as small:
        small.setattr(accelerator_pack, "checkout_bytes", lambda: accelerator_pack.MOST_TOGETHER)
        assert one_line(capsys, *build, "family/set-v0").startswith("error: the pack is too large: with the checkout")


def test_a_wheel_that_pip_cannot_get_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.delenv("PIP_FIND_LINKS", raising=False)
    with pytest.raises(accelerator_pack.PackError, match=r"pip download: No matching distribution found for six==99.0"):
        accelerator_pack.download(["six==99.0"], tmp_path)


def test_foreign_modules_are_those_of_other_folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "only_here.py").touch()
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setitem(sys.modules, "only_here", __import__("only_here"))
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    assert "only_here" in accelerator_check.foreign_modules() and "jax" not in accelerator_check.foreign_modules()
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(ROOT), str(tmp_path)]))
    assert "only_here" not in accelerator_check.foreign_modules()


SPEED = """
import os, sys
from pathlib import Path
import only_in_travels
assert sys.argv[1:4] == ["accelerator", "--minutes", "0.02"] and sys.argv[-1] == "--rehearse"
out = Path(sys.argv[5])
out.write_text("{}")
out.with_suffix(".txt").write_text(os.environ["JAX_PLATFORMS"])
(out.parent / "more.json").write_text("stays there")
sys.exit(3)
"""
STUDY = """
import os, sys, time
from pathlib import Path
assert sys.argv[1:7] == ["study", "pgd-accelerator", "--scale", "rehearsal", "--minutes", "0.01"], sys.argv
assert sys.argv[11:] == ["--only", "percent=10"], sys.argv
name, out = sys.argv[8], Path(sys.argv[10])
assert (Path(os.environ["MINARI_DATASETS_PATH"]) / name).is_dir()
folder = out / "some-study"
folder.mkdir()
for file in ("results.csv", "by_step.csv", "tables.txt", "returns.png", "versions.json"):
    (folder / file).write_text(file)
with open(folder / "report.html", "wb") as file:
    file.write(b"0" * (17 << 20))
time.sleep(600)
"""


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """The script with stand-ins for both parts, where a pack lies beside them."""
    sources = {"benchmarks/__init__.py": "", "benchmarks/__main__.py": SPEED, "jaxpgd/__init__.py": "",
               "jaxpgd/experiment/__init__.py": "",
               "jaxpgd/experiment/cli.py": f"if __name__ == '__main__':\n{textwrap.indent(STUDY, '    ')}"}  # fmt: skip
    for name, text in sources.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    script = (ROOT / "benchmarks" / "accelerator.sh").read_text()
    (tmp_path / "benchmarks" / "accelerator.sh").write_text(script.replace("slack=30", "slack=3"))
    shutil.copy(ROOT / "benchmarks" / "accelerator_check.py", tmp_path / "benchmarks")
    (tmp_path / ".accelerator" / "wheels").mkdir(parents=True)
    (tmp_path / ".accelerator" / "datasets" / "family" / "set-v0").mkdir(parents=True)
    (tmp_path / ".accelerator" / "datasets.txt").write_text("family/set-v0\n")
    make_wheel(tmp_path / ".accelerator" / "wheels", "travels", "1.0")
    return tmp_path


def started(checkout: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = ["bash", "benchmarks/accelerator.sh", *arguments]
    environment = os.environ | {"PYTHON": sys.executable, "OUT": str(checkout / "out"), "JAX_PLATFORMS": "cpu"}
    return subprocess.run(command, cwd=checkout, env=environment, capture_output=True, text=True, check=False, timeout=100)


@pytest.mark.slow
def test_both_parts_run_and_what_they_left_comes_back(checkout: Path) -> None:
    (checkout / "out").mkdir()
    (checkout / "out" / "study_results.csv").write_text("of an earlier run")
    done = started(checkout, "--rehearse", "--speed-minutes", "0.02", "--study-minutes", "0.01", "--", "--only", "percent=10")
    assert done.returncode == 1, done.stdout + done.stderr
    assert "speed: failed (3)" in done.stdout and "study: stopped at its limit" in done.stdout
    files = {path.name: path.stat().st_size for path in (checkout / "out").iterdir()}
    names = ["speed.json", "speed.log", "speed.txt", "study.log", "study_by_step.csv", "study_report.html.gz"]
    assert sorted(files) == [*names, "study_results.csv", "study_tables.txt"]
    assert max(files.values()) <= 16 << 20 and (checkout / "out" / "study_results.csv").read_text() == "results.csv"
    assert (checkout / "out" / "speed.txt").read_text() == "cpu"
    assert all(f"{size} bytes  {name}" in done.stdout for name, size in files.items())


def refusals(checkout: Path) -> Iterator[tuple[str, tuple[str, ...]]]:
    """The start of each line, and the arguments that it answers."""
    yield "error: no accelerator: JAX finds the processor alone", ()
    yield "error: --only both: expected speed or study", ("--only", "both")
    yield "error: --study both: expected pgd-accelerator or data-fraction", ("--study", "both")
    yield "error: --study-minutes -1: expected a number", ("--study-minutes", "-1")
    yield "error: --out: a value is missing", ("--out",)
    yield "error: --fast: no such option", ("--fast",)
    yield "error: no dataset a/b in the pack; it holds: family/set-v0", ("--dataset", "a/b")
    yield "error: no pack in nowhere: run make accelerator-pack", ("--pack", "nowhere", "--rehearse")
    large = checkout / "large"
    shutil.copytree(checkout / ".accelerator", large)
    with open(large / "datasets" / "zeros", "wb") as file:
        file.truncate(61 << 20)
    yield "error: the pack is too large: 61 MiB, of 60", ("--pack", "large", "--rehearse")
    broken = checkout / "broken"
    shutil.copytree(checkout / ".accelerator", broken)
    (broken / "wheels" / "x-1.0-cp27-none-win32.whl").touch()
    yield "error: pip cannot install the pack's wheels: ERROR: x-1.0", ("--pack", "broken", "--rehearse")


def test_the_script_refuses_in_one_line(checkout: Path) -> None:
    for start, arguments in refusals(checkout):
        done = started(checkout, *arguments)
        (line,) = done.stderr.splitlines()
        assert line.startswith(start) and done.returncode == 2 and done.stdout == ""
    assert list((checkout / "out").glob("*")) == []
