"""Settings of Sphinx for the guide: `make docs` builds it to site/."""

import sys
from pathlib import Path

import vaentropy

# extension.py stands beside this file.
sys.path.insert(0, str(Path(__file__).parent))

project = "vaentropy"
author = "The vaentropy authors"
copyright = author
version = release = vaentropy.__version__

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "extension"]

myst_heading_anchors = 3
# Formulas, tables and shell commands stand in blocks too.
highlight_language = "none"

autodoc_member_order = "bysource"
autodoc_preserve_defaults = True
autodoc_typehints_format = "short"
maximum_signature_line_length = 80
napoleon_numpy_docstring = False
napoleon_use_rtype = False
napoleon_use_ivar = True
# Shapes in annotations are no markup.
napoleon_attr_annotations = False

# Furo takes the fonts of the reader's system, and no formula on a page has to be drawn by a script: nothing is loaded
# from elsewhere.
html_theme = "furo"
html_title = f"vaentropy {version}"
html_copy_source = False
html_show_sphinx = False
# A summary would be fetched, which browsers refuse to pages that are opened as files.
html_show_search_summary = False
