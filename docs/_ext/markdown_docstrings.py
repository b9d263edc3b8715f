"""Docstrings are plain text with Markdown's code spans, lists and indented blocks; autodoc expects reStructuredText."""

import re

from sphinx.application import Sphinx

ITEM = re.compile(r"\s*(-|\d+\.) ")


def as_rst(text: str) -> str:
    """Doubles the backticks of code spans, and takes every other character as it is."""
    pieces = re.split(r"(`[^`]+`)", text)
    code = lambda piece: f"``{' '.join(piece[1:-1].split())}``"
    plain = lambda piece: re.sub(r"([*|\\]|_(?!\w))", r"\\\1", piece)
    joined = "".join(code(piece) + "\\ " if piece.startswith("`") and len(piece) > 2 else plain(piece) for piece in pieces)
    return re.sub(r"\\ (?=[\s.,;:!?)\]'\"/-]|$)", "", joined)


def separated(lines: list[str]) -> list[str]:
    """A blank line before and after every list, which reStructuredText needs and Markdown does not."""
    found: list[str] = []
    for line in lines:
        before = found[-1] if found else ""
        listed = ITEM.match(before) or before.startswith(" ")
        if line.strip() and before.strip() and bool(listed) != bool(ITEM.match(line) or line.startswith(" ")):
            found.append("")
        found.append(line)
    return found


def paragraphs(lines: list[str]) -> list[str]:
    """The converted lines of a docstring; a paragraph that is indented by four spaces is shown as it stands."""
    found: list[str] = []
    for block in "\n".join(lines).split("\n\n"):
        inside = block.strip("\n").split("\n")
        if all(line.startswith("    ") for line in inside):
            found += ["::", "", *inside, ""]
        else:
            found += [*separated(as_rst("\n".join(inside)).split("\n")), ""]
    return found


def convert(app: Sphinx, what: str, name: str, of: object, options: object, lines: list[str]) -> None:
    """Converts one docstring in place."""
    lines[:] = paragraphs(lines)


def setup(app: Sphinx) -> dict[str, bool]:
    """Registers the extension."""
    app.connect("autodoc-process-docstring", convert)
    return {"parallel_read_safe": True}
