"""The speed table of an accelerator in a few minutes: every row with its lower bound, at the peaks that this process measures.

`--rehearse` runs every row at toy sizes on any device; `--predict` prints the bounds of an H100 by its data sheet, without a
device. Rows run in order of importance. A row that fails or does not fit into the remaining time is reported as such, and the
next one runs. The programs of a group are compiled concurrently before any of its rows is timed.
"""

import atexit
import concurrent.futures
import contextlib
import dataclasses
import gc
import json
import math
import os
import statistics
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax

from benchmarks.report import aims, prediction_table, relate, table
from benchmarks.speed.bounds import H100, Peaks
from benchmarks.speed.rows import measuring
from benchmarks.speed.rows.base import REHEARSAL, SHARE, Program, Row, Sizes
from benchmarks.speed.rows.measuring import ENOUGH, REPEATS, describe, failure, measure_row, timed
from benchmarks.speed.rows.plan import plan
from benchmarks.timing import header
from jaxpgd.errors import InputError, check
from jaxpgd.files import write_text

HOST = Peaks(dict.fromkeys(H100.flops, 2e10), 5e9, 2e-5)  # assumed for a CPU core until measured
_LONG = 2.0  # a run that would take more seconds measures fewer batches
_WORKERS = 8  # programs compiled at a time


@dataclasses.dataclass
class Job:
    """A row that is being compiled: its program and the future of the compiled one."""

    row: Row
    units: int
    program: Program
    traced: float
    compiled: "concurrent.futures.Future[tuple[Any, float]]"


class Session:
    """Measures rows group by group until the time is over, and calls `keep` with the results after each row."""

    def __init__(self, rows: list[list[Row]], minutes: float, *, host: bool, keep: Callable[[list[dict[str, Any]]], None]):
        self.deadline = time.monotonic() + 60 * minutes
        self.groups, self.host, self.keep = rows, host, keep
        self.order = [row.name for group in rows for row in group]
        self.found: dict[str, dict[str, Any]] = {}
        self.peaks = HOST if host else H100
        self.slowness: dict[str, list[float]] = {}  # measured seconds over the bound, by group
        self.compiling: list[float] = []  # compilation seconds over the expected ones
        self.setups: list[float] = []  # seconds to create the arguments of a program
        self.tracing: list[float] = []  # seconds to trace a program
        self.pending: list[Job] = []  # jobs that are still being compiled
        self.workers = max(1, min(_WORKERS, len(os.sched_getaffinity(0))))
        self.gate = threading.Semaphore(self.workers)

    def run(self) -> None:
        """Measure all groups, then the rows that were still being compiled."""
        for group in self.groups:
            self.measure_group(group)
            gc.collect()
        self.settle_late()
        for job in self.pending:
            self.record(job.row, {"skipped": "still being compiled when no time was left to run it"})

    @property
    def left(self) -> float:
        """Remaining time in seconds."""
        return self.deadline - time.monotonic()

    # estimates

    def unit_seconds(self, row: Row) -> float:
        """Expected seconds of one unit: its bound, divided by the share of the bound that such rows have reached."""
        others = [ratio for group, ratios in self.slowness.items() if group != "peaks" for ratio in ratios]
        known = self.slowness.get(row.group) or others
        return row.work.bound(self.peaks)[1] * (1.2 * statistics.median(known) if known else 1 / SHARE)

    def units_of(self, row: Row) -> int:
        """Number of units of a row that are measured: all, or fewer batches if all would take long."""
        if not row.part:
            return row.units
        return min(row.units, row.part * max(1, int(_LONG / (row.part * self.unit_seconds(row)))))

    def run_seconds(self, row: Row) -> float:
        """Expected seconds to create the arguments, run once untimed and run the repeats."""
        one = self.units_of(row) * self.unit_seconds(row)
        setup = statistics.median(self.setups) if self.setups else (0.5 if self.host else 3.0)
        return setup + one + max(min(REPEATS * one, ENOUGH), one)

    def compile_seconds(self, rows: list[Row]) -> float:
        """Expected seconds to compile programs concurrently."""
        factor = statistics.median(self.compiling) if self.compiling else (0.1 if self.host else 1.0)
        each = [factor * row.compiling for row in rows]
        tracing = statistics.median(self.tracing) if self.tracing else 0.5  # sequential, while others compile
        return max(max(each), sum(each) / self.workers, tracing * len(each)) + tracing if each else 0.0

    def choose(self, group: list[Row]) -> list[Row]:
        """The rows that fit into the remaining time; the others are recorded as skipped."""
        chosen: list[Row] = []
        total = lambda rows: self.compile_seconds(rows) + sum(self.run_seconds(row) for row in rows)
        for row in group:
            spent, left = total(chosen), self.left
            needed = total([*chosen, row]) - spent
            if spent + needed <= left:
                chosen.append(row)
            else:
                self.record(row, {"skipped": f"needs about {needed:.0f} s, {max(0.0, left - spent):.0f} s are left"})
        return chosen

    # compiling and timing

    def measure_group(self, group: list[Row]) -> None:
        """Compile the programs of a group, then time its rows."""
        chosen = self.choose(group)
        expected = self.compile_seconds(chosen)
        if self.found and chosen:
            print(f"compiling {len(chosen)} programs ({self.left:.0f} s left)", file=sys.stderr, flush=True)
        jobs: list[Job] = []
        for row in chosen:
            try:
                if self.left > 0:
                    jobs.append(self.start(row))
                else:
                    self.record(row, {"skipped": "the time was over before its turn"})
            except Exception as error:
                self.record(row, failure(error))
        self.pending += jobs
        self.settle(max(30.0, 2 * expected), jobs)

    def start(self, row: Row) -> Job:
        """Trace the program of a row and compile it in a background thread."""
        began, units = time.monotonic(), self.units_of(row)
        with row.context():
            program = row.build(units)
            lowered = program.lower()
        self.tracing.append(time.monotonic() - began)
        return Job(row, units, program, self.tracing[-1], measuring.in_background(lambda: timed(lowered.compile), self.gate))

    def settle(self, patience: float, jobs: list[Job]) -> None:
        """Wait up to `patience` seconds until `jobs` are compiled, then time those that are ready, also earlier ones.

        At most half of the time that is left, and never so long that none is left to run them: one slow program would cost
        the rows of all others.
        """
        latest = min(self.left / 2, self.left - sum(self.run_seconds(job.row) for job in jobs))
        concurrent.futures.wait([job.compiled for job in jobs], timeout=max(0.0, min(patience, latest)))
        self.finish_ready()

    def settle_late(self) -> None:
        """Time the programs that took long to compile as each is ready, as long as one of them can still be run."""
        while self.pending:
            latest = self.left - min(self.run_seconds(job.row) for job in self.pending)
            compiled = [job.compiled for job in self.pending]
            done = concurrent.futures.wait(
                compiled, timeout=max(0.0, latest), return_when=concurrent.futures.FIRST_COMPLETED
            ).done
            if not done:
                return
            self.finish_ready()

    def finish_ready(self) -> None:
        """Time the rows whose programs are compiled."""
        ready = [job for job in self.pending if job.compiled.done()]
        self.pending = [job for job in self.pending if job not in ready]
        while ready:
            self.finish(ready.pop(0))

    def finish(self, job: Job) -> None:
        """Time one row if there is time left, and record it."""
        row, note = job.row, {"compiled_meanwhile": len(self.pending)} if self.pending else {}
        try:
            compiled, seconds = job.compiled.result()
            measured = {"compile_seconds": job.traced + seconds}
            if row.group != "peaks":
                self.compiling.append(measured["compile_seconds"] / row.compiling)
            if self.run_seconds(row) > self.left:
                needed = f"needs about {self.run_seconds(row):.0f} s, {max(0.0, self.left):.0f} s are left"
                self.record(row, measured | {"skipped": needed})
                return
            measured |= measure_row(row, job.program, compiled, job.units, self.deadline)
        except Exception as error:
            self.record(row, failure(error))
            return
        self.record(row, measured | note)

    def record(self, row: Row, fields: dict[str, Any]) -> None:
        """Keep the fields of a row, and update peaks and estimates from it."""
        self.found[row.name] = describe(row) | fields
        if "rate" in fields:
            self.update_peaks(row, fields["rate"])
            self.setups.append(fields["setup_seconds"])
            self.found[row.name] |= measuring.share_of_bound(row, self.found[row.name], self.peaks, counted=not self.host)
            self.slowness.setdefault(row.group, []).append(1 / (fields["rate"] * row.work.bound(self.peaks)[1]))
        relate(self.found, self.peaks)
        self.keep(self.rows())

    def update_peaks(self, row: Row, rate: float) -> None:
        """Replace an assumed peak by the one that a row measured."""
        peaks = self.peaks
        if row.name.startswith("product, "):
            self.peaks = dataclasses.replace(peaks, flops=peaks.flops | {row.work.precision: rate * row.work.flops})
        elif row.name == "copy":
            self.peaks = dataclasses.replace(peaks, bandwidth=rate * row.work.bytes)
        elif row.name == "launch":
            self.peaks = dataclasses.replace(peaks, launch=1 / rate)

    def rows(self) -> list[dict[str, Any]]:
        """The rows recorded so far, most important first."""
        return [self.found[name] for name in self.order if name in self.found]


def least_minutes(rows: list[list[Row]], host: bool) -> float:
    """Expected time of the first row in minutes, rounded up."""
    session = Session(rows, 0.0, host=host, keep=lambda rows: None)
    first = rows[0][0]
    return math.ceil(100 * (session.compile_seconds([first]) + session.run_seconds(first)) / 60) / 100


@contextlib.contextmanager
def configured(values: dict[str, Any]) -> Iterator[None]:
    """Set options of JAX inside a `with` block."""
    before = {name: jax.config.values[name] for name in values if name in jax.config.values}
    for name in before:
        jax.config.update(name, values[name])
    try:
        yield
    finally:
        for name, value in before.items():
            jax.config.update(name, value)


def run(
    minutes: float = 5.0, rehearse: bool = False, predict: bool = False, out: Path | None = None, sizes: Sizes | None = None
) -> dict[str, Any] | str:
    """Measure what fits into `minutes`; with `predict`, return the table of bounds on an H100. Raises InputError."""
    if predict:
        return prediction_table(plan(sizes or Sizes()))
    check(math.isfinite(minutes) and minutes > 0, "--minutes", minutes, "a number above 0")
    sizes, began = sizes or (REHEARSAL if rehearse else Sizes()), time.monotonic()
    host = jax.devices()[0].platform == "cpu"
    if host and not rehearse:
        raise InputError("accelerator: JAX finds no accelerator here. With --rehearse every row runs at toy sizes.")
    rows = plan(sizes)
    least = least_minutes(rows, host)
    check(minutes >= least, "--minutes", minutes, f"{least} at least, which the first row takes")
    session: Session | None = None
    about: dict[str, Any] = {}

    def keep(found: list[dict[str, Any]], finished: bool = False) -> None:
        if session is None:
            return
        about.update(head(session, sizes, minutes, rehearse), finished=finished, rows=found, aims=aims(found))
        if out is not None:
            write_text(out, json.dumps(about, indent=2) + "\n")
            write_text(Path(f"{out}.txt" if out.suffix != ".json" else out.with_suffix(".txt")), table(about))
        if found and not finished:
            print(progress(session), file=sys.stderr, flush=True)

    session = Session(rows, minutes - (time.monotonic() - began) / 60, host=host, keep=keep)
    keep([])
    # compilation is measured, so nothing comes from the cache; in a rehearsal it only has to be short
    with configured({"jax_disable_most_optimizations": True} if host else {"jax_enable_compilation_cache": False}):
        session.run()
    keep(session.rows(), finished=True)
    print(table(about), file=sys.stderr, flush=True)
    if session.pending:
        atexit.register(leave)
    return about


def leave() -> None:
    """End the process at once, although threads are still compiling."""
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0)


def head(session: Session, sizes: Sizes, minutes: float, rehearse: bool) -> dict[str, Any]:
    """Header of the table: device, sizes, peaks, planned rows."""
    peaks = dataclasses.asdict(session.peaks)
    found = header("accelerator", sizes, session.peaks.flops["float32"] / 1e9)
    used = minutes - session.left / 60
    return found | {"minutes": minutes, "minutes_used": used, "rehearsal": rehearse, "peaks": peaks, "planned": session.order}


def progress(session: Session) -> str:
    """One line about the row recorded last."""
    last = next(reversed(session.found.values()))
    outcome = last.get("error") or last.get("skipped") or f"{last['rate']:.4g} of {last['unit']} a second"
    return f"{len(session.found)}/{len(session.order)} {last['name']}: {outcome} ({session.left:.0f} s left)"
