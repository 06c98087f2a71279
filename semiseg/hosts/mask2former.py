"""Mask2Former (Cheng et al., CVPR 2022) in two trainings, the scheme of UPC (Fang et al., ICCV 2023, Table 1).

labels alone -> label every other image, once -> retrain from the initial weights on both, strong views of the latter
"""

from __future__ import annotations

from dataclasses import replace
from typing import Literal, Protocol

import torch
import torch.nn as nn
from torch import Tensor

from ..components import NoMix, UniformWeight, weigh_and_mix
from ..models.mask2former import Mask2Former, MaskQueries, log_probabilities
from ..models.teacher import Teacher
from ..statistics import logged, pseudo_label_statistics, share
from ..types import Batch, Mixer, PixelWeighter, Step, Target, View

Doubt = Literal["normalized", "missing"]


class SetLoss(Protocol):
    """Queries of a batch against its label maps: scalars by name, already weighted (`mask2former_loss.MaskLoss`)."""

    def losses(self, queries: MaskQueries, target: Target) -> dict[str, Tensor]: ...


def mask_set(target: Target, row: int) -> dict[int, Tensor]:
    """What the queries shall find in an image: for each class with a supervised pixel its binary mask (H, W) bool."""
    known = target.weight[row] > 0
    label = target.hard[row]
    return {int(c): (label == c) & known for c in label[known].unique()}


@torch.no_grad()
def label_by_masks(network: Mask2Former, images: Tensor, doubt: Doubt = "normalized") -> tuple[Tensor, Tensor]:
    """Label and entropy of a single pass at the size of the images.

    Args:
        network: in evaluation mode.
        images: (B, 3, H, W), normalized.
        doubt: "normalized": entropy of scores / sum, as for every other network; "missing": what the scores lack to 1
            counts as one more class, so that a pixel no query claims is doubtful.

    Returns:
        Labels (B, H, W) long and entropies (B, H, W) in nats.
    """
    scores = network.queries(images).scores(images.shape[-2:])
    p = log_probabilities(scores).exp()
    if doubt == "missing":
        p = torch.cat((scores, (1 - scores.sum(1, keepdim=True)).clamp(min=0)), 1)
        p = p / p.sum(1, keepdim=True)
    return scores.max(1).indices, torch.special.entr(p).sum(1)


class SupervisedMasks(nn.Module):
    """The first training: the set loss on labeled images alone.  Its score is the supervised baseline.

    The teacher only watches, as in `Supervised`.

    Args:
        student: with its initial weights.
        criterion: the set loss.
        decay: of the teacher.
    """

    def __init__(self, student: Mask2Former, criterion: SetLoss, *, decay: float = 0.999) -> None:
        super().__init__()
        self.student, self.teacher, self.criterion = student, Teacher(student, decay), criterion

    def losses(self, batch: Batch, t: float) -> Step:
        return Step(self.criterion.losses(self.student.queries(batch.x), Target.from_labels(batch.y)), {})

    def after_step(self) -> None:
        self.teacher.follow(self.student)


class MaskSelfTraining(nn.Module):
    """The retraining: labeled images, and unlabeled ones with labels from disk, as one batch of one set loss.

    The loss divides by the masks of the whole batch, so that the unlabeled weight is implicit.  A mixed label map
    needs nothing special: its set of masks is made after mixing.

    The teacher only watches; but where pixels are weighted, its features are what they are weighted by.

    Args:
        student: with its initial weights.
        criterion: the set loss; it reads weights and denominators of the target.
        mix: pastes on the strong views; UPC reads the entropy that was written beside the labels.
        weigh: factors of the pixels of unlabeled images in the mask terms and in the matching.
        color: strong colors on unlabeled images; False: geometry alone.
        decay: of the teacher.
    """

    def __init__(
        self,
        student: Mask2Former,
        criterion: SetLoss,
        *,
        mix: Mixer | None = None,
        weigh: PixelWeighter | None = None,
        color: bool = True,
        decay: float = 0.999,
    ) -> None:
        super().__init__()
        self.student, self.teacher, self.criterion = student, Teacher(student, decay), criterion
        self.mix, self.weigh = mix or NoMix(), weigh or UniformWeight()
        self.color, self.teacher_reads = color, weigh is not None

    def losses(self, batch: Batch, t: float) -> Step:
        if batch.u_given is None or batch.u_entropy is None:
            raise ValueError("MaskSelfTraining needs labels from disk; give it batches of a PseudoLabeled data set")
        n, size = len(batch.x), batch.x.shape[-2:]

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

        # 3. the student's queries answer for labeled and mixed images together
        queries = self.student.queries(torch.cat((batch.x, mixed.image)))
        with torch.no_grad():
            said = queries.output(size)
            claimed = queries.scores(queries.masks[-1].shape[-2:])[n:].sum(1)
        labeled, mixed = labeled.seen_by(said.rows(0, n)), mixed.seen_by(said.rows(n))
        target = weigh_and_mix(self.weigh, paste, weak, labeled, mixed)

        # 4. sets of masks, made of both label maps
        losses = self.criterion.losses(queries, labeled.target.cat(target))
        statistics = pseudo_label_statistics(weak.target, batch.u_hidden) | logged(self.weigh, self.mix)
        statistics["pasted"] = share(paste.source >= len(batch.u_weak), paste.source >= 0)
        statistics["score_sum"] = torch.stack((claimed.sum(), claimed.new_tensor(claimed.numel())))
        return Step(losses, statistics)

    def after_step(self) -> None:
        self.teacher.follow(self.student)
