"""What the first cells of notebooks call: parameters read and checked, and the look of the book."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd

from semiseg import notebook
from semiseg.notebook import Prepared

from .style import use_style


def prepare(method: str, given: Mapping[str, Any], *, plug_ins: str = "", own: Sequence[str] = ()) -> Prepared:
    """`semiseg.notebook.prepare`; then figures and tables look as in the book."""
    prepared = notebook.prepare(method, given, plug_ins=plug_ins, own=own)
    use_style()
    if (ipython := sys.modules.get("IPython")) and (shell := ipython.get_ipython()):
        shell.run_line_magic("config", 'InlineBackend.figure_formats = ["retina"]')
    return prepared


def counts(prepared: Prepared) -> pd.DataFrame:
    """How many images are labeled, unlabeled, and for validation."""
    data, split = prepared.data, prepared.split
    return pd.DataFrame(
        {"images": [len(split.labeled), len(split.unlabeled), len(data.val)]},
        index=pd.Index(["labeled", "unlabeled", "validation"], name=f"{data.name}, split {split.name}"),
    )
