"""Figures of the ESL chapter about labels: who hesitates where, between which classes, and who gains from it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import seaborn as sns
import torch
import torch.nn as nn
import torch.nn.functional as F
from matplotlib.axes import Axes
from matplotlib.colors import ListedColormap
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from matplotlib.ticker import MaxNLocator
from torch import Tensor

from semiseg.components import entropy
from semiseg.data.dataset import SegmentationData
from semiseg.data.transforms import Normalize
from semiseg.methods.esl import DynamicLabels
from semiseg.runs import Run
from semiseg.types import IGNORE, Output

NUMBERS = ("1 class", "2 classes", "3 or more")
NUMBER_COLORS = ("#3b6fb6", "#5aa469", "#c8443c")
SOURCES = {"true": "truth", "hard": "hard labels", "soft": "dynamic soft labels"}


class Drawing(NamedTuple):
    """A figure, and the numbers it draws in tidy form."""

    figure: Figure
    frame: pd.DataFrame


@torch.no_grad()
def look(network: nn.Module, data: SegmentationData, key: str) -> Output:
    """What a network in evaluation mode says about one whole image, as a batch of one."""
    return network(Normalize()(data.image(key)[None]))


def show(ax: Axes, picture: np.ndarray | Tensor, title: str = "", **options: Any) -> None:
    """A picture without axes."""
    ax.imshow(np.asarray(picture), interpolation="nearest", **options)
    ax.set_title(title, fontsize="small")
    ax.set(xticks=[], yticks=[])
    ax.grid(False)


def most_hesitant(network: nn.Module, data: SegmentationData, ids: Sequence[str]) -> str:
    """The image with the least certain pixel."""
    return max(ids, key=lambda key: float(entropy(look(network, data, key).logits).max()))


def hesitation(
    network: nn.Module, data: SegmentationData, key: str, label: DynamicLabels, pixel: tuple[int, int] | None = None
) -> Drawing:
    """Fig. 1: entropy of the prediction, and the probabilities at one pixel (row, column), by default the least sure.

    The frame has a row per class: probability, soft label y*, and whether the class is dominant.
    """
    logits = look(network, data, key).logits
    h, p = entropy(logits)[0], logits.softmax(1)
    y, x = pixel or divmod(int(h.argmax()), h.shape[1])
    soft = label.soften(p)[0, :, y, x]
    frame = pd.DataFrame({"class": data.classes, "probability": p[0, :, y, x], "label": soft, "dominant": soft > 0})
    figure, (left, middle, right) = plt.subplots(1, 3, figsize=(10, 2.9), width_ratios=(1, 1.15, 1.6))
    show(left, data.image(key).movedim(0, -1), "unlabeled image")
    show(middle, h, "(a) entropy of the prediction, nats", cmap="inferno", vmin=0)
    figure.colorbar(middle.images[0], ax=middle, shrink=0.85)
    for ax, color in ((left, "black"), (middle, "white")):
        ax.plot(x, y, "+", color=color, ms=12, mew=2)
    shades = {True: NUMBER_COLORS[2], False: "0.75"}
    sns.barplot(frame, x="class", y="probability", hue="dominant", palette=shades, dodge=False, ax=right)
    right.set(title="(b) prediction at the cross", xlabel="", ylabel="probability")
    right.tick_params(axis="x", rotation=60, labelsize="small")
    return Drawing(figure, frame)


def near_edge(mask: Tensor, radius: int) -> Tensor:
    """(H, W) bool: another label within `radius` pixels (largest coordinate difference)."""
    plane, size = mask[None, None].float(), 2 * radius + 1
    largest = F.max_pool2d(plane, size, 1, radius)
    smallest = -F.max_pool2d(-plane, size, 1, radius)
    return (largest != smallest)[0, 0]


def dominant_maps(
    network: nn.Module, data: SegmentationData, ids: Sequence[str], label: DynamicLabels, radius: int = 1
) -> Drawing:
    """Fig. 3: how many dominant classes each pixel has.

    The frame has a row per image, place (near an edge of the true mask, or inside) and number: pixels and their share
    of the place.
    """
    figure, axes = plt.subplots(2, len(ids), figsize=(1.4 * len(ids), 3.2), squeeze=False)
    counts = []
    for (top, bottom), key in zip(axes.T, ids, strict=True):
        number = (label.soften(look(network, data, key).logits.softmax(1)) > 0).sum(1)[0].clamp(max=3) - 1
        show(top, data.image(key).movedim(0, -1))
        show(bottom, number, cmap=ListedColormap(NUMBER_COLORS), vmin=0, vmax=2)
        mask = data.mask(key)
        if mask is None:
            continue
        edge = near_edge(mask, radius)
        for place, where in (("near an edge", edge), ("inside", ~edge)):
            found = torch.bincount(number[where & (mask != IGNORE)], minlength=3).tolist()
            counts += [(key, place, name, n) for name, n in zip(NUMBERS, found, strict=True)]
    handles = [Patch(color=c, label=n) for n, c in zip(NUMBERS, NUMBER_COLORS, strict=True)]
    figure.legend(handles=handles, loc="outside lower center", ncols=3, frameon=False, fontsize="small")
    frame = pd.DataFrame(counts, columns=["image", "place", "dominant", "pixels"])
    frame["share"] = frame.pixels / frame.groupby(["image", "place"]).pixels.transform("sum").clip(lower=1)
    return Drawing(figure, frame)


def label_curves(run: Run) -> Drawing:
    """Over epochs: pixels by number of dominant classes, accuracy of their likeliest class, and the contrast.

    Reads what the run logged.  The frame is tidy: epoch, quantity, value.
    """
    m = run.metrics.set_index("epoch")
    numbers = {f"dominant_{n}": name for n, name in enumerate(NUMBERS, 1)}
    right = {f"accuracy_{n}": name for n, name in enumerate(NUMBERS, 1)}
    right |= {"truth_dominant": "truth among 2 or more"}
    cosines = {"cosine_positive": "anchor and positive", "cosine_negative": "anchor and negatives"}
    figure, axes = plt.subplots(1, 3, figsize=(11, 3.2))
    titles = ("pixels by dominant classes, %", "likeliest class right, %", "cosine in the contrast")
    parts = []
    for ax, names, title, factor in zip(axes, (numbers, right, cosines), titles, (100, 100, 1), strict=True):
        shown = factor * m.reindex(columns=list(names)).rename(columns=names).dropna(how="all", axis=1)
        parts.append(shown.melt(var_name="quantity", ignore_index=False).reset_index().assign(panel=title))
        if shown.columns.empty:
            ax.set_axis_off()
            continue
        sns.lineplot(shown, dashes=False, markers=True, ax=ax, palette=[*NUMBER_COLORS, "0.3"][: len(shown.columns)])
        ax.set(title=title, xlabel="epoch", ylabel="")
        ax.xaxis.set_major_locator(MaxNLocator(integer=True))
        ax.legend(fontsize="x-small")
    return Drawing(figure, pd.concat(parts, ignore_index=True))


def label_runs(runs: Sequence[Run]) -> pd.DataFrame:
    """The runs of Fig. 7a: ESL without contrast, hard or dynamic labels; mIoU in percent of the teacher, last epoch."""
    kinds = {"hard": SOURCES["hard"], "dynamic": SOURCES["soft"]}
    rows = [
        (
            kinds[r.record["recipe"]["esl"]["label"]],
            r.record["split"]["labeled"],
            r.record["recipe"]["seed"],
            100 * r.miou,
        )
        for r in runs
        if r.record["recipe"]["method"] == "esl"
        and r.record["recipe"]["esl"]["parts"] == 0
        and r.record["recipe"]["esl"]["label"] in kinds
    ]
    return pd.DataFrame(rows, columns=["label", "labeled", "seed", "miou"])


def hard_against_soft(frame: pd.DataFrame) -> Drawing:
    """Fig. 7a: mIoU with hard and with dynamic soft labels over the number of labeled images; `frame`: `label_runs`."""
    figure, ax = plt.subplots(figsize=(5.2, 3.4))
    palette = {SOURCES["hard"]: "0.5", SOURCES["soft"]: NUMBER_COLORS[2]}
    sns.lineplot(frame, x="labeled", y="miou", hue="label", palette=palette, marker="o", errorbar="sd", ax=ax)
    ax.set(xscale="log", xlabel="labeled images", ylabel="mIoU, %")
    ticks = sorted(frame.labeled.unique())
    ax.set_xticks(ticks, [str(n) for n in ticks], minor=False)
    ax.minorticks_off()
    return Drawing(figure, frame)


def class_shares(soft: Run, hard: Run | None = None) -> pd.DataFrame:
    """Each class's share of the unlabeled pixels in the last epoch: truth, hard labels, soft labels.

    Hard labels are those of the run `hard`, trained with them, or else the likeliest classes of `soft` itself.
    Raises ValueError for a run that logged no shares.
    """
    classes = soft.record["data"]["classes"]
    rows = []
    for source, run in (("true", soft), ("hard", hard or soft), ("soft", soft)):
        columns = [f"{source}_{k}" for k in range(len(classes))]
        if columns[0] not in run.metrics:
            raise ValueError(f"{run.folder} logged no class shares; ESL runs do, whatever their labels")
        last = run.metrics[columns].dropna().iloc[-1]
        rows += [(name, SOURCES[source], share) for name, share in zip(classes, last, strict=True)]
    return pd.DataFrame(rows, columns=["class", "source", "share"])


def class_distribution(frame: pd.DataFrame) -> Drawing:
    """Fig. 7b: the shares of `class_shares`, classes in the order of the truth, on a log axis.

    The frame adds, per source, the total variation distance to the truth.
    """
    wide = frame.pivot(index="class", columns="source", values="share")
    far = wide.sub(wide[SOURCES["true"]], axis=0).abs().sum() / 2
    order = wide[SOURCES["true"]].sort_values(ascending=False).index
    figure, ax = plt.subplots(figsize=(9, 3.4))
    palette = dict(zip(SOURCES.values(), ("0.25", "0.7", NUMBER_COLORS[2]), strict=True))
    sns.barplot(frame, x="class", y="share", hue="source", order=order, hue_order=list(palette), palette=palette, ax=ax)
    ax.set(yscale="log", xlabel="", ylabel="share of pixels")
    ax.legend(title="", fontsize="small")
    ax.tick_params(axis="x", rotation=45)
    return Drawing(figure, frame.assign(distance_to_truth=frame.source.map(far)))
