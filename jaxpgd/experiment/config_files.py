"""Config files: TOML in, a checked config out. Unknown keys and wrong types are refused by name."""

import dataclasses
import math
import tomllib
import types
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

import tomli_w

from jaxpgd.errors import InputError, check
from jaxpgd.experiment.config import Config
from jaxpgd.experiment.nearest import unknown_key
from jaxpgd.experiment.presets import PRESETS, check_preset, preset_settings
from jaxpgd.experiment.used_settings import AGENTS, check_used
from jaxpgd.experiment.validation import validate
from jaxpgd.options import hints_of

Section = Any  # any options


def load_config(
    path: str | Path | None = None, overrides: dict[str, Any] | None = None, *, unused: Literal["refused", "kept"] = "refused"
) -> Config:
    """Read a TOML file (None: the defaults), apply nested `overrides`, and check the config.

    Raises InputError that names the file, the key and, for an unknown key, the nearest valid one. Settings without effect are
    refused as well, unless `unused` is "kept": those that differ from their default, or from the preset's value, although
    other settings leave them without effect (`used_settings.unused`). A file is checked against its own choices: what it sets
    is kept where `overrides` choose otherwise, and so are its sections of other agents and all that a run wrote into its
    directory.
    """
    config, by_a_run = config_of(path, overrides), path is not None and _written_by_a_run(Path(path))
    if not by_a_run:
        check_preset(config)
    validate(config)
    if unused == "refused":
        if path is not None and not by_a_run:
            _check_used(config_of(path), _read_toml(Path(path)), other_agents=True)
        _check_used(config, overrides or {})
    return config


def _written_by_a_run(path: Path) -> bool:
    """Whether a file holds all settings that there were when its run began."""
    return path.name == "config.toml" and path.with_name("versions.json").is_file()


def _check_used(config: Config, values: dict[str, Any], *, other_agents: bool = False) -> None:
    """Check that `values`, applied last to a config, have an effect in it."""
    given = names_in(values)
    if other_agents:
        spared = tuple(f"agent.{kind}." for kind in AGENTS if kind != config.agent.kind)
        given = [name for name in given if not name.startswith(spared)]
    check_used([config], given, preset_of)


def preset_of(config: Config) -> list[Config]:
    """The values of a config's preset: what its settings are where nobody sets them."""
    return [with_preset(config)]


def names_in(values: dict[str, Any], prefix: str = "") -> list[str]:
    """The dotted names of all settings in nested values."""
    found = []
    for key, value in values.items():
        found += names_in(value, f"{prefix}{key}.") if isinstance(value, dict) else [prefix + key]
    return found


def config_of(path: str | Path | None = None, overrides: dict[str, Any] | None = None) -> Config:
    """As `load_config`, without a check of ranges and combinations.

    A file that a run wrote holds its preset's values. Settings added since then are at their defaults there, which change
    nothing, whatever the preset has come to mean.
    """
    raw = _read_toml(Path(path)) if path is not None else {}
    origin = str(path) if path is not None else "config"
    overrides = overrides or {}
    preset = overrides.get("preset", raw.get("preset", "none"))
    check(preset in PRESETS, "preset", preset, f"one of {sorted(PRESETS)}")
    chosen = apply_values(apply_values(Config(), raw, origin), overrides, "override")
    base = Config() if path is not None and _written_by_a_run(Path(path)) else with_preset(chosen)
    return apply_values(apply_values(base, raw, origin), overrides, "override")


def with_preset(chosen: Config) -> Config:
    """The defaults with the values of the preset that a config names. Raises InputError."""
    config = Config()
    for values in preset_settings(chosen):
        config = apply_values(config, values, "preset")
    return config


def _read_toml(path: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(path.read_text(encoding="utf-8-sig"))
    except OSError as error:
        raise InputError(f"config = {str(path)!r}: expected a readable TOML file ({error.strerror}).") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise InputError(f"config = {str(path)!r}: expected valid TOML ({error}).") from error


def apply_values(config: Section, values: dict[str, Any], origin: str, prefix: str = "") -> Section:
    """`config` (any options) with nested `values` replaced. Raises InputError as `load_config`."""

    def apply(section: Section, own: dict[str, Any], inside: str) -> Section:
        hints = hints_of(type(section))
        changes: dict[str, Any] = {}
        for key, value in own.items():
            name = prefix + inside + key
            if key not in hints:
                said = unknown_key(inside + key, config, values, table=isinstance(value, dict), before=prefix)
                raise InputError(f"{origin}: {said}")
            if dataclasses.is_dataclass(hints[key]):
                if not isinstance(value, dict):
                    raise InputError(f"{origin}: {name} = {value!r}: expected a table [{name}].")
                changes[key] = apply(getattr(section, key), value, f"{inside}{key}.")
            else:
                changes[key] = _convert(value, hints[key], name, origin)
        return dataclasses.replace(section, **changes)

    return apply(config, values, "")


def _convert(value: Any, hint: Any, name: str, origin: str) -> Any:
    if get_origin(hint) is Literal:
        ok, want = value in get_args(hint), "one of " + ", ".join(map(repr, get_args(hint)))
    elif get_origin(hint) is tuple:
        if not isinstance(value, list | tuple):
            raise InputError(f"{origin}: {name} = {value!r}: expected a list.")
        return tuple(_convert(v, get_args(hint)[0], f"{name}[{i}]", origin) for i, v in enumerate(value))
    elif isinstance(hint, types.UnionType):
        return value if value is None else _convert(value, get_args(hint)[0], name, origin)
    elif hint is float:
        ok = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
        want, value = "a finite number", float(value) if ok else value
    else:
        ok, want = type(value) is hint, {int: "an integer", bool: "true or false", str: "a string"}[hint]
    if not ok:
        raise InputError(f"{origin}: {name} = {value!r}: expected {want}.")
    return value


def to_dict(config: Section) -> dict[str, Any]:
    """Nested plain values, ready for JSON."""
    return dataclasses.asdict(config)


def to_toml(config: Section) -> str:
    """The config as TOML text, which `load_config` reads back to an equal value."""
    return tomli_w.dumps(to_dict(config))
