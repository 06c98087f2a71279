"""One look for every figure of the book: titles and colors per method, seaborn and plotly alike."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterable

import matplotlib.pyplot as plt
import pandas as pd
import plotly.graph_objects as go
import plotly.io as pio
import seaborn as sns
from matplotlib.colors import to_hex, to_rgb

from semiseg import registry

_PALETTE = sns.color_palette("deep").as_hex()


def title(label: str) -> str:
    """How figures and tables call a method and its plug-ins: 'mean_teacher+upc' -> 'mean teacher + UPC'."""
    method, *plug_ins = label.split("+")
    return " + ".join([registry.method(method).title, *(registry.plug_in(name).title for name in plug_ins)])


def host_of(label: str) -> str:
    """The method of a label without its plug-ins: 'cps+upc' -> 'cps'."""
    return label.split("+")[0]


def ordered(labels: Iterable[str]) -> list[str]:
    """Labels in the order of `registry.methods`, each method followed by itself with plug-ins."""
    methods = list(registry.methods())
    return sorted(set(labels), key=lambda label: (methods.index(host_of(label)), label.count("+"), label))


def color(label: str) -> str:
    """The color of a method; a plug-in changes its shade, never its hue: UPC darker, WPL lighter."""
    method, *plug_ins = label.split("+")
    mixed = to_rgb(registry.method(method).color)
    for shade in (registry.plug_in(name).shade for name in plug_ins):
        end = float(shade < 0)  # white, else black
        mixed = tuple((1 - abs(shade)) * c + abs(shade) * end for c in mixed)  # type: ignore[assignment]
    return to_hex(mixed)


def symbol(label: str) -> str:
    """Plotly's marker that tells plug-ins apart: a circle without any, that of the plug-in, a star for several."""
    plug_ins = label.split("+")[1:]
    if len(plug_ins) > 1:
        return "star"
    return registry.plug_in(plug_ins[0]).marker if plug_ins else "circle"


def one_head(frame: pd.DataFrame) -> str:
    """HTML of a table: the name of its index beside those of its columns, not in a line of its own; no row numbers; no
    line break inside 1.0 ± 0.2 (3)."""
    if frame.index.nlevels == frame.columns.nlevels == 1 and frame.columns.name is None:
        frame = frame.rename_axis(index=None, columns=str(frame.index.name or "") or None)
    numbered = isinstance(frame.index, pd.RangeIndex)
    html = frame.to_html(index=not numbered, max_rows=pd.options.display.max_rows, na_rep="")
    return re.sub(r"(?<=\d) (?=±|\(\d+\))|(?<=±) ", "&nbsp;", html)


def use_style() -> None:
    """Set the theme of matplotlib, seaborn and plotly, and in a notebook that of tables."""
    if (ipython := sys.modules.get("IPython")) and (shell := ipython.get_ipython()):
        shell.display_formatter.formatters["text/html"].for_type(pd.DataFrame, one_head)
    sns.set_theme(style="whitegrid", context="notebook", font_scale=0.9, palette=_PALETTE)
    plt.rcParams.update({"figure.constrained_layout.use": True, "axes.titlesize": "medium", "savefig.dpi": 160})
    layout = go.Layout(
        colorway=_PALETTE,
        font={"family": "inherit", "size": 13},
        margin={"l": 55, "r": 15, "t": 40, "b": 45},
        height=420,
    )
    pio.templates["book"] = go.layout.Template(layout=layout)
    pio.templates.default = "plotly_white+book"
