"""One look for every figure of the book: colors per method, seaborn and plotly alike."""

from __future__ import annotations

import re
import sys

import matplotlib.pyplot as plt
import pandas as pd
import plotly.graph_objects as go
import plotly.io as pio
import seaborn as sns
from matplotlib.colors import to_hex, to_rgb

_PALETTE = sns.color_palette("deep").as_hex()
METHOD_TITLES = {
    "supervised": "supervised",
    "mean_teacher": "mean teacher",
    "mean_teacher_mse": "mean teacher, MSE",
    "cutmix_seg": "CutMix-Seg",
    "cps": "CPS",
    "unimatch": "UniMatch",
    "augseg": "AugSeg",
    "ael": "AEL",
    "stpp": "ST++",
    "u2pl": "U2PL",
    "mask2former": "Mask2Former",
    "ddfp": "DDFP",
    "dgcl": "DGCL",
    "esl": "ESL",
}
PLUG_IN_TITLES = {"upc": "UPC", "wpl": "WPL"}
_SYMBOLS = {
    frozenset[str](): "circle",
    frozenset({"upc"}): "diamond",
    frozenset({"wpl"}): "square",
    frozenset({"upc", "wpl"}): "star",
}
METHOD_COLORS = {
    "supervised": _PALETTE[7],  # gray: the reference
    "mean_teacher": _PALETTE[0],
    "ddfp": _PALETTE[3],
    "dgcl": _PALETTE[2],
    "esl": _PALETTE[4],
    # hues between those of the papers, whose background the schemes are
    "mean_teacher_mse": "#64b5cd",
    "cutmix_seg": "#dd8452",
    "cps": "#937860",
    "unimatch": "#da8bc3",
    "augseg": "#e6ab02",
    "ael": "#17a2a2",
    "u2pl": "#4d4d4d",
    "stpp": "#a6b727",
    "mask2former": "#2f6f4f",
}
# A plug-in changes the shade (share of black, or of white where negative) and the marker, never the hue.
_SHADES = {"upc": 0.35, "wpl": -0.45}


def title(label: str) -> str:
    """How figures and tables call a method and its plug-ins: 'mean_teacher+upc' -> 'mean teacher + UPC'."""
    return " + ".join((METHOD_TITLES | PLUG_IN_TITLES)[name] for name in label.split("+"))


def host_of(label: str) -> str:
    """The method of a label without its plug-ins: 'cps+upc' -> 'cps'."""
    return label.split("+")[0]


def color(label: str) -> str:
    """The color of a method; darker with UPC, lighter with WPL."""
    hue, *plug_ins = label.split("+")
    mixed = to_rgb(METHOD_COLORS[hue])
    for name in plug_ins:
        share, end = abs(_SHADES[name]), float(_SHADES[name] < 0)
        mixed = tuple((1 - share) * c + share * end for c in mixed)  # type: ignore[assignment]
    return to_hex(mixed)


def symbol(label: str) -> str:
    """Plotly's marker that tells plug-ins apart: circle without any, diamond UPC, square WPL, star both."""
    return _SYMBOLS[frozenset(label.split("+")[1:])]


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
