"""Numbers about pseudo-labels that every host logs: (2,) tensors of a sum and a count, pooled over an epoch."""

from __future__ import annotations

import torch
from torch import Tensor

from .types import IGNORE, Step, Target


def share(of: Tensor, among: Tensor) -> Tensor:
    """How many pixels of `among` (bool, any shape) are also in `of`: (2,) = (hits, size)."""
    return torch.stack(((of & among).sum(), among.sum())).float()


def pseudo_label_statistics(target: Target, hidden: Tensor) -> dict[str, Tensor]:
    """Share of valid pixels kept, and accuracy of the kept ones where a hidden mask exists.

    Args:
        target: pseudo-labels before mixing.
        hidden: (B, H, W) long, the masks training never sees, IGNORE where unknown.
    """
    kept, known = target.weight > 0, hidden != IGNORE
    right = target.hard == hidden
    return {
        "kept": share(kept, target.denominator > 0),
        "pseudo_label_accuracy": share(right, kept & known),
        "teacher_accuracy": share(right, known & (target.denominator > 0)),
    }


class EpochMean:
    """Losses and statistics of an epoch, summed on the device they were made on."""

    def __init__(self) -> None:
        self.losses: dict[str, Tensor] = {}
        self.pairs: dict[str, Tensor] = {}

    def add(self, step: Step) -> None:
        """Take in one batch."""
        for name, value in step.losses.items():
            pair = torch.stack((value.detach().float(), torch.ones_like(value, dtype=torch.float)))
            self.losses[name] = self.losses.get(name, 0) + pair
        for name, pair in step.statistics.items():
            self.pairs[name] = self.pairs.get(name, 0) + pair.double()

    def mean(self) -> dict[str, float]:
        """Mean of each loss, as `loss_<name>`, and pooled ratio of each statistic; nan where nothing counted."""
        named = {f"loss_{k}": v for k, v in self.losses.items()} | self.pairs
        return {k: float(v[0] / v[1]) if v[1] > 0 else float("nan") for k, v in named.items()}
