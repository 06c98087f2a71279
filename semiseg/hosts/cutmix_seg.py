"""CutMix-Seg (French et al., BMVC 2020): the student must predict, in a mosaic, what the teacher saw in its parts.

teacher(x, u_weak) -> probabilities -> cut and paste -> student(x, mixed) -> weigh -> squared error x confidence
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Literal

import torch
import torch.nn as nn
from torch import Tensor

from ..components import CutMix, SoftLabels, UniformWeight, entropy, weigh_and_mix
from ..losses import squared_error
from ..models.teacher import Teacher
from ..statistics import logged, pseudo_label_statistics, share
from ..types import Batch, Mixer, Output, PixelWeighter, Step, Target, View
from .supervised import labeled_cross_entropy


class CutMixSegmentation(nn.Module):
    """L = L_sup + w c |student(mixed) - mixed(teacher)|^2, c the share of pixels the teacher is sure of.

    The squared differences are summed over classes; their mean is over all pixels of the batch, padding and unsure
    ones included, so that c scales the term once and not twice.

    Seams: weigh, mix.

    Args:
        student: a segmentation network.
        weigh: factor per pixel; plain: 1.
        mix: plain: one box of half the image's area from the next image, always.
        tau: probability from which the teacher is sure of a pixel.
        confidence: "batch": c, one factor for the batch, takes the place of a ramp-up; "pixel": unsure pixels are
            left out of the sum, and c is 1.
        color: mix the color-jittered view; False: the weak one.
        unlabeled_weight: w.
        criterion: of the labeled term.
        decay, own_statistics: of the teacher.

    Raises:
        ValueError: an unknown confidence.
    """

    def __init__(
        self,
        student: nn.Module,
        *,
        weigh: PixelWeighter | None = None,
        mix: Mixer | None = None,
        tau: float = 0.97,
        confidence: Literal["batch", "pixel"] = "batch",
        color: bool = False,
        unlabeled_weight: float = 1.0,
        criterion: Callable[[Output, Target], Tensor] = labeled_cross_entropy,
        decay: float = 0.99,
        own_statistics: bool = False,
    ) -> None:
        super().__init__()
        if confidence not in ("batch", "pixel"):
            raise ValueError(f"confidence must be 'batch' or 'pixel', got {confidence!r}")
        self.student, self.teacher = student, Teacher(student, decay, own_statistics)
        self.label, self.mix, self.weigh = SoftLabels(padding=True), mix or CutMix(1.0), weigh or UniformWeight()
        self.tau, self.confidence, self.color = tau, confidence, color
        self.unlabeled_weight, self.criterion = unlabeled_weight, criterion

    def losses(self, batch: Batch, t: float) -> Step:
        n = len(batch.x)

        # 1. the teacher reads the clean images
        predicted = self.teacher(torch.cat((batch.x, batch.u_weak)))
        labeled = View(batch.x, Target.from_labels(batch.y), predicted.rows(0, n))
        on_u = predicted.rows(n)
        label, doubt = self.label(on_u, batch.u_valid, t), entropy(on_u.logits) * batch.u_valid
        weak = View(batch.u_weak, label, on_u, entropy=doubt, boxes=batch.u_boxes, hidden=batch.u_hidden)

        # 2. one paste for images and probabilities
        strong = replace(weak, image=batch.u_strong[0]) if self.color else weak
        paste = self.mix(strong, labeled)
        mixed = paste.view(strong, labeled)

        # 3. the student reads labeled and mixed images
        output = self.student(torch.cat((batch.x, mixed.image)))
        labeled, mixed = labeled.seen_by(output.rows(0, n)), mixed.seen_by(output.rows(n))
        target = weigh_and_mix(self.weigh, paste, weak, labeled, mixed)

        # 4. as much consistency as the teacher is sure
        sure = (target.label.amax(1) >= self.tau).float()
        if self.confidence == "pixel":
            consistency = squared_error(output.rows(n).logits, target.only(sure), "sum")
        else:
            consistency = sure.mean() * squared_error(output.rows(n).logits, target, "sum")
        losses = {
            "labeled": self.criterion(output.rows(0, n), labeled.target),
            "unlabeled": self.unlabeled_weight * consistency,
        }
        real = replace(weak.target, denominator=batch.u_valid.float())
        statistics = pseudo_label_statistics(real, batch.u_hidden) | logged(self.weigh, self.mix)
        return Step(losses, statistics | {"confidence": share(sure > 0, sure >= 0)})

    def after_step(self) -> None:
        self.teacher.follow(self.student)
