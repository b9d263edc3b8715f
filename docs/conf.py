"""Sphinx configuration: `make docs` builds the site into docs/_build/html, with warnings as errors.

Extensions in `_ext` copy pages that lie elsewhere in the repository, and write what is read from the code.
"""

import sys
from pathlib import Path

DOCS = Path(__file__).parent
sys.path[:0] = [str(DOCS.parent), str(DOCS / "_ext")]

import jaxpgd  # noqa: E402

project = "jaxpgd"
author = "the jaxpgd developers"
copyright = author
version = release = jaxpgd.__version__

extensions = [
    "myst_nb",
    "sphinx.ext.autodoc",
    "sphinx.ext.viewcode",
    "sphinx_copybutton",
    "markdown_docstrings",
    "repository_pages",
    "generated_tables",
    "mathml",
]
exclude_patterns = ["_build", "**/.ipynb_checkpoints"]

myst_enable_extensions = ["dollarmath", "deflist"]
myst_heading_anchors = 4
nb_execution_mode = "off"
nb_merge_streams = True

autodoc_member_order = "bysource"
autodoc_typehints = "signature"
autodoc_preserve_defaults = True
autodoc_default_options = {"exclude-members": "replace"}  # of every struct dataclass
add_module_names = False
toc_object_entries_show_parents = "hide"
highlight_language = "text"  # of code blocks that name no language
python_maximum_signature_line_length = 100

html_math_renderer = "mathml"
html_theme = "furo"
html_title = f"jaxpgd {version}"
html_static_path = ["_static"]
html_css_files = ["jaxpgd.css"]
html_show_copyright = False
copybutton_exclude = ".linenos, .gp, .go"
