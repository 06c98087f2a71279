"""Sphinx extension: pages of text read their numbers from records when they are built, and every picture has a text."""

from __future__ import annotations

from importlib import import_module
from typing import Any

from docutils import nodes
from docutils.statemachine import StringList
from sphinx.util import logging
from sphinx.util.docutils import SphinxDirective

LOG = logging.getLogger(__name__)
ADVICE = 'add mystnb={"figure": {"caption": ...}} or {"image": {"alt": ...}} to its cell, :alt: to a figure of a page'


class Computed(SphinxDirective):
    """``{computed} module:function``: the Markdown that a function of `semiseg_book` returns, made with the page.

    No number shown this way can be typed, and none can be out of date.
    """

    required_arguments = 1

    def run(self) -> list[nodes.Node]:
        module, _, name = self.arguments[0].partition(":")
        text: str = getattr(import_module(f"semiseg_book.{module}"), name)()
        self.env.note_reread()
        node = nodes.container(classes=["computed"])
        node.document = self.state.document
        self.state.nested_parse(StringList(text.splitlines(), self.arguments[0]), self.content_offset, node)
        return [node]


def describe_pictures(app: Any, doctree: nodes.document) -> None:
    """Give a picture without a text of its own its caption; warn, which fails the build, where it has neither."""
    for image in doctree.findall(nodes.image):
        if not image.get("alt"):
            image["alt"] = _caption(image)
        if not image["alt"]:
            LOG.warning(f"picture without a text for those who cannot see it: {ADVICE}", location=image)


def _caption(image: nodes.image) -> str:
    node = image.parent
    while node is not None and not isinstance(node, nodes.figure):
        node = node.parent
    captions = [] if node is None else [child for child in node.children if isinstance(child, nodes.caption)]
    return captions[0].astext() if captions else ""


def setup(app: Any) -> dict[str, Any]:
    """Sphinx hook."""
    app.add_directive("computed", Computed)
    app.connect("doctree-read", describe_pictures)
    return {"version": "1", "parallel_read_safe": True, "parallel_write_safe": True}
