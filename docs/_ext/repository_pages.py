"""Pages whose sources lie elsewhere in the repository, and links between all pages.

Notebooks, results, CONTRIBUTING, CHANGELOG and the benchmarks' README are copied into the site's sources when it is built.
Markdown links as they work in a checkout lead to pages of the site where their files are pages. A link to any other file of
the repository stays a link to that file, which Sphinx offers as a download; one to a module leads to it in the API reference.
"""

import os
import re
import shutil
from pathlib import Path

from sphinx.application import Sphinx
from sphinx.config import Config

ROOT = Path(__file__).resolve().parents[2]
SINGLE = {"contributing.md": "CONTRIBUTING.md", "changelog.md": "CHANGELOG.md"}
FOLDERS = {"notebooks": "*.ipynb", "benchmarks": "**/*.md"}
CONTENTS = ("benchmarks/README", "benchmarks/results/README")  # pages that list those below them
LINK = re.compile(r"(?P<open>!?\[(?:[^\[\]]|\[[^\]]*\])*\]\()(?P<path>(?![a-z]+:|#)[^)#\s]+)(?P<anchor>#[^)\s]*)?\)")


def copied(docs: Path) -> dict[Path, Path]:
    """The pages of the site that are copies: path in `docs` -> path of the source."""
    pages = {docs / name: ROOT / source for name, source in SINGLE.items()}
    for folder, pattern in FOLDERS.items():
        pages |= {docs / p.relative_to(ROOT): p for p in sorted((ROOT / folder).glob(pattern))}
    return pages


def copy(app: Sphinx, config: Config) -> None:
    """Copies what has changed, and removes copies whose source has gone."""
    pages = copied(Path(app.srcdir))
    for page in [p for folder in FOLDERS for p in (Path(app.srcdir) / folder).rglob("*") if p.is_file()]:
        if page not in pages:
            page.unlink()
    for page, source in pages.items():
        page.parent.mkdir(parents=True, exist_ok=True)
        if not page.is_file() or page.read_bytes() != source.read_bytes():
            shutil.copyfile(source, page)


def rewrite(app: Sphinx, docname: str, content: list[str]) -> None:
    """Resolves the links of one page, from where its source lies."""
    page, sources = Path(app.env.doc2path(docname)), copied(Path(app.srcdir))
    sites = {source: site for site, source in sources.items()}

    def resolved(match: re.Match[str]) -> str:
        target = (sources.get(page, page).parent / match["path"]).resolve()
        if (target / "README.md").is_file():
            target /= "README.md"
        if target.is_relative_to(ROOT / "jaxpgd") and target.suffix == ".py":
            name = ".".join(target.relative_to(ROOT).with_suffix("").parts)
            room = ".".join(name.split(".")[:2])
            return f"{match['open']}/api/generated/{room}.md#{name.replace('.', '')})"
        relative = Path(os.path.relpath(sites.get(target, target), page.parent)).as_posix()
        return f"{match['open']}{relative}{match['anchor'] or ''})"

    content[0] = LINK.sub(resolved, content[0])
    if docname in CONTENTS:
        content[0] += contents(docname, content[0], app.env.found_docs)


def contents(docname: str, text: str, found: set[str]) -> str:
    """A hidden table of contents of the pages below a page, in the order in which it links them."""
    folder = docname.removesuffix("README")
    others = tuple(page.removesuffix("README") for page in CONTENTS if page.startswith(folder) and page != docname)
    below = {page for page in found if page.startswith(folder) and not page.startswith(others)} - {docname}
    order = {page: text.find(f"({page.removeprefix(folder)}.md") % len(text) for page in below}
    listed = "\n".join(page.removeprefix(folder) for page in sorted(below, key=lambda page: (order[page], page)))
    return f"\n\n```{{toctree}}\n:hidden:\n\n{listed}\n```\n"


def setup(app: Sphinx) -> dict[str, bool]:
    """Registers the extension."""
    app.connect("config-inited", copy)
    app.connect("source-read", rewrite)
    return {"parallel_read_safe": True}
