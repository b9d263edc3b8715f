"""The config of an experiment: the options of every component, and those of runs themselves."""

from typing import Literal

from jaxpgd.diffusion.solvers import SamplerConfig
from jaxpgd.errors import check
from jaxpgd.guidance.kinds import GuidanceConfig
from jaxpgd.options import nonnegative, option, options, positive
from jaxpgd.synthesis.replay import SynthesisConfig
from jaxpgd.training.agent import AgentConfig
from jaxpgd.training.denoiser import DenoiserConfig
from jaxpgd.windows import DataConfig
from jaxpgd.world_model.model import WorldModelConfig

Arm = Literal["real", "unguided", "guided", "dydiff", "world_model"]  # where an agent's data come from; guided: PGD


@options
class EvaluationConfig:
    """Returns in the environment and quality of synthetic trajectories."""

    episodes: int = positive(20, "per seed, at the end")
    every: int = nonnegative(0, "updates between intermediate evaluations; 0: only at the end")
    intermediate_episodes: int = positive(5, "per seed, in intermediate evaluations")
    trajectories: int = positive(512, "synthetic trajectories scored")
    coefficients: tuple[float, ...] = option((0.1, 0.3, 1.0, 3.0), "guidance coefficients of the sweep in the report")
    sampler_steps: int = nonnegative(0, "sampler steps for the scored trajectories; 0: as in training")
    behaviour: str = option("", ".npz of the tanh-Gaussian actor that collected the data, to score actions under it")
    confidence: float = option(0.95, "level of confidence intervals")
    max_steps: int = nonnegative(0, "of an episode, where that is below the environment's limit, or it has none; 0: that limit")
    processes: int = nonnegative(0, "that step Gymnasium environments; 0: as many as there are usable cores. Changes no result")


@options
class HealthConfig:
    """What happens to numbers that are not finite. May differ when a run is continued."""

    lost_seeds: Literal["stop", "keep"] = option(
        "stop", "one seed has such numbers: stop its stage, or go on while others are well"
    )
    skip_updates: int = nonnegative(
        0, "updates with such a loss or gradient that are left out per chunk; 0: the first stops the stage"
    )
    value_excess: float = nonnegative(
        1.0, "a critic is flagged whose values are so many widths of what rewards allow outside of it"
    )
    debug_nans: bool = option(False, "find the operation that makes the first NaN, at several times the cost")


@options
class Config:
    """One run: dataset -> denoiser -> one agent per arm and seed -> evaluation -> report."""

    preset: Literal["none", "paper", "official", "dydiff", "diffusion_ql"] = option(
        "none", "published values, before the file's own"
    )
    out: str = option("runs/point2d", "run directory")
    seed: int = nonnegative(0, "of all random numbers")
    seeds: int = positive(4, "agents per arm and setting, trained as one vmapped program")
    sweep: tuple[str, ...] = option((), "settings in the same program: names and values in turn, such as agent.alpha 1,2.5,4")
    arms: tuple[Arm, ...] = option(("real", "unguided", "guided"), "where agents get their data from: one arm each")
    models_from: tuple[str, ...] = option((), "run directories whose trained models are used instead of training the same ones")
    checkpoint_seconds: float = nonnegative(60.0, "least time between checkpoints within a stage", high=1e9)
    keep_checkpoints: int = positive(2, "of each stage, besides the one with the best validation loss or returns")
    wandb_project: str = option("", "also log to this Weights & Biases project (extra `wandb`)")
    matmul_precision: Literal["tensorfloat32", "float32"] = option(
        "tensorfloat32", "of float32 products, on accelerators alone"
    )
    data: DataConfig = DataConfig()
    denoiser: DenoiserConfig = DenoiserConfig()
    sampler: SamplerConfig = SamplerConfig()
    guidance: GuidanceConfig = GuidanceConfig()
    world_model: WorldModelConfig = WorldModelConfig()
    synthesis: SynthesisConfig = SynthesisConfig()
    agent: AgentConfig = AgentConfig()
    evaluation: EvaluationConfig = EvaluationConfig()
    health: HealthConfig = HealthConfig()


def check_seed(seed: int) -> None:
    """Check `--seed` of a command. Raises InputError."""
    check(0 <= seed < 2**31, "--seed", seed, "a number from 0 to 2^31 - 1")
