"""Memory: one fixed-size first-in first-out ring of vectors per class, kept in the checkpoint."""

from __future__ import annotations

from typing import Literal

import torch
import torch.distributed as dist
import torch.nn as nn
import torch.nn.functional as F
from torch import Tensor

from .types import IGNORE

Draw = Literal["entries", "classes"]


class ClassBank(nn.Module):
    """K rings of `size` vectors of `width` channels.  Everything is a buffer, so a resumed run is the same run."""

    rows: Tensor  # (K, size, width)
    filled: Tensor  # (K,) how many slots hold a vector
    head: Tensor  # (K,) the slot written next

    def __init__(self, classes: int, size: int, width: int) -> None:
        super().__init__()
        if min(classes, size, width) < 1:
            raise ValueError(f"ClassBank needs positive sizes, got classes={classes}, size={size}, width={width}")
        self.register_buffer("rows", torch.zeros(classes, size, width))
        self.register_buffer("filled", torch.zeros(classes, dtype=torch.long))
        self.register_buffer("head", torch.zeros(classes, dtype=torch.long))

    def __getitem__(self, k: int) -> Tensor:
        """What class k holds: (n, width), n <= size, in no particular order."""
        return self.rows[k, : int(self.filled[k])]

    def everything(self) -> tuple[Tensor, Tensor]:
        """All vectors held (M, width) and their classes (M,)."""
        used = torch.arange(self.rows.shape[1], device=self.rows.device) < self.filled[:, None]
        return self.rows[used], used.nonzero()[:, 0]

    @torch.no_grad()
    def push(self, vectors: Tensor, labels: Tensor, quota: int) -> None:
        """Replace the oldest entries of each class by at most `quota` random new ones.

        Args:
            vectors: (N, width).
            labels: (N,) long; vectors of labels outside 0..K-1 are passed over.
            quota: most vectors a class takes in one call.
        """
        size = self.rows.shape[1]
        for k in range(len(self.rows)):
            new = vectors[labels == k]
            if len(new) > min(quota, size):
                new = new[torch.randperm(len(new), device=new.device)[: min(quota, size)]]
            slots = (self.head[k] + torch.arange(len(new), device=new.device)) % size
            self.rows[k, slots] = new.to(self.rows)
            self.head[k] = (self.head[k] + len(new)) % size
            self.filled[k] = (self.filled[k] + len(new)).clamp(max=size)

    @torch.no_grad()
    def append(self, vectors: Tensor, labels: Tensor) -> None:
        """Replace the oldest entries of each class by all new ones, in their order, without a loop over classes.

        Args:
            vectors: (N, width); of more than `size` vectors of a class the last ones stay.
            labels: (N,) long in 0..K-1.
        """
        size = self.rows.shape[1]
        labels, order = labels.sort(stable=True)
        new = torch.bincount(labels, minlength=len(self.rows))
        rank = torch.arange(len(labels), device=labels.device) - (new.cumsum(0) - new)[labels]
        newest = rank >= new[labels] - size
        slots = (self.head[labels] + rank) % size
        self.rows[labels[newest], slots[newest]] = vectors[order][newest].to(self.rows)
        self.head.add_(new).remainder_(size)
        self.filled.add_(new).clamp_(max=size)

    @torch.no_grad()
    def draw(self, labels: Tensor, others: int, uniform: Draw = "entries") -> Tensor:
        """Random places of one entry of the own class and of entries of other classes, with replacement.

        Args:
            labels: (n,) long; these classes, and at least one other than each, must hold something.
            others: how many to draw from other classes.
            uniform: "entries": each entry held is equally likely; "classes": each class that holds any is.

        Returns:
            (n, 1 + others) long, indices into `rows.flatten(0, 1)`.
        """
        size, n = self.rows.shape[1], (len(labels), others)
        starts, ends, mine = self.filled.cumsum(0) - self.filled, self.filled.cumsum(0), self.filled[labels][:, None]
        own = labels[:, None] * size + _below(mine)
        if uniform == "classes":
            held = self.filled.nonzero()[:, 0]
            r = _below(self.filled.new_full(n, len(held) - 1))
            k = held[r + (r >= torch.searchsorted(held, labels)[:, None])]
            return torch.cat((own, k * size + _below(self.filled[k])), 1)
        r = _below((ends[-1] - mine).expand(n))  # counts entries; those of the own class are skipped
        r += torch.where(r >= starts[labels][:, None], mine, 0)
        k = torch.searchsorted(ends, r, right=True)
        return torch.cat((own, k * size + r - starts[k]), 1)


def _below(limit: Tensor) -> Tensor:
    """Uniform integers in 0..limit - 1; limit long, of any shape."""
    return (torch.rand(limit.shape, device=limit.device) * limit).long().minimum(limit - 1)


def as_pixels(features: Tensor) -> Tensor:
    """(B, D, h, w) -> (B*h*w, D)."""
    return features.movedim(1, -1).flatten(0, -2)


def some(items: Tensor, most: int) -> Tensor:
    """At most so many of the items, drawn at random without replacement."""
    return items if len(items) <= most else items[torch.randperm(len(items), device=items.device)[:most]]


def processes() -> int:
    """How many processes train together."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def from_everywhere(vectors: Tensor, labels: Tensor, most: int) -> tuple[Tensor, Tensor]:
    """New vectors (n, width) and labels (n,) of all processes, in one order, so that every process keeps equal banks.

    `most` bounds n in each process; the gap is filled with vectors labeled IGNORE, which `push` passes over.
    """
    if processes() == 1:
        return vectors, labels
    gap = most - len(vectors)
    gathered = []
    for mine in (F.pad(vectors, (0, 0, 0, gap)), F.pad(labels, (0, gap), value=IGNORE)):
        parts = [torch.empty_like(mine) for _ in range(processes())]
        dist.all_gather(parts, mine)
        gathered.append(torch.cat(parts))
    return gathered[0], gathered[1]


def largest(rows: Tensor, k: int, fold: int = 4) -> tuple[Tensor, Tensor]:
    """`topk` along the rows of (n, m) by elimination, faster where m is large: values and places, (n, k) each.

    Columns are folded into groups; the k largest values lie in the k groups with the largest maxima.
    """
    groups, m = rows.shape[1] // fold, rows.shape[1]
    if groups <= 3 * k:
        return rows.topk(k, dim=1)
    _, best = largest(rows[:, : groups * fold].unflatten(1, (fold, groups)).amax(1), k, fold)
    place = (best[:, None] + groups * torch.arange(fold, device=rows.device)[:, None]).flatten(1)
    rest = torch.arange(groups * fold, m, device=rows.device).expand(len(rows), -1)
    place = torch.cat((place, rest), 1)
    values, chosen = rows.gather(1, place).topk(k, dim=1)
    return values, place.gather(1, chosen)


def pixels_at(features: Tensor, index: Tensor) -> Tensor:
    """Some rows (n, D) of `as_pixels`, without a copy of the map (B, D, h, w); index (n,) long."""
    h, w = features.shape[-2:]
    return features[index // (h * w), :, index // w % h, index % w]
