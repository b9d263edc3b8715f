"""Nested tables of a study's file: merged, and their settings by dotted name."""

from collections.abc import Mapping
from typing import Any


def merge(below: Mapping[str, Any], above: Mapping[str, Any]) -> dict[str, Any]:
    """Nested tables, those `above` on top. A key that ends in "!" replaces the whole table of its name."""
    found = dict(below)
    for key, value in above.items():
        if key.endswith("!"):
            found[key[:-1]] = value
        elif isinstance(value, Mapping) and isinstance(found.get(key), Mapping):
            found[key] = merge(found[key], value)
        else:
            found[key] = value
    return found


def dotted(values: Mapping[str, Any], prefix: str = "") -> list[str]:
    """The dotted names of all settings in nested tables."""
    found = []
    for key, value in values.items():
        name = prefix + key.removesuffix("!")
        found += dotted(value, name + ".") if isinstance(value, Mapping) else [name]
    return found


def get_nested(values: Mapping[str, Any], name: str) -> Any:
    """The value of a dotted name."""
    for part in name.split("."):
        values = values[part]
    return values
