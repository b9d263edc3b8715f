"""Environment specs stored in datasets, and the code that they may name.

A Gymnasium spec names a callable, "module:name", and its arguments, which `gymnasium.make` imports and calls. A dataset could
name `os:system` instead of an environment. A stored spec is therefore used only if it names an environment registered in this
process, or a class in a known package of environments.
"""

import inspect
import re
from collections.abc import Iterator, Mapping
from typing import Any

import gymnasium
from gymnasium.envs.registration import EnvSpec, load_env_creator

from jaxpgd.datasets.untrusted import json_object, reading
from jaxpgd.errors import check

_KNOWN_MODULES = re.compile(r"(gymnasium\.envs\.\w+|gymnasium_robotics\.envs|ogbench\.\w+)(\.\w+)*")
_NAME = re.compile(r"[A-Za-z_]\w*")
_WRAPPERS = {"OrderEnforcing", "PassiveEnvChecker", "TimeLimit", "FlattenObservation", "FilterObservation", "ClipAction",
             "RescaleAction", "RescaleObservation", "TimeAwareObservation", "DtypeObservation", "ReshapeObservation",
             "Autoreset", "RecordEpisodeStatistics"}  # fmt: skip
_TRUST = ("A dataset may not name other code. If you trust it, name the environment yourself, with data.env_id, as module:Id "
          "where a module registers it.")  # fmt: skip


def stored_spec(text: str, dataset: str) -> dict[str, Any]:
    """The checked fields of a spec. Raises InputError if it is not one, names unknown code, or contains paths."""
    field = f"env_spec of {dataset}"
    spec = json_object(text, field, text[:100])
    entry, wrappers = spec.get("entry_point"), spec.get("additional_wrappers") or []
    check(_is_registered(entry) or _is_known(entry), field, entry, "a known environment", _TRUST)
    check(isinstance(wrappers, list), field, wrappers, "a list of wrappers")
    for wrapper in wrappers:
        name = wrapper.get("entry_point") if isinstance(wrapper, Mapping) else wrapper
        module, _, kind = str(name).partition(":")
        fine = re.fullmatch(r"gymnasium\.wrappers(\.\w+)*", module) and kind in _WRAPPERS
        check(bool(fine), field, name, "a wrapper of gymnasium that neither writes nor calls", _TRUST)
    check(spec.get("vector_entry_point") is None or _is_registered(entry), field, "vector_entry_point", "none")
    given = [spec.get("kwargs"), *(w.get("kwargs") for w in wrappers)]
    for value in _texts(given):
        outside = value.startswith(("/", "~", "\\")) or ".." in re.split(r"[/\\]", value) or ":" in value
        check(not outside, field, value, "no path that leaves the dataset", _TRUST)
    return spec


def spec_from_json(text: str, dataset: str) -> EnvSpec:
    """The checked spec, ready for `gymnasium.make`. Raises InputError."""
    fields = stored_spec(text, dataset)
    with reading(f"env_spec of {dataset}", text[:100], "a Gymnasium EnvSpec as JSON"):
        spec = EnvSpec.from_json(text)
        if not _is_registered(fields["entry_point"]):
            found: Any = load_env_creator(fields["entry_point"])
            is_class = inspect.isclass(found) and issubclass(found, gymnasium.Env)
            check(is_class, f"env_spec of {dataset}", fields["entry_point"], "a class of environments", _TRUST)
        return spec


def _is_registered(entry: Any) -> bool:
    """Whether an environment is registered in this process with exactly this entry point."""
    return isinstance(entry, str) and any(entry == _named(known.entry_point) for known in gymnasium.registry.values())


def _named(creator: Any) -> Any:
    return f"{creator.__module__}:{getattr(creator, '__qualname__', '')}" if callable(creator) else creator


def _is_known(entry: Any) -> bool:
    """Whether an entry point names something in a known package of environments."""
    module, _, name = entry.partition(":") if isinstance(entry, str) else ("", "", "")
    registration = module.startswith("gymnasium.envs.registration")  # has functions that import any code
    return not registration and bool(_KNOWN_MODULES.fullmatch(module) and _NAME.fullmatch(name))


def _texts(value: Any) -> Iterator[str]:
    """All strings in a JSON value, keys included."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        for key, part in value.items():
            yield from _texts(key)
            yield from _texts(part)
    elif isinstance(value, list):
        for part in value:
            yield from _texts(part)
