"""Labeled images only: the baseline of every table, and the stages of ST++ (which bring masks of their own)."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import torch.nn as nn
from torch import Tensor

from ..build import criterion, make_student
from ..components import labeled_terms
from ..losses import labeled_cross_entropy
from ..models.teacher import Teacher
from ..registry import Method
from ..types import Batch, Host, Output, Step, Target

if TYPE_CHECKING:
    from ..recipe import Recipe


class Supervised(Host):
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
        y, output = Target.from_labels(batch.y), self.student(batch.x)
        return Step(labeled_terms(self.student, self.criterion, output, y), {})


def build(recipe: Recipe, classes: int) -> Supervised:
    return Supervised(make_student(recipe, classes), criterion=criterion(recipe), decay=recipe.consistency.decay)


METHOD = Method(
    "supervised", title="supervised", color="#8c8c8c", build=build, unlabeled=False, year=0, chapter="notebooks/hosts",
)  # fmt: skip
