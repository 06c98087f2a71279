"""Numbers about pseudo-labels that every host logs: (2,) tensors of a sum and a count, pooled over an epoch."""

from __future__ import annotations

import torch
from torch import Tensor

from .types import IGNORE, Target


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
