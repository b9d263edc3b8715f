"""Which trained models the arms of a run need."""

from jaxpgd.experiment.config import Arm, Config

# the arms that need each model, by the stage that trains it
NEEDS: dict[str, tuple[Arm, ...]] = {
    "denoiser": ("unguided", "guided"),
    "world-model": ("dydiff", "world_model"),
    "state-denoiser": ("dydiff",),
}


def needs(config: Config, stage: str) -> bool:
    """Whether any arm uses the model of a stage of `NEEDS`; the world model also corrects trajectories of a denoiser."""
    return bool(set(NEEDS[stage]) & set(config.arms)) or (stage == "world-model" and corrects(config))


def corrects(config: Config) -> bool:
    """Whether a world model corrects the trajectories of a denoiser (`synthesis.consistency`)."""
    return config.synthesis.consistency.kind != "none" and needs(config, "denoiser")
