"""`jaxpgd study`: every cell of a study, one after the other; what is there already is not computed again."""

import dataclasses
import json
import sys
import time
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from jaxpgd.config import to_toml
from jaxpgd.errors import InputError, check
from jaxpgd.pipeline.run_directory import RunLock, make_directory, versions, write_atomic
from jaxpgd.studies.measures import Found, measure
from jaxpgd.studies.plan import Cell, Study
from jaxpgd.studies.report import study_report
from jaxpgd.studies.results import Results
from jaxpgd.studies.store import Store
from jaxpgd.training.logs import plain
from jaxpgd.training.progress import clock
from jaxpgd.types import Trajectory


def run_study(study: Study, out: Path) -> Results:
    """Measure every cell, write `results.csv`, figures and `report.html` under `out / NAME-SCALE`, and return the results.

    Cells and models are kept in `out / "cells"` and `out / "models"`, for all studies together: a cell that is done is read,
    one that was interrupted continues. One that fails is reported and the others go on. Raises InputError where `out` cannot be
    written, or where every cell failed.
    """
    began = time.monotonic()
    folder = out / (f"{study.name}-{study.scale}" if study.scale else study.name)
    make_directory(folder)
    store, results, failed = Store(out / "models"), Results(study), dict[str, str]()
    with _locked(out):
        write_atomic(folder / "versions.json", json.dumps(versions(), indent=1))
        for index, cell in enumerate(study.cells):
            label = ", ".join(cell.labels.values()) or study.name
            started = time.monotonic()
            print(f"[{index + 1}/{len(study.cells)}] {label}", flush=True)
            try:
                found, seconds = cell_results(cell, store, out / "cells" / cell.name)
            except Exception as error:  # the other cells go on
                failed[label] = _failure(error, out / "cells" / cell.name)
                print(f"[{index + 1}/{len(study.cells)}] {label}: failed: {failed[label]}", file=sys.stderr, flush=True)
                continue
            results.add(cell, found)
            took = "was there" if seconds is not None else f"took {clock(time.monotonic() - started)}"
            print(f"[{index + 1}/{len(study.cells)}] {label}: {took}", flush=True)
        check(len(failed) < len(study.cells), "study", study.name, "at least one cell that can be measured",
              f"All failed, the first: {next(iter(failed.values()), '')}")  # fmt: skip
        results.write(folder)
        study_report(results, failed, folder, time.monotonic() - began)
    return results


@contextmanager
def _locked(out: Path) -> Iterator[None]:
    """Two studies do not write into one folder at a time."""
    lock = RunLock(out)
    lock.take()
    try:
        yield
    finally:
        lock.release()


def cell_results(cell: Cell, store: Store, folder: Path) -> tuple[Found, float | None]:
    """What a cell's folder holds, and the seconds that it took then; measured now (None) where it is not complete."""
    done = folder / "cell.json"
    if done.exists():
        stored = json.loads(done.read_text())
        return Found(stored["rows"], stored["steps"], _load_samples(folder)), float(stored["seconds"])
    folder.mkdir(parents=True, exist_ok=True)
    write_atomic(folder / "config.toml", to_toml(cell.config))
    began = time.monotonic()
    found = measure(cell, store, folder)
    if found.samples is not None:
        _save_samples(found.samples, folder)
    facts = {"measure": dataclasses.asdict(cell.measure), "seconds": time.monotonic() - began}
    write_atomic(done, json.dumps(plain(facts | {"rows": found.rows, "steps": found.steps})))
    (folder / "error.txt").unlink(missing_ok=True)
    return found, None


def _failure(error: Exception, folder: Path) -> str:
    folder.mkdir(parents=True, exist_ok=True)
    write_atomic(folder / "error.txt", "".join(traceback.format_exception(error)))
    text = str(error).splitlines()[0] if str(error) else ""
    return text if isinstance(error, InputError) else f"{type(error).__name__}: {text} ({folder / 'error.txt'})"


def _save_samples(samples: Trajectory, folder: Path) -> None:
    partial = folder / "samples.partial"
    with partial.open("wb") as file:
        np.savez_compressed(file, **{name: np.asarray(value) for name, value in vars(samples).items()})  # type: ignore[arg-type]
    partial.replace(folder / "samples.npz")


def _load_samples(folder: Path) -> Trajectory | None:
    if not (folder / "samples.npz").exists():
        return None
    with np.load(folder / "samples.npz", allow_pickle=False) as stored:
        return Trajectory(**{name: stored[name] for name in stored.files})
