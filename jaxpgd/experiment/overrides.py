"""Options of the command line, `--section.key VALUE ...`, as nested values of the settings."""

import contextlib
import dataclasses
import types
from typing import Any, get_args, get_origin

from jaxpgd.errors import InputError, check
from jaxpgd.experiment.config import Config
from jaxpgd.experiment.nearest import unknown_key
from jaxpgd.options import hints_of


def setting_types(section: Any = Config, prefix: str = "") -> dict[str, Any]:
    """The type of every setting by its dotted name."""
    found: dict[str, Any] = {}
    for key, hint in hints_of(section).items():
        found |= setting_types(hint, f"{prefix}{key}.") if dataclasses.is_dataclass(hint) else {prefix + key: hint}
    return found


def read_overrides(args: list[str], config: Config | None = None) -> dict[str, Any]:
    """Nested values of `--section.key VALUE ...`; dashes count as underscores, `--section.no-key` is false.

    A value that does not read as its setting's type stays a string, which `config.load_config` then refuses.
    Raises InputError for words that are no setting, naming the nearest of the `config` that they are to change, and for
    settings without a value.
    """
    hints, values, unknown = setting_types(), dict[str, Any](), list[str]()
    rest = list(args)
    while rest:
        word = rest.pop(0)
        check(word.startswith("--"), "argument", word, "options --section.key VALUE after the config file")
        texts = []
        while rest and not rest[0].startswith("--"):
            texts.append(rest.pop(0))
        name, negated = _name(word, hints)
        if name not in hints:
            unknown.append(word)
            continue
        check(not (negated and texts), "option", " ".join([word, *texts]), "no value")
        _put(values, name, False if negated else _value(texts, hints[name], word))
    for word in unknown:  # now that all that is known is read: the kind of agent may come last
        said = unknown_key(word[2:].replace("-", "_"), config or Config(), values, before="--", written=word)
        raise InputError(f"option: {said}")
    return values


def _name(word: str, hints: dict[str, Any]) -> tuple[str, bool]:
    """The setting that a word names, if there is one, and whether it is a negated flag."""
    name = word[2:].replace("-", "_")
    if name in hints:
        return name, False
    section, _, key = name.rpartition(".")
    positive = f"{section}.{key.removeprefix('no_')}".lstrip(".")
    if key.startswith("no_") and hints.get(positive) is bool:
        return positive, True
    return name, False


def _value(texts: list[str], hint: Any, word: str) -> Any:
    if get_origin(hint) is tuple:
        return [_scalar(text, get_args(hint)[0]) for text in texts]
    if hint is bool and not texts:
        return True
    check(len(texts) == 1, "option", " ".join([word, *texts]), "one value")
    return _scalar(texts[0], hint)


def _scalar(text: str, hint: Any) -> Any:
    if isinstance(hint, types.UnionType):
        return None if text.lower() == "none" else _scalar(text, get_args(hint)[0])
    if hint is bool:
        return {"true": True, "false": False}.get(text.lower(), text)
    with contextlib.suppress(ValueError):
        return hint(text) if hint in (int, float) else text
    return text


def _put(values: dict[str, Any], name: str, value: Any) -> None:
    *sections, key = name.split(".")
    for section in sections:
        values = values.setdefault(section, {})
    values[key] = value
