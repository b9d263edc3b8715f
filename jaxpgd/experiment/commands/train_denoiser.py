"""`jaxpgd train-denoiser`: the first stages of a run alone, the models that its arms need (denoisers, world model)."""

from pathlib import Path

from jaxpgd.experiment.commands.stage_order import begin
from jaxpgd.experiment.config import Config
from jaxpgd.experiment.stages.train_models import train_models
from jaxpgd.parallel import is_writer


def run_denoiser(config: Config, *, resume: bool = False) -> Path:
    """Train the models of a run; returns its directory. `train-agent` and `evaluate` go on. Raises InputError."""
    run, prepared = begin(config, resume=resume)
    with run:
        train_models(run, prepared)
    if is_writer():
        print(f"models trained; continue with: jaxpgd train-agent {run.path}")
    return run.path
