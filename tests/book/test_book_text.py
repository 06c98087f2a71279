"""Pages of text take their numbers from functions, and no picture is left without a text."""

from types import SimpleNamespace
from typing import Any

import pytest
from docutils import nodes
from docutils.utils import new_document

from semiseg_book import computed as book_text


def document(**attributes: Any) -> tuple[nodes.document, nodes.image]:
    """A page with a figure in a cell, as MyST-NB nests it."""
    doctree, figure, cell = new_document("page"), nodes.figure(), nodes.container()
    image = nodes.image(uri="a.png", **attributes)
    cell += image
    figure += [cell, nodes.caption("", "", nodes.Text("See the "), nodes.emphasis("", "left half"))]
    doctree += figure
    return doctree, image


def warned(monkeypatch: pytest.MonkeyPatch, doctree: nodes.document) -> list[str]:
    found: list[str] = []
    monkeypatch.setattr(book_text, "LOG", SimpleNamespace(warning=lambda text, location: found.append(text)))
    book_text.describe_pictures(None, doctree)
    return found


def test_a_picture_without_text_gets_its_caption(monkeypatch: pytest.MonkeyPatch) -> None:
    doctree, image = document()
    assert warned(monkeypatch, doctree) == [] and image["alt"] == "See the left half"


def test_its_own_text_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    doctree, image = document(alt="two curves")
    assert warned(monkeypatch, doctree) == [] and image["alt"] == "two curves"


def test_a_picture_with_neither_is_a_warning(monkeypatch: pytest.MonkeyPatch) -> None:
    doctree = new_document("page")
    doctree += nodes.image(uri="a.png")
    (message,) = warned(monkeypatch, doctree)
    assert message.startswith("picture without a text") and "mystnb=" in message
