"""`python -m benchmarks.accelerator_pack build DATASET...`: pack what an accelerator machine without network needs.

Such a machine has Python 3.12, JAX for its accelerator and many packages (`PRESENT`). The other packages that jaxpgd and its
benchmarks need (`TRAVELS`) are packed as wheels, together with the named datasets. `... environment PYTHON DIR` creates a
virtual environment with `PRESENT` only, to rehearse in. Versions are those of `constraints.txt`, except for `MACHINE`.
"""

import argparse
import contextlib
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from packaging.utils import InvalidWheelFilename, canonicalize_name, parse_wheel_filename

ROOT = Path(__file__).parents[1]
PACK = ROOT / ".accelerator"
DATASETS = "datasets.txt"  # names of the packed datasets, the default first
MOST_BYTES, MOST_TOGETHER = 60 * 2**20, 64 * 2**20  # limits of the pack, and of pack and checkout together
FLAT = (".hdf5", ".h5", ".npz")

PRESENT = (
    "jax", "jaxlib", "flax", "optax", "chex", "orbax-checkpoint", "numpy", "scipy", "h5py", "matplotlib", "rich", "filelock",
    "pytest", "absl-py", "attrs", "imageio", "packaging", "typer", "typing-extensions", "wrapt",
)  # fmt: skip
MACHINE = {
    "jax": "0.11.2",
    "jaxlib": "0.11.2",
    "numpy": "2.5.2",
}  # versions there that differ from constraints.txt
TRAVELS = (
    "distrax", "tfp-nightly", "dm-tree", "gast", "decorator", "six", "cloudpickle",
    "minari", "gymnasium", "farama-notifications",
    "tyro", "docstring-parser", "typeguard", "tomli-w",
    "mujoco", "mujoco-core", "mujoco-studio", "websockets", "glfw", "pyopengl",
)  # fmt: skip
PLATFORMS = (*(f"manylinux_2_{minor}_x86_64" for minor in range(39, 4, -1)), "manylinux2014_x86_64", "manylinux1_x86_64")


class PackError(Exception):
    """The pack or environment cannot be made; the message is one line."""


def pinned() -> dict[str, str]:
    """The versions of `constraints.txt` by normalised name."""
    lines = (line.partition(";")[0].strip() for line in (ROOT / "constraints.txt").read_text().splitlines())
    pairs = (line.split("==") for line in lines if "==" in line and not line.startswith("#"))
    return {canonicalize_name(name): version for name, version in pairs}


def build(names: Sequence[str], pack: Path = PACK) -> None:
    """Make or update the pack and print its contents. Raises PackError; a pack that is too large is left for inspection."""
    found = dict(pair for name in names for pair in dataset_files(name).items())
    check_size(sum(path.stat().st_size for path in found.values()), "its datasets are")
    fill_wheels(pack / "wheels", {name: pinned()[name] for name in TRAVELS})
    shutil.rmtree(pack / "datasets", ignore_errors=True)
    for inside, path in found.items():  # without permissions: a read-only file could not be replaced on that machine
        (pack / "datasets" / inside).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, pack / "datasets" / inside)
    (pack / DATASETS).write_text("".join(f"{Path(name).name if is_flat(name) else name}\n" for name in names))
    files = sorted(path for path in pack.rglob("*") if path.is_file())
    for path in files:
        print(f"{path.stat().st_size / 2**20:7.2f} MiB  {path.relative_to(pack)}")
    size = sum(path.stat().st_size for path in files)
    together = size + checkout_bytes()
    print(f"{size / 2**20:7.2f} MiB in {len(files)} files; with the checkout {together / 2**20:.2f} MiB")
    check_size(size, "it is")
    check_size(together, "with the checkout it is", MOST_TOGETHER)


def check_size(size: int, what: str, most: int | None = None) -> None:
    """Raises PackError above `most` bytes (by default those of a pack)."""
    most = most or MOST_BYTES
    if size > most:
        raise PackError(f"the pack is too large: {what} {size / 2**20:.1f} MiB, of {most / 2**20:.0f}. Name fewer datasets.")


def checkout_bytes() -> int:
    """Bytes of the files that git knows or does not ignore; 0 where this is no git checkout."""
    try:
        listed = subprocess.run(["git", "ls-files", "-coz", "--exclude-standard"], cwd=ROOT, capture_output=True, check=False)
    except OSError:
        return 0
    paths = {ROOT / os.fsdecode(name) for name in listed.stdout.split(b"\0") if name}
    return sum(path.stat().st_size for path in paths if path.is_file())


def is_flat(name: str) -> bool:
    """Whether a dataset is a single file (D4RL, .npz) and not a Minari dataset."""
    return Path(name).suffix in FLAT


def dataset_files(name: str) -> dict[Path, Path]:
    """The files of a dataset by their path inside the pack. Raises PackError if the dataset does not exist."""
    if is_flat(name):
        path = Path(name).expanduser()
        if not path.is_file():
            raise PackError(f"no dataset {name}: expected an existing file.")
        return {Path(path.name): path}
    root = Path(os.environ.get("MINARI_DATASETS_PATH") or "~/.minari/datasets").expanduser()
    if ".." in Path(name).parts or not (root / name / "data").is_dir():
        held = ", ".join(sorted(p.parent.parent.relative_to(root).as_posix() for p in root.glob("**/data/metadata.json")))
        raise PackError(
            f"no dataset {name} in {root}, which holds {held or 'none'}. Choose with DATASET=NAME, or set MINARI_DATASETS_PATH."
        )
    paths = [path for path in (root / name).rglob("*") if path.is_file()]
    paths += [root / above / "namespace_metadata.json" for above in Path(name).parents]
    return {path.relative_to(root): path for path in sorted(paths) if path.is_file()}


def fill_wheels(folder: Path, wanted: Mapping[str, str]) -> None:
    """Make `folder` hold exactly the wanted wheels; only missing ones are downloaded."""
    folder.mkdir(parents=True, exist_ok=True)
    there = {identity(path) for path in folder.iterdir() if identity(path) in wanted.items()}
    missing = [f"{name}=={version}" for name, version in wanted.items() if (name, version) not in there]
    if missing:
        download(missing, folder)
    for path in folder.iterdir():
        if identity(path) not in wanted.items():
            path.unlink()


def identity(path: Path) -> tuple[str, str]:
    """Normalised name and version of a wheel; empty strings for any other file."""
    try:
        name, version, _, _ = parse_wheel_filename(path.name)
    except InvalidWheelFilename:
        return "", ""
    return name, str(version)


def download(requirements: Sequence[str], folder: Path) -> None:
    """Download wheels for CPython 3.12 on x86-64 Linux, without their requirements. Raises PackError."""
    target = ["--python-version", "3.12", "--implementation", "cp", *(f"--platform={p}" for p in PLATFORMS)]
    _pip(sys.executable, "download", "--no-deps", *target, "--dest", str(folder), *requirements)


def make_environment(python: str, folder: Path) -> None:
    """Create a Python 3.12 virtual environment with `PRESENT` and its requirements. Raises PackError."""
    ask = [python, "-c", "import sys; sys.exit(sys.version_info[:2] != (3, 12))"]
    try:
        subprocess.run(ask, check=True, capture_output=True)
        subprocess.run([python, "-m", "venv", "--clear", str(folder)], check=True, capture_output=True)
    except (OSError, subprocess.CalledProcessError) as error:
        raise PackError(f"{python} is no Python 3.12 that can make environments; name one with PYTHON312=...") from error
    with constraints() as file:
        _pip(str(folder / "bin" / "python"), "install", "--constraint", file, *PRESENT)


@contextlib.contextmanager
def constraints() -> Iterator[str]:
    """A temporary constraints file: that of the repository, with the versions of `MACHINE`."""
    with tempfile.NamedTemporaryFile("w", suffix=".txt") as file:
        file.writelines(f"{name}=={version}\n" for name, version in (pinned() | MACHINE).items())
        file.flush()
        yield file.name


def _pip(python: str, command: str, *arguments: str) -> None:
    always = ["--quiet", "--disable-pip-version-check", "--only-binary=:all:"]
    done = subprocess.run([python, "-m", "pip", command, *always, *arguments], capture_output=True, text=True, check=False)
    if done.returncode != 0:
        lines = done.stderr.splitlines() or ["it gave no reason"]
        errors = [line for line in lines if line.startswith("ERROR")] or lines
        raise PackError(f"pip {command}: {errors[-1].removeprefix('ERROR: ')}")


def main(argv: Sequence[str] | None = None) -> None:
    """Build the pack or make the environment; on failure, print one line and exit with code 2."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.accelerator_pack", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    pack = commands.add_parser("build", help="build the folder to copy to that machine")
    pack.add_argument("dataset", nargs="+", help="a Minari id, or the path of a .hdf5, .h5 or .npz file")
    pack.add_argument("--pack", type=Path, default=PACK, help="folder of the pack (.accelerator)")
    environment = commands.add_parser("environment", help="make a virtual environment like that of such a machine")
    environment.add_argument("python", help="a Python 3.12")
    environment.add_argument("folder", type=Path)
    args = parser.parse_args(argv)
    try:
        build(args.dataset, args.pack) if args.command == "build" else make_environment(args.python, args.folder)
    except PackError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)


if __name__ == "__main__":
    main()
