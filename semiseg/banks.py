"""Memory: one fixed-size first-in first-out ring of vectors per class, kept in the checkpoint."""

from __future__ import annotations

import torch
import torch.distributed as dist
import torch.nn as nn
import torch.nn.functional as F
from torch import Tensor

from .types import IGNORE


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
