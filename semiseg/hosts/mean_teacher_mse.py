"""Mean teacher with soft targets (Tarvainen & Valpola, 2017): the classic that tables call "Mean Teacher" or "MT".

teacher(x, u_weak) -> probabilities -> mix -> student(x, mixed) -> weigh -> squared error
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace

import torch
import torch.nn as nn
from torch import Tensor

from ..components import NoMix, SoftLabels, UniformWeight, entropy, weigh_and_mix
from ..losses import squared_error
from ..models.teacher import Teacher
from ..statistics import logged, pseudo_label_statistics
from ..types import Batch, Mixer, Output, PixelWeighter, Step, Target, View
from .supervised import labeled_cross_entropy


def ramp_up(t: float, share: float) -> float:
    """exp(-5 (1 - t / share)^2) until t = share, 1 from there on (Laine & Aila, 2017); share 0: always 1."""
    return math.exp(-5 * (1 - t / share) ** 2) if t < share else 1.0


class SoftMeanTeacher(nn.Module):
    """L = L_sup + w(t) MSE(student, teacher), the squared difference of class probabilities, mean over classes.

    Seams: weigh, mix.  A pasted labeled pixel is pulled to its one-hot label.

    Args:
        student: a segmentation network.
        weigh: factor per pixel; plain: 1.
        mix: what is pasted into the student's images; plain: nothing.
        color: the student sees the color-jittered view; False: the image the teacher saw (TorchSemiSeg).
        on_labeled: consistency on labeled images too, all their pixels alike (TorchSemiSeg).
        unlabeled_weight: w after its rise.  A mean over K classes: for a sum it would be w / K.
        rise: share of training in which w rises as `ramp_up`; 0: constant (TorchSemiSeg).
        criterion: of the labeled term.
        decay, own_statistics: of the teacher; TorchSemiSeg's has statistics of its own.
    """

    def __init__(
        self,
        student: nn.Module,
        *,
        weigh: PixelWeighter | None = None,
        mix: Mixer | None = None,
        color: bool = True,
        on_labeled: bool = False,
        unlabeled_weight: float = 100.0,
        rise: float = 0.1,
        criterion: Callable[[Output, Target], Tensor] = labeled_cross_entropy,
        decay: float = 0.99,
        own_statistics: bool = False,
    ) -> None:
        super().__init__()
        self.student, self.teacher = student, Teacher(student, decay, own_statistics)
        self.label, self.mix, self.weigh = SoftLabels(), mix or NoMix(), weigh or UniformWeight()
        self.color, self.on_labeled, self.criterion = color, on_labeled, criterion
        self.unlabeled_weight, self.rise = unlabeled_weight, rise

    def losses(self, batch: Batch, t: float) -> Step:
        n = len(batch.x)

        # 1. the teacher reads both weak views; its probabilities on the unlabeled one are the target
        predicted = self.teacher(torch.cat((batch.x, batch.u_weak)))
        labeled = View(batch.x, Target.from_labels(batch.y), predicted.rows(0, n))
        on_u = predicted.rows(n)
        label, doubt = self.label(on_u, batch.u_valid, t), entropy(on_u.logits)
        weak = View(batch.u_weak, label, on_u, entropy=doubt, boxes=batch.u_boxes, hidden=batch.u_hidden)

        # 2. other colors, and what the mixer pastes
        strong = replace(weak, image=batch.u_strong[0]) if self.color else weak
        paste = self.mix(strong, labeled)
        mixed = paste.view(strong, labeled)

        # 3. the student reads labeled and mixed images
        output = self.student(torch.cat((batch.x, mixed.image)))
        labeled, mixed = labeled.seen_by(output.rows(0, n)), mixed.seen_by(output.rows(n))
        target, logits = weigh_and_mix(self.weigh, paste, weak, labeled, mixed), output.rows(n).logits
        if self.on_labeled:
            on_x = self.label(predicted.rows(0, n), torch.ones_like(batch.y, dtype=torch.bool), t)
            target, logits = on_x.cat(target), output.logits

        # 4. the teacher is random at first: its say grows
        weight = self.unlabeled_weight * ramp_up(t, self.rise)
        losses = {
            "labeled": self.criterion(output.rows(0, n), labeled.target),
            "unlabeled": weight * squared_error(logits, target),
        }
        statistics = pseudo_label_statistics(weak.target, batch.u_hidden)
        return Step(losses, statistics | logged(self.weigh, self.mix))

    def after_step(self) -> None:
        self.teacher.follow(self.student)
