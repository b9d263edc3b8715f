"""A long run with many refreshes and evaluations in one process: does memory stay flat and throughput constant?"""

import gc
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import jax

from benchmarks.timing import describe_device
from jaxpgd.errors import InputError
from jaxpgd.experiment.config_files import load_config
from jaxpgd.experiment.run.directory import create_run
from jaxpgd.experiment.stages.prepare import prepare
from jaxpgd.experiment.stages.train_agents import train_agents
from jaxpgd.experiment.stages.train_models import train_models

_SETTLED = 300.0  # seconds after which memory is expected not to grow
SETTINGS: dict[str, Any] = {
    "seeds": 2, "arms": ["guided"], "checkpoint_seconds": 20.0,
    "data": {"episodes": 100},
    "denoiser": {"features": 16, "groups": 4, "blocks": 1, "block": "plain", "steps": 200, "validate_every": 100,
                 "batch_size": 16},
    "sampler": {"kind": "euler", "steps": 8, "batch_size": 32},
    "synthesis": {"trajectories": 64, "interval": 100},
    "agent": {"updates": 10**9, "updates_per_chunk": 100, "batch_size": 64, "td3_bc": {"hidden": [64, 64]}},
    "evaluation": {"every": 200, "intermediate_episodes": 2},
}  # fmt: skip


class TimeIsUp(Exception):
    """Ends the run."""


def resident() -> int:
    """Resident memory of this process, in bytes."""
    text = Path("/proc/self/statm").read_text()
    return int(text.split()[1]) * 4096


def run(minutes: float = 40.0) -> dict[str, Any]:
    """Train guided agents for `minutes`, with a refresh every 100 updates and an evaluation every 200.

    Raises InputError if compilation leaves too little of the time.
    """
    began, samples = time.monotonic(), list[tuple[float, int, int]]()  # seconds, updates, bytes
    with tempfile.TemporaryDirectory(prefix="jaxpgd-soak-") as folder:
        config = load_config(None, {**SETTINGS, "out": f"{folder}/run"})
        directory, prepared = create_run(config, resume=False), prepare(config)
        models = train_models(directory, prepared)
        write = directory.log.write

        def watch(stage: str, chunk: int, values: dict[str, Any]) -> None:
            write(stage, chunk, values)
            samples.append((time.monotonic() - began, int(values["step"]), resident()))
            if samples[-1][0] > 60 * minutes:
                raise TimeIsUp

        directory.log.write = watch  # type: ignore[method-assign]
        try:
            train_agents(directory, prepared, models, "guided")
        except TimeIsUp:
            pass
    gc.collect()
    return {"suite": "soak", "device": describe_device(), "minutes": minutes, **summary(samples, 60 * minutes),
            "live_arrays": len(jax.live_arrays())}  # fmt: skip


def summary(samples: list[tuple[float, int, int]], seconds: float) -> dict[str, Any]:
    """Final memory against that after five minutes (or a tenth of the time, if less), and updates per second by quarter.

    `samples` are (seconds, updates, bytes). Raises InputError where they do not reach from there to the end.
    """
    settled = min(_SETTLED, seconds / 10)
    around = lambda at: statistics.median(b for t, _, b in samples if abs(t - at) <= max(settled / 10, 1.0))
    parts = [[s for s in samples if i * seconds / 4 <= s[0] <= (i + 1) * seconds / 4] for i in range(4)]
    if min(map(len, parts)) < 2 or samples[0][0] > settled:
        began = f"training began after {samples[0][0]:.0f} s" if samples else "training did not begin"
        raise InputError(f"--minutes {seconds / 60:g}: too short to measure, as {began}")
    first, last = around(settled), around(samples[-1][0])
    quarters = [(part[-1][1] - part[0][1]) / (part[-1][0] - part[0][0]) for part in parts]
    return {
        "updates": samples[-1][1], "refreshes": samples[-1][1] // 100, "evaluations": samples[-1][1] // 200,
        "memory_settled_mb": first / 2**20, "memory_end_mb": last / 2**20,
        "memory_change_percent": 100 * (last / first - 1), "updates_a_second_by_quarter": quarters,
        "last_against_second_quarter_percent": 100 * (quarters[3] / quarters[1] - 1),
        "samples": [samples[i] for i in range(0, len(samples), max(1, len(samples) // 200))],
    }  # fmt: skip
