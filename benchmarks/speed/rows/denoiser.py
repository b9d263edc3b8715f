"""Rows of denoiser training, and of the official way."""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from benchmarks.speed import denoiser
from benchmarks.speed.bounds import H100, training_work
from benchmarks.speed.rows.base import Args, Program, Row, Sizes, about, carry, weights
from jaxpgd.options import as_arrays
from jaxpgd.training.denoiser import DenoiserConfig, DenoiserState, init_denoiser, total_steps
from jaxpgd.training.windows import Windows

CONVOLUTIONS = "convolution" in {field.name for field in dataclasses.fields(DenoiserConfig)}


@functools.cache
def windows_of(sizes: Sizes) -> Windows:
    """Windows of random transitions."""
    return denoiser.make_windows(denoiser.Size(obs_dim=sizes.obs_dim, action_dim=sizes.action_dim, window=sizes.window))


def denoiser_state(windows: Windows, config: DenoiserConfig, training: bool) -> DenoiserState:
    """A state before the first step; without `training`, only its averaged weights."""
    other = {"convolution": "gathered"} if CONVOLUTIONS else {}
    alike = dataclasses.replace(config, batch_size=1, compute="float32", ema=0.99, **other)  # one program per shape
    state: DenoiserState = _state(windows, alike, training).replace(hypers=as_arrays(config))
    return state


@functools.partial(jax.jit, static_argnames=("config", "training"))
def _state(windows: Windows, config: DenoiserConfig, training: bool) -> DenoiserState:
    structure = jax.eval_shape(lambda: init_denoiser(jax.random.key(0), windows, config))
    key, hypers, params = jax.random.key(0), as_arrays(config), weights(structure.params)
    if not training:
        return structure.replace(params=None, ema_params=params, optimiser=None, hypers=hypers, step=None, total=None, key=None)
    return structure.replace(
        params=params, ema_params=jax.tree.map(jnp.copy, params), hypers=hypers, key=key, step=jnp.zeros((), jnp.int32),
        optimiser=jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), structure.optimiser),
        total=jnp.asarray(total_steps(config, windows.train.shape[0]), jnp.int32),
    )  # fmt: skip


def denoiser_config(sizes: Sizes, features: int, published: bool = False, **other: Any) -> DenoiserConfig:
    """The configuration that the suite `denoiser` trains."""
    kind: dict[str, Any] = {"block": "plain", "norm": "step", "ema": 0.995} if published else {"ema": 0.99}
    kind |= {"optimiser": "adam", "ema_width": 0.0, "ema_every": 10, "steps": 1_000_000}
    return DenoiserConfig(features=features, blocks=sizes.blocks, **kind, **other)


def training_row(sizes: Sizes, features: int, batch: int, compute: str, **other: Any) -> Row:
    """Training steps, whole intervals in one scan."""
    config = denoiser_config(sizes, features, compute=compute, batch_size=batch, **other)
    work = training_work(sizes.layers(features), batch, compute, config.ema_every)

    def build(units: int) -> Program:
        windows = windows_of(sizes)
        args = lambda: (denoiser_state(windows, config, True), windows)
        return Program(denoiser.scan_steps, args, {"steps": units}, carry)

    name = ", ".join([f"training, {features} features, batch {batch}, {compute}", *other.values()])
    return Row(
        name, "training", "step", work, about(1.0, work.bound(H100)[1], 4, min(sizes.most, 64)), build,
        "float32" if compute == "float32" else None, compiling=40,
        baseline=f"official training, {features} features, batch {batch}",
        details={"features": features, "batch": batch, "compute": compute, **other},
    )  # fmt: skip


def official_training(sizes: Sizes, features: int, batch: int) -> Row:
    """The published network, one jitted step per call from a Python loop that reads the loss after each step."""
    config = denoiser_config(sizes, features, published=True, batch_size=batch)
    work = training_work(sizes.layers(features, "plain"), batch, "tensorfloat32", config.ema_every)

    def build(units: int) -> Program:
        def turn(call: Callable[..., Any], args: Args) -> Args:
            state, windows = args
            for _ in range(units):
                state, loss = call(state, windows)
                float(loss)
            return state, windows

        windows = windows_of(sizes)
        args = lambda: (denoiser_state(windows, config, True), windows)
        return Program(denoiser.one_step, args, {"config": config}, turn, looped=True, single=True)

    return Row(
        f"official training, {features} features, batch {batch}", "official", "step", work, min(sizes.most, 8), build,
        compiling=30, details={"features": features, "batch": batch},
    )  # fmt: skip
