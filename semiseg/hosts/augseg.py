"""AugSeg (Zhao et al., CVPR 2023): mean teacher with random intensities and label injection where it is unsure.

The host is MeanTeacher; what is AugSeg's own is the strong view (data/intensity.py) and the mixer here.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from ..components import entropy
from ..models.deeplabv3plus import DeepLabV3Plus
from ..types import Mixer, Output, Paste, View
from .mean_teacher import MeanTeacher


def image_confidence(output: Output, valid: Tensor) -> Tensor:
    """rho: mean over the valid pixels of (1 - H / log K) max_k p_k, (B,) in [0, 1]; 0 where no pixel is valid.

    Args:
        output: the teacher's, logits (B, K, H, W).
        valid: (B, H, W), > 0 where the image is.
    """
    certain = 1 - entropy(output.logits) / math.log(output.logits.shape[1])
    each = certain * output.logits.float().softmax(1).amax(1) * (valid > 0)
    return each.sum((1, 2)) / (valid > 0).sum((1, 2)).clamp(min=1)


class AdaptiveInjection:
    """Mixer: adaptive label injection, then CutMix, with one permutation pi of the batch.

    1. On a copy, image j gets a box of the labeled image pi(j), with probability 1 - rho_j.
    2. Image i gets a box of that copy of image pi(i).

    So labeled pixels arrive only where the second box of i meets the first of pi(i).  The sides of a box are
    sqrt(1 - lambda) of the image's, lambda ~ Beta; its center is uniform in [1/8, 1) of each side, and it is cut at the
    borders.

    Args:
        inject, cut: the two parameters of Beta of stages 1 and 2.
        adaptive: False: every image is injected into (AugSeg's ablation).
    """

    def __init__(
        self, inject: tuple[float, float] = (8.0, 2.0), cut: tuple[float, float] = (4.0, 4.0), adaptive: bool = True
    ) -> None:
        if min(*inject, *cut) <= 0:
            raise ValueError(f"parameters of Beta must be > 0, got {inject} and {cut}")
        self.inject, self.cut, self.adaptive = inject, cut, adaptive

    def __call__(self, own: View, donors: View) -> Paste:
        b, h, w = own.target.weight.shape
        device = own.image.device
        rows = torch.arange(b, device=device)
        partner = torch.randperm(b, device=device)
        injected = _boxes(self.inject, b, h, w, device)
        if self.adaptive:
            assert own.teacher is not None
            sure = image_confidence(own.teacher, own.target.denominator)
            injected &= (torch.rand(b, device=device) > sure)[:, None, None]
        labeled = b + partner % len(donors.image)
        copy = torch.where(injected, labeled[:, None, None], rows[:, None, None])
        return Paste(torch.where(_boxes(self.cut, b, h, w, device), copy[partner], rows[:, None, None]))


def _boxes(beta: tuple[float, float], b: int, h: int, w: int, device: torch.device) -> Tensor:
    """(b, h, w) bool: boxes of one size, each around a center of its own."""
    side = math.sqrt(1 - torch.distributions.Beta(*torch.tensor(beta)).sample().item())
    box_h, box_w = int(h * side), int(w * side)
    y, x = (torch.randint(n // 8, n, (b, 1, 1), device=device) for n in (h, w))
    rows, columns = torch.arange(h, device=device)[:, None], torch.arange(w, device=device)
    inside_h = (rows >= y - box_h // 2) & (rows < y + box_h // 2)
    return inside_h & (columns >= x - box_w // 2) & (columns < x + box_w // 2)


def augseg(student: DeepLabV3Plus, *, mix: Mixer | None = None, **seams: Any) -> MeanTeacher:
    """AugSeg's host.  The unlabeled loss is a mean over all pixels that are not padding (released code: padding too).

    During the share `copy_until` of training the teacher is the student itself (released code: one epoch).
    """
    return MeanTeacher(student, mix=mix or AdaptiveInjection(), color=True, **{"divisor": "valid"} | seams)
