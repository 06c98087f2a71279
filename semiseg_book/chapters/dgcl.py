"""Figures of the DGCL chapter: how dense features lie within their class, and how well the classes come apart.

Each function that draws also returns a tidy frame of what is drawn, so that a notebook can print its numbers.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import seaborn as sns
import torch
import torch.nn as nn
import torch.nn.functional as F
from matplotlib.figure import Figure
from numpy.typing import NDArray
from sklearn.manifold import TSNE
from sklearn.metrics import calinski_harabasz_score, davies_bouldin_score, silhouette_score
from threadpoolctl import threadpool_limits
from torch import Tensor

from semiseg.banks import as_pixels
from semiseg.data.dataset import SegmentationData
from semiseg.data.transforms import Normalize
from semiseg.methods.dgcl import density
from semiseg.types import IGNORE

Palette = Sequence[tuple[int, int, int]]


@dataclass(frozen=True)
class Pixels:
    """Features of validation images on the feature grid; the class of a pixel is the predicted one."""

    features: Tensor  # (N, D)
    predicted: Tensor  # (N,) long
    confidence: Tensor  # (N,) probability of the predicted class
    truth: Tensor  # (N,) long, IGNORE where unknown

    def only(self, keep: Tensor) -> Pixels:
        """The pixels of a mask (N,) or of indices."""
        return Pixels(self.features[keep], self.predicted[keep], self.confidence[keep], self.truth[keep])

    def some(self, most: int, seed: int = 0) -> Tensor:
        """Indices of at most so many random pixels of each predicted class."""
        g = torch.Generator().manual_seed(seed)
        rows = [(self.predicted == k).nonzero()[:, 0] for k in self.predicted.unique().tolist()]
        return torch.cat([r[torch.randperm(len(r), generator=g)[:most]] for r in rows])


@torch.no_grad()
def pixels(network: nn.Module, data: SegmentationData, ids: Sequence[str]) -> Pixels:
    """All known pixels of some images as a network in evaluation mode sees them."""
    parts = []
    for key in ids:
        output = network(Normalize()(data.image(key)[None]))
        size = output.features.shape[-2:]
        logits = F.interpolate(output.logits, size=size, mode="bilinear", align_corners=True)
        confidence, predicted = logits.softmax(1).max(1)
        mask = data.mask(key)
        truth = torch.full(output.logits.shape[-2:], IGNORE) if mask is None else mask
        truth = F.interpolate(truth[None, None].float(), size=size, mode="nearest").flatten().long()
        parts.append((as_pixels(output.features), predicted.flatten(), confidence.flatten(), truth))
    features, predicted, confidence, truth = (torch.cat(column) for column in zip(*parts, strict=True))
    return Pixels(features, predicted, confidence, truth)


def in_class_density(p: Pixels, k: int = 16) -> Tensor:
    """Mean cosine similarity of each feature to its k nearest others of the same predicted class: (N,)."""
    unit, rho = F.normalize(p.features, dim=1), torch.zeros(len(p.features))
    for each in p.predicted.unique().tolist():
        mine = p.predicted == each
        n = min(k + 1, int(mine.sum()))  # a feature is the nearest to itself
        rho[mine] = (n * density(unit[mine], unit[mine], (n,)) - 1) / max(n - 1, 1)
    return rho


def largest_classes(p: Pixels, most: int = 5, but: Sequence[int] = (0,)) -> list[int]:
    """The classes predicted most often, the background left out, in ascending order."""
    counts = torch.bincount(p.predicted).float()
    counts[[k for k in but if k < len(counts)]] = 0
    return sorted(counts.argsort(descending=True)[: min(most, int((counts > 0).sum()))].tolist())


def _tsne(features: Tensor, seed: int, perplexity: float = 32) -> NDArray[np.float32]:
    """Two coordinates per feature, perplexity 32 as in the paper."""
    few = min(perplexity, max(1.0, (len(features) - 1) / 3))
    with threadpool_limits(1):  # its threads wait by spinning: on a busy machine minutes instead of seconds
        tsne = TSNE(perplexity=few, init="pca", random_state=seed)
        points: NDArray[np.float32] = tsne.fit_transform(features.numpy())
    return points


def _color(palette: Palette, k: int) -> tuple[float, float, float]:
    r, g, b = palette[k]
    return (0.6, 0.6, 0.6) if k == 0 else (r / 255, g / 255, b / 255)


def density_map(
    p: Pixels,
    classes: Sequence[str],
    palette: Palette,
    *,
    shown: Sequence[int],
    threshold: float = 0.95,
    k: int = 16,
    most: int = 300,
    seed: int = 0,
) -> tuple[Figure, pd.DataFrame]:
    """Fig. 1: confident features of some classes, (a) by class and (b) by their density within it.

    Args:
        p: pixels; density is measured among all confident ones of a class, before sampling.
        shown: class ids.
        threshold: least confidence.
        k: neighbors.
        most: pixels drawn of each class.

    Returns:
        The figure; a row per point: class, x, y, density, confidence, right (NaN where the truth is unknown).

    Raises:
        ValueError: fewer than four confident pixels.
    """
    chosen = torch.isin(p.predicted, torch.tensor(list(shown), dtype=torch.long)) & (p.confidence > threshold)
    if chosen.sum() < 4:
        raise ValueError(f"only {int(chosen.sum())} pixels of these classes have a confidence above {threshold}")
    confident = p.only(chosen)
    keep = confident.some(most, seed)
    rho, drawn = in_class_density(confident, k)[keep], confident.only(keep)
    points = _tsne(drawn.features, seed)
    frame = pd.DataFrame(
        {
            "class": [classes[c] for c in drawn.predicted.tolist()], "x": points[:, 0], "y": points[:, 1],
            "density": rho, "confidence": drawn.confidence,
            "right": torch.where(drawn.truth == IGNORE, torch.nan, (drawn.truth == drawn.predicted).double()),
        }
    )  # fmt: skip
    figure, (left, right) = plt.subplots(1, 2, figsize=(10, 4.4), sharex=True, sharey=True)
    for c in shown:
        one = frame[frame["class"] == classes[c]]
        left.scatter(one.x, one.y, s=7, color=_color(palette, c), label=classes[c], linewidths=0)
    colored = right.scatter(frame.x, frame.y, s=7, c=frame.density, cmap="viridis", linewidths=0)
    figure.colorbar(colored, ax=right, label=f"density, {k} neighbors", shrink=0.85)
    left.set_title(f"(a) class, confidence above {threshold}")
    right.set_title("(b) density within the class")
    left.legend(markerscale=2.5, fontsize="x-small")
    for ax in (left, right):
        ax.set(xticks=[], yticks=[])
    return figure, frame


def density_and_mistakes(frame: pd.DataFrame) -> pd.DataFrame:
    """The claim behind the method, from the points of `density_map`: are sparse features wrong more often?

    One row per quarter of the points, by density within their class: mean density and share of right ones, percent.
    """
    known = frame.dropna(subset="right")
    rank = known.groupby("class").density.rank(pct=True)
    names = ["sparsest quarter", "second", "third", "densest quarter"]
    quarter = pd.cut(rank, [0, 0.25, 0.5, 0.75, 1], labels=names)
    grouped = known.groupby(quarter, observed=True)
    out = grouped.agg(pixels=("right", "size"), density=("density", "mean"), right=("right", "mean"))
    return out.assign(right=100 * out.right).rename_axis("density within the class")


def feature_maps(
    networks: Mapping[str, Pixels],
    classes: Sequence[str],
    palette: Palette,
    *,
    most: int = 500,
    drawn: int = 200,
    seed: int = 0,
) -> tuple[Figure, pd.DataFrame]:
    """Fig. 3: t-SNE of the features of several networks, colored by predicted class.

    Args:
        networks: name -> pixels.
        most, drawn: pixels per class that t-SNE sees and that are drawn (paper: 10,000 and 500).

    Returns:
        The figure; a row per point: network, class, x, y.
    """
    figure, axes = plt.subplots(1, len(networks), figsize=(5 * len(networks), 4.4), squeeze=False)
    frames = []
    for ax, (name, p) in zip(axes[0], networks.items(), strict=True):
        seen = p.only(p.some(most, seed))
        points, keep = _tsne(seen.features, seed), seen.some(drawn, seed)
        named = [classes[k] for k in seen.predicted[keep].tolist()]
        frames.append(pd.DataFrame({"network": name, "class": named, "x": points[keep, 0], "y": points[keep, 1]}))
        for k in seen.predicted.unique().tolist():
            one = points[keep][(seen.predicted[keep] == k).numpy()]
            ax.scatter(*one.T, s=7, color=_color(palette, k), label=classes[k], linewidths=0)
        ax.set(title=name, xticks=[], yticks=[])
    axes[0, -1].legend(markerscale=2.5, fontsize="x-small", loc="center left", bbox_to_anchor=(1, 0.5))
    return figure, pd.concat(frames, ignore_index=True)


def clustering(networks: Mapping[str, Pixels], most: int = 300, seed: int = 0) -> pd.DataFrame:
    """Table 4: how well the predicted classes come apart as clusters of features.

    Silhouette and Calinski-Harabasz: higher is better; Davies-Bouldin: lower is better.  At most `most` pixels of each
    class enter; a network that predicts a single class has no such numbers (NaN).
    """
    rows = {}
    for name, p in networks.items():
        seen = p.only(p.some(most, seed))
        x, y = seen.features.numpy(), seen.predicted.numpy()
        apart = 1 < len(np.unique(y)) < len(y)
        rows[name] = {
            "Silhouette": silhouette_score(x, y) if apart else np.nan,
            "Calinski-Harabasz": calinski_harabasz_score(x, y) if apart else np.nan,
            "Davies-Bouldin": davies_bouldin_score(x, y) if apart else np.nan,
        }
    return pd.DataFrame.from_dict(rows, orient="index").rename_axis("network")


@torch.no_grad()
def image_scores(networks: Mapping[str, nn.Module], data: SegmentationData, ids: Sequence[str]) -> pd.DataFrame:
    """Beside Fig. 4: share of right pixels in each image, percent, a column per network."""
    rows = {}
    for key in ids:
        mask = data.mask(key)
        assert mask is not None
        known = mask != IGNORE
        image = Normalize()(data.image(key)[None])
        predicted = {name: network(image).logits.argmax(1)[0] for name, network in networks.items()}
        rows[key] = {name: 100 * (p == mask)[known].float().mean().item() for name, p in predicted.items()}
    return pd.DataFrame.from_dict(rows, orient="index").rename_axis("image")


def contrast_curves(metrics: pd.DataFrame) -> tuple[Figure, pd.DataFrame]:
    """What the run logged of the contrast: density of pixels, anchors and keys, and shares of labels and classes.

    Args:
        metrics: `Run.metrics` of a DGCL run with contrast.

    Returns:
        The figure; the drawn columns by epoch.
    """
    ranks = {f"{by}_of_{what}": what for by in ("density", "confidence") for what in ("keys", "pixels", "anchors")}
    shares = {"kept": "pixels with pseudo-label", "contrast_kept": "pixels in the contrast"}
    shares["contrast_classes"] = "classes in the contrast"
    drawn = metrics.set_index("epoch")[[c for c in (*ranks, *shares) if c in metrics]]
    figure, (left, right) = plt.subplots(1, 2, figsize=(9, 3.2))
    for ax, names, title in ((left, ranks, "density within the class"), (right, shares, "shares, %")):
        columns = [c for c in names if c in drawn]
        values = drawn[columns].rename(columns=names) * (100 if ax is right else 1)
        if columns:
            sns.lineplot(values, dashes=False, markers=True, ax=ax)
        ax.set(title=title, xlabel="epoch", ylabel="")
    return figure, drawn
