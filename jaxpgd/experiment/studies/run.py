"""`jaxpgd study`: every cell of a study, one after the other; what is there already is not computed again.

Several processes may run a study, or several, in one folder at a time: each cell is measured, and each model trained, by one of
them. What one of them measures, and what needs a model that one of them trains, the others put off.
"""

import dataclasses
import json
import math
import sys
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType

import jax
import numpy as np

from jaxpgd.datasets import load
from jaxpgd.datasets.hashing import data_hash, file_hash
from jaxpgd.envs.builtin import is_builtin
from jaxpgd.errors import DivergenceError, InputError, StorageError, check
from jaxpgd.experiment.compilation import release_compiled_programs
from jaxpgd.experiment.config_files import to_toml
from jaxpgd.experiment.run.directory import make_directory, write_atomic
from jaxpgd.experiment.run.lock import HeldElsewhere, locked
from jaxpgd.experiment.run.logs import numbers, plain
from jaxpgd.experiment.run.progress import clock
from jaxpgd.experiment.run.versions import versions
from jaxpgd.experiment.studies.cell import Cell
from jaxpgd.experiment.studies.identity import short_hash
from jaxpgd.experiment.studies.measures import Found, measure, reads_data
from jaxpgd.experiment.studies.plan import Study
from jaxpgd.experiment.studies.queue import Queue, label
from jaxpgd.experiment.studies.report import study_report
from jaxpgd.experiment.studies.results import Results
from jaxpgd.experiment.studies.store import Store
from jaxpgd.experiment.studies.together import groups
from jaxpgd.files import new_file
from jaxpgd.types import Trajectory

_RENAMED = {"return": "synthetic_return", "length": "synthetic_length"}


UNNAMED = "YOUR_DATASET"  # stands in a study for the dataset that its user gives


def run_study(study: Study, out: Path, *, deadline: float = math.inf) -> Results:
    """Measure every cell, write `results.csv`, figures and `report.html` under `out / NAME-SCALE`, and return the results.

    Cells and models are kept in `out / "cells"` and `out / "models"`, for all studies together: a cell that is done is read,
    one that was interrupted continues. One that fails is reported and the others go on. Raises InputError where `out` cannot be
    written, where data has changed since it was used there, or where every cell failed. After the `deadline`, in seconds of
    `time.monotonic()`, no further cell is begun. Where no cell has its dataset, the InputError is that of the first of them.
    """
    named = all(cell.config.data.name != UNNAMED for cell in study.cells)
    check(named, "data.name", UNNAMED, "your dataset", f"The scale {study.scale!r} needs --data.name NAME.")
    began, out = time.monotonic(), Path(out).resolve()
    folder = out / "-".join(filter(None, (study.name, study.scale, study.part)))
    make_directory(folder)
    with locked(out):
        missing = _download(cell for cell in study.cells if not (out / "cells" / cell.name / "cell.json").exists())
        check_unchanged(study, out / "data.json")
    if study.scale == "accelerator" and jax.default_backend() == "cpu":
        print("warning: sizes of an accelerator on a processor may take days; see --scale", file=sys.stderr, flush=True)
    with locked(folder):
        precisions = {cell.config.matmul_precision for cell in study.cells}
        write_atomic(folder / "versions.json", json.dumps(versions(*precisions), indent=1))
        write_atomic(folder / "study.toml", study.toml)
    cells, failed = _measured(study, out, deadline, missing, lambda cells: _keep(study, cells, folder))
    with locked(out):
        _remember(study, out / "data.json")
    check(bool(cells), "study", study.name, "at least one cell that can be measured",
          f"All failed, the first: {next(iter(failed.values()), '')}")  # fmt: skip
    with locked(folder):
        results = _collected(study, cells)
        results.write(folder)
        results.failed = {cell.label: failed[cell.key] for cell in study.cells if cell.key in failed}
        study_report(results, folder, time.monotonic() - began)
    return results


def _keep(study: Study, cells: Mapping[str, Found], folder: Path) -> None:
    with locked(folder):
        _collected(study, cells).write(folder)


def _collected(study: Study, cells: Mapping[str, Found]) -> Results:
    """The rows of the cells that are there, in the study's order."""
    results = Results(study)
    for cell in study.cells:
        if cell.key in cells:
            results.add(cell, cells[cell.key])
    return results


def _measured(
    study: Study, out: Path, deadline: float, missing: Mapping[str, InputError], keep: Callable[[dict[str, Found]], None]
) -> tuple[dict[str, Found], dict[str, str]]:
    """What every cell says, by its key, and why cells failed; `keep` gets those that are there after every part.

    Cells of datasets that are `missing`, by name, fail at once.
    """
    store, root = Store(out / "models"), out / "cells"
    cells = _read(study.cells, root)
    left = {cell.key: cell for cell in study.cells if cell.key not in cells}
    without_data = lambda cell: reads_data(cell) and cell.config.data.name in missing
    failed = {key: str(missing[cell.config.data.name]) for key, cell in left.items() if without_data(cell)}
    if not cells and len(failed) == len(left):
        raise next(iter(missing.values()))
    for why, count in Counter(failed.values()).items():
        print(f"{count} cell{'s' * (count > 1)} failed: {why}", file=sys.stderr, flush=True)
    parts = groups([cell for cell in study.cells if cell.key not in cells | failed], joint=study.joint)
    rest = f", the others in {len(parts)} part{'s' * (len(parts) > 1)}" if parts else ""
    total = len({cell.key for cell in study.cells})
    print(f"{study.title}: {total} cell{'s' * (total != 1)}, {len(cells)} of them there already{rest}", flush=True)
    queue, begun = Queue(parts, root, deadline), dict[int, float]()
    for index, part in queue:
        told = f"[{index + 1}/{len(parts)}] {label(part) or study.name}"
        cells |= _read(study.cells, root, cells)  # what other processes have measured
        group = [cell for cell in part if cell.key not in cells]
        if not group:
            print(f"{told}: measured by another process", flush=True)
        elif time.monotonic() > deadline:
            failed |= {cell.key: "no time was left (--minutes); the same command goes on" for cell in group}
            print(f"{label(group)}: no time was left", file=sys.stderr, flush=True)
        else:
            if index not in begun:
                print(told, flush=True)
            began = begun.setdefault(index, time.monotonic())
            try:
                found, wrong = _attempt(group, store, root, deadline)
            except HeldElsewhere as other:
                queue.put_off(index, part, f"waits for process {other.holder}, which is writing into {other.folder}")
                continue
            cells, failed = cells | found, failed | wrong
            for why in dict.fromkeys(wrong.values()):
                print(f"{told}: failed: {why}", file=sys.stderr, flush=True)
            print(f"{told}: took {clock(time.monotonic() - began)}", flush=True)
        keep(cells)
    cells |= _read(study.cells, root, cells)
    return cells, {key: why for key, why in failed.items() if key not in cells}


def _read(cells: Iterable[Cell], root: Path, known: Mapping[str, Found] = MappingProxyType({})) -> dict[str, Found]:
    """What the cells that are complete, but for those in `known`, say, by their keys."""
    stored = {cell.key: read_cell(root / cell.name) for cell in cells if cell.key not in known}
    return {key: found for key, found in stored.items() if found is not None}


def _attempt(
    group: Sequence[Cell], store: Store, root: Path, deadline: float = math.inf
) -> tuple[dict[str, Found], dict[str, str]]:
    """What the cells of a group say, and why some do not, by their keys.

    What fails together is tried one by one while there is time, unless there is no room on the disk either way.
    """
    try:
        return measure_group(group, store, root)
    except HeldElsewhere:  # a model that another process trains
        raise
    except Exception as error:  # whatever it is, the other cells go on
        if len(group) == 1 or isinstance(error, StorageError) or time.monotonic() > deadline:
            return {}, {cell.key: _failure(error, root / cell.name) for cell in group}
    found, failed = dict[str, Found](), dict[str, str]()
    for cell in group:
        more, wrong = _attempt((cell,), store, root, deadline)
        found, failed = found | more, failed | wrong
    return found, failed


def _download(cells: Iterable[Cell]) -> dict[str, InputError]:
    """Datasets that are not here are downloaded, by one process for all; those that cannot be, by name, and why."""
    missing = dict[str, InputError]()
    for name in dict.fromkeys(cell.config.data.name for cell in cells if reads_data(cell)):
        if not is_builtin(name) and not data_hash(name):
            try:
                load(name)
            except InputError as error:
                if not data_hash(name):  # else it is there, and what is wrong with it may be mended by settings
                    missing[name] = error
    return missing


def check_unchanged(study: Study, path: Path) -> None:
    """Raise InputError where a dataset or an actor's file has changed since this folder's cells and models were computed."""
    for cell in study.cells:
        for field, file in (("target.actor", cell.target.actor), ("evaluation.behaviour", cell.config.evaluation.behaviour)):
            check(not file or Path(file).is_file(), f"{study.name}: {cell.label}: {field}", file, "a file")
    known = json.loads(path.read_text(encoding="utf-8-sig")) if path.exists() else {}
    found = _contents(study)
    for name, content in found.items():
        want = f"results of the {name} that is here now: it has changed since they were measured"
        check(known.get(name, content) == content, "--out", str(path.parent), want, "Choose another --out.")
    write_atomic(path, json.dumps(known | found, indent=1))


def _remember(study: Study, path: Path) -> None:
    """Note what the data is that was downloaded while cells were measured."""
    known = json.loads(path.read_text(encoding="utf-8-sig"))
    write_atomic(path, json.dumps(known | _contents(study, known), indent=1))


def _contents(study: Study, known: Mapping[str, str] = MappingProxyType({})) -> dict[str, str]:
    """Hashes of the datasets and actors' files that are here, by name, except of those in `known`."""
    configs = [config for cell in study.cells for config in (cell.config, cell.target.config) if config is not None]
    names = {config.data.name for config in configs} - set(known)
    files = {file for cell in study.cells for file in (cell.target.actor, cell.config.evaluation.behaviour) if file} - set(
        known
    )
    found = {name: data_hash(name) for name in names} | {file: file_hash(file) for file in files}
    return {name: content for name, content in found.items() if content}


def measure_group(group: Sequence[Cell], store: Store, root: Path) -> tuple[dict[str, Found], dict[str, str]]:
    """Measure the cells of a group and write each into its folder under `root`: what they say, and why some do not, by key."""
    folder = root / (group[0].name if len(group) == 1 else f"together-{short_hash([cell.key for cell in group])}")
    for cell in group:
        (root / cell.name).mkdir(parents=True, exist_ok=True)
        write_atomic(root / cell.name / "config.toml", to_toml(cell.config))
    release_compiled_programs()
    began = time.monotonic()
    found, failed = dict[str, Found](), dict[str, str]()
    with store.noting() as used:
        measured = measure(group, store, folder)
    made_by = {"cell": versions(group[0].config.matmul_precision)} | {
        run.name: _versions_of(run) for run in (*used, folder / "run") if run.is_dir()
    }
    for cell, each in zip(group, measured, strict=True):
        if cell.measure.kind == "returns" and not any(math.isfinite(row["return"]) for row in each.rows):
            failed[cell.key] = _failure(DivergenceError("all seeds diverged"), root / cell.name)
            continue
        found[cell.key] = dataclasses.replace(each, versions=made_by)
        _write_cell(cell, found[cell.key], root / cell.name, {"seconds": time.monotonic() - began, "together": len(group)})
    return found, failed


def _versions_of(run: Path) -> dict[str, str]:
    """Those that a run started with, except for the hashes of its data, which the study's folder knows."""
    stored = json.loads((run / "versions.json").read_text(encoding="utf-8-sig"))
    return {name: value for name, value in stored.items() if name != "data"}


def _write_cell(cell: Cell, found: Found, folder: Path, facts: dict[str, float]) -> None:
    if found.samples is not None:
        _save_samples(found.samples, folder)
    values = {"measure": dataclasses.asdict(cell.measure), **facts, "versions": found.versions}
    values |= {"rows": found.rows, "steps": found.steps}
    write_atomic(folder / "cell.json", json.dumps(plain(values), allow_nan=False))
    (folder / "error.txt").unlink(missing_ok=True)


def read_cell(folder: Path) -> Found | None:
    """What a cell's folder holds; None where it is not complete."""
    try:
        stored = numbers(json.loads((folder / "cell.json").read_text(encoding="utf-8-sig")))
    except (FileNotFoundError, NotADirectoryError):
        return None
    if stored["measure"]["kind"] == "trajectories":  # before, columns had the names of those of agents
        stored["rows"] = [{_RENAMED.get(name, name): value for name, value in row.items()} for row in stored["rows"]]
    return Found(stored["rows"], stored["steps"], _load_samples(folder), stored.get("versions", {}))


def _failure(error: Exception, folder: Path) -> str:
    folder.mkdir(parents=True, exist_ok=True)
    write_atomic(folder / "error.txt", "".join(traceback.format_exception(error)))
    text = str(error).splitlines()[0] if str(error) else ""
    return text if isinstance(error, InputError) else f"{type(error).__name__}: {text} ({folder / 'error.txt'})"


def _save_samples(samples: Trajectory, folder: Path) -> None:
    arrays = {name: np.asarray(value) for name, value in vars(samples).items() if value is not None}
    with new_file(folder / "samples.npz") as file:
        np.savez_compressed(file, **arrays)  # type: ignore[arg-type]


def _load_samples(folder: Path) -> Trajectory | None:
    if not (folder / "samples.npz").exists():
        return None
    with np.load(folder / "samples.npz", allow_pickle=False) as stored:
        return Trajectory(**{name: stored[name] for name in stored.files})
