"""What cells share: models and target agents, trained once under one folder and found again by their settings."""

import dataclasses
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Generic, TypeVar

from jaxpgd.datasets.load import LOADED_BY
from jaxpgd.experiment.config import Arm, Config
from jaxpgd.experiment.config_files import load_config
from jaxpgd.experiment.needs import NEEDS, clones, needs
from jaxpgd.experiment.precision import set_precision
from jaxpgd.experiment.run.directory import ClaimedRun, create_run
from jaxpgd.experiment.run.lock import HeldElsewhere
from jaxpgd.experiment.run.view import RunView
from jaxpgd.experiment.stages.build import Models
from jaxpgd.experiment.stages.load import load_models, seed_policy
from jaxpgd.experiment.stages.model_source import DECIDED_BY, as_trained, decided_by
from jaxpgd.experiment.stages.prepare import Prepared, prepare
from jaxpgd.experiment.stages.train_agents import train_agents
from jaxpgd.experiment.stages.train_models import (
    train_behaviour,
    train_denoiser,
    train_models,
    train_state_denoiser,
    train_world_model,
)
from jaxpgd.experiment.studies.identity import left_out, settings_of, short_hash, slug
from jaxpgd.experiment.studies.tables import get_nested
from jaxpgd.experiment.validation import validate
from jaxpgd.synthesis.dydiff import DyDiffConfig
from jaxpgd.synthesis.replay import SynthesisConfig
from jaxpgd.training.denoiser import DenoiserConfig
from jaxpgd.types import Policy
from jaxpgd.windows import DataConfig

T = TypeVar("T")
STAGES: dict[str, Callable[[ClaimedRun, Prepared], object]] = {
    "denoiser": train_denoiser,
    "world-model": train_world_model,
    "behaviour": train_behaviour,
    "state-denoiser": train_state_denoiser,
}
# an arm that needs the model, and no other arm: of the run that trains it
ARM_OF_MODEL: dict[str, Arm] = {"denoiser": "unguided", "world-model": "world_model", "behaviour": "dydiff",
                               "state-denoiser": "dydiff"}  # fmt: skip


class Store:
    """A folder of runs that train one model, or one target agent, each."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self._failed: dict[Path, Exception] = {}
        self._used: list[Path] = []
        self._prepared: Recent[Prepared] = Recent(4)
        self._models: Recent[Models] = Recent(4)

    @contextmanager
    def noting(self) -> Iterator[list[Path]]:
        """The runs that are used from here on, each once."""
        self._used = []
        yield self._used

    def models(self, config: Config) -> tuple[str, ...]:
        """Directories of runs that hold every model that a config's arms need; what is missing is trained, or continued."""
        return tuple(self._trained(self.run_of_model(config, stage), stage) for stage in NEEDS if needs(config, stage))

    def run_of_model(self, config: Config, stage: str) -> Config:
        """The run that trains the model of one stage for a config, and depends on nothing else of it."""
        data = config.data
        if stage in ("world-model", "behaviour"):  # whatever windows others take; those of two steps are in every episode
            names = ("name", "env_id", "episodes", "validation_fraction", *LOADED_BY)
            data = DataConfig(**{name: getattr(data, name) for name in names}, window=2)
        found = Config(seed=config.seed, arms=(ARM_OF_MODEL[stage],), data=data, checkpoint_seconds=config.checkpoint_seconds,
                       health=config.health, matmul_precision=config.matmul_precision)  # fmt: skip
        if stage == "world-model":
            flat = DenoiserConfig(blocks=1)  # which has no say in the length of windows
            return self._named(stage, dataclasses.replace(found, world_model=config.world_model, denoiser=flat))
        if stage == "behaviour":
            dydiff = DyDiffConfig(conditioning="innovations", behaviour=config.synthesis.dydiff.behaviour)
            found = dataclasses.replace(found, world_model=config.world_model, denoiser=DenoiserConfig(blocks=1))
            return self._named(stage, dataclasses.replace(found, synthesis=SynthesisConfig(dydiff=dydiff)))
        found = dataclasses.replace(found, denoiser=config.denoiser)
        return self._named(stage, self._of_states(config, found) if stage == "state-denoiser" else found)

    def _of_states(self, config: Config, found: Config) -> Config:
        """The run of a state denoiser, with the models that it is trained with."""
        own = config.synthesis.dydiff
        dydiff = DyDiffConfig(window=own.window, conditions=as_trained(config, "synthesis.dydiff.conditions"),
                              scaled_conditions=own.scaled_conditions, conditioning=own.conditioning)  # fmt: skip
        if clones(config):
            dydiff = dataclasses.replace(dydiff, behaviour=own.behaviour)
            runs = tuple(self.run_of_model(config, stage).out for stage in ("world-model", "behaviour"))
            found = dataclasses.replace(found, world_model=config.world_model, models_from=runs)
        return dataclasses.replace(found, synthesis=SynthesisConfig(dydiff=dydiff))

    def policy(self, config: Config) -> Policy:
        """The first agent that a config trains on real data, trained or continued where it is missing."""
        named = self._named("agent", config)
        with self._once(named), create_run(_as_begun(named), resume=True) as run:
            prepared = self.prepared(run.config)
            return seed_policy(train_agents(run, prepared, train_models(run, prepared), "real").policy, 0)

    def prepared(self, config: Config) -> Prepared:
        """The dataset and windows of a config; those used last are kept."""
        set_precision(config.matmul_precision)  # that of a dataset which is kept may be another's
        key = short_hash(settings_of(dataclasses.replace(Config(), seed=config.seed, data=config.data)))
        return self._prepared.get(key, lambda: prepare(config))

    def opened(self, config: Config) -> tuple[Prepared, Models]:
        """The same, with the models of the config's arms, from the runs of `models_from`."""
        prepared = self.prepared(config)
        key = short_hash([config.models_from, config.arms])
        return prepared, self._models.get(key, lambda: load_models(RunView(Path(config.out), config), prepared))

    @contextmanager
    def _once(self, config: Config) -> Iterator[None]:
        """What failed is not tried again by other cells: they meet the same error."""
        path = Path(config.out)
        if path not in self._used:
            self._used.append(path)
        if path in self._failed:
            raise self._failed[path]
        try:
            yield
        except HeldElsewhere:  # another process trains it, or what it needs: later it is there
            raise
        except Exception as error:
            self._failed[path] = error
            raise

    def _named(self, what: str, config: Config) -> Config:
        validate(config)
        names, skipped = decided_by(config, what) if what in DECIDED_BY else None, config.health.skip_updates
        values = settings_of(config)
        if names is not None:
            values = {name: get_nested(values, name) for name in names if name not in left_out(config)}
        values |= {"health.skip_updates": skipped} if skipped else {}
        return dataclasses.replace(config, out=str(self.root / f"{what}-{slug(config.data.name)}-{short_hash(values)}"))

    def _trained(self, config: Config, stage: str) -> str:
        with self._once(config), create_run(_as_begun(config), resume=True) as run:
            STAGES[stage](run, self.prepared(run.config))
        return config.out


def _as_begun(config: Config) -> Config:
    """The config that a run of the store began with, if it did: its folder's name holds every setting that decides the model.

    Defaults of other settings may have changed since.
    """
    stored = Path(config.out) / "config.toml"
    if not stored.exists():
        return config
    own = {name: getattr(config, name) for name in ("out", "checkpoint_seconds", "models_from", "health")}
    return dataclasses.replace(load_config(stored, unused="kept"), **own)


class Recent(Generic[T]):
    """The values that were asked for last, by key: as many as `size`."""

    def __init__(self, size: int) -> None:
        self._size, self._values = size, dict[str, T]()
        self._lock = threading.RLock()  # a study's budget compiles in threads

    def get(self, key: str, make: Callable[[], T]) -> T:
        """The value of a key, computed where it is not among them."""
        with self._lock:
            value = self._values.pop(key) if key in self._values else make()
            self._values[key] = value
            while len(self._values) > self._size:
                self._values.pop(next(iter(self._values)))
            return value
