"""Presets: the published settings of a method, which apply before those that a config file sets itself."""

import dataclasses
from collections.abc import Callable
from typing import Any

from jaxpgd.errors import check
from jaxpgd.experiment.config import Arm, Config
from jaxpgd.experiment.presets.diffusion_ql import DIFFUSION_QL, diffusion_ql_values
from jaxpgd.experiment.presets.dydiff import BASE_AGENTS, DYDIFF, dydiff_values
from jaxpgd.experiment.presets.pgd import OFFICIAL, PAPER

METHODS: dict[str, tuple[Arm, ...]] = {"PGD": ("unguided", "guided"), "DyDiff": ("dydiff",)}  # and their arms


@dataclasses.dataclass(frozen=True)
class Preset:
    """Nested settings, and a function of the config that gives those that depend on its dataset or its agent.

    `method` is the one of `METHODS` whose settings they are: arms of another would pass as published under them.
    """

    settings: dict[str, Any]
    depending: Callable[[Config], dict[str, Any]] = lambda config: {}
    method: str | None = None


PRESETS: dict[str, Preset] = {
    "none": Preset({}),
    "paper": Preset(PAPER),  # PGD's; where the arms are DyDiff's, "dydiff"
    "official": Preset(OFFICIAL, method="PGD"),
    "dydiff": Preset(DYDIFF, lambda config: dydiff_values(config.agent.kind), method="DyDiff"),
    "diffusion_ql": Preset(DIFFUSION_QL, lambda config: diffusion_ql_values(config.data.name)),
}


def preset_settings(config: Config) -> list[dict[str, Any]]:
    """Nested settings of the preset that a config names, the later on top of the earlier. Raises InputError."""
    preset = PRESETS[preset_name(config)]
    return [preset.settings, preset.depending(config)]


def preset_name(config: Config) -> str:
    """The preset that a config's own name means: "paper" is PGD's, or DyDiff's where all arms of either method are DyDiff's.

    Where a config has no arm of either, it is DyDiff's for the agents that only DyDiff's paper has.
    """
    if config.preset != "paper":
        return config.preset
    found = methods(config) or ["DyDiff" if config.agent.kind in set(BASE_AGENTS) - {"td3_bc"} else "PGD"]
    return "dydiff" if found == ["DyDiff"] else "paper"


def methods(config: Config) -> list[str]:
    """The methods whose arms a config has."""
    return [method for method, arms in METHODS.items() if set(arms) & set(config.arms)]


def check_preset(config: Config) -> None:
    """Check that no arm passes as published under another method's settings. Raises InputError."""
    own = PRESETS[config.preset].method
    others = [method for method in methods(config) if (own and method != own) or config.preset == "paper"]
    expected = f"no arm of {others[0] if others else ''}: preset {config.preset!r} is {own}'s" if own else "arms of one method"
    arms = "; ".join(f"{method}: {', '.join(names)}" for method, names in METHODS.items())
    check(len(others) < (1 if own else 2), "arms", list(config.arms), f"{expected} ({arms})")
    other = config.preset == "diffusion_ql" and config.agent.kind != "diffusion_ql"
    check(not other, "agent.kind", config.agent.kind, "'diffusion_ql' with the preset of that name")
