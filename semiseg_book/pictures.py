"""Figures that every chapter has: scenes, curves, predictions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import seaborn as sns
import torch
import torch.nn as nn
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from torch import Tensor

from semiseg.data.dataset import SegmentationData
from semiseg.data.splits import Split
from semiseg.data.transforms import Normalize
from semiseg.inference.predict import read_image
from semiseg.runs import Run
from semiseg.types import IGNORE

from .style import color, title


def colored(mask: Tensor, palette: Sequence[tuple[int, int, int]]) -> np.ndarray:
    """(H, W) class ids -> (H, W, 3) uint8 colors; ignored pixels are light gray."""
    colors = np.full((256, 3), 224, np.uint8)
    colors[: len(palette)] = palette
    return colors[mask.numpy()]


def _show(ax: Axes, picture: np.ndarray, title: str = "") -> None:
    ax.imshow(picture, interpolation="nearest")
    ax.set_title(title, fontsize="small")
    ax.set_xticks([])
    ax.set_yticks([])
    ax.grid(False)


def legend(figure: Figure, data: SegmentationData) -> None:
    """Class colors below a figure."""
    handles = [
        Patch(facecolor=(r / 255, g / 255, b / 255), edgecolor="0.6", label=name)
        for name, (r, g, b) in zip(data.classes, data.palette, strict=True)
    ]
    columns = min(11, len(handles))
    figure.legend(handles=handles, loc="outside lower center", ncols=columns, fontsize="x-small", frameon=False)


def scenes(data: SegmentationData, ids: Sequence[str]) -> Figure:
    """Images above their masks."""
    figure, axes = plt.subplots(2, len(ids), figsize=(1.25 * len(ids), 3.1), squeeze=False)
    for column, key in zip(axes.T, ids, strict=True):
        _show(column[0], data.image(key).movedim(0, -1).numpy())
        mask = data.mask(key)
        if mask is not None:
            _show(column[1], colored(mask, data.palette))
    legend(figure, data)
    return figure


@torch.no_grad()
def predict(network: nn.Module, data: SegmentationData, key: str) -> Tensor:
    """Class ids (H, W) of one whole image; the network must be in evaluation mode."""
    return network(Normalize()(data.image(key)[None])).logits.argmax(1)[0]


def predictions(data: SegmentationData, ids: Sequence[str], networks: Mapping[str, nn.Module]) -> Figure:
    """One row per image: input, each network's prediction, ground truth (as Fig. 4 of the DDFP paper)."""
    titles = ["input", *networks, "ground truth"]
    figure, axes = plt.subplots(len(ids), len(titles), figsize=(1.5 * len(titles), 1.5 * len(ids) + 0.4), squeeze=False)
    for row, key in zip(axes, ids, strict=True):
        mask = data.mask(key)
        assert mask is not None
        pictures = [data.image(key).movedim(0, -1).numpy()]
        for network in networks.values():
            predicted = predict(network, data, key)
            pictures.append(colored(torch.where(mask == IGNORE, IGNORE, predicted), data.palette))
        pictures.append(colored(mask.long(), data.palette))
        for ax, picture, name in zip(row, pictures, titles, strict=True):
            _show(ax, picture, name if key == ids[0] else "")
    legend(figure, data)
    return figure


def problem(
    data: SegmentationData, split: Split, ids: Sequence[str], networks: Mapping[str, nn.Module], labeled: int = 4
) -> Figure:
    """The problem in one picture: scenes with a mask and scenes without; below, predictions of what was learned.

    ids: validation images, one per column; of the columns above, `labeled` have a mask.
    """
    rows = ["training scene", "its mask", "new scene", *networks, "truth"]
    figure, axes = plt.subplots(
        len(rows) + 1, len(ids), figsize=(len(ids), (len(rows) + 0.4) * 1.02),
        gridspec_kw={"height_ratios": [1, 1, 0.25] + [1] * (len(rows) - 2)},
    )  # fmt: skip
    shown = [*split.labeled[:labeled], *split.unlabeled[: len(ids) - labeled]]
    for i, (column, key) in enumerate(zip(axes.T, shown, strict=True)):
        _show(column[0], data.image(key).movedim(0, -1).numpy())
        mask = data.mask(key)
        if i < labeled and mask is not None:
            _show(column[1], colored(mask.long(), data.palette))
        else:
            column[1].set(xticks=[], yticks=[], facecolor="0.93")
            column[1].grid(False)
            column[1].text(0.5, 0.5, "?", ha="center", va="center", color="0.5", transform=column[1].transAxes)
        column[2].set_axis_off()
    for column, key in zip(axes.T, ids, strict=True):
        mask = data.mask(key)
        assert mask is not None
        _show(column[3], data.image(key).movedim(0, -1).numpy())
        for ax, network in zip(column[4:-1], networks.values(), strict=True):
            _show(ax, colored(predict(network, data, key), data.palette))
        _show(column[-1], colored(mask.long(), data.palette))
    for ax, name in zip((*axes[:2, 0], *axes[3:, 0]), rows, strict=True):
        ax.set_ylabel(name, fontsize="small")
    axes[0, 0].set_title(f"{len(split.labeled)} with mask", fontsize="small", loc="left")
    axes[0, labeled].set_title(f"{len(split.unlabeled)} without", fontsize="small", loc="left")
    return figure


def predicted(files: Mapping[str, Path], out: Path, names: Sequence[str], data: SegmentationData) -> Figure:
    """One column per image file: the image, its overlay and its entropy as `predict.predict_files` wrote them."""
    figure, axes = plt.subplots(3, len(names), figsize=(2.2 * len(names), 5.2), squeeze=False)
    for column, name in zip(axes.T, names, strict=True):
        _show(column[0], read_image(files[name]).movedim(0, -1).numpy(), name)
        for ax, kind in zip(column[1:], ("overlays", "entropy"), strict=True):
            picture = read_image(out / kind / f"{name}.png").movedim(0, -1).numpy()
            _show(ax, picture)
    for ax, kind in zip(axes[:, 0], ("image", "prediction", "entropy"), strict=True):
        ax.set_ylabel(kind, fontsize="small")
    legend(figure, data)
    return figure


def curves(run: Run, baselines: Sequence[Run] = ()) -> Figure:
    """Validation mIoU of the run and its baselines, its loss terms, and its pseudo-labels, over epochs."""
    figure, (left, middle, right) = plt.subplots(1, 3, figsize=(11, 3.2))
    for each in (run, *baselines):
        scored = each.metrics.dropna(subset="miou_teacher")
        left.plot(
            scored.epoch, 100 * scored.miou_teacher, marker="o", ms=4,
            color=color(each.label), label=title(each.label),
        )  # fmt: skip
    left.set(title="validation mIoU, teacher", xlabel="epoch", ylabel="%")
    left.legend()
    m = run.metrics.set_index("epoch")
    losses = m.filter(like="loss_").rename(columns=lambda c: c.removeprefix("loss_"))
    sns.lineplot(losses, dashes=False, markers=True, ax=middle)
    middle.set(title="loss terms, weighted", ylabel="", xlabel="epoch")
    names = {"kept": "share kept", "pseudo_label_accuracy": "accuracy of kept", "flipped": "share flipped"}
    shares = 100 * m[[c for c in names if c in m]].rename(columns=names)
    if len(shares.columns):
        sns.lineplot(shares, dashes=False, markers=True, ax=right)
        right.set(title="pseudo-labels", ylabel="% of pixels", xlabel="epoch", ylim=(0, 102))
    else:
        right.set_axis_off()
    return figure


def seeds(frame: pd.DataFrame) -> Figure:
    """Every seed as a point, and the mean: mIoU of methods by split.  `frame` is `runs.table`."""
    figure, ax = plt.subplots(figsize=(7, 3.4))
    palette = {label: color(label) for label in frame.method.unique()}
    shown = {"data": frame, "x": "split", "y": "miou", "hue": "method", "palette": palette, "ax": ax}
    methods = frame.method.nunique()
    beside = 0.8 * (methods - 1) / methods if methods > 1 else False  # where stripplot puts its points
    sns.pointplot(**shown, dodge=beside, linestyle="none", marker="_", markersize=18, errorbar=None, legend=False)
    sns.stripplot(**shown, dodge=True, jitter=False, size=6, alpha=0.8)
    handles, labels = ax.get_legend_handles_labels()
    ax.legend(handles, [title(name) for name in labels], frameon=False)
    ax.set(xlabel="labeled share", ylabel="mIoU, %")
    return figure
