"""Mean teacher with soft targets (Tarvainen & Valpola, 2017): the classic that tables call "Mean Teacher" or "MT".

teacher(x, u_weak) -> probabilities -> mix -> student(x, mixed) -> weigh -> squared error
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING

import torch
import torch.nn as nn
from torch import Tensor

from ..build import criterion, make_student, mixer, teacher_options, weigher
from ..components import NoMix, SoftLabels, UniformWeight, labeled_terms, pasted, taught, weigh_and_mix
from ..losses import labeled_cross_entropy, squared_error
from ..models.teacher import Teacher
from ..options import Options, option, options
from ..registry import Method
from ..statistics import logged, pseudo_label_statistics
from ..types import Batch, Host, Mixer, Output, PixelWeighter, Step, Target
from .cps import torchsemiseg

if TYPE_CHECKING:
    from ..recipe import Recipe


@options
class MeanTeacherMSEOptions(Options):
    """Mean teacher with soft targets; decay of the teacher is in `Consistency`."""

    part = "mean_teacher_mse"
    weight: float = option(
        "of a mean over classes, after its rise; of a sum over K classes it would be weight / K",
        default=100.0,
        symbol="w",
        gt=0,
    )
    ramp_up: float = option(
        "share of training in which the weight rises as `ramp_up`; 0: constant (TorchSemiSeg)", default=0.1, ge=0, le=1
    )
    color: bool = option("the student sees other colors; False: the image the teacher saw (TorchSemiSeg)", default=True)
    on_labeled: bool = option("consistency on labeled images too, all their pixels alike (TorchSemiSeg)", default=False)
    padding: bool = option("padding of unlabeled images counts as any pixel (TorchSemiSeg)", default=False, later=True)


def ramp_up(t: float, share: float) -> float:
    """exp(-5 (1 - t / share)^2) until t = share, 1 from there on (Laine & Aila, 2017); share 0: always 1."""
    return math.exp(-5 * (1 - t / share) ** 2) if t < share else 1.0


class SoftMeanTeacher(Host):
    """L = L_sup + w(t) MSE(student, teacher), the squared difference of class probabilities, mean over classes.

    A pasted labeled pixel is pulled to its one-hot label.

    Args:
        student: a segmentation network.
        options: the numbers.
        weigh: factor per pixel; plain: 1.
        mix: what is pasted into the student's images; plain: nothing.
        criterion: of the labeled term.
        decay, own_statistics: of the teacher; TorchSemiSeg's has statistics of its own.
    """

    def __init__(
        self,
        student: nn.Module,
        options: MeanTeacherMSEOptions,
        *,
        weigh: PixelWeighter | None = None,
        mix: Mixer | None = None,
        criterion: Callable[[Output, Target], Tensor] = labeled_cross_entropy,
        decay: float = 0.99,
        own_statistics: bool = False,
    ) -> None:
        super().__init__()
        self.student, self.teacher = student, Teacher(student, decay, own_statistics)
        self.label, self.mix, self.weigh = SoftLabels(), mix or NoMix(), weigh or UniformWeight()
        self.options, self.criterion = options, criterion

    def losses(self, batch: Batch, t: float) -> Step:
        n = len(batch.x)
        if self.options.padding:
            batch = batch._replace(u_valid=torch.ones_like(batch.u_valid))

        # 1. the teacher reads both weak views; its probabilities on the unlabeled one are the target
        labeled, weak = taught(self.teacher, self.label, batch, t)

        # 2. other colors, and what the mixer pastes
        paste, mixed = pasted(self.mix, weak, labeled, batch.u_strong[0] if self.options.color else None)

        # 3. the student reads labeled and mixed images
        output = self.student(torch.cat((batch.x, mixed.image)))
        labeled, mixed = labeled.seen_by(output.rows(0, n)), mixed.seen_by(output.rows(n))
        target, logits = weigh_and_mix(self.weigh, paste, weak, labeled, mixed), output.rows(n).logits
        if self.options.on_labeled:
            assert labeled.teacher is not None
            on_x = self.label(labeled.teacher, torch.ones_like(batch.y, dtype=torch.bool), t)
            target, logits = on_x.cat(target), output.logits

        # 4. the teacher is random at first: its say grows
        weight = self.options.weight * ramp_up(t, self.options.ramp_up)
        losses = {
            **labeled_terms(self.student, self.criterion, output.rows(0, n), labeled.target),
            "unlabeled": weight * squared_error(logits, target),
        }
        statistics = pseudo_label_statistics(weak.target, batch.u_hidden)
        return Step(losses, statistics | logged(self.weigh, self.mix))


def build(recipe: Recipe, classes: int) -> SoftMeanTeacher:
    return SoftMeanTeacher(
        make_student(recipe, classes), recipe[MeanTeacherMSEOptions], weigh=weigher(recipe, classes),
        mix=mixer(recipe, None, classes), criterion=criterion(recipe), **teacher_options(recipe),
    )  # fmt: skip


def settings(base: Recipe) -> Recipe:
    """The published decay."""
    return base.having(replace(base.consistency, decay=0.99, cutmix_p=1.0))


def official(base: Recipe) -> Recipe:
    """The rerun that papers quote (charlesCXK/TorchSemiSeg @ 5e0c29c): one image for both networks, labeled ones too, a
    teacher with own statistics."""
    own = replace(base[MeanTeacherMSEOptions], ramp_up=0.0, color=False, on_labeled=True)
    base = base.having(own, replace(base.consistency, teacher="ema_train", decay=0.99))
    if base.scale != "paper":
        return base
    base = base.having(replace(own, padding=True))
    return torchsemiseg(base) if base.data == "voc" else base


METHOD = Method(
    "mean_teacher_mse", title="mean teacher, MSE", color="#64b5cd", options=MeanTeacherMSEOptions, build=build,
    reads=("decay", "teacher"), settings=settings, readings={"official": official},
    paper="Tarvainen and Valpola, NeurIPS 2017", cite="tarvainen2017meanteacher", year=2017, chapter="notebooks/hosts",
)  # fmt: skip
