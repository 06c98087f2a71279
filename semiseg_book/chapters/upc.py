"""Figures of the UPC chapter: what is located and replaced, and whether doubt finds the noise."""

from __future__ import annotations

from collections.abc import Sequence

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import seaborn as sns
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from matplotlib.ticker import MaxNLocator
from torch import Tensor

from semiseg.data.dataset import SegmentationData
from semiseg.methods.upc import noise, paste_labeled, patch_edges, patch_mask, scores, top_patches
from semiseg.methods.upc_controls import least_certain
from semiseg.runs import Run
from semiseg.types import IGNORE, Paste, View

from ..pictures import legend
from .hosts import drawn, picture

_COLORS = {"uncertainty": "C3", "oracle": "C2", "oracle, by area": "C4", "random": "0.6"}


def pastes(view: View, donors: View, n: int, k: Sequence[int]) -> list[Paste]:
    """For each k the paste that UPC makes, with labeled images taken in turn instead of at random."""
    score, size, images = scores(view, n), view.image.shape[-2:], torch.arange(len(view.image))
    masks = [patch_mask(top_patches(score, each), size) for each in k]
    turns = [(images + row)[None] % len(donors.image) for row in range(len(k))]
    return [paste_labeled([mask], turn) for mask, turn in zip(masks, turns, strict=True)]


def located(
    view: View, donors: View, data: SegmentationData, rows: Sequence[int], n: int = 4, k: Sequence[int] = (2, 3, 5)
) -> Figure:
    """Fig. 3: where the network doubts an image, the patches that go, and what takes their place, for each k.

    Two lines per image: image, entropy with its patches numbered from the most uncertain one, mixed images; and
    pseudo-label, its errors, mixed labels.

    Args:
        view: unlabeled images with pseudo-label and entropy; errors are drawn where `hidden` is known.
        donors: labeled images of the same size.
        rows: which of the images.
    """
    mixed = [paste.view(view, donors) for paste in pastes(view, donors, n, k)]
    columns, order = 2 + len(k), _order(scores(view, n))
    size = (1.75 * columns, 3.5 * len(rows) + 0.6)
    figure, axes = plt.subplots(2 * len(rows), columns, figsize=size, squeeze=False)
    for line, i in enumerate(rows):
        above, below = axes[2 * line], axes[2 * line + 1]
        _show(above[0], picture(view.image[i]), "unlabeled image")
        assert view.entropy is not None
        above[1].imshow(view.entropy[i].numpy(), cmap="magma", interpolation="nearest")
        _bare(above[1], "entropy")
        _numbers(above[1], order[i], max(k))
        _show(below[0], drawn(view.target, i, data.palette), "pseudo-label")
        _errors(below[1], view, i)
        for ax, under, each, made in zip(above[2:], below[2:], k, mixed, strict=True):
            _show(ax, picture(made.image[i]), f"k = {each}")
            _show(under, drawn(made.target, i, data.palette))
            for place in (ax, under):
                _outline(place, order[i] < each)
    legend(figure, data)
    return figure


def erased_or_replaced(
    view: View, donors: View, data: SegmentationData, rows: Sequence[int], n: int = 4, k: int = 5
) -> Figure:
    """Fig. 1a: as many uncertain pixels without label, against uncertain patches with the label of another image."""
    number = torch.full((len(view.image),), k * view.image[0, 0].numel() // n**2)
    pixels = least_certain(view, number)
    gone = view.target.only(~pixels)
    (paste,), order = pastes(view, donors, n, [k]), _order(scores(view, n))
    mixed = paste.view(view, donors)
    titles = ("unlabeled image", "pseudo-label", "", "pixels erased", "patches replaced", "image with patches")
    size = (1.5 * len(titles), 1.6 * len(rows) + 0.6)
    figure, axes = plt.subplots(len(rows), len(titles), figsize=size, squeeze=False)
    for line, i in zip(axes, rows, strict=True):
        planes = (picture(view.image[i]), *(drawn(t, i, data.palette) for t in (view.target, gone, mixed.target)))
        for place, plane in zip((0, 1, 3, 4), planes, strict=True):
            _show(line[place], plane)
        _errors(line[2], view, i)
        _show(line[5], picture(mixed.image[i]))
        for ax in line[4:]:
            _outline(ax, order[i] < k)
    for ax, name in zip(axes[0], titles, strict=True):
        ax.set_title(name or "errors", fontsize="small")
    for ax in axes[1:, 2]:
        ax.set_title("")
    legend(figure, data)
    return figure


def noise_found(shares: pd.DataFrame, stats: pd.DataFrame) -> Figure:
    """Left: how wrong a patch is by its rank.  Middle and right: recall and precision of the noise over k.

    shares, stats: of `upc_patches.found` and `upc_patches.patch_stats`.
    """
    figure, (left, middle, right) = plt.subplots(1, 3, figsize=(11, 3.3))
    for name, rank in (("uncertainty", "rank"), ("oracle", "oracle_rank")):
        pooled = stats.groupby(rank)[["noise_area", "n_valid"]].sum()
        share = 100 * pooled.noise_area / pooled.n_valid
        left.plot(share.index, share, marker="o", ms=4, color=_COLORS[name], label=name)
    average = 100 * stats.noise_area.sum() / stats.n_valid.sum()
    left.axhline(average, color=_COLORS["random"], ls="--", label="any patch")
    left.set(title="wrong pixels by rank", xlabel="rank of the patch", ylabel="% of its pixels", ylim=(0, None))
    left.legend(frameon=False)
    for ax, what in ((middle, "recall"), (right, "precision")):
        sns.lineplot(shares, x="k", y=what, hue="selector", palette=_COLORS, marker="o", ax=ax)
        ax.legend(frameon=False, title="")
    for ax in figure.axes:
        ax.xaxis.set_major_locator(MaxNLocator(integer=True))
    middle.set(title="share of the noise that goes", ylabel="%", ylim=(0, 102))
    right.set(title="noise in what goes", ylabel="%", ylim=(0, None))
    return figure


def mixing_curves(run: Run) -> Figure:
    """What UPC did over training: errors of supervised pixels before and after pasting, and how much is replaced."""
    m = run.metrics.set_index("epoch")
    figure, (left, right) = plt.subplots(1, 2, figsize=(8.5, 3))
    names = {"noise_before": "as pseudo-labeled", "noise_after": "after pasting"}
    sns.lineplot(100 * m[list(names)].rename(columns=names), dashes=False, markers=True, ax=left)
    left.set(title="wrong labels among supervised pixels", xlabel="epoch", ylabel="%", ylim=(0, None))
    names = {"replaced": "from labeled images", "kept": "pseudo-labels kept"}
    shown = [name for name in names if name in m]
    sns.lineplot(100 * m[shown].rename(columns=names), dashes=False, markers=True, ax=right)
    right.set(title="pixels", xlabel="epoch", ylabel="% of all", ylim=(0, 102))
    return figure


# --- drawing ----------------------------------------------------------------------------------


def _order(score: Tensor) -> Tensor:
    """Place of each patch, 0 for the highest score: (B, n, n)."""
    order = score.flatten(1).sort(dim=1, descending=True, stable=True).indices
    return order.argsort(1).view_as(score)


def _show(ax: Axes, plane: np.ndarray, title: str = "") -> None:
    ax.imshow(plane, interpolation="nearest")
    _bare(ax, title)


def _bare(ax: Axes, title: str = "") -> None:
    ax.set_title(title, fontsize="small")
    ax.set(xticks=[], yticks=[])
    ax.grid(False)


def _errors(ax: Axes, view: View, i: int) -> None:
    """Wrong pixels red, right ones blue, unknown ones gray."""
    if view.hidden is None or not bool((view.hidden != IGNORE).any()):
        _bare(ax, "truth unknown")
        return
    wrong, known = noise(view)
    plane = torch.where(wrong[i], 1.0, 0.0).where(known[i], torch.tensor(0.5))
    ax.imshow(plane.numpy(), cmap="coolwarm", vmin=-0.2, vmax=1.2, interpolation="nearest")
    _bare(ax, "errors")


def _boxes(ax: Axes, chosen: Tensor) -> list[tuple[int, int, float, float, float, float]]:
    """Row, column, left, top, width, height of the chosen patches (n, n) bool, in the coordinates of the picture."""
    plane = ax.images[0].get_array()
    assert plane is not None
    rows, columns = (patch_edges(side, len(chosen)).tolist() for side in plane.shape[:2])
    return [
        (r, c, columns[c] - 0.5, rows[r] - 0.5, columns[c + 1] - columns[c], rows[r + 1] - rows[r])
        for r, c in chosen.nonzero().tolist()
    ]


def _outline(ax: Axes, chosen: Tensor) -> None:
    for _, _, x, y, w, h in _boxes(ax, chosen):
        ax.add_patch(Rectangle((x, y), w, h, fill=False, color="red", lw=1.2))


def _numbers(ax: Axes, order: Tensor, most: int) -> None:
    """The first patches outlined, with their rank."""
    _outline(ax, order < most)
    for r, c, x, y, w, h in _boxes(ax, order < most):
        ax.text(x + w / 2, y + h / 2, str(int(order[r, c]) + 1), color="white", ha="center", va="center", fontsize=8)
