"""The help of every setting, as tyro formats it: types, defaults and help texts are those of the options' fields."""

import dataclasses
from typing import Annotated, Any

import tyro

from jaxpgd.experiment.config import Config
from jaxpgd.options import hints_of


def print_settings(program: str, text: str) -> None:
    """Print what the settings of a config are, under the usage of `program` and a `text`, and leave the process."""
    tyro.cli(_documented(Config), args=["--help"], prog=program, description=text)


def _documented(section: type[Any]) -> type[Any]:
    """The same options with their help texts where tyro reads them."""
    hints, fields = hints_of(section), list[tuple[str, Any, Any]]()
    for field in dataclasses.fields(section):
        if dataclasses.is_dataclass(hints[field.name]):
            inner = _documented(hints[field.name])
            fields.append((field.name, inner, dataclasses.field(default_factory=inner)))
        else:
            annotated: Any = Annotated  # whose arguments are computed here, which type checkers refuse
            hint = annotated[hints[field.name], tyro.conf.arg(help=field.metadata["help"])]
            fields.append((field.name, hint, dataclasses.field(default=field.default)))
    documented = dataclasses.make_dataclass(section.__name__, fields, frozen=True)
    documented.__doc__ = section.__doc__
    return documented
