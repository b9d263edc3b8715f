"""The settings that an unknown name may stand for, the nearest first."""

import dataclasses
import difflib
from collections.abc import Iterable, Mapping
from typing import Any, Literal, get_args, get_origin

from jaxpgd.options import hints_of

_MOST = 4  # names in a message
_LIKE, _ALIKE = 0.6, 0.75  # difflib's ratio from which on names count as spellings of each other


def unknown_key(
    name: str, config: Any, given: Mapping[str, Any], *, table: bool = False, before: str = "", written: str = ""
) -> str:
    """What to say of a dotted name that is no setting of `config`, a dataclass of sections, nor one of its tables.

    `given` are nested values that go on top of the config's: they choose among kinds. `before` stands before every name;
    `written` is the unknown one as it was given, where that differs.
    """
    unknown = f"unknown key {written or before + name!r}"
    found = [repr(before + each) for each in nearest(name, config, given, table=table)]
    if found:
        return f"{unknown}. Did you mean {' or '.join(filter(None, (', '.join(found[:-1]), found[-1])))}?"
    names = _names(type(config))
    section = next(part for part in _upwards(name) if part in names or not part)
    inside = [each.rpartition(".")[2] for each in names if each.rpartition(".")[0] == section]
    where = f"section {section!r}" if section else "a config"
    return f"{unknown}: expected one of {', '.join(inside)} in {where}."


def nearest(name: str, config: Any, given: Mapping[str, Any], *, table: bool = False) -> list[str]:
    """The dotted names of settings (of sections, for a `table`) that are meant, as far as any is likely.

    Another spelling in the same section comes before the same name in a section below, and that before the same name anywhere.
    """
    names = _names(type(config))
    wanted = [each for each, is_section in names.items() if is_section == table]
    section, _, key = name.rpartition(".")
    if section and not names.get(section):
        inside = [each for each in wanted if each.endswith(f".{name}")]  # td3_bc.lr, without the section around it
        near = difflib.get_close_matches(section, [each for each, is_section in names.items() if is_section], 1, _LIKE)
        if inside or not near:
            return inside[:_MOST] or nearest(key, config, given, table=table)
        name = f"{near[0]}.{key}"
        return [name] if name in wanted else nearest(name, config, given, table=table)
    own = [each for each in wanted if each.rpartition(".")[0] == section]
    below = [each for each in wanted if each.startswith(f"{section}." if section else "") and each not in own]
    elsewhere = [each for each in wanted if each not in own and each not in below]
    same = lambda among: sorted((each for each in among if each.rpartition(".")[2] == key), key=lambda each: each.count("."))
    for found in (
        _spellings(key, own, _ALIKE), _sharing(key, own) + same(below), same(elsewhere), _spellings(key, own, _LIKE),
        _spellings(key, below, _ALIKE) or _sharing(key, below), _spellings(key, elsewhere, _ALIKE),
    ):  # fmt: skip
        if found:
            return _chosen(found, config, given)[:_MOST]
    return []


def _names(section: Any, prefix: str = "") -> dict[str, bool]:
    """Every setting and every section by its dotted name, and whether it is a section."""
    found: dict[str, bool] = {}
    for key, hint in hints_of(section).items():
        found[prefix + key] = dataclasses.is_dataclass(hint)
        found |= _names(hint, f"{prefix}{key}.") if dataclasses.is_dataclass(hint) else {}
    return found


def _upwards(name: str) -> Iterable[str]:
    """The name, what it is in, and so on, down to the empty name."""
    while name:
        yield name
        name = name.rpartition(".")[0]
    yield ""


def _spellings(key: str, among: list[str], ratio: float) -> list[str]:
    """The two of dotted names whose last part is most like `key`, as far as that is like it by `ratio`."""
    return _by_likeness(key, [each for each in among if _likeness(key, each) >= ratio])


def _sharing(key: str, among: list[str]) -> list[str]:
    """The two whose last part is most like `key` of those that have all of its words."""
    return _by_likeness(key, [each for each in among if set(key.split("_")) <= set(each.rpartition(".")[2].split("_"))])


def _by_likeness(key: str, among: list[str]) -> list[str]:
    return sorted(among, key=lambda each: -_likeness(key, each))[:2]


def _likeness(key: str, name: str) -> float:
    return difflib.SequenceMatcher(None, key, name.rpartition(".")[2]).ratio()


def _chosen(found: list[str], config: Any, given: Mapping[str, Any]) -> list[str]:
    """Without those of kinds that are not chosen, where any other is there."""
    return [each for each in found if not any(_is_other_kind(part, config, given) for part in _upwards(each))] or found


def _is_other_kind(section: str, config: Any, given: Mapping[str, Any]) -> bool:
    """Whether a section is that of one kind of its parent, which is of another."""
    *parents, name = section.split(".")
    for parent in parents:
        config, given = getattr(config, parent), _table(given.get(parent))
    hint = hints_of(type(config)).get("kind") if dataclasses.is_dataclass(config) else None
    kinds = [kind for kind in get_args(hint) if hasattr(config, kind)] if get_origin(hint) is Literal else []
    kind = given.get("kind", getattr(config, "kind", None))
    return name in kinds and kind in kinds and kind != name


def _table(values: Any) -> Mapping[str, Any]:
    return values if isinstance(values, Mapping) else {}
