"""Parts: prototypes of each class in the feature space of an encoder, found by K-means, followed through training."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn as nn
import torch.nn.functional as F
from sklearn.cluster import KMeans
from threadpoolctl import threadpool_limits
from torch import Tensor

from ..banks import as_pixels
from ..types import IGNORE


def part_prototypes(features: Tensor, parts: int) -> Tensor:
    """K-means of the features of one class.

    Directions are clustered, as pixels are assigned by cosine (ESL Eq. 7): clustered by distance, features of unequal
    length would be divided by their length.  A prototype is the mean of the features themselves, since such means are
    what it is averaged with later (Eq. 12).

    Args:
        features: (n, L).
        parts: clusters to look for.

    Returns:
        (m, L), m = min(parts, number of distinct directions); (0, L) without features.
    """
    unit = F.normalize(features.float(), dim=1)
    m = min(parts, len(unit.unique(dim=0)))
    if m == 0:
        return features[:0]
    with threadpool_limits(1):  # threads would add in any order, and two runs would differ in the last bits
        members = torch.from_numpy(KMeans(m, n_init=10, random_state=0).fit_predict(unit.numpy()))
    return torch.stack([features[members == k].mean(0) for k in members.unique().tolist()])


def group_means(features: Tensor, group: Tensor, groups: int) -> tuple[Tensor, Tensor]:
    """Masked average pooling: the mean feature of each group of pixels (ESL Eq. 8).

    Args:
        features: (B, D, h, w).
        group: (B, h, w) long in 0..groups-1; pixels of group -1 are left out.

    Returns:
        Means (groups, D), 0 for a group without pixels, and numbers of pixels (groups,), both float.
    """
    spare = torch.where(group < 0, groups, group).flatten()
    count = torch.bincount(spare, minlength=groups + 1)[:groups].float()
    rows = as_pixels(features).float()
    total = rows.new_zeros(groups + 1, rows.shape[1]).index_add_(0, spare, rows)[:groups]
    return total / count.clamp(min=1)[:, None], count


class Parts(nn.Module):
    """P prototypes for each of K classes in feature width L; first gathered, then clustered, then moved.

    A part is named by its flat index, class * P + number; -1 stands for none.  A class with fewer distinct features
    than P has fewer active prototypes; a class never seen has none.

    Args:
        classes, parts, width: K, P, L.
        momentum: theta, of the prototypes (Eq. 12).
        collect_steps: calls of `collect` before the prototypes are made.
        pool: features of each class to gather in all.
    """

    prototypes: Tensor  # (K, P, L)
    active: Tensor  # (K, P) bool
    collected: Tensor  # () long, calls of `collect` so far

    def __init__(
        self, classes: int, parts: int, width: int, *, momentum: float = 0.99, collect_steps: int = 64, pool: int = 4096
    ) -> None:
        super().__init__()
        if min(classes, parts, width, collect_steps, pool) < 1:
            raise ValueError(
                f"Parts needs positive numbers, got classes={classes}, parts={parts}, width={width}, "
                f"collect_steps={collect_steps}, pool={pool}"
            )
        self.register_buffer("prototypes", torch.zeros(classes, parts, width))
        self.register_buffer("active", torch.zeros(classes, parts, dtype=torch.bool))
        self.register_buffer("collected", torch.zeros((), dtype=torch.long))
        self.momentum, self.collect_steps, self.quota = momentum, collect_steps, max(1, pool // collect_steps)
        self._pool: list[Tensor] = []  # (n, L) per class, while collecting

    @property
    def ready(self) -> bool:
        return int(self.collected) >= self.collect_steps

    @torch.no_grad()
    def collect(self, deep: Tensor, label: Tensor) -> None:
        """Keep a random sample of each class's features; after the last of `collect_steps` calls, cluster them.

        deep (B, L, h, w); label (B, h, w) long with IGNORE.
        """
        flat, rows = label.flatten().cpu(), as_pixels(deep).float().cpu()
        self._pool = self._pool or [rows[:0]] * len(self.active)
        for c in flat[flat != IGNORE].unique().tolist():
            of_class = (flat == c).nonzero()[:, 0]
            some = of_class[torch.randperm(len(of_class))[: self.quota]]
            self._pool[c] = torch.cat((self._pool[c], rows[some]))
        self.collected += 1
        if not self.ready:
            return
        for c, features in enumerate(self._pool):
            found = part_prototypes(features, self.active.shape[1])
            self.prototypes[c, : len(found)] = found.to(self.prototypes)
            self.active[c, : len(found)] = True
        self._pool = []

    @torch.no_grad()
    def nearest(self, deep: Tensor) -> Tensor:
        """The part of every class that a feature would belong to: (B, L, h, w) -> (B, K, h, w) long in 0..P-1."""
        unit = F.normalize(self.prototypes, dim=-1).flatten(0, 1)[:, :, None, None]
        cosine = F.conv2d(deep.to(unit), unit).unflatten(1, self.active.shape)  # up to the norm, which orders nothing
        return cosine.masked_fill(~self.active[:, :, None, None], -torch.inf).max(2).indices

    @torch.no_grad()
    def assign(self, nearest: Tensor, label: Tensor) -> Tensor:
        """The part of each pixel (Eq. 7), given its class.

        Args:
            nearest: (B, K, h', w'), of the same images; repeated where the labels are finer.
            label: (B, h, w) long with IGNORE.

        Returns:
            (B, h, w) long, -1 where the class is unknown or has no prototype.
        """
        if nearest.shape[-2:] != label.shape[-2:]:
            nearest = F.interpolate(nearest.float(), size=label.shape[-2:], mode="nearest").long()
        c = torch.where(label == IGNORE, 0, label)
        part = c * self.active.shape[1] + nearest.gather(1, c[:, None])[:, 0]
        return torch.where((label != IGNORE) & self.active.any(1)[c], part, -1)

    @torch.no_grad()
    def follow(self, seen: Sequence[tuple[Tensor, Tensor]]) -> Tensor:
        """Move each prototype towards the mean feature of its part in a batch (Eq. 12); absent parts stay.

        seen: features (B, L, h, w) and parts (B, h, w) of each half of the batch.  Returns (K, P) bool, parts seen.
        """
        flat = self.prototypes.flatten(0, 1)
        total, count = torch.zeros_like(flat), flat.new_zeros(len(flat))
        for deep, part in seen:
            mean, n = group_means(deep, part, len(flat))
            total, count = total + mean * n[:, None], count + n
        mean = total / count.clamp(min=1)[:, None]
        flat.copy_(torch.where((count > 0)[:, None], flat.lerp(mean, 1 - self.momentum), flat))
        return (count > 0).view_as(self.active)

    @torch.no_grad()
    def start(self, deep: Tensor, label: Tensor) -> None:
        """Give a class without any prototype its first: the mean of the first labeled image that shows it.

        deep (B, L, h, w); label (B, h, w) long with IGNORE.
        """
        for c in (~self.active.any(1)).nonzero()[:, 0].tolist():
            showing = (label == c).flatten(1).any(1).nonzero()[:, 0]
            if len(showing):
                i = int(showing[0])
                self.prototypes[c, 0] = deep[i][:, label[i] == c].float().mean(1)
                self.active[c, 0] = True

    def get_extra_state(self) -> dict[str, Any]:
        return {"pool": self._pool}

    def set_extra_state(self, state: dict[str, Any]) -> None:
        self._pool = list(state["pool"])
