"""Trajectories per second, unguided and guided, against the published sampler: 256 Heun steps with churn.

The baseline also uses the published network. It compiles its sampler once here; the official code compiles it again at every
refresh. All weights are random, which takes as long as trained ones: fidelity is measured by `jaxpgd pareto`.
"""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp

from benchmarks.speed.denoiser import Size as DenoiserSize
from benchmarks.speed.denoiser import make_windows
from benchmarks.timing import compiled_flops, header, matmul_peak, measure, row
from jaxpgd.agents import td3_bc
from jaxpgd.diffusion.solvers import SamplerConfig, make_solver
from jaxpgd.experiment.run.peak_memory import peak_memory
from jaxpgd.guidance.kinds import GuidanceConfig
from jaxpgd.guidance.moment import MomentConfig
from jaxpgd.guidance.published import PublishedConfig
from jaxpgd.synthesis.diffusion import DiffusionSynthesizer, make_synthesizer
from jaxpgd.training.denoiser import DenoiserConfig, init_denoiser, trained_denoiser
from jaxpgd.training.windows import Windows
from jaxpgd.types import Policy, Trajectory


@dataclasses.dataclass(frozen=True)
class Method:
    """A sampler, with or without guidance."""

    name: str
    sampler: SamplerConfig
    guidance: GuidanceConfig | None = None
    published: bool = False  # whether the network is the published one
    features: int = 0  # width of the network; 0: that of `Size`

    @property
    def baseline(self) -> str:
        """The name of the method that it is compared with."""
        return BASELINES[self.guidance is not None].name


SHORT = SamplerConfig("dpmpp_2m_sde", steps=12, sigma_min=0.01, sigma_max=20.0)
AT_NOISED = PublishedConfig(at="noised")
MOMENT = GuidanceConfig("moment")
MOMENT_CACHED = GuidanceConfig("moment", moment=MomentConfig(cache_interval=2))
NUDGE = GuidanceConfig("published", coefficient=0.768, published=AT_NOISED)  # per 256 steps: 8 for each of 24 steps
BASELINES = (
    Method("published, unguided", SamplerConfig("heun", steps=256), None, True),
    Method("published, nudged", SamplerConfig("heun", steps=256), GuidanceConfig("published", published=AT_NOISED), True),
)
METHODS = (
    *BASELINES,
    # as faithful as the baseline on Hopper medium at these coefficients, by `jaxpgd pareto`: results/pareto_hopper
    Method("dpmpp_2m_sde 12 of [0.01, 20], 96 features", SHORT, features=96),
    Method("dpmpp_2m_sde 24, nudged, 96 features", SamplerConfig("dpmpp_2m_sde", steps=24), NUDGE, features=96),
    Method("heun 32", SamplerConfig("heun", steps=32)),
    Method("dpmpp_2m_sde 32", SamplerConfig(kind="dpmpp_2m_sde", steps=32)),
    Method("dpmpp_2m 12", SamplerConfig(kind="dpmpp_2m", steps=12)),
    Method("heun 32, reconstruction", SamplerConfig("heun", steps=32), GuidanceConfig("reconstruction")),
    Method("dpmpp_2m_sde 32, reconstruction", SamplerConfig(kind="dpmpp_2m_sde", steps=32), GuidanceConfig("reconstruction")),
    Method(
        "dpmpp_2m_sde 32, moment",
        SamplerConfig(kind="dpmpp_2m_sde", steps=32),
        MOMENT,
    ),
    Method("dpmpp_2m_sde 32, moment, cached", SamplerConfig(kind="dpmpp_2m_sde", steps=32), MOMENT_CACHED),
    Method("smc 32", SamplerConfig("heun", steps=32), GuidanceConfig(kind="smc")),
)


@dataclasses.dataclass(frozen=True)
class Size:
    """Sizes of the measurement."""

    trajectories: int = 32
    features: int = 128
    blocks: int = 3
    window: int = 32
    repeats: int = 3
    methods: tuple[Method, ...] = METHODS


def synthesizer_of(windows: Windows, method: Method, size: Size) -> DiffusionSynthesizer:
    """The synthesizer of a method, with random weights."""
    config = DenoiserConfig(features=method.features or size.features, blocks=size.blocks)
    if method.published:
        config = dataclasses.replace(config, block="plain", norm="step")
    state = init_denoiser(jax.random.key(0), windows, config)
    sampler = dataclasses.replace(method.sampler, batch_size=size.trajectories)
    return make_synthesizer(trained_denoiser(state, windows), sampler, method.guidance)


@functools.partial(jax.jit, static_argnames="count")
def draw(key: jax.Array, synthesizer: DiffusionSynthesizer, policy: Policy | None, count: int) -> Trajectory:
    """`count` trajectories."""
    return synthesizer(key, policy, jnp.zeros((count, 1))).trajectory


def measure_method(windows: Windows, method: Method, policy: Policy, size: Size) -> dict[str, Any]:
    """Measure one method in trajectories per second."""
    synthesizer = synthesizer_of(windows, method, size)
    target = policy if method.guidance is not None else None
    timing = measure(
        lambda key, synthesizer, target: draw(key, synthesizer, target, size.trajectories),
        jax.random.key(1), synthesizer, target, repeats=size.repeats, peak=matmul_peak,
    )  # fmt: skip
    flops, count = evaluation_flops(windows, method, size), nfe(method)
    found = row(timing, size.trajectories, flops=flops * count if method.guidance is None else None)
    return {"method": method.name, "gflop_per_evaluation": flops / 1e9, "nfe": count} | found


def evaluation_flops(windows: Windows, method: Method, size: Size) -> float:
    """FLOPs of one function evaluation for one trajectory."""
    denoiser = synthesizer_of(windows, method, size).denoiser
    batch = jax.ShapeDtypeStruct((size.trajectories, windows.length, windows.dim), jnp.float32)
    evaluate = jax.jit(lambda denoise, x: jax.vmap(lambda x: denoise(x, jnp.ones(())))(x))
    return compiled_flops(evaluate, denoiser.denoise, batch) / size.trajectories


def nfe(method: Method) -> int:
    """Number of function evaluations (of the denoiser) per trajectory, without those that guidance adds."""
    return make_solver(method.sampler).nfe(method.sampler.steps)


def run(size: Size | None = None) -> dict[str, Any]:
    """Measure all methods; ratios are to the published sampler, guided methods to the guided one."""
    size, peak = size or Size(), matmul_peak()
    shape = DenoiserSize(window=size.window)
    windows = make_windows(shape)
    agent = td3_bc(action_dim=shape.action_dim)
    policy = agent.policy(agent.init(jax.random.key(2), jax.tree.map(lambda x: x[0], windows.transitions)))
    rows = {method.name: measure_method(windows, method, policy, size) for method in size.methods}
    for method in size.methods:
        if method.baseline in rows:
            rows[method.name]["ratio"] = rows[method.name]["rate"] / rows[method.baseline]["rate"]
    return header("sampling", size, peak) | {"rows": list(rows.values()), "peak_memory_bytes": peak_memory()}
