"""What the pages say of the code, read from the code when the site is built.

Markers in a page are replaced:

- `<!-- settings -->` by a table for each section of the config,
- `<!-- commands -->` by the reference of every command,
- `<!-- public names of MODULE -->` by a table of what a module exports,
- `<!-- rooms -->` by the tables of CONTRIBUTING.

`api/generated/` receives a page for each part of the package.
"""

import dataclasses
import importlib
import inspect
import pkgutil
import re
import textwrap
import typing
from pathlib import Path
from typing import Any

from markdown_docstrings import as_rst
from sphinx.application import Sphinx
from sphinx.config import Config as SphinxConfig

import jaxpgd
from jaxpgd.experiment import Config, load_config
from jaxpgd.experiment.command_line import COMMANDS

NAMES = re.compile(r"<!-- public names of ([\w.]+) -->")
ROOT = Path(__file__).resolve().parents[2]


def cell(text: str) -> str:
    """Text as one cell of a Markdown table."""
    return " ".join(text.split()).replace("|", r"\|")


def value(x: Any) -> str:
    """A default as TOML writes it."""
    if isinstance(x, bool):
        return str(x).lower()
    if isinstance(x, tuple):
        return f"[{', '.join(value(y) for y in x)}]"
    return f'"{x}"' if isinstance(x, str) else f"{x:g}" if isinstance(x, float) else str(x)


def allowed(hint: Any, field: dataclasses.Field[Any]) -> str:
    """The choices, or the range, of one setting."""
    choices = [c for c in typing.get_args(hint) if isinstance(c, str)]
    if typing.get_origin(hint) is tuple:
        choices = [c for c in typing.get_args(typing.get_args(hint)[0]) if isinstance(c, str)]
    if choices:
        return ", ".join(f"`{value(c)}`" for c in choices)
    bounds = field.metadata.get("range")
    if hint is bool or bounds is None or hint is str:
        return ""
    if hint is float:
        return f"{bounds.low:g} to {bounds.high:g}".replace("e+0", "e").replace("e-0", "e-")
    return {"positive": "above 0", "nonnegative": "0 or more"}.get(bounds.sign, "")


def settings(section: type, name: str = "") -> str:
    """Headings and tables of a section of the config and of the sections in it."""
    hints, inner = typing.get_type_hints(section), []
    rows = ["| setting | default | meaning | allowed |", "| --- | --- | --- | --- |"]
    for field in dataclasses.fields(section):
        if dataclasses.is_dataclass(hints[field.name]):
            inner.append(settings(typing.cast(type, hints[field.name]), f"{name}.{field.name}".lstrip(".")))
            continue
        default = field.default if field.default is not dataclasses.MISSING else typing.cast(Any, field.default_factory)()
        shown = (f"`{field.name}`", f"`{value(default)}`", field.metadata.get("help", ""), allowed(hints[field.name], field))
        rows.append(f"| {' | '.join(map(cell, shown))} |")
    heading = f"### `[{name}]`" if name else "### Top level"
    table = "\n".join(rows) if len(rows) > 2 else ""
    return "\n\n".join([heading, paragraph(section), table, *inner])


def commands() -> str:
    """Headings, usage and arguments of every command."""
    found = []
    for command in COMMANDS.values():
        usage = textwrap.fill(f"jaxpgd {command.usage()}", 84, subsequent_indent="  ", break_on_hyphens=False)
        found += [f"### `jaxpgd {command.name}`", command.text, f"```text\n{usage}\n```"]
        rows = [f"| `{argument.value}` | {cell(argument.help)} |" for argument in command.positional]
        rows += [f"| `{f'{option.option} {option.value}'.strip()}` | {cell(option.help)} |" for option in command.options]
        found.append("\n".join(["| argument | meaning |", "| --- | --- |", *rows]) if rows else "")
    return "\n\n".join(found)


def paragraph(of: Any) -> str:
    """The first paragraph of a docstring."""
    return " ".join((inspect.getdoc(of) or "").split("\n\n")[0].split())


def public_names(module: str) -> str:
    """A table of the names in `__all__`, each with a link to its definition and its first sentence."""
    rows = ["| name | what it is |", "| --- | --- |"]
    for name in importlib.import_module(module).__all__:
        found = getattr(importlib.import_module(module), name)
        if inspect.ismodule(found):
            rows.append(f"| {{py:mod}}`{module}.{name} <{found.__name__}>` | {cell(paragraph(found))} |")
            continue
        home = f"{inspect.unwrap(found).__module__}.{found.__qualname__}"
        rows.append(f"| {{py:obj}}`{module}.{name} <{home}>` | {cell(paragraph(found).split('. ')[0].rstrip('.:'))} |")
    return "\n".join(rows)


def rooms() -> str:
    """The tables of rooms between their markers in CONTRIBUTING."""
    text = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    return text.split("<!-- rooms -->")[1].split("<!-- /rooms -->")[0].strip()


def fill(app: Sphinx, docname: str, content: list[str]) -> None:
    """Replaces the markers of one page."""
    if docname == "architecture":
        content[0] = content[0].replace("<!-- rooms -->", rooms())
    if "<!-- settings -->" in content[0]:
        content[0] = content[0].replace("<!-- settings -->", settings(Config))
    if "<!-- commands -->" in content[0]:
        content[0] = content[0].replace("<!-- commands -->", commands())
    content[0] = NAMES.sub(lambda match: public_names(match[1]), content[0])


def used_experiments() -> list[str]:
    """The modules of the experiments that notebooks and pages import or link."""
    pages = [ROOT / "README.md", *(ROOT / "docs").glob("*.md"), *(ROOT / "notebooks").glob("*.ipynb")]
    text = "\n".join(page.read_text(encoding="utf-8") for page in pages)
    defined = {found.__module__ for found in (Config, load_config)}
    linked = {name.replace("/", ".") for name in re.findall(r"\]\(\.\./(jaxpgd/experiment/[\w/]+)\.py\)", text)}
    return sorted(defined | linked | set(re.findall(r"from (jaxpgd\.experiment\.[\w.]+) import", text)))


def modules(part: str) -> list[str]:
    """The modules of one part of the package, the part itself first."""
    if part == "jaxpgd.experiment":
        return [part, *used_experiments()]
    package = importlib.import_module(part)
    inner = pkgutil.walk_packages(package.__path__, f"{part}.") if hasattr(package, "__path__") else []
    return [part, *sorted(found.name for found in inner)]


def api_page(part: str) -> str:
    """Markdown of one part: every module with its documented members; of the experiments those that are used from Python."""
    documented = "```{{eval-rst}}\n.. automodule:: {}\n   :members:\n   :ignore-module-all:\n```\n"
    first, *rest = modules(part)
    return "\n".join([f"# {first}\n", documented.format(first), *(f"## {name}\n\n{documented.format(name)}" for name in rest)])


def is_options(of: Any) -> bool:
    """Whether a class is a section of the config: a dataclass whose fields state their help."""
    return isinstance(of, type) and dataclasses.is_dataclass(of) and any("help" in f.metadata for f in dataclasses.fields(of))


def no_signature(app: Sphinx, what: str, name: str, of: Any, *_: Any) -> tuple[str, str] | None:
    """Sections of the config list their fields instead of a signature."""
    return ("", "") if is_options(of) else None


def list_fields(app: Sphinx, what: str, name: str, of: Any, options: Any, lines: list[str]) -> None:
    """Appends the fields of a section of the config to its docstring."""
    for field in dataclasses.fields(of) if is_options(of) else ():
        default = field.default if field.default is not dataclasses.MISSING else None
        shown = f"{type(default).__name__}()" if dataclasses.is_dataclass(default) else value(default)
        lines.append(as_rst(f"- `{field.name} = {shown}`: {field.metadata.get('help', 'a section')}"))


def write_api(app: Sphinx, config: SphinxConfig) -> None:
    """Writes the pages of the API reference, those that have changed."""
    folder = Path(app.srcdir) / "api" / "generated"
    folder.mkdir(exist_ok=True)
    parts = [p.name for p in pkgutil.iter_modules(jaxpgd.__path__) if p.name != "__main__"]
    for page in folder.glob("*.md"):
        if page.stem.removeprefix("jaxpgd.") not in parts:
            page.unlink()
    for part in parts:
        page, text = folder / f"jaxpgd.{part}.md", api_page(f"jaxpgd.{part}")
        if not page.is_file() or page.read_text(encoding="utf-8") != text:
            page.write_text(text, encoding="utf-8")


def setup(app: Sphinx) -> dict[str, bool]:
    """Registers the extension."""
    app.connect("config-inited", write_api)
    app.connect("source-read", fill)
    app.connect("autodoc-process-signature", no_signature)
    app.connect("autodoc-process-docstring", list_fields, priority=900)  # after the docstring was converted
    return {"parallel_read_safe": True}
