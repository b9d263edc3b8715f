"""Compilation and run times, measured separately, and a description of the device."""

import dataclasses
import functools
import itertools
import os
import platform
import statistics
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import jaxlib


@dataclasses.dataclass(frozen=True)
class Timing:
    """Times in seconds. The spread over repeats is the slowest minus the fastest."""

    compile_seconds: float
    median_seconds: float
    spread_seconds: float
    repeats: int
    memory_bytes: int | None = None  # peak of the compiled program: arguments, results, temporaries
    seconds: tuple[float, ...] = ()  # of each repeat
    peaks: tuple[float, ...] = ()  # GFLOP/s of matrix products, measured around each repeat


def row(timing: Timing, units: int, *, flops: float | None = None) -> dict[str, Any]:
    """The fields that every suite reports for a subject which does `units` of work per run.

    `flops` is the arithmetic of one unit. `matmul_share` is the median over repeats of the arithmetic rate of a repeat divided
    by the matmul peak measured around it, because clock rates change between repeats.
    """
    rate = units / timing.median_seconds
    found: dict[str, Any] = {
        "rate": rate, "compile_seconds": timing.compile_seconds, "run_seconds": timing.median_seconds,
        "spread_percent": 100 * timing.spread_seconds / timing.median_seconds, "memory_bytes": timing.memory_bytes,
    }  # fmt: skip
    if flops is not None:
        found["gflop_per_unit"] = flops / 1e9
    if flops is not None and timing.peaks:
        shares = [units * flops / 1e9 / s / peak for s, peak in zip(timing.seconds, timing.peaks, strict=True)]
        found |= {"matmul_share": statistics.median(shares), "matmul_gflops": statistics.median(timing.peaks)}
    return found


def header(suite: str, size: Any, peak: float) -> dict[str, Any]:
    """The fields that every suite reports about itself: device, versions, sizes, matmul peak, matmul precision."""
    precision = jax.config.jax_default_matmul_precision or "default"
    return {
        "suite": suite, "device": describe_device(), "size": _sizes(dataclasses.asdict(size)), "matmul_gflops": peak,
        "matmul_precision": precision,
    }  # fmt: skip


def _sizes(values: dict[str, Any]) -> dict[str, Any]:
    """Sizes without the list of methods: each method has a row."""
    return {k: _sizes(v) if isinstance(v, dict) else v for k, v in values.items() if k != "methods"}


def program_memory(compiled: Any) -> int | None:
    """Peak memory of a compiled program in bytes; None if the compiler does not report it."""
    try:
        memory = compiled.memory_analysis()
    except (NotImplementedError, RuntimeError):
        return None
    if memory is None:
        return None
    parts = ("argument_size_in_bytes", "output_size_in_bytes", "temp_size_in_bytes")
    return int(sum(getattr(memory, part) for part in parts) - memory.alias_size_in_bytes)


def time_calls(fn: Callable[[], Any], repeats: int) -> list[float]:
    """Seconds of each of `repeats` calls, until the result is ready."""
    seconds = []
    for _ in range(repeats):
        start = time.perf_counter()
        jax.block_until_ready(fn())
        seconds.append(time.perf_counter() - start)
    return seconds


def in_turn(runs: dict[str, Callable[[], Any]], rounds: int) -> dict[str, list[float]]:
    """Seconds of each round of compiled calls that take turns, after one untimed call of each."""
    time_calls(lambda: [fn() for fn in runs.values()], 1)
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(rounds):
        for name, fn in runs.items():
            seconds[name] += time_calls(fn, 1)
    return seconds


def alternated(runs: dict[str, Callable[[], Any]], repeats: int) -> dict[str, float]:
    """Median seconds of compiled calls that take turns, after one untimed call of each."""
    return {name: statistics.median(found) for name, found in in_turn(runs, repeats).items()}


def measure(fn: Callable[..., Any], *args: Any, repeats: int = 5, peak: Callable[[], float] | None = None) -> Timing:
    """Compile `fn` for `args`, run it once unmeasured, then time `repeats` runs. `fn` may be jitted already.

    With `peak` (`matmul_peak`), the matmul peak is measured before and after each run.
    """
    jitted: Any = fn if hasattr(fn, "lower") else jax.jit(fn)
    start = time.perf_counter()
    compiled = jitted.lower(*args).compile()
    compile_seconds = time.perf_counter() - start
    jax.block_until_ready(compiled(*args))
    seconds, around = [], [peak()] if peak else []
    for _ in range(repeats):
        seconds += time_calls(lambda: compiled(*args), 1)
        around += [peak()] if peak else []
    peaks = tuple((before + after) / 2 for before, after in itertools.pairwise(around))
    spread = max(seconds) - min(seconds)
    memory = program_memory(compiled)
    return Timing(compile_seconds, statistics.median(seconds), spread, repeats, memory, tuple(seconds), peaks)


def compiled_flops(fn: Callable[..., Any], *args: Any) -> float:
    """FLOPs of one call of a jitted function, as the compiler counts them (the body of a scan counts once)."""
    jitted: Any = fn
    analysis = jitted.lower(*args).compile().cost_analysis()
    found = analysis[0] if isinstance(analysis, list) else analysis
    return float((found or {}).get("flops", float("nan")))


@functools.cache
def _square_product(size: int, dtype: Any) -> tuple[Callable[..., Any], jax.Array]:
    matrix = jax.random.normal(jax.random.key(0), (size, size), dtype)
    product = jax.jit(jnp.matmul)
    jax.block_until_ready(product(matrix, matrix))
    return product, matrix


def matmul_peak(size: int = 0, repeats: int = 7, dtype: Any = jnp.float32) -> float:
    """Matmul peak in GFLOP/s: the median rate of products of two [size, size] matrices in this process.

    The default size is 1024 on CPU and 8192 on accelerators, which smaller products do not saturate.
    """
    size = size or (1024 if jax.devices()[0].platform == "cpu" else 8192)
    product, matrix = _square_product(size, dtype)
    return 2 * size**3 / statistics.median(time_calls(lambda: product(matrix, matrix), repeats)) / 1e9


def describe_device() -> dict[str, Any]:
    """The machine of a measurement: device, usable cores, versions."""
    device = jax.devices()[0]
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return {
        "platform": device.platform,
        "device": device.device_kind,
        "processor": processor_name(),
        "cores": cores,
        "python": platform.python_version(),
        "jax": jax.__version__,
        "jaxlib": jaxlib.__version__,
    }


def processor_name() -> str:
    """The model name of the processor, if the system reports it."""
    try:
        with open("/proc/cpuinfo") as file:
            names = [line.split(":", 1)[1].strip() for line in file if line.startswith("model name")]
        return names[0] if names else platform.machine()
    except OSError:
        return platform.processor() or platform.machine()
