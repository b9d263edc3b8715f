"""What a guided evaluation and a guided sample cost, in time and in forward-equivalents; part of the suite `guidance`."""

import functools
import math
from typing import Any

import jax
import jax.numpy as jnp

from benchmarks.fidelity.methods import ALL_LEVELS
from benchmarks.speed.denoiser import Size as DenoiserSize
from benchmarks.speed.denoiser import make_windows
from benchmarks.speed.sampling import MOMENT, MOMENT_CACHED, Method, Size, draw, synthesizer_of
from benchmarks.timing import alternated, measure
from jaxpgd.agents import td3_bc
from jaxpgd.diffusion.solvers import SamplerConfig
from jaxpgd.guidance.base import DenoisedPointGuidance
from jaxpgd.guidance.kinds import GuidanceConfig
from jaxpgd.guidance.moment import MomentConfig, MomentGuidance
from jaxpgd.guidance.reconstruction import ReconstructionConfig, ReconstructionGuidance
from jaxpgd.types import Denoise


def costs(size: Size = Size(features=64, repeats=5)) -> list[dict[str, Any]]:
    """Time of one guided function evaluation over that of a forward pass, and the forward-equivalents counted for it.

    For a batch of `size.trajectories`, with the temporal U-Net and a TD3+BC policy, both with random weights.
    """
    windows = make_windows(DenoiserSize(window=size.window))
    denoiser = synthesizer_of(windows, Method("", SamplerConfig()), size).denoiser
    agent = td3_bc(action_dim=windows.transitions.action.shape[-1])
    policy = agent.policy(agent.init(jax.random.key(2), jax.tree.map(lambda x: x[0], windows.transitions)))
    shape = (size.trajectories, size.window, denoiser.codec.token_dim)
    x, sigma = jax.random.normal(jax.random.key(0), shape), jnp.asarray(1.0)

    def seconds(denoise: Denoise) -> float:
        return measure(lambda x: jax.vmap(lambda y: denoise(y, sigma))(x), x, repeats=size.repeats).median_seconds

    forward = seconds(denoiser.denoise)
    found = []
    methods: dict[str, DenoisedPointGuidance] = {
        "reconstruction": ReconstructionGuidance(ReconstructionConfig(limit=math.inf)),
        "moment": MomentGuidance(MomentConfig(limit=math.inf)),
        "moment, 2 iterations": MomentGuidance(MomentConfig(limit=math.inf, iterations=2)),
    }
    for name, guidance in methods.items():
        guided = seconds(guidance.guide(denoiser.denoise, policy, denoiser.codec, 1.0))
        found.append({"guidance": name, "forward_equivalents": int(guidance.cost(sigma)), "forward_times": guided / forward})
    return found


SAMPLED = {
    "unguided": None,
    "reconstruction": GuidanceConfig("reconstruction"),
    "moment": MOMENT,
    "moment, 2 iterations": GuidanceConfig("moment", moment=MomentConfig(iterations=2)),
    "moment, cached": MOMENT_CACHED,
    "moment, all levels, 2 iterations": GuidanceConfig("moment", moment=MomentConfig(iterations=2, **ALL_LEVELS)),
}


def sampling_costs(size: Size = Size(features=64, repeats=5)) -> list[dict[str, Any]]:
    """Time of guided over that of unguided sampling, and the forward-equivalents of a trajectory, with the default sampler.

    For a batch of `size.trajectories`; the methods take turns, so that a change of the clock rate meets all of them.
    """
    windows = make_windows(DenoiserSize(window=size.window))
    agent = td3_bc(action_dim=windows.transitions.action.shape[-1])
    policy = agent.policy(agent.init(jax.random.key(2), jax.tree.map(lambda x: x[0], windows.transitions)))
    runs, costs = {}, {}
    for name, guidance in SAMPLED.items():
        synthesizer = synthesizer_of(windows, Method(name, SamplerConfig(), guidance), size)
        args = (jax.random.key(1), synthesizer, None if guidance is None else policy)
        runs[name] = functools.partial(draw.lower(*args, count=size.trajectories).compile(), *args)
        costs[name] = int(synthesizer.cost())
    medians = alternated(runs, size.repeats)
    return [
        {"guidance": name, "forward_equivalents": costs[name], "unguided_times": medians[name] / medians["unguided"]}
        for name in SAMPLED
    ]
