"""Rows of sampling and of refreshes, and of the official way."""

import dataclasses
import functools
import math
from collections.abc import Callable
from typing import Any

import jax

from benchmarks.speed import refresh, sampling
from benchmarks.speed.bounds import BYTES, sampling_work
from benchmarks.speed.rows.base import Args, Program, Row, Sizes
from benchmarks.speed.rows.denoiser import denoiser_config, denoiser_state, windows_of
from jaxpgd.agents import td3_bc
from jaxpgd.diffusion.solvers import SamplerConfig
from jaxpgd.guidance.kinds import GuidanceConfig
from jaxpgd.synthesis.diffusion import DiffusionSynthesizer, make_synthesizer
from jaxpgd.training.denoiser import DenoiserConfig, trained_denoiser
from jaxpgd.training.windows import Windows

COSTS = {"unguided": 1, "published": 1, "reconstruction": 2, "moment": 5}  # forward-equivalents per function evaluation
GUIDANCES = {
    "unguided": None,
    "published": sampling.NUDGE,
    "reconstruction": GuidanceConfig("reconstruction"),
    "moment": sampling.MOMENT,
}


def batch_of(sizes: Sizes, features: int, precision: str) -> int:
    """Trajectories sampled at once: the largest power of two for which the activations of a gradient fit into `sizes.memory`.

    These are about 4 times the inputs and outputs of all products.
    """
    each = 4 * BYTES[precision] * sum(layer.activations for layer in sizes.layers(features))
    return min(sizes.at_once[sizes.index(features)], sizes.trajectories, 2 ** int(math.log2(sizes.memory / each)))


def synthesizer_of(
    windows: Windows, config: DenoiserConfig, sampler: SamplerConfig, guidance: GuidanceConfig | None, batch: int
) -> DiffusionSynthesizer:
    """A synthesizer with pseudo-random weights."""
    state = denoiser_state(windows, config, False)
    chosen = dataclasses.replace(sampler, batch_size=batch)
    return make_synthesizer(trained_denoiser(state, windows), chosen, guidance)


def sampler_of(steps: int) -> SamplerConfig:
    """The sampler with `steps` function evaluations."""
    return sampling.SHORT if steps == sampling.SHORT.steps else SamplerConfig("dpmpp_2m_sde", steps=steps)


@functools.cache
def policy_of(sizes: Sizes) -> Any:
    """The policy of a fresh TD3+BC agent."""
    agent = td3_bc(action_dim=sizes.action_dim, hidden=sizes.hidden)
    return agent.policy(jax.jit(agent.init)(jax.random.key(2), jax.tree.map(lambda x: x[0], windows_of(sizes).transitions)))


def _drawing(
    sizes: Sizes, config: DenoiserConfig, sampler: SamplerConfig, guidance: GuidanceConfig | None, batch: int
) -> Callable[[int], Program]:
    """Builds programs that draw trajectories, `batch` at a time."""

    def build(units: int) -> Program:
        windows, policy = windows_of(sizes), policy_of(sizes) if guidance is not None else None
        args = lambda: (jax.random.key(1), synthesizer_of(windows, config, sampler, guidance, batch), policy)
        return Program(sampling.draw, args, {"count": units})

    return build


def sampling_row(sizes: Sizes, features: int, steps: int, guidance: str) -> Row:
    """Trajectories, `batch` at a time; float32 for the smaller network, bfloat16 for the larger."""
    compute = ("float32", "bfloat16")[sizes.index(features)]
    config, batch = denoiser_config(sizes, features, compute=compute), batch_of(sizes, features, compute)
    work = sampling_work(sizes.layers(features), batch, steps, COSTS[guidance], compute)
    baseline = f"official sampling, {features} features" + ("" if guidance == "unguided" else ", nudged")
    return Row(
        f"sampling, {features} features, {steps} NFE, {guidance}", "sampling", "trajectory", work, sizes.trajectories,
        _drawing(sizes, config, sampler_of(steps), GUIDANCES[guidance], batch), "float32" if compute == "float32" else None,
        part=batch, compiling=12 + 8 * COSTS[guidance], baseline=baseline,
        details={"features": features, "nfe": steps, "guidance": guidance, "compute": compute, "at_once": batch},
    )  # fmt: skip


def official_sampling(sizes: Sizes, features: int, nudged: bool) -> Row:
    """256 Heun steps of the published network, compiled once here; the official code compiles at every refresh."""
    method, count = sampling.BASELINES[nudged], sizes.baseline_trajectories[sizes.index(features)]
    config, nfe = denoiser_config(sizes, features, published=True), sampling.nfe(method)
    work = sampling_work(sizes.layers(features, "plain"), count, nfe, 1, "tensorfloat32")
    return Row(
        f"official sampling, {features} features" + (", nudged" if nudged else ""), "official", "trajectory", work, count,
        _drawing(sizes, config, method.sampler, method.guidance, count), compiling=25,
        details={"features": features, "nfe": nfe, "at_once": count},
    )  # fmt: skip


_compiled: list[str] = []
jax.monitoring.register_event_duration_secs_listener(
    lambda name, *_, **__: _compiled.append(name) if "backend_compile" in name else None
)


def refresh_row(sizes: Sizes, guidance: str) -> Row:
    """One refresh as compiled in a run, with the smaller network in float32; one for another policy must not compile."""
    features, steps = sizes.features[0], {"unguided": 12, "moment": 32}[guidance]
    config, batch = denoiser_config(sizes, features), batch_of(sizes, features, "float32")
    schedule = refresh.schedule_of(sizes.trajectories)
    agent = td3_bc(action_dim=sizes.action_dim, hidden=sizes.hidden)

    def build(units: int) -> Program:
        windows = windows_of(sizes)

        def args() -> Args:
            synthesizer = synthesizer_of(windows, config, sampler_of(steps), GUIDANCES[guidance], batch)
            return *refresh.fresh(windows, agent, synthesizer, schedule), agent

        def after(args: Args) -> dict[str, Any]:
            state, *rest = args
            example = jax.tree.map(lambda x: x[0], windows.transitions)
            other = jax.block_until_ready(state.replace(agent=jax.jit(agent.init)(jax.random.key(5), example)))
            before = len(_compiled)
            jax.block_until_ready(refresh.regenerate(other, *rest, schedule=schedule))
            return {"compiled_again": len(_compiled) - before}

        return Program(refresh.regenerate, args, {"schedule": schedule}, looped=True, after=after)

    nudged = "" if guidance == "unguided" else ", nudged"
    return Row(
        f"refresh, {features} features, {guidance}", "refresh", "trajectory",
        sampling_work(sizes.layers(features), batch, steps, COSTS[guidance], "float32"), sizes.trajectories, build, "float32",
        compiling=20 + 8 * COSTS[guidance], baseline=f"official sampling, {features} features{nudged}",
        details={"features": features, "nfe": steps, "guidance": guidance, "at_once": batch},
    )  # fmt: skip
