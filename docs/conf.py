"""Settings of Sphinx. `make docs` builds the site into docs/_build/html; a warning is an error."""

import configparser
import pathlib
import sys

ROOT = pathlib.Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "docs")]  # the code that is documented, and site_parts

import kerastl  # noqa: E402

_settings = configparser.ConfigParser(interpolation=None)
_settings.read(ROOT / "setup.cfg", encoding="utf-8")

project = "kerastl"
author = "the kerastl developers"
copyright = author  # no year, so that two builds are equal
release = version = kerastl.__version__

extensions = ["sphinx.ext.autodoc", "sphinx.ext.napoleon", "myst_nb", "site_parts"]
exclude_patterns = ["_build", "README.md"]
# A page that another part of the project writes may not be there yet
suppress_warnings = ["toc.empty_glob"]
nitpicky = False

# The docstrings mark code with single backticks
default_role = "code"
add_module_names = False
toc_object_entries_show_parents = "hide"
autodoc_member_order = "bysource"
autodoc_typehints = "signature"
autodoc_typehints_format = "short"
autodoc_class_signature = "mixed"
python_maximum_signature_line_length = 76
python_use_unqualified_type_names = True
napoleon_google_docstring = True
napoleon_numpy_docstring = False
napoleon_custom_sections = [("Attributes", "params_style")]
napoleon_use_rtype = False

# Notebooks are shown as they are kept; `make notebooks` runs them
nb_execution_mode = "off"
nb_merge_streams = True
nb_ipywidgets_js = {}  # would be fetched from elsewhere
myst_enable_extensions = ["dollarmath", "deflist", "colon_fence", "attrs_inline", "attrs_block"]
myst_dmath_allow_digits = False
myst_dmath_double_inline = True
myst_heading_anchors = 3
myst_update_mathjax = False
html_math_renderer = "mathml"

html_theme = "furo"
html_title = "kerastl"
html_static_path = ["_static"]
html_css_files = ["site.css"]
html_copy_source = False
html_show_sourcelink = False
html_show_sphinx = False
html_theme_options = {
    "light_css_variables": {"color-brand-primary": "#1f5fa8", "color-brand-content": "#1f5fa8"},
    "dark_css_variables": {"color-brand-primary": "#7db4f0", "color-brand-content": "#7db4f0"},
    "footer_icons": [{"name": "Source", "url": _settings["metadata"]["url"], "html": "Source code", "class": ""}],
}
pygments_style = "friendly"
pygments_dark_style = "github-dark"
