"""One look for every figure of the book: colors per method, seaborn and plotly alike."""

from __future__ import annotations

import matplotlib.pyplot as plt
import plotly.graph_objects as go
import plotly.io as pio
import seaborn as sns

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
# Other colors for the schemes: they are the background of the five papers.
_HOSTS = sns.color_palette("Set2").as_hex() + sns.color_palette("Set1").as_hex()[4:]
METHOD_COLORS = {"supervised": _PALETTE[7], "mean_teacher": _PALETTE[0]}
METHOD_COLORS |= {"ddfp": _PALETTE[3], "dgcl": _PALETTE[2], "esl": _PALETTE[4]}
METHOD_COLORS |= dict(zip((name for name in METHOD_TITLES if name not in METHOD_COLORS), _HOSTS, strict=False))


def title(label: str) -> str:
    """How figures and tables call a method and its plug-ins: 'mean_teacher+upc' -> 'mean teacher + UPC'."""
    return " + ".join((METHOD_TITLES | PLUG_IN_TITLES)[name] for name in label.split("+"))


def use_style() -> None:
    """Set the theme of matplotlib, seaborn and plotly."""
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
