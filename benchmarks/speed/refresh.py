"""One refresh of synthetic data: sample trajectories for the current policy and insert them into the replay, on the device.

Ours: `jaxpgd.training.agent.refresh` as compiled inside a run; a second refresh for another policy must not compile anything.
Baseline: the published network and sampler, built and compiled again at every refresh, as in the official loop.
"""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp

from benchmarks.speed.denoiser import Size as DenoiserSize
from benchmarks.speed.denoiser import make_windows
from benchmarks.timing import header, matmul_peak, measure, row
from jaxpgd.agents import td3_bc
from jaxpgd.diffusion.solvers import SamplerConfig
from jaxpgd.experiment.run.peak_memory import peak_memory
from jaxpgd.guidance.kinds import GuidanceConfig
from jaxpgd.guidance.published import PublishedConfig
from jaxpgd.synthesis.diffusion import DiffusionSynthesizer, make_synthesizer
from jaxpgd.training.agent import AgentState, Schedule, init_agent, refresh
from jaxpgd.training.denoiser import DenoiserConfig, init_denoiser, trained_denoiser
from jaxpgd.training.experience import Experience
from jaxpgd.training.windows import Windows
from jaxpgd.types import Agent


@dataclasses.dataclass(frozen=True)
class Method:
    """How a refresh samples. `published`: with the published network."""

    name: str
    sampler: SamplerConfig
    guidance: GuidanceConfig | None = None
    published: bool = False


AT_NOISED = PublishedConfig(at="noised")
MOMENT = GuidanceConfig("moment")
SHORT = SamplerConfig("dpmpp_2m_sde", steps=12, sigma_min=0.01, sigma_max=20.0)
METHODS = (
    Method("dpmpp_2m_sde 32", SamplerConfig("dpmpp_2m_sde", steps=32)),
    Method("dpmpp_2m_sde 12 of [0.01, 20]", SHORT),
    Method("dpmpp_2m_sde 12 of [0.01, 20], reconstruction", SHORT, GuidanceConfig("reconstruction")),
    Method(
        "dpmpp_2m_sde 32, moment",
        SamplerConfig("dpmpp_2m_sde", steps=32),
        MOMENT,
    ),
)
BASELINES = (
    Method("published, unguided", SamplerConfig("heun", steps=256), None, True),
    Method("published, nudged", SamplerConfig("heun", steps=256), GuidanceConfig("published", published=AT_NOISED), True),
)


@dataclasses.dataclass(frozen=True)
class Size:
    """Sizes of the measurement."""

    trajectories: int = 128
    baseline_trajectories: int = 32
    features: int = 96  # ours: as faithful as the published 128 for the same training compute
    published_features: int = 128
    blocks: int = 3
    window: int = 32
    repeats: int = 3
    baseline_steps: int = 256
    methods: tuple[Method, ...] = METHODS


def synthesizer_of(windows: Windows, method: Method, size: Size) -> DiffusionSynthesizer:
    """The synthesizer of a method, with random weights."""
    config = DenoiserConfig(features=size.features, blocks=size.blocks)
    sampler = method.sampler
    if method.published:
        config = dataclasses.replace(config, features=size.published_features, block="plain", norm="step")
        sampler = dataclasses.replace(sampler, steps=size.baseline_steps)
    state = init_denoiser(jax.random.key(0), windows, config)
    return make_synthesizer(trained_denoiser(state, windows), sampler, method.guidance)


def schedule_of(count: int) -> Schedule:
    """A schedule whose refreshes replace the whole replay by `count` trajectories."""
    return Schedule(chunk_updates=1, chunks=1, capacity=count, refresh_chunks=1, refresh_count=count, first_count=count)


@functools.partial(jax.jit, static_argnames="schedule")
def regenerate(state: AgentState, data: Experience, agent: Agent, schedule: Schedule) -> AgentState:
    """One refresh."""
    return refresh(state, data, agent, schedule)


def fresh(
    windows: Windows, agent: Agent, synthesizer: DiffusionSynthesizer, schedule: Schedule
) -> tuple[AgentState, Experience]:
    """An agent with an empty replay, and its sources of experience."""
    data = Experience(windows.transitions, synthesizer)
    structure = jax.eval_shape(lambda key, data: init_agent(key, data, agent, schedule), jax.random.key(0), data)
    blank = lambda s: jax.random.key(0) if jax.dtypes.issubdtype(s.dtype, jax.dtypes.prng_key) else jnp.zeros(s.shape, s.dtype)
    state = jax.tree.map(blank, structure)
    example = jax.tree.map(lambda x: x[0], windows.transitions)
    return state.replace(agent=agent.init(jax.random.key(1), example)), data


def measure_method(windows: Windows, agent: Agent, method: Method, size: Size) -> dict[str, Any]:
    """Trajectories per second of a compiled refresh, and the number of programs that a refresh for another policy compiles."""
    schedule = schedule_of(size.trajectories)
    state, data = fresh(windows, agent, synthesizer_of(windows, method, size), schedule)
    timing = measure(lambda s, d, a: regenerate(s, d, a, schedule), state, data, agent, repeats=size.repeats)
    jax.block_until_ready(regenerate(state, data, agent, schedule))
    compiled = regenerate._cache_size()
    other = agent.init(jax.random.key(5), jax.tree.map(lambda x: x[0], windows.transitions))
    jax.block_until_ready(regenerate(state.replace(agent=other), data, agent, schedule))  # type: ignore[attr-defined]
    again = regenerate._cache_size() - compiled
    return {"method": method.name} | row(timing, size.trajectories) | {"compiled_again": again}


def measure_baseline(windows: Windows, agent: Agent, method: Method, size: Size) -> dict[str, Any]:
    """Trajectories per second of a refresh that builds and compiles its sampler.

    Sampling is timed on `baseline_trajectories`, then scaled to `trajectories` and one compilation.
    """
    synthesizer = synthesizer_of(windows, method, size)
    policy = agent.policy(agent.init(jax.random.key(1), jax.tree.map(lambda x: x[0], windows.transitions)))
    target = policy if method.guidance is not None else None
    start = jnp.zeros((size.baseline_trajectories, 1))
    sample = lambda key: synthesizer(key, target, start).trajectory  # weights and policy are constants, as in the official code
    timing = measure(sample, jax.random.key(2), repeats=max(1, size.repeats - 1))
    found = row(timing, size.baseline_trajectories)
    sampling = found["rate"]
    return {"method": method.name} | found | {
        "sampling_rate": sampling, "rate": interval_rate(size.trajectories, timing.compile_seconds, sampling),
    }  # fmt: skip


def interval_rate(trajectories: int, compile_seconds: float, sampling_rate: float) -> float:
    """Trajectories per second of a refresh, compilation included."""
    return trajectories / (compile_seconds + trajectories / sampling_rate)


def run(size: Size | None = None) -> dict[str, Any]:
    """Measure every method; ratios are to the baseline, guided methods to the guided one."""
    size, peak = size or Size(), matmul_peak()
    shape = DenoiserSize(window=size.window)
    windows = make_windows(shape)
    agent = td3_bc(action_dim=shape.action_dim)
    baselines = {m.guidance is not None: measure_baseline(windows, agent, m, size) for m in BASELINES}
    rows = [measure_method(windows, agent, method, size) for method in size.methods]
    for found, method in zip(rows, size.methods, strict=True):
        found["ratio"] = found["rate"] / baselines[method.guidance is not None]["rate"]
    return header("refresh", size, peak) | {"rows": [*baselines.values(), *rows], "peak_memory_bytes": peak_memory()}
