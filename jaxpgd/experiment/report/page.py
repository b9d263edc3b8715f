"""A report in one self-contained HTML file, and the same tables as text for the terminal."""

import base64
import html
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from jaxpgd.errors import InputError
from jaxpgd.files import write_text

_CSS = """
:root { color-scheme: light dark; --line: #bbb; --soft: #f3f3f3; }
@media (prefers-color-scheme: dark) { :root { --line: #555; --soft: #262626; } }
body { font: 16px/1.5 system-ui, sans-serif; max-width: 62rem; margin: 2rem auto; padding: 0 1rem; overflow-wrap: break-word; }
h1 { line-height: 1.2; } h2 { margin-top: 2.2rem; font-size: 1.2rem; } li { margin: .3rem 0; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; } .wide { overflow-x: auto; }
th, td { padding: .3rem .8rem; border-bottom: 1px solid var(--line); text-align: left; } .number { text-align: right; }
th { vertical-align: bottom; } th.long { min-width: 11rem; }
td { vertical-align: top; min-width: 3rem; } td.short, td.number { white-space: nowrap; }
figure { margin: 0; overflow-x: auto; }
img { max-width: 100%; height: auto; background: #fff; border-radius: 4px; }
figcaption { opacity: .8; font-size: .92rem; } summary { cursor: pointer; margin: .6rem 0; }
pre { background: var(--soft); padding: .8rem; overflow-x: auto; }
"""
_SHORT, _LONG = 32, 30  # characters of a cell that is not broken, and of a heading that is broken a few times at most
_LEAST_SCALE, _MOST_WIDTH = 0.45, "58rem"  # of a figure on a narrow screen, which scrolls rather than shrink its text further


class Report:
    """Collects parts in order and writes them: `Report("Run").text(...).table(...).write(path)`. All text is escaped."""

    def __init__(self, title: str) -> None:
        self._title = title
        self._parts: list[str] = []

    def text(self, text: str) -> "Report":
        """Paragraphs, separated by blank lines."""
        self._parts += [f"<p>{html.escape(p.strip())}</p>" for p in text.split("\n\n") if p.strip()]
        return self

    def points(self, lines: Sequence[str]) -> "Report":
        """A list of sentences; nothing where there is none."""
        if lines:
            self._parts.append("<ul>" + "".join(f"<li>{html.escape(line)}</li>" for line in lines) + "</ul>")
        return self

    def table(self, title: str, rows: Sequence[Mapping[str, Any]], caption: str = "") -> "Report":
        """A table with one row per mapping; columns in order of appearance, missing values empty."""
        columns = _columns(rows)
        head = "".join(f"<th{_class(rows, c, c)}>{html.escape(c)}</th>" for c in columns)
        body = "".join(
            "<tr>" + "".join(f"<td{_class(rows, c)}>{html.escape(_cell(row.get(c)))}</td>" for c in columns) + "</tr>"
            for row in rows
        )
        note = f"<p>{html.escape(caption)}</p>" if caption else ""
        grid = f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"
        self._parts.append(f'<h2>{html.escape(title)}</h2><div class="wide">{grid}</div>{note}')
        return self

    def figure(self, title: str, path: str | Path, caption: str = "") -> "Report":
        """A PNG file, embedded. Raises InputError where it cannot be read."""
        try:
            data = Path(path).read_bytes()
        except OSError as error:
            raise InputError(f"figure = {str(path)!r}: expected a readable PNG file ({error.strerror}).") from error
        name, source = html.escape(title), f"data:image/png;base64,{base64.b64encode(data).decode()}"
        self._parts.append(
            f'<h2>{name}</h2><figure><img alt="{name}"{_least_width(data)} src="{source}">'
            f"<figcaption>{html.escape(caption)}</figcaption></figure>"
        )
        return self

    def details(self, title: str, text: str) -> "Report":
        """Preformatted text that opens on demand, such as the configuration."""
        self._parts.append(f"<details><summary>{html.escape(title)}</summary><pre>{html.escape(text)}</pre></details>")
        return self

    def html(self) -> str:
        """The whole document."""
        title = html.escape(self._title)
        head = '<meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">'
        return (
            f'<!doctype html>\n<html lang="en"><head>{head}<title>{title}</title><style>{_CSS}</style></head>\n'
            f"<body><h1>{title}</h1>\n" + "\n".join(self._parts) + "\n</body></html>\n"
        )

    def write(self, path: str | Path) -> Path:
        """Write the document; a reader never sees half of it."""
        write_text(path, self.html())
        return Path(path)


def text_table(rows: Sequence[Mapping[str, Any]]) -> str:
    """The rows as aligned text columns, numbers to the right; empty for no rows."""
    columns = _columns(rows)
    if not columns:
        return ""
    cells = [columns] + [[_cell(row.get(c)) for c in columns] for row in rows]
    widths = [max(len(line[i]) for line in cells) for i in range(len(columns))]
    right = [_numeric(rows, c) for c in columns]
    align = lambda line: "  ".join(
        v.rjust(w) if r else v.ljust(w) for v, w, r in zip(line, widths, right, strict=True)
    ).rstrip()
    return "\n".join([align(cells[0]), "  ".join("-" * w for w in widths), *map(align, cells[1:])])


def _least_width(png: bytes) -> str:
    """The style of an image that keeps its text readable; nothing where these are not the bytes of a PNG file."""
    if not png.startswith(b"\x89PNG") or len(png) < 24:
        return ""
    width = int.from_bytes(png[16:20], "big")
    return f' style="min-width: min({_LEAST_SCALE * width:.0f}px, {_MOST_WIDTH})"'


def _columns(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    return list(dict.fromkeys(key for row in rows for key in row))


def _numeric(rows: Sequence[Mapping[str, Any]], column: str) -> bool:
    values = [row[column] for row in rows if row.get(column) is not None]
    return bool(values) and all(hasattr(v, "__float__") and not isinstance(v, str) for v in values)


def _class(rows: Sequence[Mapping[str, Any]], column: str, heading: str = "") -> str:
    """The class of the cells of a column, or of its heading: numbers to the right, short texts in one line."""
    short = all(len(_cell(row.get(column))) <= _SHORT for row in rows)
    names = ["number"] if _numeric(rows, column) else ["short"] if short else []
    names += ["long"] if len(heading) > _LONG else []
    return f' class="{" ".join(names)}"' if names else ""


def _cell(value: Any) -> str:
    """Text of a value; numbers get about four significant digits, large ones none after the point."""
    if value is None:
        return ""
    if isinstance(value, bool | int | str) or not hasattr(value, "__float__"):
        return str(value)
    number = float(value)
    if not math.isfinite(number):
        return "n/a" if math.isnan(number) else str(number)
    return f"{number:.1f}" if 100 <= abs(number) < 1e6 else f"{number:.4g}"
