"""ST++ (Yang et al., CVPR 2022): self-training in stages, reliable images first, strong augmentation on unlabeled ones.

supervised -> three checkpoints agree on an image? -> label the reliable half -> retrain -> label the rest -> retrain
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import torch
import torch.nn as nn
import torch.nn.functional as F
from torch import Tensor

from ..components import NoMix, UniformWeight, weigh_and_mix
from ..host_options import SCALES
from ..losses import pixel_cross_entropy
from ..models.teacher import Teacher
from ..statistics import logged, pseudo_label_statistics, share
from ..types import Batch, Mixer, Output, PixelWeighter, Step, Target, View


def reliability(predictions: Tensor, classes: int) -> float:
    """How stable the prediction of an image was over training: what ST++ selects images by.

    Args:
        predictions: (M, H, W) long, of M >= 2 checkpoints; the last one is taken for the truth.
        classes: K.

    Returns:
        Mean over the other checkpoints of their mIoU with the last, in [0, 1]; classes that neither predicts do not
        enter.  1 where all agree.
    """
    *others, truth = predictions.flatten(1)
    pairs = torch.stack([truth * classes + other for other in others])
    pairs = pairs + torch.arange(len(others), device=pairs.device)[:, None] * classes**2
    confusion = torch.bincount(pairs.flatten(), minlength=len(others) * classes**2).view(-1, classes, classes)
    confusion = confusion.cpu().double()
    hits = confusion.diagonal(dim1=1, dim2=2)
    union = confusion.sum(1) + confusion.sum(2) - hits
    return float((hits / union).nanmean(1).mean())


def split_half(ids: Sequence[str], scores: Sequence[float]) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """The floor(U / 2) most reliable images, and the others, each by falling score; ties keep the order of `ids`."""
    ranked = sorted(zip(ids, scores, strict=True), key=lambda pair: -pair[1])
    order, half = tuple(key for key, _ in ranked), len(ids) // 2
    return order[:half], order[half:]


@torch.no_grad()
def pseudo_label(
    network: nn.Module, images: Tensor, *, scales: Sequence[float] = SCALES, flip: bool = True
) -> tuple[Tensor, Tensor]:
    """Label and entropy from the mean probability over scales and mirror images.

    Args:
        network: in evaluation mode, images -> Output.
        images: (B, 3, H, W), normalized.
        scales: factors of height and width; probabilities are resized back, bilinearly.
        flip: also the mirror image at each scale.  False for sets in which a mirrored image is no valid image.

    Returns:
        Labels (B, H, W) long and entropies (B, H, W) in nats, of probabilities that sum to 1.
    """
    b, size = len(images), images.shape[-2:]
    total: Tensor | None = None
    for scale in scales:
        scaled = _resize(images, (max(1, int(size[0] * scale)), max(1, int(size[1] * scale))))
        p = network(torch.cat((scaled, scaled.flip(-1))) if flip else scaled).logits.float().softmax(1)
        p = _resize(p[:b] + p[b:].flip(-1) if flip else p, size)
        total = p if total is None else total.add_(p)
    assert total is not None, "at least one scale"
    total = total / total.sum(1, keepdim=True)
    return total.max(1).indices, torch.special.entr(total).sum(1)


def _resize(x: Tensor, size: tuple[int, int] | torch.Size) -> Tensor:
    if x.shape[-2:] == size:
        return x
    return F.interpolate(x, size=tuple(size), mode="bilinear", align_corners=True)


def mean_cross_entropy(output: Output, target: Target) -> Tensor:
    """Over all supervised pixels; a weighter's factors enter the divisor where it says so."""
    return pixel_cross_entropy(output.logits, target, "valid")


class SelfTraining(nn.Module):
    """A retraining stage: cross-entropy on labeled images, and on unlabeled ones with labels from disk.

    One mean over all supervised pixels of both, so that the unlabeled weight is implicit, as in ST++.  Its batches are
    drawn from a shuffled list in which the labeled images repeat until they are as many as the unlabeled ones; here
    every batch holds exactly as many of one as of the other.  Each row counts that a mixer makes of an image (UPC).

    The teacher only watches, as in `Supervised`; but where pixels are weighted, its features are what they are
    weighted by, since there are none on disk.

    Args:
        student: a segmentation network with its initial weights.
        mix: pastes on the strongly augmented images; UPC reads the entropy that was written beside the labels.
        weigh: factors of the pixels of unlabeled images.
        color: color jitter, grayscale, blur and cutout on unlabeled images, as the loader made them; False: geometry
            alone.
        criterion: (Output, Target) -> scalar, a mean over supervised pixels.
        decay: of the teacher.
    """

    def __init__(
        self,
        student: nn.Module,
        *,
        mix: Mixer | None = None,
        weigh: PixelWeighter | None = None,
        color: bool = True,
        criterion: Callable[[Output, Target], Tensor] = mean_cross_entropy,
        decay: float = 0.999,
    ) -> None:
        super().__init__()
        self.student, self.teacher = student, Teacher(student, decay)
        self.mix, self.weigh = mix or NoMix(), weigh or UniformWeight()
        self.color, self.criterion, self.teacher_reads = color, criterion, weigh is not None

    def losses(self, batch: Batch, t: float) -> Step:
        if batch.u_given is None or batch.u_entropy is None:
            raise ValueError("SelfTraining needs labels from disk; give it batches of a PseudoLabeled data set")
        n = len(batch.x)

        # 1. the label on disk is the target
        read = self.teacher(torch.cat((batch.x, batch.u_weak))) if self.teacher_reads else None
        labeled = View(batch.x, Target.from_labels(batch.y), read and read.rows(0, n))
        weak = View(
            batch.u_weak, Target.from_labels(batch.u_given), read and read.rows(n),
            entropy=batch.u_entropy, boxes=batch.u_boxes, hidden=batch.u_hidden,
        )  # fmt: skip

        # 2. one paste moves the strong image and all that is known about its pixels
        strong = replace(weak, image=batch.u_strong[0]) if self.color else weak
        paste = self.mix(strong, labeled)
        mixed = paste.view(strong, labeled)

        # 3. the student reads labeled and mixed images together
        output = self.student(torch.cat((batch.x, mixed.image)))
        labeled, mixed = labeled.seen_by(output.rows(0, n)), mixed.seen_by(output.rows(n))
        target = weigh_and_mix(self.weigh, paste, weak, labeled, mixed)

        # 4. the mean over all supervised pixels, in its two parts
        on_labeled, on_mixed = labeled.target.denominator.sum(), target.denominator.sum()
        every = (on_labeled + on_mixed).clamp(min=torch.finfo(torch.float).tiny)
        losses = {
            "labeled": on_labeled / every * self.criterion(output.rows(0, n), labeled.target),
            "unlabeled": on_mixed / every * self.criterion(output.rows(n), target),
        }
        statistics = pseudo_label_statistics(weak.target, batch.u_hidden) | logged(self.weigh, self.mix)
        statistics["pasted"] = share(paste.source >= len(batch.u_weak), paste.source >= 0)
        return Step(losses, statistics)

    def after_step(self) -> None:
        self.teacher.follow(self.student)
