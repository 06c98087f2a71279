"""Pictures of three schemes whose idea lies outside a single step: which images, which pixels, which masks."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
import torch.nn as nn
from matplotlib.figure import Figure
from torch import Tensor

from semiseg.data.dataset import SegmentationData
from semiseg.hosts.mask2former import mask_set
from semiseg.hosts.stpp import reliability, split_half
from semiseg.types import Target, View

from ..pictures import colored, predict
from .hosts import drawn, picture, rows_of


def by_reliability(
    data: SegmentationData, ids: Sequence[str], stages: Sequence[nn.Module], columns: int = 8
) -> tuple[Figure, list[float]]:
    """ST++: images from the one on which the earlier networks agree best with the last to where they do least.

    Args:
        ids: images to rank.
        stages: networks in evaluation mode, the last one the judge.
        columns: images drawn, evenly spaced in the ranking.

    Returns:
        The figure, an image and what each network says about it per column, and the scores of all images, descending.
    """
    masks = {key: torch.stack([predict(network, data, key) for network in stages]) for key in ids}
    score = {key: reliability(said, len(data.classes)) for key, said in masks.items()}
    reliable, others = split_half(ids, list(score.values()))
    ranked = reliable + others
    shown = [ranked[i] for i in np.linspace(0, len(ranked) - 1, columns).astype(int)]
    planes = {"image": [data.image(key).movedim(0, -1).numpy() for key in shown]}
    for i in range(len(stages)):
        planes[f"network {i + 1}"] = [colored(masks[key][i], data.palette) for key in shown]
    figure = rows_of(planes, data, [f"{score[key]:.2f}" for key in shown])
    return figure, [score[key] for key in ranked]


def candidates(logits: Tensor, uncertain: Tensor, low: int) -> Tensor:
    """The `low` likeliest classes of uncertain pixels, their probabilities made to sum to one; elsewhere 0.

    (B, K, H, W), (B, H, W) bool -> (B, K, H, W).
    """
    p = logits.softmax(1)
    top = p.topk(low, dim=1)
    kept = torch.zeros_like(p).scatter(1, top.indices, top.values)
    return kept / kept.sum(1, keepdim=True) * uncertain[:, None]


def unreliable_pixels(
    view: View, unreliable: Tensor, data: SegmentationData, rows: Sequence[int], low: int = 3
) -> Figure:
    """U2PL: the most uncertain pixels teach no class, but rule out all classes beyond their likeliest few.

    Args:
        view: mixed images with target, and the teacher's output and entropy of its second look.
        unreliable: (B, H, W) bool.
        low: classes that stay possible.
    """
    assert view.teacher is not None and view.entropy is not None
    known = view.target.weight > 0
    kept, rest = (known & ~unreliable).float(), (known & unreliable).float()
    sure = Target(view.target.hard, kept, kept)
    possible = Target(candidates(view.teacher.logits, unreliable, low), rest, rest)
    planes = {
        "mixed view": [picture(view.image[r]) for r in rows],
        "entropy": [(view.entropy * known)[r].numpy() for r in rows],
        "pseudo-label": [drawn(sure, r, data.palette) for r in rows],
        "still possible": [drawn(possible, r, data.palette) for r in rows],
    }
    return rows_of(planes, data)


def sets_of_masks(view: View, data: SegmentationData, rows: Sequence[int], most: int = 3) -> Figure:
    """Mask classification: label maps as sets of masks, one per class in them; of many classes the largest `most`."""
    none = np.ones((*view.image.shape[-2:], 3))
    sets = [sorted(mask_set(view.target, r).values(), key=lambda mask: -int(mask.sum())) for r in rows]
    planes = {
        "image": [picture(view.image[r]) for r in rows],
        "label map": [drawn(view.target, r, data.palette) for r in rows],
    }
    for i in range(most):
        planes[f"mask {i + 1}"] = [s[i].float().numpy() if i < len(s) else none for s in sets]
    return rows_of(planes, data)
