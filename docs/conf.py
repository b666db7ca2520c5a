"""Settings of the site: `make docs` builds it into docs/_build/html, without network and with every warning an error.

This file itself needs no package, so that the tests can read it where Sphinx is not installed.
"""

import sys
from pathlib import Path

DOCS = Path(__file__).resolve().parent
ROOT = DOCS.parent
for folder in (DOCS / "_ext", ROOT / "scripts", ROOT / "envs", ROOT):
    sys.path.insert(0, str(folder))

project = "sppo_control"
author = "the authors of sppo_control"
html_show_copyright = False
html_title = "sppo_control"
language = "en"

extensions = [
    "myst_nb",  # Markdown, and notebooks that run while the site is built
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",
    "sphinx.ext.viewcode",
    "docstrings",  # docs/_ext: docstrings are Markdown
    "mathml",  # docs/_ext: formulas without a script or a font from elsewhere
    "optional",  # docs/_ext: pictures and pages that may be absent
    "links",  # docs/_ext: at the end, every link inside the site is tried, and nothing may come from elsewhere
]
exclude_patterns = ["_build", "snippets", "_ext"]
source_suffix = {".md": "myst-nb", ".ipynb": "myst-nb"}
root_doc = "index"
highlight_language = "default"  # Python where it is Python, and plain text where it is a command
pygments_style, pygments_dark_style = "a11y-high-contrast-light", "a11y-high-contrast-dark"

# Strict: make docs passes -W (a warning is an error).
nitpicky = True
nitpick_ignore_regex = [
    # Other packages and the standard library. Their documentation is elsewhere, and the build asks no network for it.
    ("py:.*", r"(torch|numpy|np|npt|gym|gymnasium|transformers|trl|datasets|accelerate|peft|pandas|matplotlib)(\..*)?"),
    ("py:.*", r"(tensorboard|tqdm|_pytest|pytest|hypothesis|safetensors)(\..*)?"),
    ("py:.*", r"(abc|argparse|collections|fractions|os|pathlib|random|threading|types|typing)\..*"),
    # The same, in annotations that only a type checker reads.
    ("py:.*", r"Tensor|Path|Fraction|PreTrainedModel|PreTrainedTokenizer(Base|Fast)|Qwen2Config|Dataset"),
    ("py:.*", r"FloatArray|IntArray|BoolArray|Looks"),  # names for arrays of NumPy and for a dictionary
    ("py:.*", r"(.*\.)?_\w+"),  # private classes are no part of the API
    ("py:.*", r".*\.(ArgsT|T)"),  # type variables
    ("py:.*", r"(dict|tuple)\[str"),  # a piece of the type of a constant, which Sphinx cuts at the comma
]

# Markdown
myst_enable_extensions = ["dollarmath", "colon_fence", "deflist"]
myst_heading_anchors = 4
myst_dmath_double_inline = True
myst_update_mathjax = False

# Notebooks: each build runs them from the start, and a failing cell is an error.
nb_execution_mode = "force"
nb_execution_timeout = 180
nb_execution_raise_on_error = True
nb_execution_show_tb = True
nb_ipywidgets_js: dict[str, dict[str, str]] = {}  # no scripts from elsewhere

# API pages
autodoc_member_order = "bysource"
autodoc_typehints = "signature"
autodoc_default_options = {"members": True, "show-inheritance": True, "ignore-module-all": True}
autodoc_preserve_defaults = True
napoleon_google_docstring = True
napoleon_numpy_docstring = False
napoleon_use_param = False  # one entry may explain several arguments, "reward, value, mask: ..."
napoleon_use_rtype = False
napoleon_use_ivar = True
python_use_unqualified_type_names = True
python_maximum_signature_line_length = 90
add_module_names = False

# Look: furo brings its own files and uses the fonts of the reader's system.
html_theme = "furo"
html_math_renderer = "mathml"
html_static_path = ["_static"]
html_css_files = ["site.css"]
html_show_sphinx = False
html_copy_source = False
html_show_sourcelink = False
html_theme_options = {"navigation_with_keys": True}
