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

    episodes: int = positive(20, "evaluation episodes per seed at the end of training")
    every: int = nonnegative(0, "agent updates between intermediate evaluations; 0: evaluate only at the end")
    intermediate_episodes: int = positive(5, "evaluation episodes per seed in intermediate evaluations")
    trajectories: int = positive(512, "synthetic trajectories whose quality is measured")
    coefficients: tuple[float, ...] = option((0.1, 0.3, 1.0, 3.0), "guidance coefficients of the sweep in the report")
    sampler_steps: int = nonnegative(0, "solver steps when trajectories are sampled to measure their quality; 0: sampler.steps")
    behaviour: str = option(
        "", ".npz file of the tanh-Gaussian actor that collected the data, to score actions under; empty: none"
    )
    classifier: bool = option(
        False, "train a classifier that tells synthetic from held-out windows, some seconds for each set of trajectories"
    )
    confidence: float = option(0.95, "level of the confidence intervals, between 0 and 1")
    max_steps: int = nonnegative(0, "longest evaluation episode, in steps, if below the environment's own limit; 0: that limit")
    processes: int = nonnegative(
        0, "processes that step Gymnasium environments, without effect on results; 0: one per available core"
    )


@options
class HealthConfig:
    """What happens to numbers that are not finite. May differ when a run is continued."""

    lost_seeds: Literal["stop", "keep"] = option(
        "stop", "once a seed has a loss or parameter that is not finite: stop the stage, or keep training the others"
    )
    skip_updates: int = nonnegative(
        0, "updates per chunk that may be skipped for a loss or gradient that is not finite; 0: stop at the first"
    )
    value_excess: float = nonnegative(
        1.0, "flag critics with values further out of the range that rewards allow than this multiple of its width"
    )
    debug_nans: bool = option(False, "find the operation that produces the first NaN; training takes several times as long")


@options
class Config:
    """One run: dataset -> denoiser -> one agent per arm and seed -> evaluation -> report."""

    preset: Literal["none", "paper", "official", "dydiff", "diffusion_ql"] = option(
        "none", "published settings to start from; the file's own settings override them"
    )
    out: str = option("runs/point2d", "directory of the run")
    seed: int = nonnegative(0, "seed of all random numbers of the run")
    seeds: int = positive(4, "agents per arm and swept setting, trained as one vmapped program")
    sweep: tuple[str, ...] = option(
        (), "hyperparameters swept in one program, names and values in turn, such as agent.alpha 1,2.5,4"
    )
    arms: tuple[Arm, ...] = option(
        ("real", "unguided", "guided"), "sources of data to compare; each arm trains agents of its own"
    )
    models_from: tuple[str, ...] = option(
        (), "run directories whose trained models are used instead of training the same ones again"
    )
    checkpoint_seconds: float = nonnegative(60.0, "shortest time between checkpoints within a stage, in seconds", high=1e9)
    keep_checkpoints: int = positive(
        2, "newest checkpoints kept of each stage, besides the one of best validation loss or returns"
    )
    wandb_project: str = option("", "Weights & Biases project that metrics are logged to as well (extra `wandb`); empty: none")
    matmul_precision: Literal["tensorfloat32", "float32"] = option(
        "tensorfloat32", "precision of float32 matrix products on accelerators; no effect on CPUs"
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
