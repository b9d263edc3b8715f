"""DyDiff rollouts per second: by sampler, against the published one (34 Heun steps with churn), and anchored.

Each rollout takes 100 steps in the world model, then iterations of diffusion, two as published (arXiv 2405.19189). Networks
have the same sizes in all rows and random weights, which take as long as trained ones; those of anchored rows see more
entries, and are given a cloned behaviour. results/dydiff_samplers has the state errors of trained ones. "The ensemble alone" is
the rollout that DyDiff starts from; the last rows have the smaller networks of the study `rollout-policy`.
"""

import dataclasses
from typing import Any

import jax

from benchmarks.speed.denoiser import Size as DenoiserSize
from benchmarks.speed.denoiser import make_windows
from benchmarks.timing import header, matmul_peak, measure, row
from jaxpgd.agents import td3_bc
from jaxpgd.diffusion.single_step import EDMConfig
from jaxpgd.diffusion.solvers import SamplerConfig
from jaxpgd.experiment.run.peak_memory import peak_memory
from jaxpgd.synthesis.dydiff import DyDiffConfig, DyDiffSynthesizer, make_dydiff
from jaxpgd.synthesis.replay import sample_real
from jaxpgd.training.behaviour import behaviour_program, trained_behaviour
from jaxpgd.training.denoiser import DenoiserConfig
from jaxpgd.training.innovation_windows import innovation_windows
from jaxpgd.training.state_denoiser import state_denoiser_program, trained_state_denoiser
from jaxpgd.training.windows import Windows, state_windows
from jaxpgd.training.world_model import trained_world_model, world_model_program
from jaxpgd.world_model.behaviour import BehaviourConfig
from jaxpgd.world_model.data import prepare_transitions
from jaxpgd.world_model.model import WorldModelConfig

# published: churn for sigma in [0.37, 52.2] on tokens with sigma_data = 0.5; tokens have unit variance here, so twice that
CHURN = EDMConfig(churn=60.0, churn_min=0.74, churn_max=104.4, churn_noise=1.002)
PUBLISHED = SamplerConfig("heun", steps=34, heun=CHURN)
FEW = SamplerConfig("dpmpp_3m", steps=6, sigma_min=0.01, sigma_max=20.0)
ROWS: dict[str, tuple[SamplerConfig, DyDiffConfig]] = {
    "published: heun 34 with churn": (PUBLISHED, DyDiffConfig()),
    "dpmpp_2m_sde 8 of [0.01, 20]": (SamplerConfig("dpmpp_2m_sde", steps=8, sigma_min=0.01, sigma_max=20.0), DyDiffConfig()),
    "dpmpp_3m 6 of [0.01, 20]": (FEW, DyDiffConfig()),
    "the same, anchored": (FEW, DyDiffConfig(conditioning="anchored")),
    "the same, anchored, 1 iteration": (FEW, DyDiffConfig(conditioning="anchored", iterations=1)),
    "anchored, mean states": (FEW, DyDiffConfig(conditioning="anchored", states="mean")),
    "anchored, mean states, 1 iteration": (FEW, DyDiffConfig(conditioning="anchored", states="mean", iterations=1)),
    "the ensemble alone": (FEW, DyDiffConfig(iterations=0)),
}
# of the networks of the study rollout-policy, smaller than the others
SMALL_FEATURES = 48
SMALL = {
    f"{SMALL_FEATURES} features: {name}": ROWS[name]
    for name in ("published: heun 34 with churn", "the same, anchored, 1 iteration", "anchored, mean states, 1 iteration")
}


@dataclasses.dataclass(frozen=True)
class Size:
    """Sizes of the measurement: the published length, HalfCheetah's dimensions."""

    trajectories: int = 16
    window: int = 100
    features: int = 128
    blocks: int = 3
    transitions: int = 20_000
    hidden: tuple[int, ...] = (200, 200, 200, 200)
    repeats: int = 3


def synthesizer_of(windows: Windows, sampler: SamplerConfig, dydiff: DyDiffConfig, size: Size) -> DyDiffSynthesizer:
    """DyDiff with random weights."""
    model_config = WorldModelConfig(hidden=size.hidden)
    data = prepare_transitions(windows.transitions, model_config)
    program = world_model_program(data, model_config, None)
    model = trained_world_model(jax.jit(program.init)(jax.random.key(1), data), data, model_config, None)
    if dydiff.conditioning != "published":
        cloning = BehaviourConfig()
        state = jax.jit(behaviour_program(data, cloning).init)(jax.random.key(5), data)
        behaviour = trained_behaviour(state, data, cloning)
        windows = innovation_windows(windows, behaviour, model if dydiff.conditioning == "anchored" else None)
    chosen = state_windows(windows, "clean")
    program_of_states = state_denoiser_program(chosen, DenoiserConfig(features=size.features, blocks=size.blocks))
    denoiser = trained_state_denoiser(program_of_states.init(jax.random.key(0), chosen), chosen, "clean")  # type: ignore[arg-type]
    return make_dydiff(model, denoiser, dydiff, sampler)


def run(size: Size | None = None) -> dict[str, Any]:
    """Measure every row in rollouts per second; ratios are to the published sampler."""
    size, peak = size or Size(), matmul_peak()
    windows = make_windows(DenoiserSize(transitions=size.transitions, window=size.window))
    agent = td3_bc(action_dim=windows.codec.action_dim)
    policy = agent.policy(agent.init(jax.random.key(2), jax.tree.map(lambda x: x[0], windows.transitions)))
    start = sample_real(jax.random.key(3), windows.transitions, size.trajectories).obs
    draw = lambda key, synthesizer, policy, start: synthesizer(key, policy, start).trajectory
    rows = []
    for name, (sampler, dydiff) in (ROWS | SMALL).items():
        own = dataclasses.replace(size, features=min(size.features, SMALL_FEATURES)) if name in SMALL else size
        synthesizer = synthesizer_of(windows, sampler, dydiff, own)
        timing = measure(draw, jax.random.key(4), synthesizer, policy, start, repeats=size.repeats)
        rows.append({"sampler": name} | row(timing, size.trajectories))
        rows[-1]["ratio"] = rows[-1]["rate"] / rows[0]["rate"]
    return header("dydiff", size, peak) | {"rows": rows, "peak_memory_bytes": peak_memory()}
