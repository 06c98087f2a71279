"""CutMix-Seg (French et al., BMVC 2020): the student must predict, in a mosaic, what the teacher saw in its parts.

teacher(x, u_weak) -> probabilities -> cut and paste -> student(x, mixed) -> weigh -> squared error x confidence
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING, Literal

import torch
import torch.nn as nn
from torch import Tensor

from ..build import criterion, make_student, mixer, teacher_options, weigher
from ..components import CutMix, SoftLabels, UniformWeight, labeled_terms, pasted, taught, weigh_and_mix
from ..losses import labeled_cross_entropy, squared_error
from ..models.teacher import Teacher
from ..options import Options, option, options
from ..registry import Method
from ..statistics import logged, pseudo_label_statistics, share
from ..types import Batch, Host, Mixer, Output, PixelWeighter, Step, Target

if TYPE_CHECKING:
    from ..recipe import Recipe


@options
class CutMixSegOptions(Options):
    """French et al.; decay of the teacher and area of the box are in `Consistency`."""

    part = "cutmix_seg"
    tau: float = option("probability from which the teacher is sure of a pixel", default=0.97, symbol="τ", ge=0, le=1)
    confidence: Literal["batch", "pixel"] = option(
        "batch: one factor c for the batch takes the place of a ramp-up; pixel: unsure pixels are left out of the sum",
        default="batch",
    )
    weight: float = option("of the consistency", default=1.0, symbol="w", gt=0)
    color: bool = option("True: the mixed images have other colors too; False: the weak view is mixed", default=False)


class CutMixSegmentation(Host):
    """L = L_sup + w c |student(mixed) - mixed(teacher)|^2, c the share of pixels the teacher is sure of.

    The squared differences are summed over classes; their mean is over all pixels of the batch, padding and unsure
    ones included, so that c scales the term once and not twice.

    Args:
        student: a segmentation network.
        options: the numbers.
        weigh: factor per pixel; plain: 1.
        mix: plain: one box of half the image's area from the next image, always.
        criterion: of the labeled term.
        decay, own_statistics: of the teacher.
    """

    def __init__(
        self,
        student: nn.Module,
        options: CutMixSegOptions,
        *,
        weigh: PixelWeighter | None = None,
        mix: Mixer | None = None,
        criterion: Callable[[Output, Target], Tensor] = labeled_cross_entropy,
        decay: float = 0.99,
        own_statistics: bool = False,
    ) -> None:
        super().__init__()
        self.student, self.teacher = student, Teacher(student, decay, own_statistics)
        self.label, self.mix, self.weigh = SoftLabels(padding=True), mix or CutMix(1.0), weigh or UniformWeight()
        self.options, self.criterion = options, criterion

    def losses(self, batch: Batch, t: float) -> Step:
        n, o = len(batch.x), self.options

        # 1. the teacher reads the clean images
        labeled, weak = taught(self.teacher, self.label, batch, t)
        assert weak.entropy is not None
        weak = replace(weak, entropy=weak.entropy * batch.u_valid)  # padding takes part here

        # 2. one paste for images and probabilities
        paste, mixed = pasted(self.mix, weak, labeled, batch.u_strong[0] if o.color else None)

        # 3. the student reads labeled and mixed images
        output = self.student(torch.cat((batch.x, mixed.image)))
        labeled, mixed = labeled.seen_by(output.rows(0, n)), mixed.seen_by(output.rows(n))
        target = weigh_and_mix(self.weigh, paste, weak, labeled, mixed)

        # 4. as much consistency as the teacher is sure
        sure = (target.label.amax(1) >= o.tau).float()
        if o.confidence == "pixel":
            consistency = squared_error(output.rows(n).logits, target.only(sure), "sum")
        else:
            consistency = sure.mean() * squared_error(output.rows(n).logits, target, "sum")
        losses = {
            **labeled_terms(self.student, self.criterion, output.rows(0, n), labeled.target),
            "unlabeled": o.weight * consistency,
        }
        real = replace(weak.target, denominator=batch.u_valid.float())
        statistics = pseudo_label_statistics(real, batch.u_hidden) | logged(self.weigh, self.mix)
        return Step(losses, statistics | {"confidence": share(sure > 0, sure >= 0)})


def build(recipe: Recipe, classes: int) -> CutMixSegmentation:
    c = recipe.consistency
    return CutMixSegmentation(
        make_student(recipe, classes), recipe[CutMixSegOptions], weigh=weigher(recipe, classes),
        mix=mixer(recipe, CutMix(c.cutmix_p, c.cutmix_area, c.cutmix_sides), classes), criterion=criterion(recipe),
        **teacher_options(recipe),
    )  # fmt: skip


def settings(base: Recipe) -> Recipe:
    """The published decay; every batch is mixed; off paper scale the same threshold as the other methods."""
    own = CutMixSegOptions() if base.scale == "paper" else CutMixSegOptions(tau=base.consistency.tau)
    return base.having(own, replace(base.consistency, decay=0.99, cutmix_p=1.0))


def official(base: Recipe) -> Recipe:
    """Britefury/cutmix-semisup-seg @ af6183a, DeepLabV3+ on PASCAL VOC: other colors, a teacher in training mode."""
    base = base.having(replace(base[CutMixSegOptions], color=True), replace(base.consistency, teacher="ema_train"))
    if base.scale != "paper" or base.data != "voc":
        return base
    network = replace(
        base.network, weights="imagenet_v1", output_stride=8, rates=(12, 24, 36), projection=1, pyramid_dropout=0.5,
        dropout=0.0,
    )  # fmt: skip
    optimization = replace(
        base.optimization, batch=10, crop=321, resize=(0.5, 1.5), scales=tuple(i / 10 for i in range(5, 16)),
        padding="center", padding_color="mean", optimizer="adamw", weight_decay=0.0, lr=1e-5, head_lr_factor=1.0,
        power=0.0, epochs=40, epoch_steps=1000,
    )  # fmt: skip
    return base.having(network, optimization, replace(base.evaluation, protocol="whole"))


METHOD = Method(
    "cutmix_seg", title="CutMix-Seg", color="#dd8452", options=CutMixSegOptions, build=build,
    reads=("decay", "teacher", "cutmix_p", "cutmix_area", "cutmix_sides"), settings=settings,
    readings={"official": official},
    paper="French et al., BMVC 2020", cite="french2020cutmixseg", year=2020, chapter="notebooks/hosts",
)  # fmt: skip
