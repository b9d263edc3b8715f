"""Arguments of commands: each is defined once, for reading the command line and for its help."""

import dataclasses
import textwrap
from collections.abc import Callable
from typing import Any

from jaxpgd.errors import InputError, check

_WIDTH = 100  # columns of a help text


def numbers(text: str) -> tuple[float, ...]:
    """Numbers separated by commas."""
    return tuple(float(part) for part in text.split(","))


def counts(text: str) -> tuple[int, ...]:
    """Whole numbers separated by commas."""
    return tuple(int(part) for part in text.split(","))


def names(text: str) -> tuple[str, ...]:
    """Names separated by commas."""
    return tuple(part.strip() for part in text.split(","))


@dataclasses.dataclass(frozen=True)
class Argument:
    """An option `--name VALUE`, a flag `--name` (no `value`), or a positional argument, shown as its `value`."""

    name: str  # in Python: underscores in place of dashes
    value: str
    help: str
    convert: Callable[[str], Any] = str
    required: bool = False
    several: bool = False  # positional: one or more; an option: may be given again

    @property
    def option(self) -> str:
        """As it is written."""
        return "--" + self.name.replace("_", "-")


@dataclasses.dataclass(frozen=True)
class Command:
    """A command of `jaxpgd`: what it takes, what its help says, and what it calls.

    `call` gets the arguments by name, and under "settings" the words of `--section.key VALUE` where it takes settings.
    `interrupted` says what an interruption leaves.
    """

    name: str
    text: str
    call: Callable[[dict[str, Any]], None]
    positional: tuple[Argument, ...] = ()
    options: tuple[Argument, ...] = ()
    settings: str = ""  # how the settings that it takes are written; "": it takes none
    distributed: bool = False  # several processes may share it
    interrupted: str = "the same command does it again"

    def usage(self) -> str:
        """`name`, what it needs, and what it may have."""
        words = [self.name]
        for argument in self.positional:
            shown = argument.value if argument.required else f"[{argument.value}]"
            words.append(f"{shown} [{argument.value} ...]" if argument.several else shown)
        for argument in self.options:
            shown = f"{argument.option} {argument.value}".strip() + (" ..." if argument.several else "")
            words.append(shown if argument.required else f"[{shown}]")
        words += ["[--distributed]"] if self.distributed else []
        return " ".join([*words, f"[{self.settings} ...]"] if self.settings else words)

    def help(self) -> str:
        """Usage, text and every argument."""
        usage = textwrap.fill(
            f"usage: jaxpgd {self.usage()}", _WIDTH, subsequent_indent=" " * 8, break_on_hyphens=False, break_long_words=False
        )
        lines = [usage, "", textwrap.fill(self.text, _WIDTH)]
        for argument in (*self.positional, *self.options):
            shown = f"{argument.option} {argument.value}".strip() if argument in self.options else argument.value
            lines += ["", "  " + shown, textwrap.fill(argument.help, _WIDTH, initial_indent=" " * 6, subsequent_indent=" " * 6)]
        return "\n".join(lines)

    def summary(self) -> str:
        """Name and first sentence."""
        first = self.text.split(". ")[0].removesuffix(".")
        return textwrap.fill(f"  {self.name:<18}{first}", _WIDTH, subsequent_indent=" " * 20)

    def read(self, args: list[str]) -> dict[str, Any]:
        """The arguments by name: those given, and flags. Raises InputError."""
        found: dict[str, Any] = {each.name: False for each in self.options if not each.value}
        settings, places, rest = list[str](), list(self.positional), _split(args)
        while rest:
            word = rest.pop(0)
            option = next((each for each in self.options if word in (each.option, "--" + each.name)), None)
            if option is not None:
                self._read_option(option, rest, found, word)
            elif word.startswith("--") and self.settings:
                settings += [word, *_values(rest)]
            elif word.startswith("--"):
                known = "one of " + ", ".join(each.option for each in self.options) if self.options else "no option"
                check(False, "option", word, known, f"See `jaxpgd {self.name} --help`.")
            elif places and places[0].several:
                found[places[0].name] = (*found.get(places[0].name, ()), word)
            elif places:
                found[places.pop(0).name] = word
            else:
                said = "options --section.key VALUE after the config file" if self.settings else "no further argument"
                check(False, "argument", word, said)
        self._check_required(found, args)
        return found | ({"settings": settings} if self.settings else {})

    def _read_option(self, option: Argument, rest: list[str], found: dict[str, Any], word: str) -> None:
        if not option.value:
            found[option.name] = True
            return
        value = rest.pop(0) if rest else ""
        check(bool(value) and not value.startswith("--"), word, value, "a value after it")
        try:
            converted = option.convert(value)
        except InputError:
            raise
        except ValueError:
            raise InputError(f"{word} = {value!r}: expected {option.convert.__name__}.") from None
        found[option.name] = (*found.get(option.name, ()), converted) if option.several else converted

    def _check_required(self, found: dict[str, Any], args: list[str]) -> None:
        missing = [each.value for each in self.positional if each.required and each.name not in found]
        said = f"{', '.join(missing)} as well"
        check(not missing, "arguments", " ".join(args), said, f"See `jaxpgd {self.name} --help`.")
        for each in self.options:
            check(not each.required or each.name in found, each.option, None, each.help.rstrip("."))


def _split(args: list[str]) -> list[str]:
    """`--name=VALUE` as two words."""
    return [part for word in args for part in (word.split("=", 1) if word.startswith("--") and "=" in word else [word])]


def _values(rest: list[str]) -> list[str]:
    """The words up to the next option, taken from `rest`."""
    end = next((i for i, word in enumerate(rest) if word.startswith("--")), len(rest))
    values = rest[:end]
    del rest[:end]
    return values
