"""How Sphinx makes the site. ``python docs/build.py`` puts the pages together and calls it.

Sphinx with MyST: the one generator that reads numpydoc docstrings, executed notebooks and Markdown,
and turns every broken reference into an error.
"""

from __future__ import annotations

import regards_nb

project = "regards_nb"
author = "the regards_nb authors"
project_copyright = author
release = version = regards_nb.__version__

extensions = [
    "myst_nb",
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",
]
exclude_patterns = ["generated/*.md", "build.py", "generate.py", "notebooks.py"]

# The notebooks come executed; what needs a script from the network to be seen is not in them.
nb_execution_mode = "off"
myst_enable_extensions = ["colon_fence"]
myst_heading_anchors = 3

default_role = "py:obj"
autodoc_member_order = "bysource"
autodoc_typehints = "none"
autodoc_class_signature = "mixed"
napoleon_google_docstring = False
napoleon_use_rtype = False
napoleon_custom_sections = [("Columns", "params_style")]

html_theme = "furo"
html_title = "regards_nb"
html_show_sphinx = False
