"""Labeled images only: the baseline of every table, and the stages of ST++ (which bring masks of their own)."""

from __future__ import annotations

from collections.abc import Callable

import torch.nn as nn
from torch import Tensor

from ..losses import pixel_cross_entropy
from ..models.teacher import Teacher
from ..types import Batch, Output, Step, Target


def labeled_cross_entropy(output: Output, target: Target) -> Tensor:
    return pixel_cross_entropy(output.logits, target)


class Supervised(nn.Module):
    """Cross-entropy on labeled images (DDFP Eq. 1).

    The teacher only watches: it is the same average of weights the other hosts are judged by, so that averaging
    alone is nobody's advantage.

    Args:
        student: a segmentation network.
        criterion: (Output, Target) -> scalar; for Cityscapes OHEM.
        decay: of the teacher.
    """

    def __init__(
        self,
        student: nn.Module,
        *,
        criterion: Callable[[Output, Target], Tensor] = labeled_cross_entropy,
        decay: float = 0.999,
    ) -> None:
        super().__init__()
        self.student, self.teacher, self.criterion = student, Teacher(student, decay), criterion

    def losses(self, batch: Batch, t: float) -> Step:
        return Step({"labeled": self.criterion(self.student(batch.x), Target.from_labels(batch.y))}, {})

    def after_step(self) -> None:
        self.teacher.follow(self.student)
