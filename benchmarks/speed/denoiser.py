"""Denoiser training steps per second, with averaged weights, against a loop of single steps of the published network.

Ours: whole intervals in one scan. Baseline: the published U-Net, one jitted step per call from a Python loop that reads the
loss after each step, as the official training script does.
"""

import dataclasses
import functools
import statistics
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from benchmarks.speed.agents import Size as DataSize
from benchmarks.speed.agents import make_data
from benchmarks.timing import compiled_flops, header, matmul_peak, measure, row, time_calls
from jaxpgd.experiment.run.peak_memory import peak_memory
from jaxpgd.tokens import fit_codec
from jaxpgd.training.denoiser import DenoiserConfig, DenoiserState, init_denoiser, train_step
from jaxpgd.training.windows import Windows


@dataclasses.dataclass(frozen=True)
class Size:
    """Sizes of the measurement; the defaults are HalfCheetah's and the published window and batch."""

    obs_dim: int = 17
    action_dim: int = 6
    transitions: int = 20_000
    window: int = 32
    batch: int = 32
    features: tuple[int, ...] = (128,)
    blocks: int = 3
    steps: int = 16  # per scan
    repeats: int = 9


def make_windows(size: Size) -> Windows:
    """Windows of random transitions."""
    data = make_data(
        jax.random.key(0), DataSize(transitions=size.transitions, obs_dim=size.obs_dim, action_dim=size.action_dim)
    )
    starts = np.arange(0, size.transitions - size.window, size.window // 4)
    codec = fit_codec(data, starts, size.window)
    return Windows(data, jnp.asarray(starts), jnp.asarray(starts), codec, size.window)


@functools.partial(jax.jit, static_argnames="steps", donate_argnums=0)
def scan_steps(state: DenoiserState, windows: Windows, steps: int) -> tuple[DenoiserState, Array]:
    """`steps` training steps in one program; returns the state and the losses [steps]."""

    def step(state: DenoiserState, _: None) -> tuple[DenoiserState, Array]:
        state, metrics = train_step(state, windows)
        return state, metrics["loss"]

    return jax.lax.scan(step, state, None, length=steps)


@jax.jit
def one_step(state: DenoiserState, windows: Windows) -> tuple[DenoiserState, Array]:
    """One training step; returns the state and the loss."""
    state, metrics = train_step(state, windows)
    return state, metrics["loss"]


def baseline_rate(windows: Windows, config: DenoiserConfig, size: Size) -> float:
    """Steps per second of the Python loop (median over repeats)."""
    state = init_denoiser(jax.random.key(0), windows, config)

    def loop() -> Any:
        current = state
        for _ in range(max(1, size.steps // 4)):
            current, loss = one_step(current, windows)
            float(loss)
        return current

    jax.block_until_ready(loop())
    return max(1, size.steps // 4) / statistics.median(time_calls(loop, max(1, size.repeats // 4)))


def trained(features: int, size: Size, compute: Literal["float32", "bfloat16"] = "float32") -> DenoiserConfig:
    """The denoiser whose training is measured."""
    return DenoiserConfig(
        features=features, blocks=size.blocks, batch_size=size.batch, optimiser="adam", ema_width=0.0, ema=0.99, ema_every=10,
        compute=compute, steps=1_000_000,
    )  # fmt: skip


def measure_features(
    windows: Windows, features: int, size: Size, compute: Literal["float32", "bfloat16"] = "float32"
) -> dict[str, Any]:
    """Our rate at one width and precision, and that of the baseline, which always computes in float32."""
    config = trained(features, size, compute)
    published = dataclasses.replace(config, block="plain", norm="step", ema=0.995, compute="float32")
    state = init_denoiser(jax.random.key(0), windows, config)
    flops = compiled_flops(one_step, state, windows)
    run = lambda state, windows: scan_steps.__wrapped__(state, windows, size.steps)
    dtype = jnp.bfloat16 if compute == "bfloat16" else jnp.float32
    timing = measure(run, state, windows, repeats=size.repeats, peak=lambda: matmul_peak(dtype=dtype))
    found = row(timing, size.steps, flops=flops)
    baseline = baseline_rate(windows, published, size)
    return {"features": features, "compute": compute, "batch": size.batch} | found | {
        "baseline_rate": baseline, "ratio": found["rate"] / baseline,
    }  # fmt: skip


def run(size: Size | None = None) -> dict[str, Any]:
    """Measure every width, in training steps per second."""
    size, peak = size or Size(), matmul_peak()
    windows = make_windows(size)
    rows = [measure_features(windows, features, size) for features in size.features]
    return header("denoiser", size, peak) | {"rows": rows, "peak_memory_bytes": peak_memory()}
