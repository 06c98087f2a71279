"""Mean teacher with image-level weak-to-strong consistency and CutMix: the host of DDFP, DGCL and ESL.

teacher(x, u_weak) -> pseudo-label -> mix -> student(x, mixed [, u_weak]) -> weigh -> losses
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch
import torch.nn as nn
from torch import Tensor

from ..build import criterion, make_student, mixer, teacher_options, weigher
from ..components import ConfidentLabels, CutMix, UniformWeight, labeled_terms, pasted, taught, weigh_and_mix
from ..losses import labeled_cross_entropy, pixel_cross_entropy
from ..models.deeplabv3plus import DeepLabV3Plus
from ..models.normalization import second_statistics
from ..models.teacher import Teacher
from ..options import Consistency, Divisor
from ..registry import Method
from ..statistics import logged, pseudo_label_statistics, share, soft_label_statistics
from ..types import (
    AuxiliaryLoss,
    Batch,
    FeaturePerturber,
    Host,
    Mixer,
    Output,
    PixelWeighter,
    PseudoLabeler,
    Step,
    Target,
)

if TYPE_CHECKING:
    from ..recipe import Recipe


class MeanTeacher(Host):
    """L = L_sup + L_con^im (DDFP Eq. 1 to 4), and + L_con^ft (Eq. 15, 16) where features are perturbed.

    Args:
        student: DeepLabV3+, or what has its encode, fuse, refine, read and head.
        label: None: the teacher's class where it is sure enough.
        weigh: None: every pixel counts the same.
        mix: None: CutMix.
        perturb: None: no L_con^ft.
        auxiliary: a further loss; None: none.
        color: mix the color-jittered strong view; False: the weak one, so that pasting is all there is (DGCL).
        unlabeled_weight: of L_con^im in steps without L_con^ft; in the others it has the first of `perturbed_weights`.
        perturbed_weights: of (L_con^im, L_con^ft) from `perturb_from` on: (0.5, 0.5) released code, (1, 0.5) Eq. 16.
        divisor: of the unlabeled terms, "kept" (released code) or "valid" (Eq. 4 and 15).
        criterion: of the labeled term; OHEM on Cityscapes.
        decay, own_statistics: of the teacher.
        unlabeled_from, perturb_from: shares of training in [0, 1] from which the unlabeled terms, and the feature
            perturbation, take part.  Before `unlabeled_from` the teacher is a copy of the student.
        copy_until: share of training until which it is a copy at any rate (AugSeg).
        count_copies: copies made from `unlabeled_from` on count as steps of the average, whose ramp is then further.
        padding: of unlabeled images is a pixel like any other (released code of AugSeg).
    """

    student: DeepLabV3Plus

    def __init__(
        self,
        student: DeepLabV3Plus,
        *,
        label: PseudoLabeler | None = None,
        weigh: PixelWeighter | None = None,
        mix: Mixer | None = None,
        perturb: FeaturePerturber | None = None,
        auxiliary: AuxiliaryLoss | None = None,
        color: bool = True,
        unlabeled_weight: float = 1.0,
        perturbed_weights: tuple[float, float] = (0.5, 0.5),
        divisor: Divisor = "kept",
        criterion: Callable[[Output, Target], Tensor] = labeled_cross_entropy,
        decay: float = 0.999,
        own_statistics: bool = False,
        unlabeled_from: float = 0.0,
        perturb_from: float = 0.0,
        copy_until: float = 0.0,
        count_copies: bool = False,
        padding: bool = False,
    ) -> None:
        super().__init__()
        self.student, self.teacher = student, Teacher(student, decay, own_statistics)
        self.label, self.mix = label or ConfidentLabels(), mix or CutMix()
        self.weigh, self.auxiliary = weigh or UniformWeight(), auxiliary
        self.perturb, self.criterion, self.divisor, self.color = perturb, criterion, divisor, color
        self.unlabeled_weight, self.perturbed_weights = unlabeled_weight, perturbed_weights
        self.unlabeled_from, self.perturb_from = unlabeled_from, perturb_from
        self.copy_until, self._copying = max(copy_until, unlabeled_from), False
        self.count_copies, self._counted, self.padding = count_copies, False, padding

    def losses(self, batch: Batch, t: float) -> Step:
        """The steps that hosts share (`taught`, `pasted`, `weigh_and_mix`) are in `components`."""
        self._copying, self._counted = t < self.copy_until, self.count_copies and t >= self.unlabeled_from
        if t < self.unlabeled_from:
            y, output = Target.from_labels(batch.y), self.student(batch.x)
            return Step(labeled_terms(self.student, self.criterion, output, y), {})
        n, size = len(batch.x), batch.x.shape[-2:]
        if self.padding:
            batch = batch._replace(u_valid=torch.ones_like(batch.u_valid))

        # 1. the teacher reads both weak views; its prediction on the unlabeled one becomes the target
        labeled, weak = taught(self.teacher, self.label, batch, t)

        # 2. one paste moves the strong image and all that is known about its pixels
        paste, mixed = pasted(self.mix, weak, labeled, batch.u_strong[0] if self.color else None)

        # 3. the student reads labeled and mixed images, and the weak ones if the auxiliary loss wants them
        reads_weak = self.auxiliary is not None and self.auxiliary.on == "weak"
        images, m = [batch.x, mixed.image], n + len(mixed.image)
        if reads_weak:
            images.append(batch.u_weak)
        low, deep, middle = self.student.encode(torch.cat(images))
        z = self.student.fuse(low, deep)  # (m, C, h, w), and B rows more if it reads weak
        output = self.student.read(z, deep, size, middle)
        labeled, mixed = labeled.seen_by(output.rows(0, n)), mixed.seen_by(output.rows(n, m))
        target = weigh_and_mix(self.weigh, paste, weak, labeled, mixed)
        image_term = pixel_cross_entropy(output.rows(n, m).logits, target, self.divisor)
        losses = labeled_terms(self.student, self.criterion, output.rows(0, n), labeled.target)
        statistics = pseudo_label_statistics(weak.target, batch.u_hidden) | logged(self.weigh, self.mix)
        if weak.target.label.dim() == 4:
            statistics |= soft_label_statistics(weak.target, batch.u_hidden)

        # 4. the same pixels, moved in feature space
        if self.perturb is not None and t >= self.perturb_from:
            moved, lengths = self._perturbed(z[n:m], output.rows(n, m), target)
            image_weight, feature_weight = self.perturbed_weights
            losses["unlabeled"] = image_weight * image_term
            losses["perturbed"] = feature_weight * pixel_cross_entropy(moved.logits, target, self.divisor)
            flipped = moved.logits.argmax(1) != output.rows(n, m).logits.argmax(1)
            statistics |= {"flipped": share(flipped, target.weight > 0), **lengths}
        else:
            losses["unlabeled"] = self.unlabeled_weight * image_term
        if self.perturb is not None:
            statistics |= self.perturb.observe(labeled, weak, t)

        # 5. relations between pixels
        if self.auxiliary is not None:
            losses["auxiliary"] = self.auxiliary(labeled, weak.seen_by(output.rows(m)) if reads_weak else mixed, t)
            statistics |= getattr(self.auxiliary, "statistics", {})
        return Step(losses, statistics)

    def _perturbed(self, z: Tensor, clean: Output, target: Target) -> tuple[Output, dict[str, Tensor]]:
        """The output at start + delta, and the mean length of delta and of start at a pixel."""
        assert self.perturb is not None
        at_input = self.perturb.tap == "decoder_input"
        onward: nn.Module = self.student.refine if at_input else nn.Identity()
        start = z if at_input else clean.features
        with second_statistics(self.student):
            delta = self.perturb(start, onward, target)
            features = onward(start + delta)
        lengths = {name: v.detach().float().norm(dim=1) for name, v in (("step_norm", delta), ("start_norm", start))}
        pairs = {name: torch.stack((v.sum(), v.new_tensor(v.numel()))) for name, v in lengths.items()}
        return self.student.head(features, clean.deep, target.weight.shape[-2:]), pairs

    def after_step(self) -> None:
        if self._copying:
            self.teacher.copy(self.student, self._counted)
        else:
            self.teacher.follow(self.student)


def mean_teacher(recipe: Recipe, classes: int, student: DeepLabV3Plus | None = None, **own: Any) -> MeanTeacher:
    """The host as the shared options have it.

    student: None: the plain one.
    own: arguments of `MeanTeacher` that a method sets otherwise.
    """
    c = recipe.consistency
    usual = {
        "label": ConfidentLabels(c.tau),
        "mix": mixer(recipe, CutMix(c.cutmix_p, c.cutmix_area, c.cutmix_sides), classes),
        "weigh": weigher(recipe, classes),
        "divisor": c.divisor,
        "criterion": criterion(recipe),
        "unlabeled_from": c.unlabeled_from_epoch / recipe.optimization.epochs,
    }
    return MeanTeacher(student or make_student(recipe, classes), **(usual | teacher_options(recipe) | own))


ALL = tuple(  # methods have weights of their own, and boxes of that kind are not of this host
    o.name for o in Consistency.described() if o.name not in ("unlabeled_weight", "box_sides")
)
WITHOUT_TAU = tuple(name for name in ALL if name != "tau")  # for pseudo-labels without a threshold


def official(base: Recipe) -> Recipe:
    """Gavinwxy/DDFP @ 7956c72 without its flow: the teacher is the student itself."""
    base = base.having(replace(base.consistency, teacher="self", cutmix_sides="width"))
    if base.scale != "paper" or base.data not in ("voc", "cityscapes"):
        return base
    network = replace(base.network, stem="deep", pyramid_dropout=0.1)
    cut = replace(base.evaluation, border="cut")
    return base.having(network, cut if base.data == "cityscapes" else base.evaluation)


# `registry` finds it; `reads` are the fields of `Consistency` that it uses.
METHOD = Method(
    "mean_teacher", title="mean teacher", color="#4c72b0", reads=(*ALL, "unlabeled_weight"),
    build=lambda recipe, classes: mean_teacher(recipe, classes, unlabeled_weight=recipe.consistency.unlabeled_weight),
    readings={"official": official}, unlabeled_weights=("consistency.unlabeled_weight",),
    paper="Tarvainen and Valpola, NeurIPS 2017, with CutMix and a threshold", cite="tarvainen2017meanteacher",
    year=2017, chapter="notebooks/hosts",
)  # fmt: skip
