"""What the site needs besides Sphinx's own: the notebooks as pages, links to them, mathematics, and the commands' help.

Everything is made when the site is built; a reader's browser fetches nothing from elsewhere.
"""

import argparse
import functools
import pathlib
import re
import shutil

from docutils import nodes
from docutils.utils.math import latex2mathml
from sphinx.transforms.post_transforms import SphinxPostTransform
from sphinx.util.docutils import SphinxDirective
from sphinx.util.nodes import make_refnode

from kerastl.cli.parser import build_parser

DOCS = pathlib.Path(__file__).resolve().parent
NOTEBOOKS = DOCS.parent / "notebooks"

_BADGE = "https://colab.research.google.com/assets/colab-badge.svg"
_NOTEBOOK_LINK = re.compile(r"\[([^\[\]]+)\]\((?:(?:\.\./)+notebooks/)?(\d\d_[^)#/]+\.ipynb)(#[^)]*)?\)")
_PUBLIC_NAME = re.compile(r"(\w+(?:\.\w+)*)(?:\(.*\))?", re.DOTALL)


def copy_notebooks(app) -> None:
    """Bring the kept notebooks into the sources as docs/notebooks/, which git ignores."""
    folder = DOCS / "notebooks"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    for path in NOTEBOOKS.glob("[0-9][0-9]_*.ipynb"):
        shutil.copyfile(path, folder / path.name)


def prepare_source(app, docname: str, source: list[str]) -> None:
    """Let pages link to notebooks and back as the repository does, and take the badge's picture from here.

    `../notebooks/NAME.ipynb` is right where the file is read in the repository; on the site the notebooks lie in
    docs/notebooks/. A notebook whose number isn't there yet is named without a link.
    """
    up, is_notebook = "../" * docname.count("/"), docname.startswith("notebooks/")
    folder = "" if is_notebook else f"{up}notebooks/"

    def link(found: re.Match) -> str:
        text, name, anchor = found.groups()
        is_written = any((DOCS / "notebooks").glob(f"{name[:2]}_*.ipynb"))
        return f"[{text}]({folder}{name}{anchor or ''})" if is_written else text

    source[0] = _NOTEBOOK_LINK.sub(link, source[0])
    if is_notebook:
        source[0] = source[0].replace(_BADGE, f"{up}images/open_in_colab.svg").replace("](../docs/", "](../")


class LinkPublicNames(SphinxPostTransform):
    """Make `kerastl.fit` in a text a link to the API reference, and within the reference `train_head` too."""

    default_priority = 5

    def run(self, **_) -> None:
        for literal in list(self.document.findall(nodes.literal)):
            entry = self._entry(literal.astext())
            if entry is None or any(isinstance(one, nodes.reference) for one in _ancestors(literal)):
                continue
            link = make_refnode(self.app.builder, self.env.docname, entry.docname, entry.node_id, literal.deepcopy())
            literal.replace_self(link)

    def _entry(self, text: str):
        """Return what a text names in the reference, or `None`."""
        found = _PUBLIC_NAME.fullmatch(text)
        if found is None:
            return None
        name = found.group(1)
        # a bare `fit` is Keras's
        if "." not in name and self.env.docname.startswith("api/") and name not in ("fit", "predict", "evaluate"):
            name = f"kerastl.{name}"
        return self.env.domains.python_domain.objects.get(name)


def _ancestors(node):
    while node.parent is not None:
        node = node.parent
        yield node


class CommandHelp(SphinxDirective):
    """`.. command-help:: train` shows what `python -m kerastl train --help` prints; without an argument, the overview."""

    optional_arguments = 1

    def run(self):
        parser = build_parser()
        if self.arguments:
            commands = next(action for action in parser._actions if action.choices and action.dest != "help")
            parser = commands.choices[self.arguments[0]]
        # as wide on every terminal
        parser.formatter_class = functools.partial(argparse.RawDescriptionHelpFormatter, width=88)
        text = parser.format_help()
        return [nodes.literal_block(text, text, language="text")]


def visit_inline_math(translator, node) -> None:
    """Write MathML, which browsers show without a script."""
    translator.body.append(latex2mathml.tex2mathml(node.astext(), as_block=False))
    raise nodes.SkipNode


def visit_block_math(translator, node) -> None:
    translator.body.append(f'<div class="math">{latex2mathml.tex2mathml(node.astext(), as_block=True)}</div>\n')
    raise nodes.SkipNode


def setup(app) -> dict:
    app.connect("builder-inited", copy_notebooks)
    app.connect("source-read", prepare_source)
    app.add_post_transform(LinkPublicNames)
    app.add_directive("command-help", CommandHelp)
    app.add_html_math_renderer("mathml", (visit_inline_math, None), (visit_block_math, None))
    return {"parallel_read_safe": True, "parallel_write_safe": True}
