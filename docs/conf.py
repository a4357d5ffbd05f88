"""How Sphinx makes the reference and the pages of this folder: ``make reference``.

Every warning is an error there. So a name that a docstring refers to has to be on a page of
``reference/``; torch's and the standard library's, which lie elsewhere, are named below.
"""

import os
import sys
from pathlib import Path
from typing import Any

from sphinx import addnodes

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))  # the checkout's docstrings, not those of an installed fastrnn

project = "fastrnn"
author = "the fastrnn authors"
html_theme = "furo"
html_title = project

extensions = [
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",
    "sphinx.ext.mathjax",
    "myst_parser",
    "sphinxcontrib.mermaid",
]

# The pages are written for GitHub, too: its anchors of headings, its fence of a drawing.
myst_heading_anchors = 4
myst_fence_as_directive = ["mermaid"]

napoleon_numpy_docstring = False
napoleon_custom_sections = [("Shapes", "params_style")]
napoleon_use_param = False  # an entry may be of several arguments: "device, dtype: ..."
napoleon_use_ivar = True
napoleon_use_rtype = False
napoleon_attr_annotations = False

# The modules of fastrnn.integrations import a library each, whose size is no matter of a docstring.
autodoc_mock_imports = ["lightning", "opacus", "sb3_contrib", "tensordict", "torchrl"]
autodoc_member_order = "bysource"
python_maximum_signature_line_length = 88

nitpicky = True
nitpick_ignore_regex = [
    (r"py:.*", r"(torch|torchrl|sb3_contrib|collections|os|pathlib|typing)\..*"),
    # Variables of annotations, and the base of the layers.
    (r"py:class", r"Tensor|PackedSequence|fastrnn\..*\.(V|Sequences|State|Compilable)"),
    (r"py:class", r"fastrnn\.modules\.RecurrentModule"),
]


def _formula_as_it_stands(
    app: Any, what: str, name: str, thing: object, options: Any, lines: list[str]
) -> None:
    """A page of the zoo has its formula indented, as Markdown has code: say so to Sphinx."""
    if name.startswith("fastrnn.zoo."):
        start = next(i for i, line in enumerate(lines) if line.startswith("    "))
        lines[start:start] = ["::", ""]


def _markdown_beside_the_pages(app: Any, doctree: Any) -> None:
    """A link to Markdown outside of this folder gives the file, as one to any other file does."""
    for link in list(doctree.findall(addnodes.pending_xref)):
        file = Path(f"{link['reftarget']}.md")
        if link.get("refdomain") == "doc" and file.is_absolute() and file.is_file():
            path = os.path.relpath(file, Path(app.env.doc2path(link["refdoc"])).parent)
            link.replace_self(
                addnodes.download_reference(
                    "", "", *link.children, reftarget=path, refdoc=link["refdoc"]
                )
            )


def setup(app: Any) -> None:
    # Sphinx collects files to give at its default priority, 500.
    app.connect("doctree-read", _markdown_beside_the_pages, priority=400)
    app.connect("autodoc-process-docstring", _formula_as_it_stands)
