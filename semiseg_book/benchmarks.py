"""The page about benchmarks: facts from committed tables, each with its source."""

from __future__ import annotations

from importlib.resources import files
from typing import Literal

import matplotlib.pyplot as plt
import pandas as pd
import seaborn as sns
from matplotlib.container import BarContainer
from matplotlib.figure import Figure

Facts = Literal["benchmarks", "own_masks", "shared_images", "lists_of_codes"]


def facts(name: Facts) -> pd.DataFrame:
    """A table of semiseg/data: what was counted, and in which files, repositories at a commit, or papers."""
    with files("semiseg.data").joinpath(f"{name}.csv").open(encoding="utf-8") as file:
        return pd.read_csv(file, dtype={"partition": str}, keep_default_na=False)


def by_chance(shared: pd.DataFrame) -> pd.DataFrame:
    """Images that two lists share, beside the number two random draws of that size would share on average."""
    expected = shared.labeled.astype(float) ** 2 / shared.training
    table = shared.assign(lists=shared.one + " and " + shared.other, chance=expected.round().astype(int))
    table["verdict"] = [
        "the same list" if s == n else "unrelated" if abs(s / c - 1) < 0.25 or abs(s - c) < 10 else "differ"
        for s, n, c in zip(table.shared, table.labeled, table.chance, strict=True)
    ]
    columns = ["data", "setting", "lists", "partition", "labeled", "shared", "chance", "verdict"]
    return table[columns].rename(columns={"chance": "shared by chance"})


def mask_origins(own: pd.DataFrame) -> Figure:
    """Per family and partition, the share of labeled images with VOC's own masks."""
    share = own.assign(share=100 * own.own / own.labeled)
    fig, ax = plt.subplots(figsize=(7, 3))
    sns.barplot(share, x="partition", y="share", hue="family", ax=ax)
    for bars, (_, rows) in zip(ax.containers, share.groupby("family", sort=False), strict=True):
        assert isinstance(bars, BarContainer)
        ax.bar_label(bars, [f"{o}\nof {n}" for o, n in zip(rows.own, rows.labeled, strict=True)], fontsize=8)
    ax.set(xlabel="", ylabel="labeled images with\nVOC's own mask, %", ylim=(0, 125), yticks=range(0, 101, 20))
    sns.move_legend(ax, "upper left", bbox_to_anchor=(1, 1), frameon=False)
    return fig
