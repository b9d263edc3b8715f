"""Options of components: frozen dataclasses whose fields state default, range and meaning, once.

The options that a component takes are its section of an experiment's config. They are pytrees: real numbers are leaves, which
may be traced and vmapped; sizes, kinds and flags are static.
"""

import dataclasses
import functools
import typing
from collections.abc import Iterator
from typing import Any, Literal, TypeVar, dataclass_transform, get_args, get_origin

import jax
import jax.numpy as jnp

from jaxpgd.errors import check

Options = TypeVar("Options")
_MOST = 1e6  # of real numbers that state no largest value


@dataclasses.dataclass(frozen=True)
class Range:
    """What numbers an option may have: their sign, in words, and for real numbers the least and the largest value.

    Between the ends samples and losses stay finite in float32.
    """

    sign: Literal["", "positive", "nonnegative", "share"]
    low: float
    high: float
    positive: bool = False  # of a share: 0 is not one

    def check(self, name: str, value: Any) -> None:
        """Raise InputError where the value, a number or several, has another sign."""
        if self.sign == "positive" or self.positive:
            check(value > 0, name, value, "a number above 0")
        if self.sign == "nonnegative":
            check(value >= 0, name, value, "a number not below 0")
        if self.sign == "share":
            check(0 <= value <= 1, name, value, "a number from 0 to 1")


def option(default: Any, help: str = "", *, low: float = -_MOST, high: float = _MOST) -> Any:
    """A field of options: its default, its meaning in a phrase and, for real numbers, its ends."""
    return dataclasses.field(default=default, metadata={"help": help, "range": Range("", low, high)})


def positive(default: Any, help: str = "", *, low: float = 1e-6, high: float = _MOST) -> Any:
    """As `option`, for numbers above 0."""
    return dataclasses.field(default=default, metadata={"help": help, "range": Range("positive", low, high)})


def nonnegative(default: Any, help: str = "", *, low: float = 0.0, high: float = _MOST, static: bool = False) -> Any:
    """As `option`, for numbers not below 0; where `static`, a real number that is structure and no leaf."""
    metadata = {"help": help, "range": Range("nonnegative", low, high), "static": static}
    return dataclasses.field(default=default, metadata=metadata)


def share(default: Any, help: str = "", *, low: float = 0.0, high: float = 1.0, positive: bool = False) -> Any:
    """As `option`, for numbers from 0 to 1; where `positive`, above 0."""
    return dataclasses.field(default=default, metadata={"help": help, "range": Range("share", low, high, positive)})


_kept: Any = functools.cache(typing.get_type_hints)  # to plan a study asks for every option of every cell


def hints_of(section: Any) -> dict[str, Any]:
    """The types of the options of a section, which is a class, by name."""
    return _kept(section)  # type: ignore[no-any-return]


@dataclass_transform(frozen_default=True)
def options(cls: type[Options]) -> type[Options]:
    """Class decorator: a frozen dataclass, and a pytree whose leaves are its real numbers and those of its sections."""
    cls = dataclasses.dataclass(frozen=True)(cls)
    own = hints_of(cls)
    numbers = numeric(cls)
    leaves = [name for name, hint in own.items() if name in numbers or dataclasses.is_dataclass(hint)]
    static = [name for name in own if name not in leaves]
    return jax.tree_util.register_dataclass(cls, data_fields=leaves, meta_fields=static)  # type: ignore[type-var]


def as_arrays(section: Options) -> Options:
    """The options with every real number as a float32 array []."""
    return jax.tree.map(lambda x: jnp.asarray(x, jnp.float32), section)  # type: ignore[no-any-return]


def structure(section: Options) -> Options:
    """The options with every real number at 0: equal, and of one hash, for equal structure."""
    return jax.tree.map(lambda _: 0.0, section)  # type: ignore[no-any-return]


def numeric(section: Any) -> list[str]:
    """The names of a section's own options that are real numbers: those that may be traced, vmapped and swept."""
    own = hints_of(section if isinstance(section, type) else type(section))
    return [f.name for f in dataclasses.fields(section) if own[f.name] is float and not f.metadata.get("static", False)]


def get(config: Any, name: str) -> Any:
    """The option of a dotted name."""
    for part in name.split("."):
        config = getattr(config, part)
    return config


def range_of(config: Any, name: str) -> Range:
    """The range of the option of a dotted name, `config` being the options or their class."""
    *sections, last = name.split(".")
    for part in sections:
        config = hints_of(config if isinstance(config, type) else type(config))[part]
    return typing.cast(Range, next(f for f in dataclasses.fields(config) if f.name == last).metadata["range"])


def check_ranges(config: Any, prefix: str = "") -> None:
    """Check choices and ranges of all options of a config, or of one section whose names begin with `prefix`.

    Numbers that are traced, or arrays, are left alone. Raises InputError.
    """
    values = list(_values(config, prefix))
    for check_one in (_check_choice, _check_sign, _check_ends):
        for name, value, hint, range in values:
            check_one(name, value, hint, range)


@functools.cache  # the same for every cell of a study
def _fields(section: Any) -> tuple[tuple[str, Any, Range | None], ...]:
    """Name, type and range of each option of a section; None for sections in it."""
    own = hints_of(section)
    of = {field.name: field.metadata["range"] for field in dataclasses.fields(section) if "range" in field.metadata}
    return tuple((name, hint, None if dataclasses.is_dataclass(hint) else of[name]) for name, hint in own.items())


def names_of(section: Any, prefix: str = "") -> tuple[str, ...]:
    """The dotted names of all options of a section, which is a class, and of the sections in it."""
    return tuple(prefix + name for name in _names(section))


@functools.cache
def _names(section: Any) -> tuple[str, ...]:
    nested = (names_of(hint, f"{name}.") if range is None else (name,) for name, hint, range in _fields(section))
    return tuple(name for names in nested for name in names)


def _values(config: Any, prefix: str) -> Iterator[tuple[str, Any, Any, Range]]:
    """Dotted name, value, type and range of every option."""
    own: Any = type(config)
    for name, hint, range in _fields(own):
        value = getattr(config, name)
        if range is None:
            yield from _values(value, f"{prefix}{name}.")
        else:
            yield prefix + name, value, hint, range


def _check_choice(name: str, value: Any, hint: Any, range: Range) -> None:
    if get_origin(hint) is Literal:
        check(value in get_args(hint), name, value, "one of " + ", ".join(map(repr, get_args(hint))))


def _check_sign(name: str, value: Any, hint: Any, range: Range) -> None:
    if isinstance(value, int | float):
        range.check(name, value)


def _check_ends(name: str, value: Any, hint: Any, range: Range) -> None:
    if hint is int and isinstance(value, int):
        check(value < 2**31, name, value, "a number below 2^31")
    elif hint is float and isinstance(value, int | float):
        check(range.low <= value <= range.high, name, value, f"a number from {range.low:g} to {range.high:g}")
