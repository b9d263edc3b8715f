"""Which trained models the arms of a run need."""

from jaxpgd.experiment.config import Arm, Config

# the arms that need each model, by the stage that trains it
NEEDS: dict[str, tuple[Arm, ...]] = {
    "denoiser": ("unguided", "guided"),
    "world-model": ("dydiff", "world_model"),
    "behaviour": ("dydiff",),
    "state-denoiser": ("dydiff",),
}


def needs(config: Config, stage: str) -> bool:
    """Whether any arm uses the model of a stage of `NEEDS`.

    The world model also corrects trajectories of a denoiser, and the behaviour is cloned for innovations only.
    """
    if stage == "behaviour" and not clones(config):
        return False
    return bool(set(NEEDS[stage]) & set(config.arms)) or (stage == "world-model" and corrects(config))


def clones(config: Config) -> bool:
    """Whether DyDiff's states are given innovations, which are taken against a cloned behaviour."""
    return config.synthesis.dydiff.conditioning != "published"


def corrects(config: Config) -> bool:
    """Whether a world model corrects the trajectories of a denoiser (`synthesis.consistency`)."""
    return config.synthesis.consistency.kind != "none" and needs(config, "denoiser")
