"""U2PL (Wang et al., CVPR 2022): uncertain pixels get no pseudo-label, but they are used as negatives of a contrast.

teacher(u_weak) -> pseudo-label -> mix -> teacher(x, mixed) again -> drop -> student(x, mixed) -> weigh -> losses
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING

import torch
import torch.nn as nn
from torch import Tensor

from ..banks import some
from ..build import criterion, make_student, mixer, teacher_options, weigher
from ..components import (
    CutMix,
    EntropyFilter,
    NoMix,
    UniformWeight,
    entropy,
    labeled_terms,
    pasted,
    quantile,
    weigh_and_mix,
)
from ..losses import labeled_cross_entropy, pixel_cross_entropy
from ..models.teacher import Teacher
from ..options import Divisor, Evaluation
from ..registry import Method
from ..statistics import logged, pseudo_label_statistics
from ..types import AuxiliaryLoss, Batch, Host, Mixer, Output, Paste, PixelWeighter, Step, Target, View
from .mean_teacher import WITHOUT_TAU
from .u2pl_contrast import U2PLOptions, UnreliableContrast

if TYPE_CHECKING:
    from ..recipe import Recipe


class ClassMix:
    """Mixer: half of the classes that the next image of the batch shows (Olsson et al., WACV 2021).

    Args:
        p: probability that a batch is mixed.
    """

    def __init__(self, p: float = 0.5) -> None:
        if not 0 <= p <= 1:
            raise ValueError(f"ClassMix needs p in [0, 1], got {p}")
        self.p = p

    def __call__(self, own: View, donors: View) -> Paste:
        source, label, known = NoMix()(own, donors).source, own.target.hard, own.target.weight > 0
        if len(source) == 1 or torch.rand(()) >= self.p:
            return Paste(source)
        for i in range(len(source)):
            j = (i + 1) % len(source)
            there = label[j][known[j]].unique()
            half = some(there, (len(there) + 1) // 2)
            source[i][torch.isin(label[j], half) & known[j]] = j
        return Paste(source)


class U2PL(Host):
    """L = L_sup + w L_u + L_c.

    The teacher looks twice.  First, in evaluation mode, at the weak view: every pixel gets its class.  Then at the
    mixed images, together with the labeled ones: the share alpha_t of pixels with the highest entropy of this second
    look is dropped from L_u, and the contrast L_c divides pixels by it too.  alpha_t falls from 20 % to 0.  L_u is the
    mean over kept pixels times all pixels over kept ones.  Pasted labels are treated as pseudo-labels are.

    The statistics of the teacher's batch normalization.  With `own_statistics` (released code) its parameters alone are
    averaged, and the second look runs in training mode: it normalizes by the batch, has dropout, and feeds the running
    statistics that the first look of the next step and validation use.  So these belong to the teacher's own weights,
    lag by about ten steps, and are of mixed images and labeled ones; without a warm-up the first few pseudo-labels rest
    on statistics that have hardly begun.  Without `own_statistics` the project's one rule holds: buffers are averaged
    like parameters, both looks are in evaluation mode and differ by the mixing alone.

    Components: mix, weigh (inside L_u only), auxiliary (the contrast; None: L_u alone).

    Args:
        student: a segmentation network, with a projection head where there is a contrast.
        options: the numbers.
        drop: alpha_t.
        auxiliary: reads the mixed view, whose teacher and entropy are the second look.
        divisor: "kept_scaled", as said above.
        criterion: of the labeled term; OHEM on Cityscapes.
        decay, own_statistics: of the teacher.
        unlabeled_from: share of training from which unlabeled images take part; before it the teacher is a copy of the
            student.
        copy_until: share of training until which it is a copy at any rate (released code: one epoch more).

    Raises:
        ValueError: an auxiliary loss that wants to see the weak view.
    """

    def __init__(
        self,
        student: nn.Module,
        options: U2PLOptions,
        drop: EntropyFilter,
        *,
        weigh: PixelWeighter | None = None,
        mix: Mixer | None = None,
        auxiliary: AuxiliaryLoss | None = None,
        divisor: Divisor = "kept_scaled",
        criterion: Callable[[Output, Target], Tensor] = labeled_cross_entropy,
        decay: float = 0.99,
        own_statistics: bool = True,
        unlabeled_from: float = 0.0,
        copy_until: float = 0.0,
    ) -> None:
        super().__init__()
        if auxiliary is not None and auxiliary.on != "mixed":
            raise ValueError(f"U2PL's student reads mixed images only, {type(auxiliary).__name__} wants the weak ones")
        self.student, self.teacher = student, Teacher(student, decay, own_statistics)
        self.options, self.drop, self.auxiliary = options, drop, auxiliary
        self.weigh, self.mix = weigh or UniformWeight(), mix or CutMix()
        self.divisor, self.criterion, self.unlabeled_from = divisor, criterion, unlabeled_from
        self.copy_until, self._copying = max(copy_until, unlabeled_from), False

    def losses(self, batch: Batch, t: float) -> Step:
        self._copying = t < self.copy_until
        if t < self.unlabeled_from:
            y, output = Target.from_labels(batch.y), self.student(batch.x)
            return Step(labeled_terms(self.student, self.criterion, output, y), {})
        n = len(batch.x)

        # 1. first look: every valid pixel of the weak view gets the teacher's class
        self.teacher.model.eval()
        on_u, known = self.teacher(batch.u_weak), batch.u_valid.float()
        label = Target(on_u.logits.max(1).indices, known, known)
        uncertainty = entropy(on_u.logits)
        weak = View(batch.u_weak, label, on_u, entropy=uncertainty, boxes=batch.u_boxes, hidden=batch.u_hidden)
        labeled = View(batch.x, Target.from_labels(batch.y))

        # 2. one paste moves the image and all that is known about its pixels
        paste, mixed = pasted(self.mix, weak, labeled, batch.u_strong[0] if self.options.color else None)
        images = torch.cat((batch.x, mixed.image))

        # 3. second look, in the teacher's own mode; which pixels does it doubt?
        self.teacher.train(self.training)
        again = self.teacher(images)
        labeled = replace(labeled, teacher=again.rows(0, n))
        mixed = replace(mixed, teacher=again.rows(n), entropy=entropy(again.rows(n).logits))
        kept = self._kept(mixed, t)

        # 4. the student; the contrast sees unweighted labels
        output = self.student(images)
        labeled, mixed = labeled.seen_by(output.rows(0, n)), mixed.seen_by(output.rows(n))
        target = weigh_and_mix(self.weigh, paste, weak, labeled, mixed).only(kept)
        unlabeled = pixel_cross_entropy(output.rows(n).logits, target, self.divisor)
        losses = labeled_terms(self.student, self.criterion, output.rows(0, n), labeled.target)
        losses["unlabeled"] = self.options.unlabeled_weight * unlabeled
        assert mixed.hidden is not None
        statistics = pseudo_label_statistics(mixed.target.only(kept), mixed.hidden)
        statistics |= logged(self.weigh, self.mix)
        if self.auxiliary is not None:
            losses["auxiliary"] = self.auxiliary(labeled, mixed, t)
            statistics |= getattr(self.auxiliary, "statistics", {})
        return Step(losses, statistics)

    def _kept(self, view: View, t: float) -> Tensor:
        """(B, H, W) bool: the pixels with a label, without the share alpha_t of highest entropy."""
        known = view.target.weight > 0
        assert view.entropy is not None
        if not known.any():
            return known
        return known & (view.entropy < quantile(view.entropy[known], 1 - self.drop.share(t)))

    def after_step(self) -> None:
        if self._copying:
            self.teacher.copy(self.student)
        else:
            self.teacher.follow(self.student)


def build(recipe: Recipe, classes: int) -> U2PL:
    c, o, epochs = recipe.consistency, recipe[U2PLOptions], recipe.optimization.epochs
    student = make_student(recipe, classes, embedding=o.embedding if o.weight else 0)
    drop = EntropyFilter(o.drop, stages=epochs)
    usual = CutMix(c.cutmix_p, c.cutmix_area, c.cutmix_sides) if o.mixer == "cutmix" else ClassMix(c.cutmix_p)
    return U2PL(
        student, o, drop, weigh=weigher(recipe, classes), mix=mixer(recipe, usual, classes), divisor=c.divisor,
        auxiliary=UnreliableContrast(classes, o, drop) if o.weight else None, criterion=criterion(recipe),
        unlabeled_from=c.unlabeled_from_epoch / epochs, copy_until=(c.unlabeled_from_epoch + o.copy_epochs) / epochs,
        **teacher_options(recipe),
    )  # fmt: skip


def settings(base: Recipe) -> Recipe:
    """U2PL's released settings; off paper scale fewer pixels, each count shrunk as the side of their square.

    The evaluation of Cityscapes is that of its released test script.
    """
    consistency = replace(base.consistency, decay=0.99, divisor="kept_scaled", teacher="ema_train")
    o = base.optimization
    if base.scale != "paper":
        side, usual = (2 * o.batch * (o.crop // 4) ** 2 / (32 * 129**2)) ** 0.5, U2PLOptions()
        own = U2PLOptions(
            embedding=base.network.width, queue=round(usual.queue * side), first_queue=round(usual.first_queue * side),
            quota=round(3_000 * side), anchors=round(usual.anchors * side),
            sure=0.0 if base.scale == "smoke" else usual.sure,  # an untrained network is sure of nothing
        )  # fmt: skip
        return base.having(consistency, own)
    base = base.having(replace(base.network, output_stride=8, rates=(12, 24, 36)))
    if base.data != "cityscapes":
        return base.having(consistency)
    return base.having(
        replace(o, weight_decay=5e-4, ohem=True), replace(consistency, unlabeled_from_epoch=0),
        Evaluation("sliding", 769, 513),
    )  # fmt: skip


def paper(base: Recipe) -> Recipe:
    """256 negatives, and queues that take in all new ones."""
    return base.having(replace(base[U2PLOptions], negatives=256, quota=None))


def official(base: Recipe) -> Recipe:
    """Haochen-Wang409/U2PL @ ab3d2be; its contrast of weight 1 is averaged over the processes twice."""
    processes = 8 if base.data == "cityscapes" else 4
    return base.having(
        replace(
            base[U2PLOptions], weight=1 / processes, quota=None, reliable="surest", keys="own", pairs="position",
            copy_epochs=1,
        )
    )  # fmt: skip


METHOD = Method(
    "u2pl", title="U2PL", color="#4d4d4d", options=U2PLOptions, build=build, reads=WITHOUT_TAU, settings=settings,
    readings={"paper": paper, "official": official}, unlabeled_weights=("u2pl.unlabeled_weight",),
    paper="Wang et al., CVPR 2022", cite="wang2022u2pl", year=2022, chapter="notebooks/hosts",
)  # fmt: skip
