"""A cell of a study: one config, what is measured of it, and for which target policy."""

import dataclasses
import functools
from collections.abc import Mapping
from typing import Literal

from jaxpgd.experiment.config import Config
from jaxpgd.experiment.stages.score_trajectories import OPEN_LOOP_STEPS
from jaxpgd.experiment.studies.identity import settings_of, short_hash, slug
from jaxpgd.synthesis.given import Conditioning

Source = Literal["rollouts", "dataset", "world_model", "dydiff", "unguided", "guided"]

# of training, without compilation: seconds, and processor seconds of all threads
TIMES = ("training_seconds", "training_core_seconds")
# the same of a cell's agents and of the models that they use
TOTAL_TIMES = ("total_training_seconds", "total_training_core_seconds")
# columns of trajectories of which each set of trajectories has one value, in its first row
OF_THE_SET = ("dynamics_error_rms", "dynamics_error_median", "dynamics_error_share", "reward_error", "terminal_rate",
              "truncated_rate", "terminal_agreement", "sliced_wasserstein", "coverage", "density", "value_bias",
              "value_distance", "classifier_accuracy", *TIMES, "sampling_seconds")  # fmt: skip
# columns of returns of which each agent has one value, in its first row
OF_THE_AGENT = ("value_error", "ood_actions")
# columns of results.csv by what is measured; a score stands there under the name of its family
COLUMNS: dict[str, tuple[str, ...]] = {
    "returns": ("return", "length", "score", *OF_THE_AGENT, *TOTAL_TIMES),
    "trajectories": ("synthetic_return", "synthetic_length", "synthetic_value", "log_likelihood", "dynamics_error",
                     "persistence", *(f"open_loop_error_{k}" for k in OPEN_LOOP_STEPS), *OF_THE_SET),
    "rollouts": ("return_error", "return_error_se", "return_bias", "return_bias_se", "policy_log_likelihood",
                 "policy_log_likelihood_se", "terminal_rate", "true_terminal_rate", "state_error_rms", "state_error_rms_se",
                 "state_distance_mean", "state_error_last", "state_distance_last"),
    "tilt": ("coefficient", "divergence", "log_likelihood"),
}  # fmt: skip
# and of by_step.csv: `step` counts updates of an agent, steps of a trajectory, or is the action of a density
STEP_COLUMNS: dict[str, tuple[str, ...]] = {
    "returns": ("return", *OF_THE_AGENT, *TOTAL_TIMES),
    "trajectories": ("dynamics_error", "persistence", "open_loop_error"),
    "rollouts": ("state_error", "state_error_se", "state_distance", "alive", "true_alive"),
    "tilt": ("samples", "target", "behaviour", "policy"),
}


@dataclasses.dataclass(frozen=True)
class MeasureConfig:
    """What is measured of a cell: `[measure]` of a study, which axes may change.

    - `returns`: agents are trained and evaluated (`config` as in `jaxpgd run`);
    - `trajectories`: trajectories of `source` for the target policy are scored;
    - `rollouts`: the target policy rolled out by every model, against the real environment, step by step;
    - `tilt`: one action of a known mixture, guided towards a Gaussian policy, against the exact density.
    """

    kind: Literal["returns", "trajectories", "rollouts", "tilt"] = "returns"
    source: Source = "guided"  # trajectories
    trajectories: int = 256  # trajectories, rollouts, tilt: how many
    length: int = 0  # rollouts, and trajectories of sources rollouts and world_model: steps; 0: the (longest) training window
    samples: int = 0  # trajectories: so many are kept, to be drawn
    classifier: bool = False  # trajectories: train a classifier that tells them from held-out windows, which takes seconds
    conditionings: tuple[Conditioning, ...] = ()  # rollouts: of DyDiff's denoisers, each a method; none: that of the config
    weights: tuple[float, ...] = (0.5, 0.5)  # tilt: of the behaviour's Gaussians
    means: tuple[float, ...] = (-1.0, 1.0)
    stds: tuple[float, ...] = (0.3, 0.3)
    policy_mean: float = 0.5  # tilt: of the policy
    policy_std: float = 0.5


# which kinds use what of a measure
MEASURED: dict[str, tuple[str, ...]] = {
    "source": ("trajectories", "tilt"), "trajectories": ("trajectories", "rollouts", "tilt"),
    "length": ("trajectories", "rollouts"), "conditionings": ("rollouts",),
    "samples": ("trajectories",), "classifier": ("trajectories",),
} | dict.fromkeys(("weights", "means", "stds", "policy_mean", "policy_std"), ("tilt",))  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Target:
    """The target policy of trajectories and rollouts: an actor's file, or the agent that `config` trains on its data.

    The config is that of a run of one agent on the cell's own data and at its `matmul_precision`, but for what `[target]` says.
    Neither: the environment's own target policy, which built-in ones have.
    """

    actor: str = ""
    config: Config | None = None


def conditioned(config: Config, conditioning: Conditioning) -> Config:
    """The config with another `synthesis.dydiff.conditioning`."""
    dydiff = dataclasses.replace(config.synthesis.dydiff, conditioning=conditioning)
    return dataclasses.replace(config, synthesis=dataclasses.replace(config.synthesis, dydiff=dydiff))


def measured_configs(config: Config, conditionings: tuple[Conditioning, ...]) -> list[Config]:
    """The configs that a cell of rollouts computes with: every conditioning, DyDiff's first rollout and its iterations."""
    found = [config]
    for kind in conditionings:
        own = conditioned(config, kind)
        for iterations in (0, 2):
            dydiff = dataclasses.replace(own.synthesis.dydiff, iterations=iterations)
            found.append(dataclasses.replace(own, synthesis=dataclasses.replace(own.synthesis, dydiff=dydiff)))
    return found


@dataclasses.dataclass(frozen=True)
class Cell:
    """One point of a study's grid."""

    labels: Mapping[str, str]  # value of each axis, by name
    measure: MeasureConfig
    config: Config
    target: Target

    @functools.cached_property
    def key(self) -> str:
        """Names what the cell computes: cells with the same key, of whatever study, have the same results."""
        target = {"actor": self.target.actor, "config": self.target.config and settings_of(self.target.config)}
        measure = dataclasses.asdict(self.measure)
        for name in ("classifier", "conditionings"):  # added after studies had been measured, whose keys stay
            if not measure[name]:
                del measure[name]
        loop = {"loop": self.config.synthesis.dydiff.loop} if "anchored" in self.measure.conditionings else {}
        return short_hash({"measure": measure, "config": settings_of(self.config), "target": target} | loop)

    @property
    def label(self) -> str:
        """What tells it apart in its study."""
        return ", ".join(self.labels.values())

    @property
    def name(self) -> str:
        """Of its folder."""
        return f"{self.measure.kind}-{slug(self.config.data.name)}-{self.key}"
