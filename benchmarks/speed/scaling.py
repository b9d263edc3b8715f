"""Denoiser training, sampling and agents on 1, 2, 4 and 8 devices of one mesh, as a run uses them.

On CPU the devices are emulated, each count in a process of its own. They share the cores, so this measures what sharding
costs, not what it gains. On one device the seeds of an agent run one after another, on several at the same time. Denoiser steps
include a validation batch every `steps`. On accelerators the suite uses the first devices of this process.
"""

import dataclasses
import json
import os
import subprocess
import sys
from typing import Any

import jax
import jax.numpy as jnp

from benchmarks.speed import denoiser, refresh
from benchmarks.timing import header, matmul_peak, time_calls
from jaxpgd.agents import td3_bc
from jaxpgd.diffusion.solvers import SamplerConfig
from jaxpgd.experiment.run.peak_memory import peak_memory
from jaxpgd.experiment.run.seeds import over_seeds
from jaxpgd.parallel import Placement
from jaxpgd.synthesis.replay import SynthesisConfig
from jaxpgd.training.agent import AgentConfig, agent_program
from jaxpgd.training.denoiser import DenoiserConfig, denoiser_program
from jaxpgd.training.experience import Experience
from jaxpgd.training.program import Program
from jaxpgd.training.windows import Windows

MARK = "RESULT"


@dataclasses.dataclass(frozen=True)
class Size:
    """Sizes of the measurement, the same for any number of devices."""

    counts: tuple[int, ...] = (1, 2, 4, 8)
    features: int = 128
    blocks: int = 3
    batch: int = 32
    steps: int = 4  # denoiser training steps per call
    trajectories: int = 64
    sampler_steps: int = 8
    seeds: int = 8
    updates: int = 20  # of every seed, per call
    agent_batch: int = 256
    transitions: int = 20_000
    repeats: int = 3


def chunk_seconds(program: Program[Any], data: Any, devices: Any, repeats: int) -> float:
    """Shortest time of a chunk after the first, in seconds, with the state sharded as in a run."""
    placement = Placement(program.seeds, devices)
    shared = placement.replicate(data)
    state = placement.init(program.init)(jax.random.key(0), shared)
    step = placement.step(program.chunk)
    state, _ = step(state, shared, jnp.asarray(0))

    def call() -> Any:
        nonlocal state
        state, metrics = step(state, shared, jnp.asarray(0))
        return metrics

    return min(time_calls(call, repeats))


def sampling_seconds(windows: Windows, size: Size, devices: Any) -> float:
    """Shortest time of a batch of trajectories, in seconds."""
    method = refresh.Method("scaling", SamplerConfig("dpmpp_2m_sde", steps=size.sampler_steps, batch_size=size.trajectories))
    synthesizer = refresh.synthesizer_of(windows, method, refresh.Size(features=size.features, blocks=size.blocks))
    placement = Placement(0, devices)
    draw = placement.init(lambda s: s(jax.random.key(0), None, jnp.zeros((size.trajectories, 1))).trajectory)
    shared = placement.replicate(synthesizer)
    jax.block_until_ready(draw(shared))
    return min(time_calls(lambda: draw(shared), size.repeats))


def measure_devices(count: int, size: Size) -> dict[str, Any]:
    """Rates on the first `count` devices."""
    devices = jax.devices()[:count]
    windows = denoiser.make_windows(denoiser.Size(transitions=size.transitions))
    config = DenoiserConfig(
        features=size.features, blocks=size.blocks, batch_size=size.batch, optimiser="adam", steps=10 * size.steps,
        validate_every=size.steps, validation_batches=1,
    )  # fmt: skip
    training = chunk_seconds(denoiser_program(windows, config), windows, devices, size.repeats)
    agent = td3_bc(action_dim=windows.codec.action_dim)
    section = AgentConfig(updates=10 * size.updates, updates_per_chunk=size.updates, batch_size=size.agent_batch)
    seeds = over_seeds(lambda _: agent_program(agent, section, SynthesisConfig()), {}, 1, size.seeds)
    updates = chunk_seconds(seeds, Experience(windows.transitions), devices, size.repeats)
    return {
        "devices": count,
        "denoiser_steps_per_second": size.steps / training,
        "trajectories_per_second": size.trajectories / sampling_seconds(windows, size, devices),
        "agent_updates_per_second": size.seeds * size.updates / updates,
    }


def measure_emulated(count: int, size: Size) -> dict[str, Any]:
    """`measure_devices` in a process with `count` emulated devices."""
    flags = f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count={count}"
    child = subprocess.run(
        [sys.executable, "-m", "benchmarks.speed.scaling", str(count), json.dumps(dataclasses.asdict(size))],
        env=os.environ | {"XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu"}, stdout=subprocess.PIPE, text=True, check=True,
    )  # fmt: skip
    found: dict[str, Any] = json.loads(child.stdout.split(MARK, 1)[1])
    return found


def run(size: Size | None = None) -> dict[str, Any]:
    """One row per number of devices; `of_one` has the rates over those on one device."""
    size, peak = size or Size(), matmul_peak()
    if jax.devices()[0].platform == "cpu":
        rows = [measure_emulated(count, size) for count in size.counts]
    else:
        rows = [measure_devices(count, size) for count in size.counts if count <= len(jax.devices())]
    for row in rows:
        row["of_one"] = {name: row[name] / rows[0][name] for name in rows[0] if name.endswith("per_second")}
    return header("scaling", size, peak) | {"rows": rows, "peak_memory_bytes": peak_memory()}


if __name__ == "__main__":
    values = json.loads(sys.argv[2])
    print(MARK + json.dumps(measure_devices(int(sys.argv[1]), Size(**(values | {"counts": tuple(values["counts"])})))))
