"""Scores of a network on a validation set: one confusion matrix pooled over all images, ignored pixels left out."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Literal

import torch
import torch.nn as nn
import torch.nn.functional as F
from torch import Tensor
from torchmetrics.classification import MulticlassConfusionMatrix

from .data.dataset import SegmentationData
from .data.evaluation import evaluation_batches
from .data.transforms import MEAN, STD
from .options import Evaluation
from .scales import EMBEDDED
from .types import IGNORE

Protocol = Literal["whole", "center_crop", "sliding"]


@dataclass(frozen=True)
class Scores:
    """What one evaluation found; every share is in [0, 1].

    A class that is neither in the truth nor predicted has no IoU (None) and does not enter the mean.
    """

    miou: float
    pixel_accuracy: float
    iou: tuple[float | None, ...]
    confusion: tuple[tuple[int, ...], ...]  # rows: truth, columns: prediction, in pixels

    @staticmethod
    def of(confusion: Tensor) -> Scores:
        """From a (K, K) count matrix."""
        hits, total = confusion.diagonal().double(), confusion.sum().clamp(min=1)
        union = confusion.sum(0) + confusion.sum(1) - confusion.diagonal()
        iou = hits / union
        present = union > 0
        return Scores(
            float(iou[present].mean()) if present.any() else 0.0,
            float(hits.sum() / total),
            tuple(float(v) if p else None for v, p in zip(iou, present, strict=True)),
            tuple(tuple(int(n) for n in row) for row in confusion),
        )


def whole(network: nn.Module, images: Tensor) -> Tensor:
    """Class scores of whole images in one pass: (B, 3, H, W) -> (B, K, H, W) logits."""
    return network(images).logits


def sliding(
    network: nn.Module, images: Tensor, size: int, step: int, border: Literal["inside", "cut"] = "inside"
) -> Tensor:
    """Class probabilities summed over overlapping windows (Cityscapes protocol).

    Args:
        images: (B, 3, H, W), any size; smaller than a window is taken whole.
        size: side of the square window in pixels.
        step: distance of two windows; at most `size`.
        border: the last window of a row or column ends there: "inside": a whole one; "cut": what is left of one, and
            there is a window wherever one starts inside the image (released code of UniMatch and AugSeg).

    Returns:
        (B, K, H, W): mean probability over the windows that see a pixel.
    """
    if not 0 < step <= size:
        raise ValueError(f"sliding evaluation needs 0 < step <= size, got step={step}, size={size}")
    height, width = images.shape[-2:]
    total: Tensor | None = None
    seen = images.new_zeros(height, width)
    for y in _starts(height, size, step, border):
        for x in _starts(width, size, step, border):
            window = (..., slice(y, y + size), slice(x, x + size))
            p = network(images[window].contiguous()).logits.float().softmax(1)
            if total is None:
                total = p.new_zeros(len(images), p.shape[1], height, width)
            total[window] += p
            seen[window] += 1
    assert total is not None
    return total / seen


def _starts(length: int, size: int, step: int, border: Literal["inside", "cut"]) -> list[int]:
    if border == "cut":
        return [*range(0, length, step)]
    last = max(length - size, 0)
    return [*range(0, last, step), last]


def center_crop(image: Tensor, mask: Tensor, size: int, black: Tensor) -> tuple[Tensor, Tensor]:
    """The middle `size` x `size` pixels of a normalized image and its mask, padded where the image is smaller.

    Args:
        image: (B, 3, H, W); padding is black before normalization, `black` (3,) is its normalized value.
        mask: (B, H, W); padding is IGNORE.
    """
    height, width = mask.shape[-2:]
    y, x = max((height - size) // 2, 0), max((width - size) // 2, 0)
    image, mask = image[..., y : y + size, x : x + size], mask[..., y : y + size, x : x + size]
    height, width = mask.shape[-2:]
    if (height, width) == (size, size):
        return image, mask
    left, top = (size - width) // 2, (size - height) // 2
    pad = (left, size - width - left, top, size - height - top)
    canvas = black.view(3, 1, 1).expand(len(image), 3, size, size).clone()
    canvas[..., top : top + height, left : left + width] = image
    return canvas, F.pad(mask, pad, value=IGNORE)


@torch.no_grad()
def evaluate(
    network: nn.Module,
    batches: Iterable[tuple[Tensor, Tensor]],
    classes: int,
    predict: Callable[[nn.Module, Tensor], Tensor] = whole,
) -> Scores:
    """Score a network in evaluation mode; its mode is restored.

    Args:
        network: image -> Output.
        batches: normalized images (B, 3, H, W) and masks (B, H, W) long with IGNORE.
        classes: K.
        predict: (network, images) -> (B, K, H, W) scores; `whole`, or `sliding` with its sizes bound.
    """
    modes = {m: m.training for m in network.modules()}
    network.eval()
    device = next(network.parameters()).device
    # One process scores the whole set, so there is nothing to gather from others, who would be waited for forever.
    matrix = MulticlassConfusionMatrix(classes, ignore_index=IGNORE, sync_on_compute=False).to(device)
    for images, masks in batches:
        matrix.update(predict(network, images.to(device)).argmax(1), masks.to(device))
    for module, mode in modes.items():
        module.training = mode
    return Scores.of(matrix.compute().cpu())


def scorer(e: Evaluation, data: SegmentationData, ids: Sequence[str], batch: int = 1) -> Callable[[nn.Module], Scores]:
    """A protocol on some images of a data set: network -> Scores.  `batch`: neighbors of equal size in one pass.

    The function raises ValueError where no pixel has a label.
    """
    black = (0 - torch.tensor(MEAN)) / torch.tensor(STD)
    windows = partial(sliding, size=e.size, step=e.step, border=e.border)
    predict = windows if e.protocol == "sliding" else whole

    def batches() -> Iterator[tuple[Tensor, Tensor]]:
        for _, images, masks in evaluation_batches(data, ids, batch=batch):
            yield center_crop(images, masks, e.size, black) if e.protocol == "center_crop" else (images, masks)

    def score(network: nn.Module) -> Scores:
        found = evaluate(network, batches(), len(data.classes), predict)
        if not any(map(any, found.confusion)):
            raise ValueError(f"{data.name}: no pixel of the {len(ids)} images to score has a label; there is no score")
        return found

    return score


def batch_of(data: str) -> int:
    """Images per pass in the evaluation of runs on a data set of that name: the embedded scenes are small."""
    return 32 if data in EMBEDDED else 1
