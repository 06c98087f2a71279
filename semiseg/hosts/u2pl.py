"""U2PL (Wang et al., CVPR 2022): uncertain pixels get no pseudo-label, but they are used as negatives of a contrast.

teacher(u_weak) -> pseudo-label -> mix -> teacher(x, mixed) again -> drop -> student(x, mixed) -> weigh -> losses
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import torch
import torch.nn as nn
from torch import Tensor

from ..banks import some
from ..components import CutMix, EntropyFilter, NoMix, UniformWeight, entropy, quantile, weigh_and_mix
from ..losses import pixel_cross_entropy
from ..models.teacher import Teacher
from ..options import Divisor
from ..statistics import logged, pseudo_label_statistics
from ..types import AuxiliaryLoss, Batch, Mixer, Output, Paste, PixelWeighter, Step, Target, View
from .supervised import labeled_cross_entropy


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


class U2PL(nn.Module):
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

    Seams: mix, weigh (inside L_u only), auxiliary (the contrast; None: L_u alone).

    Args:
        student: a segmentation network, with a projection head where there is a contrast.
        drop: alpha_t.
        auxiliary: reads the mixed view, whose teacher and entropy are the second look.
        color: mix the color-jittered view; False: the weak one, pasting is all there is.
        unlabeled_weight: w.
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
        *,
        drop: EntropyFilter | None = None,
        weigh: PixelWeighter | None = None,
        mix: Mixer | None = None,
        auxiliary: AuxiliaryLoss | None = None,
        color: bool = False,
        unlabeled_weight: float = 1.0,
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
        self.drop, self.weigh, self.mix = drop or EntropyFilter(0.2), weigh or UniformWeight(), mix or CutMix()
        self.auxiliary, self.color, self.unlabeled_weight = auxiliary, color, unlabeled_weight
        self.divisor, self.criterion, self.unlabeled_from = divisor, criterion, unlabeled_from
        self.copy_until, self._copying = max(copy_until, unlabeled_from), False

    def losses(self, batch: Batch, t: float) -> Step:
        self._copying = t < self.copy_until
        if t < self.unlabeled_from:
            return Step({"labeled": self.criterion(self.student(batch.x), Target.from_labels(batch.y))}, {})
        n = len(batch.x)

        # 1. first look: every valid pixel of the weak view gets the teacher's class
        self.teacher.model.eval()
        on_u, known = self.teacher(batch.u_weak), batch.u_valid.float()
        label = Target(on_u.logits.max(1).indices, known, known)
        doubt = entropy(on_u.logits)
        weak = View(batch.u_weak, label, on_u, entropy=doubt, boxes=batch.u_boxes, hidden=batch.u_hidden)
        labeled = View(batch.x, Target.from_labels(batch.y))

        # 2. one paste moves the image and all that is known about its pixels
        strong = replace(weak, image=batch.u_strong[0]) if self.color else weak
        paste = self.mix(strong, labeled)
        mixed = paste.view(strong, labeled)
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
        losses = {"labeled": self.criterion(output.rows(0, n), labeled.target)}
        losses["unlabeled"] = self.unlabeled_weight * unlabeled
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
