"""Flat vectors of dict observations. Paths name the entries, with keys joined by "/": `desired_goal/microwave`."""

from collections.abc import Mapping, Sequence
from typing import Any

import gymnasium

from jaxpgd.errors import check

SEPARATOR = "/"
GOAL_KEYS = ("observation", "achieved_goal", "desired_goal")


def leaves(tree: Mapping[str, Any]) -> dict[str, Any]:
    """The leaves of a nested dict, or of a Dict space, by path."""
    found: dict[str, Any] = {}
    for key, part in tree.items():
        if isinstance(part, Mapping):
            found |= {f"{key}{SEPARATOR}{path}": entry for path, entry in leaves(part).items()}
        else:
            found[key] = part
    return found


def nest(paths: Sequence[str], entries: Sequence[Any]) -> dict[str, Any]:
    """The nested dict with these entries at these paths. The inverse of `leaves`."""
    tree: dict[str, Any] = {}
    for path, entry in zip(paths, entries, strict=True):
        *outer, last = path.split(SEPARATOR)
        node = tree
        for key in outer:
            node = node.setdefault(key, {})
        node[last] = entry
    return tree


def obs_order(space: gymnasium.Space[Any]) -> tuple[str, ...]:
    """The paths of a Dict space's leaves in the order of concatenation. Empty for a Box.

    In goal environments, `observation`, `achieved_goal` and `desired_goal` come first. All other keys are in alphabetical
    order. Raises InputError for other spaces.
    """
    if isinstance(space, gymnasium.spaces.Box):
        return ()
    check(isinstance(space, gymnasium.spaces.Dict), "observation space", space, "a Box or a Dict of Box")
    assert isinstance(space, gymnasium.spaces.Dict)
    parts = leaves(space)
    for path, part in parts.items():
        check(isinstance(part, gymnasium.spaces.Box), f"observation space, key {path!r}", part, "a Box")
    first = GOAL_KEYS if set(GOAL_KEYS) <= set(space.spaces) else ()

    def rank(path: str) -> tuple[int, list[str]]:
        keys = path.split(SEPARATOR)
        return (first.index(keys[0]) if keys[0] in first else len(first)), keys

    return tuple(sorted(parts, key=rank))


def check_flat(of: str, space: gymnasium.Space[Any], keys: Sequence[str]) -> None:
    """Raise InputError if an observation of a space, or an entry of it at one of `keys`, has more than one axis."""
    parts: Any = leaves(space.spaces) if isinstance(space, gymnasium.spaces.Dict) else {"": space}
    for key in keys or ("",):
        shape, field = tuple(parts[key].shape), f"observation space of {of}" + (f", key {key!r}" if key else "")
        check(len(shape) <= 1, field, shape, "one axis", "Only flat observations work, neither images nor matrices.")
