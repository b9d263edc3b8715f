"""Compile and run time apart, on a named device."""

import dataclasses
import os
import platform
import statistics
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import jaxlib

try:
    import resource
except ImportError:  # not on this system
    resource = None  # type: ignore[assignment]


@dataclasses.dataclass(frozen=True)
class Timing:
    """Seconds. The spread is that of the repeats: slowest minus fastest."""

    compile_seconds: float
    median_seconds: float
    spread_seconds: float
    repeats: int


def time_calls(fn: Callable[[], Any], repeats: int) -> list[float]:
    """Seconds of each of `repeats` calls, each until its result is ready."""
    seconds = []
    for _ in range(repeats):
        start = time.perf_counter()
        jax.block_until_ready(fn())
        seconds.append(time.perf_counter() - start)
    return seconds


def measure(fn: Callable[..., Any], *args: Any, repeats: int = 5) -> Timing:
    """Compile `fn` for `args`, run it once unmeasured, then time `repeats` runs. `fn` may be jitted already."""
    jitted: Any = fn if hasattr(fn, "lower") else jax.jit(fn)
    start = time.perf_counter()
    compiled = jitted.lower(*args).compile()
    compile_seconds = time.perf_counter() - start
    jax.block_until_ready(compiled(*args))
    seconds = time_calls(lambda: compiled(*args), repeats)
    return Timing(compile_seconds, statistics.median(seconds), max(seconds) - min(seconds), repeats)


def compiled_flops(fn: Callable[..., Any], *args: Any) -> float:
    """Arithmetic of one call of a jitted function, as its compiler counts it (the body of a scan once)."""
    jitted: Any = fn
    analysis = jitted.lower(*args).compile().cost_analysis()
    found = analysis[0] if isinstance(analysis, list) else analysis
    return float((found or {}).get("flops", float("nan")))


def peak_memory() -> int | None:
    """Most bytes in use so far: of the first device where it tells, else of this process."""
    found = jax.devices()[0].memory_stats()
    if found and "peak_bytes_in_use" in found:
        return int(found["peak_bytes_in_use"])
    if resource is None:
        return None
    return int(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss) * (1 if platform.system() == "Darwin" else 1024)


def matmul_peak(size: int = 1024, repeats: int = 5) -> float:
    """GFLOP/s of the fastest float32 product of two [size, size] matrices: the yardstick for everything in this process."""
    a = jax.random.normal(jax.random.key(0), (size, size))
    product = jax.jit(jnp.matmul)
    jax.block_until_ready(product(a, a))
    return 2 * size**3 / min(time_calls(lambda: product(a, a), repeats)) / 1e9


def describe_device() -> dict[str, Any]:
    """Where a measurement was made: device, usable cores, versions."""
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
    """The processor's model name, as far as the system tells."""
    try:
        with open("/proc/cpuinfo") as file:
            names = [line.split(":", 1)[1].strip() for line in file if line.startswith("model name")]
        return names[0] if names else platform.machine()
    except OSError:
        return platform.processor() or platform.machine()
