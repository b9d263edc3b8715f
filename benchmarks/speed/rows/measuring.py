"""Compile, time and describe one row."""

import concurrent.futures
import dataclasses
import statistics
import sys
import threading
import time
from collections.abc import Callable
from typing import Any

import jax

from benchmarks.speed.bounds import Peaks, count_launches
from benchmarks.speed.rows.base import Program, Row
from benchmarks.timing import program_memory
from jaxpgd.experiment.run.peak_memory import peak_memory

ENOUGH, REPEATS = 3.0, 7  # a row is repeated for at most so many seconds and times


def timed(fn: Callable[[], Any]) -> tuple[Any, float]:
    """The result of `fn()`, and how long it took in seconds."""
    began = time.monotonic()
    return fn(), time.monotonic() - began


def in_background(fn: Callable[[], Any], gate: threading.Semaphore) -> "concurrent.futures.Future[Any]":
    """`fn()` in a daemon thread: unlike the threads of a pool, it does not keep the process from ending."""
    future: concurrent.futures.Future[Any] = concurrent.futures.Future()

    def work() -> None:
        with gate:
            try:
                future.set_result(fn())
            except BaseException as error:
                future.set_exception(error)

    threading.Thread(target=work, daemon=True).start()
    return future


def failure(error: Exception) -> dict[str, Any]:
    """The fields of a row that failed."""
    text = " ".join(str(error).split())
    return {"error": f"{type(error).__name__}: {text[:300]}"}


def describe(row: Row) -> dict[str, Any]:
    """The fields of a row before it is measured."""
    precision = {"precision": row.work.precision, "matmul_precision": row.precision or "default"}
    expected = {"gflop": row.work.flops / 1e9, "mbytes": row.work.bytes / 1e6, "launches_estimated": row.work.launches}
    fields = {"name": row.name, "group": row.group, "unit": row.unit, "units": row.units, **row.details}
    fields |= {key: value for key, value in (("baseline", row.baseline), ("single", row.single)) if value}
    return fields | precision | expected | {"predicted_seconds": row.predicted}


def measure_row(row: Row, program: Program, compiled: Any, units: int, deadline: float) -> dict[str, Any]:
    """Run a compiled program once untimed, then repeat it; returns rates, times and memory."""
    seconds: list[float] = []
    with row.context():
        args, setup = timed(lambda: jax.block_until_ready(program.args()))
        call = program.call(compiled)
        args = program.turn(call, args)
        while not seconds or (len(seconds) < REPEATS and sum(seconds) + seconds[-1] < ENOUGH):
            args, taken = timed(lambda args=args: program.turn(call, args))
            seconds.append(taken)
            if time.monotonic() + taken > deadline:
                break
        more = or_default(lambda: program.after(args), {}) if program.after else {}
    median, done = statistics.median(seconds), 1 if program.single else units
    launches = or_default(lambda: count_launches(compiled.as_text()) / done, None)
    return {
        "rate": units / median, "measured_units": units, "run_seconds": median, "seconds": median * row.units / units,
        "repeats": len(seconds), "spread_percent": 100 * (max(seconds) - min(seconds)) / median,
        "memory_bytes": program_memory(compiled), "peak_memory_bytes": peak_memory(),
        "launches_counted": launches, "setup_seconds": setup, **more,
    }  # fmt: skip


def or_default(fn: Callable[[], Any], default: Any) -> Any:
    """`fn()`, or `default` with a warning if it fails: for fields that a row can do without."""
    try:
        return fn()
    except Exception as error:
        print(f"warning: {failure(error)['error']}", file=sys.stderr, flush=True)
        return default


def share_of_bound(row: Row, measured: dict[str, Any], peaks: Peaks, *, counted: bool) -> dict[str, Any]:
    """The bound of a row and the share of it that was reached; launches are `counted` in the program, or estimated."""
    launches = (measured["launches_counted"] if counted else None) or row.work.launches
    bound, seconds = dataclasses.replace(row.work, launches=launches).bound(peaks)
    return {"launches": launches, "bound": bound, "bound_seconds": seconds, "share": seconds * measured["rate"]}
