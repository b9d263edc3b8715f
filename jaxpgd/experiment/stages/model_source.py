"""Which run each model is taken from: this one, or one of `models_from`."""

import dataclasses
from pathlib import Path
from typing import Any

from jaxpgd.datasets.load import LOADED_BY
from jaxpgd.errors import check
from jaxpgd.experiment.config import Config
from jaxpgd.experiment.needs import NEEDS, clones, needs
from jaxpgd.experiment.run.view import RunView, open_run
from jaxpgd.options import get

_HELD_OUT_OF = (  # of models of single transitions
    "seed", "matmul_precision", "data.name", "data.env_id", "data.episodes", *(f"data.{name}" for name in LOADED_BY),
    "data.validation_fraction",
)  # fmt: skip

# the settings that decide what each model becomes; seed and validation_fraction decide which episodes are held out as well
DECIDED_BY: dict[str, tuple[str, ...]] = {
    "denoiser": ("seed", "matmul_precision", "data", "denoiser"),
    "world-model": (*_HELD_OUT_OF, "world_model"),
    "behaviour": (
        *_HELD_OUT_OF, "world_model.holdout", "world_model.holdout_most", "world_model.holdout_by",
        "synthesis.dydiff.behaviour",
    ),
    "state-denoiser": (
        "seed", "matmul_precision", "data", "denoiser", "synthesis.dydiff.window", "synthesis.dydiff.conditions",
        "synthesis.dydiff.scaled_conditions", "synthesis.dydiff.conditioning",
    ),
}  # fmt: skip


def decided_by(config: Config, stage: str) -> tuple[str, ...]:
    """The settings that decide what the model of a stage becomes: its own, and those of the models that it is trained with."""
    names = DECIDED_BY[stage]
    if stage == "state-denoiser" and clones(config):
        names += DECIDED_BY["behaviour"]
        names += DECIDED_BY["world-model"] if config.synthesis.dydiff.conditioning == "anchored" else ()
    return tuple(dict.fromkeys(names))


def model_source(config: Config, stage: str) -> RunView | None:
    """The run that the model of a stage is taken from: the first of `models_from` that has it. None: this one trains it.

    Raises InputError where that stage has begun in one of them and is finished in none, where nothing is finished in one, and
    where their settings of the model are others.
    """
    if not needs(config, stage) or RunView(Path(config.out), config).is_done(stage):
        return None
    able = [run for run in map(open_run, config.models_from) if needs(run.config, stage)]
    for run in able:
        deeper = model_source(run.config, stage)
        if deeper is None and not run.is_done(stage):
            continue
        for name in (each for part in decided_by(config, stage) for each in _names(config, part)):
            mine, theirs = as_trained(config, name), as_trained(run.config, name)
            check(mine == theirs, name, mine, f"{theirs!r}, as in models_from = {str(run.path)!r}")
        return deeper or run
    for run in able:
        if _is_begun(run, stage):
            run.require(stage, f"jaxpgd run {run.path / 'config.toml'} --resume")
    return None


def _is_begun(run: RunView, stage: str) -> bool:
    """Whether a run that is to train a model has begun to; one that has trained another model may be there for that alone."""
    return (run.path / "checkpoints" / stage).exists() or not any(map(run.is_done, NEEDS))


def require_models(run: RunView) -> None:
    """Raise InputError unless every model that the run's arms need is trained."""
    for stage in NEEDS:
        if needs(run.config, stage) and model_source(run.config, stage) is None:
            run.require(stage, f"jaxpgd run {run.path / 'config.toml'} --resume")


def as_trained(config: Config, name: str) -> Any:
    """What a setting comes to in the training of models.

    A denoiser sees clean conditions where only sampling churns them, and no seed draws from a whole dataset.
    """
    value = get(config, name)
    if name == "data.fraction_seed" and config.data.fraction == 1:
        return 0
    return "clean" if name == "synthesis.dydiff.conditions" and value == "churned" else value


def _names(config: Config, part: str) -> list[str]:
    """The settings of a section, or the one setting of that name."""
    value = get(config, part)
    return [f"{part}.{name}" for name in vars(value)] if dataclasses.is_dataclass(value) else [part]
