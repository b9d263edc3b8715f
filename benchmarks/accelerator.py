"""The speed table of an accelerator in a few minutes: every row beside what its shapes allow, at the peaks measured here.

`--rehearse` runs every row at toy sizes on any device; `--predict` prints what an H100's data sheet allows, without a device.
Rows come in order of importance. One that fails or does not fit into the time says so, and the next goes on. The programs of a
group are compiled side by side before any of its rows is timed.
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
from benchmarks.speed.rows.base import REHEARSAL, SHARE, Program, Row, Sizes
from benchmarks.speed.rows.measuring import ENOUGH, REPEATS, describe, failure, held_against, in_background, measure_row, timed
from benchmarks.speed.rows.plan import plan
from benchmarks.timing import header
from jaxpgd.errors import InputError, check
from jaxpgd.files import write_text

HOST = Peaks(dict.fromkeys(H100.flops, 2e10), 5e9, 2e-5)  # of a core, before it is measured
_WHOLE = 2.0  # seconds of a run beyond which fewer batches are measured
_WORKERS = 8  # programs compiled at once


@dataclasses.dataclass
class Job:
    """A row on its way: its program, and what compiles it."""

    row: Row
    units: int
    program: Program
    traced: float
    compiled: "concurrent.futures.Future[tuple[Any, float]]"


class Session:
    """Takes rows group by group, until the time is over, and keeps what it found after each."""

    def __init__(self, rows: list[list[Row]], minutes: float, *, host: bool, keep: Callable[[list[dict[str, Any]]], None]):
        self.deadline = time.monotonic() + 60 * minutes
        self.groups, self.host, self.keep = rows, host, keep
        self.order = [row.name for group in rows for row in group]
        self.found: dict[str, dict[str, Any]] = {}
        self.peaks = HOST if host else H100
        self.slowness: dict[str, list[float]] = {}  # seconds over bound, by group
        self.compiling: list[float] = []  # seconds over what was expected
        self.setups: list[float] = []  # seconds until the arguments of a program are there
        self.tracing: list[float] = []  # seconds
        self.pending: list[Job] = []  # whose programs took too long to wait for
        self.workers = max(1, min(_WORKERS, len(os.sched_getaffinity(0))))
        self.gate = threading.Semaphore(self.workers)

    def run(self) -> None:
        """All groups; then what is still being compiled."""
        for group in self.groups:
            self.take(group)
            gc.collect()
        self.settle(self.left)
        for job in self.pending:
            self.record(job.row, {"skipped": "still being compiled when the time was over"})

    @property
    def left(self) -> float:
        """Seconds."""
        return self.deadline - time.monotonic()

    # what will it take?

    def unit_seconds(self, row: Row) -> float:
        """Of one unit, as far as is known: its bound over the share that such rows have reached."""
        others = [ratio for group, ratios in self.slowness.items() if group != "peaks" for ratio in ratios]
        known = self.slowness.get(row.group) or others
        return row.work.bound(self.peaks)[1] * (1.2 * statistics.median(known) if known else 1 / SHARE)

    def units_of(self, row: Row) -> int:
        """How many of a row's units are measured: all, or as many whole batches as take a moment."""
        if not row.part:
            return row.units
        return min(row.units, row.part * max(1, int(_WHOLE / (row.part * self.unit_seconds(row)))))

    def run_seconds(self, row: Row) -> float:
        """Of making its arguments, a first run and the timed ones."""
        one = self.units_of(row) * self.unit_seconds(row)
        setup = statistics.median(self.setups) if self.setups else (0.5 if self.host else 3.0)
        return setup + one + max(min(REPEATS * one, ENOUGH), one)

    def compile_seconds(self, rows: list[Row]) -> float:
        """Of programs compiled side by side."""
        factor = statistics.median(self.compiling) if self.compiling else (0.1 if self.host else 1.0)
        each = [factor * row.compiling for row in rows]
        tracing = statistics.median(self.tracing) if self.tracing else 0.5  # one after the other, as others are compiled
        return max(max(each), sum(each) / self.workers, tracing * len(each)) + tracing if each else 0.0

    def choose(self, group: list[Row]) -> list[Row]:
        """Those that fit into the time that is left; the others are recorded."""
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

    def take(self, group: list[Row]) -> None:
        """Compile a group's programs, then time its rows."""
        chosen = self.choose(group)
        expected = self.compile_seconds(chosen)
        if self.found and chosen:
            print(f"compiling {len(chosen)} programs ({self.left:.0f} s left)", file=sys.stderr, flush=True)
        for row in chosen:
            try:
                if self.left > 0:
                    self.pending.append(self.start(row))
                else:
                    self.record(row, {"skipped": "the time was over before its turn"})
            except Exception as error:
                self.record(row, failure(error))
        self.settle(min(self.left, max(30.0, 2 * expected)))

    def start(self, row: Row) -> Job:
        """Trace a row's program here, and hand it to a thread that compiles it."""
        began, units = time.monotonic(), self.units_of(row)
        with row.context():
            program = row.build(units)
            lowered = program.lower()
        self.tracing.append(time.monotonic() - began)
        return Job(row, units, program, self.tracing[-1], in_background(lambda: timed(lowered.compile), self.gate))

    def settle(self, patience: float) -> None:
        """Wait for what is being compiled, then time what is ready."""
        concurrent.futures.wait([job.compiled for job in self.pending], timeout=max(0.0, patience))
        ready = [job for job in self.pending if job.compiled.done()]
        self.pending = [job for job in self.pending if job not in ready]
        while ready:
            self.finish(ready.pop(0))

    def finish(self, job: Job) -> None:
        """Time one row, if there still is time, and record it."""
        row, beside = job.row, {"compiled_meanwhile": len(self.pending)} if self.pending else {}
        try:
            compiled, seconds = job.compiled.result()
            said = {"compile_seconds": job.traced + seconds}
            if row.group != "peaks":
                self.compiling.append(said["compile_seconds"] / row.compiling)
            if self.run_seconds(row) > self.left:
                needed = f"needs about {self.run_seconds(row):.0f} s, {max(0.0, self.left):.0f} s are left"
                self.record(row, said | {"skipped": needed})
                return
            said |= measure_row(row, job.program, compiled, job.units, self.deadline)
        except Exception as error:
            self.record(row, failure(error))
            return
        self.record(row, said | beside)

    def record(self, row: Row, said: dict[str, Any]) -> None:
        """Keep what is known of a row, and of the others by it."""
        self.found[row.name] = describe(row) | said
        if "rate" in said:
            self.learn(row, said["rate"])
            self.setups.append(said["setup_seconds"])
            self.found[row.name] |= held_against(row, self.found[row.name], self.peaks, counted=not self.host)
            self.slowness.setdefault(row.group, []).append(1 / (said["rate"] * row.work.bound(self.peaks)[1]))
        relate(self.found, self.peaks)
        self.keep(self.rows())

    def learn(self, row: Row, rate: float) -> None:
        """A peak, from its row."""
        peaks = self.peaks
        if row.name.startswith("product, "):
            self.peaks = dataclasses.replace(peaks, flops=peaks.flops | {row.work.precision: rate * row.work.flops})
        elif row.name == "copy":
            self.peaks = dataclasses.replace(peaks, bandwidth=rate * row.work.bytes)
        elif row.name == "launch":
            self.peaks = dataclasses.replace(peaks, launch=1 / rate)

    def rows(self) -> list[dict[str, Any]]:
        """What is known, in order of importance."""
        return [self.found[name] for name in self.order if name in self.found]


def least_minutes(rows: list[list[Row]], host: bool) -> float:
    """What the first row needs, in minutes, rounded up."""
    session = Session(rows, 0.0, host=host, keep=lambda rows: None)
    first = rows[0][0]
    return math.ceil(100 * (session.compile_seconds([first]) + session.run_seconds(first)) / 60) / 100


@contextlib.contextmanager
def configured(values: dict[str, Any]) -> Iterator[None]:
    """Settings of JAX for a while: compilation is measured, not looked up; in a rehearsal it is to be short."""
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
    """Measure what fits into so many minutes; with `predict` the table of what an H100 allows. Raises InputError."""
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
    with configured({"jax_disable_most_optimizations": True} if host else {"jax_enable_compilation_cache": False}):
        session.run()
    keep(session.rows(), finished=True)
    print(table(about), file=sys.stderr, flush=True)
    if session.pending:
        atexit.register(leave)
    return about


def leave() -> None:
    """End the process at once: threads that still compile would bring its end to a halt."""
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0)


def head(session: Session, sizes: Sizes, minutes: float, rehearse: bool) -> dict[str, Any]:
    """What the table says of itself."""
    peaks = dataclasses.asdict(session.peaks)
    found = header("accelerator", sizes, session.peaks.flops["float32"] / 1e9)
    used = minutes - session.left / 60
    return found | {"minutes": minutes, "minutes_used": used, "rehearsal": rehearse, "peaks": peaks, "planned": session.order}


def progress(session: Session) -> str:
    """The row that was last taken, in a line."""
    last = next(reversed(session.found.values()))
    told = last.get("error") or last.get("skipped") or f"{last['rate']:.4g} of {last['unit']} a second"
    return f"{len(session.found)}/{len(session.order)} {last['name']}: {told} ({session.left:.0f} s left)"
