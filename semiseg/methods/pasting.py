"""Pasting of labeled images into unlabeled ones: which image gives, and how much (UPC and what it is compared with).

In shape comments D is the number of labeled images in the batch, R that of output rows per unlabeled image.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor

from ..types import Paste, View


def draw_donors(rows: int, images: int, donors: View, known: float = 0.0) -> Tensor:
    """Which labeled image each row of each unlabeled image takes from: (R, B) long in 0..D-1, on the CPU.

    The rows of an image have different donors, and every donor is drawn equally often up to 1 in a row; with fewer
    donors than rows they are drawn with replacement.

    known: share of a donor's pixels that must have a label; where none has so many, all take part.
    """
    among = torch.arange(len(donors.image))
    if known > 0:
        enough = ((donors.target.denominator > 0).float().mean((1, 2)) >= known).cpu()
        among = among[enough] if enough.any() else among
    if len(among) < rows:
        return among[torch.randint(len(among), (rows, images))]
    places = torch.arange(rows)[:, None] + torch.arange(images)
    return among[torch.randperm(len(among))][places % len(among)]


def paste_labeled(masks: Sequence[Tensor], partner: Tensor) -> Paste:
    """Row r of image i, at r B + i: the labeled image partner[r, i] inside the mask, its own pixels elsewhere.

    Args:
        masks: R planes (B, H, W) bool.
        partner: (R, B) long.
    """
    own = torch.arange(partner.shape[1]).view(-1, 1, 1).to(masks[0].device)
    foreign = (partner + partner.shape[1])[..., None, None].to(masks[0].device)
    return Paste(torch.cat([torch.where(mask, rows, own) for mask, rows in zip(masks, foreign, strict=True)]))


def patch_numbers(k: Sequence[int], rows: Literal["all", "sample"], images: int) -> Sequence[int | Tensor]:
    """Of each row, how many patches are replaced: one number for all images, or one for each, drawn from k."""
    return k if rows == "all" else (torch.tensor(k)[torch.randint(len(k), (images,))],)
