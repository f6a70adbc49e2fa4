"""Links of the pages to source files lead to a page with the file, at the definition they name.

``[`listener.pyx: _bind`](../fastsock/_native/server/listener.pyx)`` names a file and a definition
in it. Sphinx alone would offer the file for download.
"""

from __future__ import annotations

import posixpath
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from definitions import NAMED, line_of
from docutils import nodes
from pygments import highlight
from pygments.formatters import HtmlFormatter
from pygments.lexers import get_lexer_for_filename
from sphinx import addnodes
from sphinx.application import Sphinx
from sphinx.transforms import SphinxTransform

ROOT = Path(__file__).resolve().parent.parent
SOURCES = {".py", ".pyx", ".pxd", ".c", ".h"}
#: Pages of the top folder that pages of the site include: SECURITY.md is in security.md.
INCLUDED = {str(ROOT / name): name.lower() for name in ("CHANGELOG", "CONTRIBUTING", "SECURITY")}


class SourceLinks(SphinxTransform):
    """Runs before Sphinx copies the files to be downloaded."""

    default_priority = 400

    def apply(self, **_: Any) -> None:
        page = Path(self.env.doc2path(self.env.docname)).parent
        for link in list(self.document.findall(addnodes.download_reference)):
            file = (page / link["reftarget"]).resolve()
            if file.suffix not in SOURCES:
                continue
            reference = nodes.reference("", "", *link.children, internal=True)
            reference["source"] = file.relative_to(ROOT).as_posix()
            link.replace_self(reference)
        for link in self.document.findall(addnodes.pending_xref):
            link["reftarget"] = INCLUDED.get(link["reftarget"], link["reftarget"])


def resolve(app: Sphinx, doctree: nodes.document, docname: str) -> None:
    """Give the links their addresses, which depend on the builder."""
    for link in doctree.findall(nodes.reference):
        if "source" not in link:
            continue
        path = link["source"]
        app.env.fastsock_sources.add(path)
        uri = app.builder.get_relative_uri(docname, f"source/{path}")
        if named := NAMED.fullmatch(link.astext()):
            line = line_of(named[2], (ROOT / path).read_text())
            uri += f"#line-{line}"
        link["refuri"] = uri


def name_pages(app: Sphinx, doctree: nodes.document, docname: str) -> None:
    """Show the title of a page where the text of a link is its file: [load.md](load.md)."""
    for text in list(doctree.findall(nodes.Text)):
        page = str(text).removesuffix(".md")
        if str(text).endswith(".md") and page in app.env.titles and is_link(text.parent):
            text.parent.replace(text, nodes.Text(app.env.titles[page].astext()))


def is_link(node: nodes.Node) -> bool:
    return isinstance(node, nodes.reference) or isinstance(node.parent, nodes.reference)


def pages(app: Sphinx) -> Iterator[tuple[str, dict[str, Any], str]]:
    formatter = HtmlFormatter(linespans="line", wrapcode=True)
    for path in sorted(app.env.fastsock_sources):
        code = (ROOT / path).read_text()
        try:
            lexer = get_lexer_for_filename(path, stripnl=False)
        except ValueError:
            lexer = get_lexer_for_filename("x.pyx", stripnl=False)
        body = f"<h1>{path}</h1>{highlight(code, lexer, formatter)}"
        yield f"source/{path}", {"title": posixpath.basename(path), "body": body}, "page.html"


def setup(app: Sphinx) -> dict[str, Any]:
    app.add_transform(SourceLinks)
    app.connect("env-before-read-docs", lambda _, env, __: setattr(env, "fastsock_sources", set()))
    app.connect("doctree-resolved", resolve)
    app.connect("doctree-resolved", name_pages)
    app.connect("html-collect-pages", pages)
    return {"parallel_read_safe": False, "parallel_write_safe": False}
