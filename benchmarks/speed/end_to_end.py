"""A training loop with refreshes, start to end: updates a second, and how long the published protocol would take.

Ours: the compiled chunks of a run. Baseline: a Python loop of single updates (`agents`) with the published sampler, which is
compiled again at every refresh (`refresh`), with the same number of updates and trajectories per refresh. The protocol (1M
updates, 100 refreshes of 8192 trajectories, networks of 1024 features) is predicted from the measured rate of updates and the
measured time of one function evaluation of a network of that size.
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from benchmarks.speed import agents, refresh
from benchmarks.speed.agents import Size as AgentSize
from benchmarks.speed.denoiser import Size as DenoiserSize
from benchmarks.speed.denoiser import make_windows
from benchmarks.speed.refresh import Size as RefreshSize
from benchmarks.timing import header, matmul_peak, measure, row
from jaxpgd.agents import td3_bc
from jaxpgd.experiment.run.peak_memory import peak_memory
from jaxpgd.synthesis.replay import SynthesisConfig
from jaxpgd.training.agent import AgentConfig, AgentState, agent_program
from jaxpgd.training.denoiser import DenoiserConfig, init_denoiser, trained_denoiser
from jaxpgd.training.windows import Windows
from jaxpgd.types import Agent

UPDATES, REFRESHES, TRAJECTORIES = 1_000_000, 100, 8192  # of the published protocol


@dataclasses.dataclass(frozen=True)
class Size:
    """Sizes of the measurement: `updates` and one refresh of `trajectories` are one chunk."""

    updates: int = 500
    trajectories: int = 64
    transitions: int = 1_000_000
    repeats: int = 3
    protocol_features: int = 1024
    protocol_batch: int = 32  # trajectories sampled at once with the network of the protocol
    sampling: RefreshSize = RefreshSize()
    updating: AgentSize = AgentSize()


def measure_loop(windows: Windows, agent: Agent, method: refresh.Method, size: Size) -> dict[str, Any]:
    """Updates per second in chunks that begin with a refresh."""
    config = AgentConfig(updates=2 * size.updates, updates_per_chunk=size.updates)
    synthesis = SynthesisConfig(regime="periodic", trajectories=size.trajectories, interval=size.updates)
    program = agent_program(agent, config, synthesis)
    schedule = refresh.schedule_of(size.trajectories)
    synthesizer = refresh.synthesizer_of(windows, method, size.sampling)
    state, data = refresh.fresh(windows, agent, synthesizer, schedule)
    chunk = jax.jit(program.chunk)
    first = measure(lambda s, d: chunk(s, d, jnp.asarray(1)), state, data, repeats=size.repeats)
    advanced: AgentState = chunk(state, data, jnp.asarray(1))[0]
    chunk(advanced, data, jnp.asarray(2))
    return {"method": method.name} | row(first, size.updates) | {"compiled": chunk._cache_size()}


def baseline(windows: Windows, agent: Agent, method: refresh.Method, size: Size) -> dict[str, Any]:
    """The same interval in the official way, from the measured rates of updates and sampling."""
    data = agents.make_data(jax.random.key(0), size.updating)
    replay = agents.make_replay(jax.random.key(1), size.updating)
    updates = agents.baseline_rate(agent, agents.start(jax.random.key(0), agent, data, replay), data, size.updating)
    sampled = refresh.measure_baseline(windows, agent, method, size.sampling)
    rate = refresh.interval_rate(size.trajectories, sampled["compile_seconds"], sampled["sampling_rate"])
    seconds = size.updates / updates + size.trajectories / rate
    return {"method": method.name, "rate": size.updates / seconds, "updates_rate": updates, "trajectories_rate": rate}


def evaluation_seconds(windows: Windows, size: Size, published: bool) -> float:
    """Seconds of one evaluation of a network of the protocol's size, for one trajectory."""
    config = DenoiserConfig(features=size.protocol_features, blocks=size.sampling.blocks)
    if published:
        config = dataclasses.replace(config, block="plain", norm="step")
    state = init_denoiser(jax.random.key(0), windows, config)
    denoise = trained_denoiser(state, windows).denoise
    x = jnp.zeros((size.protocol_batch, windows.length, windows.dim))
    evaluate = lambda denoise, x: jax.vmap(lambda x: denoise(x, jnp.ones(())))(x)
    return measure(evaluate, denoise, x, repeats=size.repeats).median_seconds / size.protocol_batch


def protocol(updates_rate: float, evaluation: float, passes: float) -> dict[str, float]:
    """Device-minutes of the published protocol: `passes` forward passes per trajectory, of `evaluation` seconds each."""
    training, sampling = UPDATES / updates_rate, REFRESHES * TRAJECTORIES * passes * evaluation
    return {"updates_minutes": training / 60, "refreshes_minutes": sampling / 60, "minutes": (training + sampling) / 60}


def forward_passes(windows: Windows, method: refresh.Method, size: Size) -> float:
    """Cost of one trajectory of a method, in forward passes."""
    synthesizer = refresh.synthesizer_of(windows, method, dataclasses.replace(size.sampling, features=8, published_features=8))
    return float(synthesizer.cost())


def default_size() -> Size:
    """Default sizes: small ones on CPU, the interval of the published protocol on an accelerator."""
    if jax.devices()[0].platform == "cpu":
        return Size()
    sampling = RefreshSize(trajectories=TRAJECTORIES, baseline_trajectories=512, features=1024, published_features=1024)
    return Size(updates=UPDATES // REFRESHES, trajectories=TRAJECTORIES, protocol_batch=512, sampling=sampling)


def run(size: Size | None = None) -> dict[str, Any]:
    """Measure the loop with every method of the suite `refresh`; ratios are to the baseline, guided to the guided one."""
    size, peak = size or default_size(), matmul_peak()
    windows = make_windows(DenoiserSize(window=size.sampling.window, transitions=size.transitions))
    agent = td3_bc(action_dim=6)
    baselines = {m.guidance is not None: baseline(windows, agent, m, size) for m in refresh.BASELINES}
    rows = [measure_loop(windows, agent, method, size) for method in size.sampling.methods]
    seconds = {published: evaluation_seconds(windows, size, published) for published in (False, True)}
    data = agents.make_data(jax.random.key(0), size.updating)
    replay = agents.make_replay(jax.random.key(1), size.updating)
    update = agents.measure_agent(agent, data, replay, size.updating)
    for found, method in zip(rows, size.sampling.methods, strict=True):
        found["ratio"] = found["rate"] / baselines[method.guidance is not None]["rate"]
        found["protocol"] = protocol(update["rate"], seconds[False], forward_passes(windows, method, size))
    for found, method in zip(baselines.values(), refresh.BASELINES, strict=True):
        found["protocol"] = protocol(found["updates_rate"], seconds[True], forward_passes(windows, method, size))
    return header("end_to_end", size, peak) | {
        "rows": [*baselines.values(), *rows], "updates_rate": update["rate"], "peak_memory_bytes": peak_memory(),
        "evaluation_seconds": {"ours": seconds[False], "published": seconds[True]},
    }  # fmt: skip
