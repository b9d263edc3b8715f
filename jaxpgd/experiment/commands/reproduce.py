"""`jaxpgd reproduce`: a finished run once more, from its own config, and whether every bit is the same."""

import dataclasses
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np

from jaxpgd.datasets.hashing import data_hash
from jaxpgd.errors import InputError, check
from jaxpgd.experiment.commands.run import run_all
from jaxpgd.experiment.config import HealthConfig
from jaxpgd.experiment.report.page import text_table
from jaxpgd.experiment.run.checkpoints import checksum, read_arrays
from jaxpgd.experiment.run.directory import claim
from jaxpgd.experiment.run.resolved import BATCH_SIZE
from jaxpgd.experiment.run.versions import versions
from jaxpgd.experiment.run.view import RunView, open_run
from jaxpgd.training.health import SKIPPED

RESULTS = ("returns.json", "quality.json", "results.json")
# of a stage: what two runs never share
_CLOCKS = ("seconds", "step_seconds", "step_cpu_seconds", "peak_memory_bytes", "resumed")


@dataclasses.dataclass(frozen=True)
class Comparison:
    """One part of two runs: how many entries it has, how many are not the same bits, and what the first of these is."""

    part: str
    entries: int
    differing: int
    first: str = ""


def reproduce(run_path: str, out: Path | None = None) -> bool:
    """Run the config of a finished run again, in `out` (RUN/reproduced), and compare; returns whether all is the same.

    Compared bit by bit: every array of the last checkpoint of every stage, read back; its metrics, returns, scores of
    trajectories, and tables. Differences of versions, device, source and data are told first. An interrupted reproduction goes
    on. Models lent by other runs (`models_from`) are taken from there again. Raises InputError where the run is not finished,
    or went on in the middle of a stage with updates skipped, which another program computes.
    """
    run = open_run(run_path)
    run.require("report", f"jaxpgd run {run.path / 'config.toml'} --resume")
    _check_one_program(run)
    out = out or run.path / "reproduced"
    check(out.resolve() != run.path.resolve(), "--out", str(out), "another directory than that of the run")
    _make_room(run, out)
    for name, before, now in environment_changes(run):
        print(f"note: {name} was {before} then and is {now} now", flush=True)
    config = dataclasses.replace(run.config, out=str(out), health=_health(run))
    config = dataclasses.replace(config, sampler=run.effective((BATCH_SIZE,)).sampler)  # another batch may round otherwise
    again = open_run(run_all(config, resume=True))
    found = compare_runs(run, again)
    print(text_table([dataclasses.asdict(each) for each in found]))
    same = all(each.differing == 0 for each in found)
    print(f"{run.path}: {'the same bits' if same else 'not the same'}, {len(found)} parts compared with {again.path}")
    parts = [dataclasses.asdict(each) for each in found]
    with claim(again) as written:
        written.write_json("reproduction.json", {"of": str(run.path.resolve()), "same": same, "parts": parts})
    return same


def _make_room(run: RunView, out: Path) -> None:
    """Remove an earlier reproduction that was compared: reading it once more would show nothing.

    One that was interrupted goes on. Raises InputError where it was begun with other versions.
    """
    old = out.with_name(out.name + ".old")
    record = RunView(out, run.config).read_json("reproduction.json")
    if record:
        check(
            record.get("of") == str(run.path.resolve()), "--out", str(out), "no reproduction of another run", "Choose another."
        )
        shutil.rmtree(old, ignore_errors=True)
        out.rename(old)  # at once: what a removal that is interrupted leaves would pass for an interrupted reproduction
        shutil.rmtree(old)
    elif (out / "config.toml").exists():
        changes = [name for name, _, _ in environment_changes(open_run(out))]
        check(not changes, "--out", str(out), f"a reproduction begun with the present {', '.join(changes)}", "Delete it.")


def _check_one_program(run: RunView) -> None:
    """Raise InputError where a stage began without `health.skip_updates` and went on with it."""
    skips: dict[str, set[bool]] = {}
    for row in run.log.read():
        skips.setdefault(str(row.get("stage")), set()).add(SKIPPED in row)
    mixed = [stage for stage, found in skips.items() if len(found) > 1]
    if mixed:
        raise InputError(
            f"run = {str(run.path)!r}: expected stages that ran with or without health.skip_updates, but {mixed[0]!r} changed "
            "in the middle: its first part cannot be computed again with the same bits. A new run that skips updates from its "
            "start can."
        )


def _health(run: RunView) -> HealthConfig:
    """How the run got to its end: updates that any of its stages left out, seeds that one left behind."""
    used = [run.config.health]
    for path in (run.path / "stages").glob("*.json"):
        found = run.facts(path.stem).get("health")
        used += [HealthConfig(**found)] if isinstance(found, dict) else []
    return dataclasses.replace(
        run.config.health,
        skip_updates=max(each.skip_updates for each in used),
        lost_seeds="keep" if any(each.lost_seeds == "keep" for each in used) else "stop",
        debug_nans=False,
    )


def environment_changes(run: RunView) -> list[tuple[str, str, str]]:
    """What differs of versions, device, source and data between the run's start and now: name, then, now."""
    then, config = run.read_json("versions.json"), run.config
    now = versions(config.matmul_precision) | {"data": data_hash(config.data.name)}
    return [(name, str(then[name]), str(now[name])) for name in now if name in then and then[name] != now[name]]


def compare_runs(run: RunView, again: RunView) -> list[Comparison]:
    """Everything that two finished runs of one config share."""
    stages = sorted(p.name for p in (run.path / "checkpoints").glob("*") if p.is_dir())
    found = [_compare_checkpoints(run, again, stage) for stage in stages]
    found += [_compare_metrics(run, again, stage) for stage in stages]
    return found + [_compare_json(run, again, name) for name in RESULTS if (run.path / name).exists()]


def _compare_checkpoints(run: RunView, again: RunView, stage: str) -> Comparison:
    saved = [each.checkpoints(stage).saved() for each in (run, again)]
    if not all(saved) or saved[0][-1] != saved[1][-1]:
        return Comparison(stage, 0, 1, f"chunks {saved[0][-1:]} and {saved[1][-1:]}")
    paths = [each.path / "checkpoints" / stage / str(saved[0][-1]) for each in (run, again)]
    ours, theirs = (_arrays(path) for path in paths)
    same = lambda name: name in ours and name in theirs and checksum(ours[name]) == checksum(theirs[name])
    differing = [name for name in sorted({*ours, *theirs}) if not same(name)]
    first = _difference(ours, theirs, differing[0]) if differing else ""
    return Comparison(stage, len(ours), len(differing), first)


def _arrays(path: Path) -> dict[str, np.ndarray]:
    try:
        return read_arrays(path)
    except Exception as error:  # Orbax raises many kinds for damaged files
        raise InputError(f"checkpoint = {str(path)!r}: expected one that can be read ({error}).") from error


def _difference(ours: dict[str, np.ndarray], theirs: dict[str, np.ndarray], name: str) -> str:
    """How far one entry of two checkpoints is apart."""
    a, b = ours.get(name), theirs.get(name)
    if a is None or b is None or a.shape != b.shape or not np.issubdtype(a.dtype, np.floating):
        return name
    return f"{name}, by {float(np.max(np.abs(a.astype(np.float64) - b.astype(np.float64)))):.3g} at most"


def _compare_metrics(run: RunView, again: RunView, stage: str) -> Comparison:
    ours, theirs = ([row for row in each.log.read() if row.get("stage") == stage] for each in (run, again))
    pairs = [(a, b) for a, b in zip(ours, theirs, strict=False) if _text(a) != _text(b)]
    missing = abs(len(ours) - len(theirs))
    first = ""
    if pairs:
        a, b = pairs[0]
        first = f"chunk {a.get('chunk')}: {next(k for k in {**a, **b} if _text(a.get(k)) != _text(b.get(k)))}"
    return Comparison(f"{stage}, metrics", len(ours), len(pairs) + missing, first or ("lines missing" if missing else ""))


def _compare_json(run: RunView, again: RunView, name: str) -> Comparison:
    ours, theirs = run.read_json(name), again.read_json(name)
    differing = [key for key in {**ours, **theirs} if _text(ours.get(key)) != _text(theirs.get(key))]
    return Comparison(name, len(ours), len(differing), differing[0] if differing else "")


def _text(value: Any) -> str:
    """Values as JSON, where NaN equals itself; without clocks."""
    if isinstance(value, dict):
        value = {k: v for k, v in value.items() if k not in _CLOCKS}
    return json.dumps(value, sort_keys=True)
