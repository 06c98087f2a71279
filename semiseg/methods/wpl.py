"""WPL: pseudo-labels weighted by rank statistics and a detector (Howlader et al., ECCV 2024).

Pixels of one class share their most activated feature channels, whatever the values.  The weight of a pseudo-labeled
pixel i of class c is the share of the k strongest channels of the class prototype that are also among its own (Eq. 6):

    W_i = s / k,   s = | top_k(z_i) and top_k(prototype_c) |

and 1 + s / k in the released code and by default here, so that no pixel is lost.

A prototype is the mean of labeled features and of unlabeled ones that a detector confirms (Sec. 3.3, 3.4).

    seam: weigh   hosts: every one that weighs   state: two banks   chapter: notebooks/wpl
"""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn as nn
import torch.nn.functional as F
from torch import Tensor

from ..banks import ClassBank, as_pixels, from_everywhere, largest, pixels_at, processes, some
from ..statistics import share
from ..types import IGNORE, View

Similarity = Literal["rank", "cosine", "euclidean"]
Reliable = Literal["detector", "confidence", "none"]


def signatures(prototypes: Tensor, k: int) -> Tensor:
    """The k strongest channels of each prototype, by signed value; of equal ones the first.

    Args:
        prototypes: (K, D).
        k: 1..D.

    Returns:
        (K, k) long.
    """
    return prototypes.sort(dim=1, descending=True, stable=True).indices[:, :k]


def shared_channels(features: Tensor, signature: Tensor) -> Tensor:
    """s for every class: how many channels of its signature are among the strongest of a pixel.

    A channel is among them when no more than k - 1 others exceed it and it is active, that is above 0: a dead channel
    says nothing, and channels that tie at the k-th place all count.

    Args:
        features: (B, D, h, w).
        signature: (K, k) long, see `signatures`.

    Returns:
        (B, K, h, w) long in 0..k.
    """
    b, _, h, w = features.shape
    pixels = as_pixels(features).contiguous()
    weakest = largest(pixels, signature.shape[1])[0].amin(1, keepdim=True)
    asked = pixels.index_select(1, signature.flatten())
    hits = ((asked >= weakest) & (asked > 0)).unflatten(1, signature.shape).sum(2)
    return hits.view(b, h, w, -1).movedim(-1, 1)


class RankWeight(nn.Module):
    """Pixel weighter by rank statistics; `observe` feeds the banks, a call weighs (Eq. 5, 6).

    Args:
        classes, width: K, D.
        k: strongest channels compared (5; Fig. 7).
        offset: W = offset + s / k: 0 (paper) or 1 (released code, from which the paper's results come).
        similarity: "rank", or what it is compared with: "cosine" of pixel and prototype (Fig. 6), "euclidean",
            1 - d / 2 of their unit vectors at distance d (supplement, which gives no formula).
        reliable: which unlabeled pixels feed the prototypes: "detector": sure ones inside a box of their class (RPPI);
            "confidence": sure ones; "none": labeled pixels alone (PPW, Table 3).
        sure: probability from which a pixel is stored.
        memory, quota: vectors of a class in each bank, and most that it takes per image of a batch.
        resolution: "features": rank on the feature grid; "full": on features brought to image size (released code).
        unknown: W of a class without prototype; None: s = 0.
        in_divisor: the weights also enter the divisor of the loss (released code); False: it counts pixels (Eq. 5).
    """

    def __init__(
        self, classes: int, width: int, *, k: int = 5, offset: float = 1.0, similarity: Similarity = "rank",
        reliable: Reliable = "detector", sure: float = 0.95, memory: int = 256, quota: int = 1,
        resolution: Literal["features", "full"] = "features", unknown: float | None = None,
        in_divisor: bool = True,
    ) -> None:  # fmt: skip
        super().__init__()
        if not 1 <= k <= width:
            raise ValueError(f"k must be in 1..{width}, the number of feature channels, got {k}")
        self.labeled, self.unlabeled = (ClassBank(classes, memory, width) for _ in range(2))
        self.k, self.offset, self.similarity, self.reliable = k, offset, similarity, reliable
        self.sure, self.quota, self.resolution = sure, quota, resolution
        self.unknown, self.in_divisor = offset if unknown is None else unknown, in_divisor
        self.statistics: dict[str, Tensor] = {}

    @torch.no_grad()
    def observe(self, labeled: View, mixed: View) -> None:
        """Store sure and correct labeled pixels, and reliable unlabeled ones as the student sees them.

        Args:
            labeled: with target and student.
            mixed: with target, teacher, student, and boxes where a detector is asked.  Without boxes nothing
                unlabeled is confirmed.
        """
        assert labeled.student is not None and mixed.student is not None
        features = self._map(labeled.student.features, labeled.student.logits)
        size = features.shape[-2:]
        truth, known = nearest(labeled.target.hard, size), nearest(labeled.target.weight, size) > 0
        p = nearest(labeled.student.logits.detach().float(), size).softmax(1)
        right = p.argmax(1) == truth
        self._store(self.labeled, features, truth, right & known & (p.amax(1) > self.sure))
        if self.reliable == "none" or (self.reliable == "detector" and mixed.boxes is None):
            return
        assert mixed.teacher is not None
        label = nearest(mixed.target.hard, size)
        p = nearest(mixed.teacher.logits.float(), size).softmax(1).gather(1, label[:, None])[:, 0]
        reliable = (p >= self.sure) & (nearest(mixed.target.denominator, size) > 0)
        if self.reliable == "detector":
            assert mixed.boxes is not None
            reliable &= nearest(mixed.boxes, size).gather(1, label[:, None])[:, 0]
        self._store(self.unlabeled, self._map(mixed.student.features, mixed.student.logits), label, reliable)

    @torch.no_grad()
    def forward(self, view: View) -> Tensor:
        """W (B, H, W) of a view with teacher features and pseudo-labels; `unknown` without a prototype."""
        assert view.teacher is not None
        prototypes, ready = self.prototypes()
        similar = self.similarities(self._map(view.teacher.features, view.teacher.logits), prototypes)
        of_class = torch.where(ready[:, None, None], self.offset + similar, self.unknown)
        label = view.target.hard
        rows, columns = _places(label.shape[-2:], similar.shape[-2:], label.device)
        factor = of_class[torch.arange(len(label), device=label.device)[:, None, None], label, rows, columns]
        self.statistics = _statistics(factor, view) | {"prototypes": share(ready, torch.ones_like(ready))}
        return factor

    def prototypes(self) -> tuple[Tensor, Tensor]:
        """Mean of all stored vectors of each class (K, D), and which classes have one: those with a labeled vector."""
        rows = torch.cat((self.labeled.rows, self.unlabeled.rows), 1)  # empty slots hold zeros
        counts = self.labeled.filled + self.unlabeled.filled
        return rows.sum(1) / counts.clamp(min=1)[:, None], self.labeled.filled > 0

    def similarities(self, features: Tensor, prototypes: Tensor) -> Tensor:
        """Of each pixel of (B, D, h, w) to each prototype (K, D), in [0, 1] (cosine of ReLU features): (B, K, h, w)."""
        if self.similarity == "rank":
            return shared_channels(features, signatures(prototypes, self.k)) / self.k
        cosine = torch.einsum("bdhw,kd->bkhw", F.normalize(features.float(), dim=1), F.normalize(prototypes, dim=1))
        return cosine.clamp(min=0) if self.similarity == "cosine" else 1 - (2 - 2 * cosine).clamp(min=0).sqrt() / 2

    def _map(self, features: Tensor, logits: Tensor) -> Tensor:
        """Features (B, D, h, w) on the grid they are compared on."""
        if self.resolution == "features":
            return features.detach().float()
        return F.interpolate(features.detach().float(), size=logits.shape[-2:], mode="bilinear", align_corners=True)

    def _store(self, bank: ClassBank, features: Tensor, labels: Tensor, chosen: Tensor) -> None:
        """At most `quota` of the chosen pixels per image and class, over all processes."""
        most = max(1, self.quota * len(labels) // processes())
        places, owners = chosen.flatten().nonzero()[:, 0], labels[chosen]
        kept = torch.cat([places[:0], *(some(places[owners == c], most) for c in owners.unique())])
        vectors, owners = from_everywhere(pixels_at(features, kept), labels.flatten()[kept], most * len(bank.rows))
        bank.push(vectors, owners, quota=bank.rows.shape[1])


def _places(fine: torch.Size, coarse: torch.Size, device: torch.device) -> tuple[Tensor, Tensor]:
    """Rows (H, 1) and columns (W,) of the coarse grid that the pixels of the fine one fall into."""
    rows, columns = (torch.arange(n, device=device) * m // n for n, m in zip(fine, coarse, strict=True))
    return rows[:, None], columns


def nearest(plane: Tensor, size: torch.Size) -> Tensor:
    """(..., H, W) of any type -> (..., h, w), as `F.interpolate(mode="nearest")`."""
    rows, columns = _places(size, plane.shape[-2:], plane.device)
    return plane[..., rows, columns]


def _statistics(factor: Tensor, view: View) -> dict[str, Tensor]:
    """Mean weight of the kept pixels, and of those whose pseudo-label is right and wrong where the truth is known."""
    kept = view.target.weight > 0
    found = {"weight": _mean(factor, kept)}
    if view.hidden is not None:
        known, right = kept & (view.hidden != IGNORE), view.target.hard == view.hidden
        found |= {"weight_right": _mean(factor, known & right), "weight_wrong": _mean(factor, known & ~right)}
    return found


def _mean(values: Tensor, among: Tensor) -> Tensor:
    return torch.stack(((values * among).sum(), among.sum().float()))
