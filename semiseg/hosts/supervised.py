"""Labeled images only: the baseline of every table, and the stages of ST++ (which bring masks of their own)."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING

import torch.nn as nn
from torch import Tensor

from ..build import criterion, make_student
from ..components import labeled_terms
from ..losses import labeled_cross_entropy
from ..models.teacher import Teacher
from ..registry import Method
from ..scales import IMAGES, labeled_share
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


def of_unimatch(base: Recipe, batch: int, ohem_share: float) -> Recipe:
    """What both trainings of LiheYoung/UniMatch @ 0324f3dd have in common at paper scale.

    On COCO the encoder stays, since theirs is an Xception.

    ohem_share: what 200,000 pixels are of the labeled images of one of 4 GPUs.
    """
    if base.scale != "paper" or base.data not in IMAGES:
        return base
    city, coco = base.data == "cityscapes", base.data == "coco"
    network = replace(
        base.network, stem="resnet" if coco else "deep", projection=1, pyramid_dropout=0.0, dropout=0.0
    )  # fmt: skip
    optimization = replace(
        base.optimization, batch=batch, crop={"voc": 321, "cityscapes": 801, "coco": 513}[base.data],
        epochs={"voc": 80, "cityscapes": 240, "coco": 30}[base.data], epoch_steps=None, ohem=city,
        ohem_share=ohem_share if city else None,
        lr={"voc": 1e-3, "cityscapes": 5e-3, "coco": 4e-3}[base.data], head_lr_factor=1.0 if city else 10.0,
    )  # fmt: skip
    whole = replace(base.evaluation, protocol="whole", every=1)
    windows = replace(base.evaluation, protocol="sliding", size=801, step=534, border="cut", every=1)
    return base.having(network, optimization, windows if city else whole)


def official(base: Recipe) -> Recipe:
    """LiheYoung/UniMatch @ 0324f3dd, supervised.py: passes over labeled images, 4 of them on each of 4 GPUs.

    The share of a GPU is rounded up, and what does not fill its batch is dropped.  For lists of other names the number
    of labeled images is not known; set optimization.epoch_steps.
    """
    made, share = of_unimatch(base, 16, 0.07793), labeled_share(base.data, base.split)
    if made is base or share is None:
        return made
    steps = math.ceil(math.ceil(IMAGES[base.data] * share) / 4) // 4
    return made.having(replace(made.optimization, epoch_steps=max(1, steps)))


METHOD = Method(
    "supervised", title="supervised", color="#8c8c8c", build=build, unlabeled=False, year=0,
    readings={"official": official}, chapter="notebooks/hosts",
)  # fmt: skip
