"""The site: Sphinx reads the pages of this folder. `make docs` builds it in build/site."""

import re
import sys
from pathlib import Path

HERE = Path(__file__).parent
sys.path[:0] = [str(HERE.parent), str(HERE)]

from fastsock._version import __version__  # noqa: E402
from fastsock.client.options import LoadOptions  # noqa: E402
from fastsock.server.options import ServerOptions  # noqa: E402

project = "fastsock"
version = release = __version__
html_title = f"fastsock {__version__}"
language = "en"

extensions = [
    "myst_parser",
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",
    "sphinx_click",
    "sphinx_copybutton",
    "source_pages",
]
exclude_patterns = ["experiments", "pictures"]

# A link or an anchor that leads nowhere is an error. Types of the standard library and private ones
# have no page here: the site is built without a network.
nitpicky = True
nitpick_ignore_regex = [(r"py:.*", r"(?!fastsock\.(load|serve|Server|Endpoint)).*")]

myst_enable_extensions = ["attrs_inline"]
myst_heading_anchors = 4

autodoc_member_order = "bysource"
autodoc_typehints = "none"  # the text of each option has its unit
default_role = "code"

copybutton_prompt_text = r"\$ "
copybutton_prompt_is_regexp = True
copybutton_only_copy_prompt_lines = True
copybutton_line_continuation_character = "\\"

smartquotes = False  # it would make one dash of --

html_theme = "furo"
html_static_path = ["_static"]
html_css_files = ["site.css"]
html_copy_source = False
html_show_sphinx = False
html_show_copyright = False
pygments_style = "default"
pygments_dark_style = "github-dark"


def without_options(app, what, name, obj, options, lines):
    """Leave out the arguments that are options: options.md has them, once for all functions."""
    names = {*LoadOptions.__slots__, *ServerOptions.__slots__}
    kept, is_option = [], False
    for line in lines:
        if argument := re.match(r" {4}(\w+): ", line):
            is_option = argument[1] in names
        elif not line.startswith(" " * 8):
            is_option = False
        kept += [] if is_option else [line]
    lines[:] = kept


def without_variables(app, context, lines):
    """Leave out the environment variables, for which sphinx-click has no event: options.md."""
    for parameter in context.command.params:
        parameter.envvar = None


def with_code(app, context, lines):
    """Mark addresses in help texts: reStructuredText would make links of them."""
    lines[:] = [re.sub(r"(?<![`\w])\w+://[\w:]+", r"``\g<0>``", line) for line in lines]


def with_example(app, context, lines):
    """Show the example of a command, and that of the group, which sphinx-click makes prose."""
    shown = [line[2:] for line in lines if line.startswith("| ")]
    lines[:] = [line for line in lines if not line.startswith("| ")]
    shown += getattr(context.command, "example", "").splitlines()
    lines += ["", ".. code-block:: sh", "", *(f"   {line}" for line in shown), ""]


def setup(app):
    app.connect("autodoc-process-docstring", without_options, priority=400)  # before napoleon's
    app.connect("sphinx-click-process-options", with_code)
    app.connect("sphinx-click-process-description", without_variables)
    app.connect("sphinx-click-process-description", with_example)
