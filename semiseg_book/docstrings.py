"""Docstrings on the page of the API: plain text with `code` in backticks, in which stars, bars and underscores mean
nothing.  A Sphinx extension, named in _config.yml."""

from __future__ import annotations

import re
from typing import Any

from semiseg.options import Options

CODE = re.compile(r"(``[^`]+``|`[^`]+`)")


def as_text(lines: list[str]) -> list[str]:
    """The lines with markup escaped outside of code, and `code` as literal text."""

    def line(text: str) -> str:
        parts = CODE.split(text)
        return "".join(f"``{p.strip('`')}``" if i % 2 else re.sub(r"([\\|*])|_(?=\W|$)", r"\\\g<0>", p)
                       for i, p in enumerate(parts))  # fmt: skip

    return [line(text) for text in lines]


def of_options(kind: type[Options]) -> list[str]:
    """A section that lists the options of a class: default, symbol, meaning, place in the paper."""
    rows = ["", "Args:"]
    for o in kind.described():
        about = ", ".join(filter(None, (o.symbol, o.equation)))
        rows.append(f"    {o.name}: {o.meaning}" + (f" ({about})." if about else "."))
    return rows


def escape(app: Any, what: str, name: str, obj: Any, options: Any, lines: list[str]) -> None:
    """Sphinx's hook, before napoleon reads the sections."""
    listed = of_options(obj) if isinstance(obj, type) and issubclass(obj, Options) and obj is not Options else []
    lines[:] = as_text([*lines, *listed])


def setup(app: Any) -> dict[str, Any]:
    """Sphinx hook."""
    app.connect("autodoc-process-docstring", escape, priority=100)
    return {"version": "1", "parallel_read_safe": True, "parallel_write_safe": True}
