"""The rooms of the package: what each holds, and which others it may import. `python tests/rooms.py` prints the table.

A room is a folder or a module directly inside `jaxpgd` (`guidance`) or inside `jaxpgd/experiment` (`experiment.run`). The
library is what notebooks and other packages import. Experiments stand on top of it, and each of their rooms may import every
room of the library.
"""

import ast
import dataclasses
import sys
from pathlib import Path

PACKAGE = Path(__file__).parents[1] / "jaxpgd"


@dataclasses.dataclass(frozen=True)
class Room:
    """What a room holds, in a phrase, and the rooms that it may import (of experiments: those besides the library's)."""

    holds: str
    imports: frozenset[str]


def room(holds: str, imports: str = "") -> Room:
    return Room(holds, frozenset(imports.split()))


LIBRARY = {
    "errors": room("errors that users see, and the check that raises them"),
    "files": room("files and directories written completely or not at all", "errors"),
    "types": room("contracts: data containers and callables, with their shapes"),
    "options": room("options of components: default, range and help of each, stated once", "errors"),
    "parallel": room("arrays sharded over devices, agreement between hosts", "errors"),
    "draws": room("random numbers of several axes, drawn as one"),
    "resampling": room("effective sample size and resampling of weighted samples"),
    "dataset": room("the in-memory form of every dataset", "types"),
    "tokens": room("the codec between trajectories and normalised tokens", "types"),
    "windows": room("training windows as indices into a dataset", "dataset errors options tokens types"),
    "networks": room("Flax modules", "draws errors"),
    "diffusion": room("EDM preconditioning and loss, noise levels, solvers, conditions", "draws options tokens types"),
    "guidance": room(
        "guidance of a denoiser by a policy, a file per method",
        "diffusion draws errors options parallel resampling tokens types",
    ),
    "world_model": room("one-step models, their rollouts, termination rules", "draws errors networks options tokens types"),
    "agents": room("offline-RL agents as pure functions", "diffusion draws errors networks options types"),
    "synthesis": room(
        "synthesizers, filters and the replay",
        "diffusion draws errors guidance options parallel resampling tokens types world_model",
    ),
    "training": room(
        "training programs of denoisers, world models and agents",
        "agents dataset diffusion errors networks options parallel resampling synthesis tokens types windows world_model",
    ),
    "envs": room("pure-JAX environments with known answers", "draws errors tokens types"),
    "metrics": room("dynamics error, distances, returns, statistics: arrays in, numbers out", "errors networks types"),
    "datasets": room(
        "reading, checking, describing and writing datasets: Minari, D4RL, OGBench",
        "dataset envs errors files types windows",
    ),
    "simulators": room(
        "Gymnasium environments: evaluation, collection, replayed steps",
        "dataset datasets envs errors tokens types",
    ),
}  # fmt: skip

EXPERIMENTS = {
    "experiment.config": room("the config of an experiment: the options of every component"),
    "experiment.needs": room("which trained models the arms of a run need", "experiment.config"),
    "experiment.nearest": room("suggestions for names that are unknown"),
    "experiment.precision": room("float32, and the precision of products on accelerators"),
    "experiment.compilation": room("compiled programs: kept on disk, released from memory"),
    "experiment.presets": room("the published settings of PGD, DyDiff and Diffusion-QL", "experiment.config"),
    "experiment.used_settings": room("which settings have an effect under which choices", "experiment.config experiment.needs"),
    "experiment.validation": room("checks of a complete config", "experiment.config experiment.needs"),
    "experiment.config_files": room(
        "TOML files in, checked configs out",
        "experiment.config experiment.nearest experiment.presets experiment.used_settings experiment.validation",
    ),
    "experiment.overrides": room("options of the command line as settings", "experiment.config experiment.nearest"),
    "experiment.sweep": room("hyperparameters with several values in one run", "experiment.config experiment.validation"),
    "experiment.run": room(
        "run directory, checkpoints, log, driver, failures, hosts",
        "experiment.config experiment.config_files experiment.precision",
    ),
    "experiment.stages": room(
        "stages of a run",
        "experiment.config experiment.needs experiment.precision experiment.run experiment.sweep",
    ),
    "experiment.report": room(
        "figures and reports",
        "experiment.config_files experiment.run experiment.stages experiment.sweep",
    ),
    "experiment.commands": room(
        "commands, a file each",
        "experiment.config experiment.config_files experiment.needs experiment.report experiment.run experiment.stages "
        "experiment.sweep",
    ),
    "experiment.studies": room(
        "grids of runs: plan, store, measures, report, and the shipped studies",
        "experiment.commands experiment.compilation experiment.config experiment.config_files experiment.needs "
        "experiment.precision experiment.report experiment.run experiment.stages experiment.sweep experiment.used_settings "
        "experiment.validation",
    ),
    "experiment.arguments": room("arguments of commands, for parsing and for help"),
    "experiment.settings_help": room("the help of every setting", "experiment.config"),
    "experiment.command_line": room(
        "the commands by name, with their arguments",
        "experiment.arguments experiment.commands experiment.config experiment.config_files experiment.overrides "
        "experiment.studies",
    ),
    "experiment.cli": room(
        "the entry point of `jaxpgd`",
        "experiment.arguments experiment.command_line experiment.compilation experiment.precision experiment.settings_help",
    ),
}  # fmt: skip

ROOMS = LIBRARY | EXPERIMENTS

# These two offer names of the rooms below them, imported on first use; `__main__` calls the command line.
FRONT_DOORS = {"__init__", "experiment", "__main__"}


def room_of(parts: tuple[str, ...]) -> str:
    """The room of a module, from the parts of its name below jaxpgd: ("guidance", "smc") -> "guidance"."""
    if parts[:1] == ("experiment",) and len(parts) > 1 and parts[1] != "__init__":
        return f"experiment.{parts[1]}"
    return parts[0] if parts else "__init__"


def room_of_file(path: Path) -> str:
    """The room of a source file."""
    return room_of(path.relative_to(PACKAGE).with_suffix("").parts)


def modules() -> list[Path]:
    """All source files of the package."""
    return sorted(PACKAGE.rglob("*.py"))


def imported_rooms(source: str) -> set[str]:
    """The rooms of jaxpgd that a source imports, inside functions too. The package itself is "__init__"."""
    found = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are absolute"
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        else:
            continue
        for name in names:
            package, *parts = name.split(".")
            if package == "jaxpgd":
                found.add(_known(room_of(tuple(parts))))
    return found


def _known(name: str) -> str:
    """`from jaxpgd import x` and `from jaxpgd.experiment import x` import a room or a name that a front door offers."""
    if name in ROOMS or name in FRONT_DOORS:
        return name
    return "experiment" if name.startswith("experiment.") else "__init__"


def edges() -> dict[str, set[str]]:
    """Room -> the other rooms that it imports."""
    found: dict[str, set[str]] = {}
    for path in modules():
        name = room_of_file(path)
        found.setdefault(name, set()).update(imported_rooms(path.read_text()) - {name})
    return found


def table() -> str:
    """The rooms as two tables in Markdown."""
    rows = ["The library imports nothing of `jaxpgd.experiment`.", "", "| room | holds | may import |", "| --- | --- | --- |"]
    rows += [f"| {_link(name)} | {each.holds} | {_names(each)} |" for name, each in LIBRARY.items()]
    rows += ["", "Rooms of `jaxpgd/experiment/` may import every room of the library, and:", ""]
    rows += ["| room | holds | may import |", "| --- | --- | --- |"]
    rows += [f"| {_link(name)} | {each.holds} | {_names(each)} |" for name, each in EXPERIMENTS.items()]
    return "\n".join(rows)


def _link(name: str) -> str:
    path = PACKAGE / name.replace(".", "/")
    short = name.removeprefix("experiment.")
    return f"`{short}/`" if path.is_dir() else f"`{short}.py`"


def _names(each: Room) -> str:
    return ", ".join(f"`{name.removeprefix('experiment.')}`" for name in sorted(each.imports)) or "-"


def unused() -> dict[str, list[str]]:
    """Room -> rooms that the table allows it to import, and that it does not import."""
    found = edges()
    return {name: rest for name, each in ROOMS.items() if (rest := sorted(each.imports - found.get(name, set())))}


if __name__ == "__main__":
    print(table())
    for name, rest in unused().items():
        print(f"{name} no longer imports {', '.join(rest)}", file=sys.stderr)
    for name, rest in unused().items():
        print(f"{name} no longer imports {', '.join(rest)}", file=sys.stderr)
