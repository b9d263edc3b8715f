"""Hyperparameters that take several values in one run: every setting of them is trained with every seed, as one program."""

import dataclasses
import itertools
import math

from jaxpgd.errors import check
from jaxpgd.experiment.config import Config
from jaxpgd.experiment.validation import validate
from jaxpgd.options import numeric

COEFFICIENT = "guidance.coefficient"


@dataclasses.dataclass(frozen=True)
class Sweep:
    """The settings of a run's agents: values by name, one dict per setting; a single empty one where nothing is swept."""

    settings: tuple[dict[str, float], ...]

    def label(self, index: int) -> str:
        """Setting `index` in words; empty where nothing is swept."""
        return ", ".join(f"{name.rpartition('.')[2]} {_text(value)}" for name, value in self.settings[index].items())


def read_sweep(config: Config, arm: str = "guided") -> Sweep:
    """The settings that `config.sweep` names: the product of all values, as far as they concern an arm.

    The guidance coefficient concerns `guided` alone. Raises InputError naming what is wrong.
    """
    words, known = config.sweep, sweepable(config)
    check(len(words) % 2 == 0, "sweep", list(words), "names and values in turn, such as agent.alpha 1,2.5,4")
    axes: dict[str, tuple[float, ...]] = {}
    for name, text in zip(words[::2], words[1::2], strict=True):
        check(name in known, "sweep", name, f"one of {', '.join(known)}", f"These are numeric in {config.agent.kind} agents.")
        check(name not in axes, "sweep", name, "each name once")
        axes[name] = _values(name, text)
    check(
        COEFFICIENT not in axes or config.guidance.target_ess == config.guidance.max_dynamics_error == 0,
        "sweep", COEFFICIENT, "other names where guidance.target_ess or guidance.max_dynamics_error chooses the coefficient",
    )  # fmt: skip
    check(COEFFICIENT not in axes or "guided" in config.arms, "sweep", COEFFICIENT, "other names where arms has no guided")
    check(
        not axes or config.guidance.max_dynamics_error == 0 or "guided" not in config.arms,
        "sweep", list(axes), "nothing where guidance.max_dynamics_error chooses one coefficient for all agents",
    )  # fmt: skip
    if arm != "guided":
        axes.pop(COEFFICIENT, None)
    settings = tuple(dict(zip(axes, values, strict=True)) for values in itertools.product(*axes.values()))
    for setting in settings:
        validate(with_setting(config, setting))
    return Sweep(settings)


def sweepable(config: Config) -> list[str]:
    """Names that a sweep of this config may have: numeric settings of its agent, and the guidance coefficient."""
    section = getattr(config.agent, config.agent.kind)
    return [f"agent.{name}" for name in numeric(type(section))] + [COEFFICIENT]


def with_setting(config: Config, setting: dict[str, float]) -> Config:
    """The config of one setting, trained alone."""
    kind = config.agent.kind
    own = {name.partition(".")[2]: value for name, value in setting.items() if name != COEFFICIENT}
    section = dataclasses.replace(getattr(config.agent, kind), **own)
    guidance = dataclasses.replace(config.guidance, coefficient=setting.get(COEFFICIENT, config.guidance.coefficient))
    return dataclasses.replace(config, agent=dataclasses.replace(config.agent, **{kind: section}), guidance=guidance, sweep=())


def _text(value: float) -> str:
    """As short as tells it from other values."""
    return f"{value:g}" if float(f"{value:g}") == value else repr(value)


def _values(name: str, text: str) -> tuple[float, ...]:
    try:
        found = tuple(float(part) for part in text.split(","))
    except ValueError:
        found = (math.nan,)
    check(all(map(math.isfinite, found)), f"sweep of {name}", text, "numbers separated by commas, such as 1,2.5,4")
    check(len(set(found)) == len(found), f"sweep of {name}", text, "each value once")
    return found
