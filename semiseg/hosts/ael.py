"""AEL, Adaptive Equalization Learning (Hu et al., NeurIPS 2021): every part of a step favors badly learned classes.

paste needy classes -> teacher(x, u) -> cut boxes of needy classes -> student(x, mixed) -> weigh and sample -> losses
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING

import torch
import torch.nn as nn
import torch.nn.functional as F
from torch import Tensor

from ..build import criterion, make_student, mixer, teacher_options, weigher
from ..components import ConfidentLabels, CutMix, NoMix, UniformWeight, labeled_terms, pasted, taught, weigh_and_mix
from ..data.boxes import component_boxes
from ..losses import labeled_cross_entropy, pixel_cross_entropy
from ..models.teacher import Teacher
from ..options import Options, option, options
from ..registry import Method
from ..statistics import logged, pseudo_label_statistics
from ..types import IGNORE, Batch, Host, Mixer, Output, Paste, PixelWeighter, PseudoLabeler, Step, Target, View

if TYPE_CHECKING:
    from ..recipe import Recipe


@options
class AELOptions(Options):
    """AEL; tau and decay are in `Consistency`.  Defaults are for PASCAL VOC."""

    part = "ael"
    momentum: float = option("of the confidence bank", default=0.999, symbol="α", ge=0, lt=1)
    absent_decays: bool = option(
        "True: a class absent from a batch counts as probability 0 (released code)", default=False
    )
    random_start: bool = option("True: confidences start anywhere in (0, 1) (released code)", default=False)
    least_area: float = option(
        "share of the image of a component that is cut out; Cityscapes 0.005", default=0.03, gt=0
    )
    paste_p: float = option("probability that a labeled image receives anything", default=0.5, ge=0, le=1)
    paste_classes: int = option("classes pasted into it; Cityscapes 3", default=1, gt=0)
    paste_among: tuple[int, ...] | None = option("classes that may be pasted; none: all but class 0", default=None)
    on_labeled: bool = option("consistency with the teacher on labeled images too (released code)", default=True)
    gamma: float = option("exponent of the sampling", default=1.0, symbol="γ", ge=0)
    unlabeled_weight: float = option("of both consistency terms", default=1.0, ge=0)


class ConfidenceBank(nn.Module):
    """c_k: moving average of the student's probability of class k on labeled pixels of class k.

    Args:
        classes: K.
        momentum: of the average.
        absent_decays: a class without pixels in a batch counts as probability 0 there (released code), so that rare
            classes seem badly learned; False: it keeps its value.
        random_start: start anywhere in (0, 1) (released code, a different place in every process); False: at 0.
    """

    value: Tensor  # (K,)

    def __init__(
        self, classes: int, momentum: float = 0.999, absent_decays: bool = False, random_start: bool = False
    ) -> None:
        super().__init__()
        self.momentum, self.absent_decays = momentum, absent_decays
        self.register_buffer("value", torch.rand(classes) if random_start else torch.zeros(classes))

    @torch.no_grad()
    def update(self, logits: Tensor, target: Target) -> None:
        """Labeled logits (B, K, H, W) and their truth."""
        known = target.weight > 0
        p = logits.detach().float().softmax(1).gather(1, target.hard[:, None])[:, 0][known]
        label, classes = target.hard[known], len(self.value)
        count = torch.bincount(label, minlength=classes)
        mean = torch.zeros_like(self.value).index_add(0, label, p) / count.clamp(min=1)
        moved = self.momentum * self.value + (1 - self.momentum) * mean
        self.value.copy_(moved if self.absent_decays else torch.where(count > 0, moved, self.value))

    def draw(self, number: int, power: float = 1.0, among: tuple[int, ...] | None = None) -> Tensor:
        """Different classes (number,) from softmax((1 - c)^power) over all classes, or over `among`."""
        allowed = torch.arange(len(self.value)) if among is None else torch.tensor(among)
        chance = (1 - self.value.cpu()[allowed]).pow(power).softmax(0)
        return allowed[chance.multinomial(min(number, len(allowed)))]

    def keep_rate(self, power: float = 1.0) -> Tensor:
        """((1 - c_k) / max_j (1 - c_j))^power, (K,): how often a pixel of a class is learned from."""
        need = 1 - self.value
        return (need / need.max().clamp(min=1e-8)) ** power


class AdaptiveCutMix:
    """Mixer: the box around one predicted component of a class drawn by need, from another image of the batch.

    The released code keeps an index of all unlabeled images by predicted class and loads one more; the partner here is
    of the same batch, and where none shows the class, the next image gives a box of half its area.

    Args:
        bank: the confidences.
        least: area of a component that is big enough, share of the image.
    """

    def __init__(self, bank: ConfidenceBank, least: float) -> None:
        self.bank, self.least = bank, least

    def __call__(self, own: View, donors: View) -> Paste:
        source, plain = NoMix()(own, donors).source, CutMix(p=1.0)(own, donors).source
        b, h, w = source.shape
        masks = torch.where(own.target.denominator > 0, own.target.hard, IGNORE).cpu()
        for i in range(b):
            k = int(self.bank.draw(1))
            found = [
                (j, box) for j in range(b) if j != i and (masks[j] == k).any()
                for box in component_boxes(masks[j], (k,), max(1, int(self.least * h * w))).edges.long().tolist()
            ]  # fmt: skip
            if not found:
                source[i] = plain[i]
                continue
            j, (left, top, right, bottom) = found[int(torch.randint(len(found), ()))]
            source[i, top:bottom, left:right] = j
        return Paste(source)


class CopyPaste:
    """Pixels of classes drawn by need, from another labeled image of the batch at a random size.

    Args:
        bank: the confidences.
        p: probability that an image receives anything.
        number: classes drawn (1 on VOC, 3 on Cityscapes).
        among: classes that may be drawn.  The released code leaves out 0, 1, 2, 8, 10, stuff on Cityscapes, on VOC too,
            where that drops aeroplane, bicycle, cat and cow; None: all but 0.
    """

    def __init__(self, bank: ConfidenceBank, p: float, number: int, among: tuple[int, ...] | None = None) -> None:
        self.bank, self.p, self.number = bank, p, number
        self.among = among or tuple(range(1, len(bank.value)))

    def __call__(self, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        """Labeled images (B, 3, H, W) and labels (B, H, W) -> the same with pasted objects."""
        new_x, new_y = x.clone(), y.clone()
        for i in range(len(x)):
            if len(x) == 1 or torch.rand(()) >= self.p:
                continue
            j = (i + int(torch.randint(1, len(x), ()))) % len(x)
            image, label = _resized(x[j], y[j])
            pasted = torch.isin(label, self.bank.draw(self.number, 0.5, self.among).to(label))
            new_x[i] = torch.where(pasted, image, x[i])
            new_y[i] = torch.where(pasted, label, y[i])
        return new_x, new_y


def _resized(image: Tensor, label: Tensor) -> tuple[Tensor, Tensor]:
    """At a scale of 0.1 to 2, half of them below 1, in a random place of a canvas of the old size, IGNORE around."""
    h, w = label.shape
    scale = torch.empty(()).uniform_(*((0.1, 1.0) if torch.rand(()) < 0.5 else (1.0, 2.0))).item()
    size = max(1, round(h * scale)), max(1, round(w * scale))
    x = F.interpolate(image[None], size=size, mode="bilinear", align_corners=False)[0]
    y = F.interpolate(label[None, None].float(), size=size, mode="nearest-exact")[0, 0].long()
    top, left = (int(torch.randint(abs(a - b) + 1, ())) for a, b in zip(size, (h, w), strict=True))
    if scale > 1:
        return x[:, top : top + h, left : left + w], y[top : top + h, left : left + w]
    canvas, mask = torch.zeros_like(image), torch.full_like(label, IGNORE)
    canvas[:, top : top + size[0], left : left + size[1]] = x
    mask[top : top + size[0], left : left + size[1]] = y
    return canvas, mask


class AEL(Host):
    """L = L_sup + L_con(labeled) + L_con(unlabeled), each pixel of L_con weighted and sampled.

    A pixel's weight is the square of the teacher's confidence; it is learned from with probability
    ((1 - c_k) / max_j (1 - c_j))^gamma of the class k that the student predicts.  Components: label, weigh, mix.

    Args:
        student: a segmentation network.
        options: the numbers.
        bank: class confidences.
        paste: labeled images -> labeled images; None: as they are.
        criterion: of the labeled term; OHEM in the released code, on both data sets.
        decay, own_statistics: of the teacher; the released one predicts in training mode.
    """

    def __init__(
        self,
        student: nn.Module,
        options: AELOptions,
        bank: ConfidenceBank,
        *,
        label: PseudoLabeler | None = None,
        weigh: PixelWeighter | None = None,
        mix: Mixer | None = None,
        paste: CopyPaste | None = None,
        criterion: Callable[[Output, Target], Tensor] = labeled_cross_entropy,
        decay: float = 0.99,
        own_statistics: bool = False,
    ) -> None:
        super().__init__()
        self.student, self.teacher, self.bank = student, Teacher(student, decay, own_statistics), bank
        self.label, self.mix = label or ConfidentLabels(0.7), mix or AdaptiveCutMix(bank, options.least_area)
        self.weigh, self.paste, self.options, self.criterion = weigh or UniformWeight(), paste, options, criterion

    def losses(self, batch: Batch, t: float) -> Step:
        if self.paste is not None:
            x, y = self.paste(batch.x, batch.y)
            batch = batch._replace(x=x, y=y)
        n, weight = len(batch.x), self.options.unlabeled_weight

        # 1. the teacher reads labeled and weak images; where it is sure it counts more
        labeled, weak = taught(self.teacher, self.label, batch, t)
        label, on_x = weak.target, labeled.teacher
        assert on_x is not None and weak.teacher is not None
        weak = replace(weak, target=label.only(_certainty(weak.teacher)))

        # 2. boxes of badly learned classes; no other colors
        paste, mixed = pasted(self.mix, weak, labeled, None)

        # 3. the student, and what it says about the labeled classes
        output = self.student(torch.cat((batch.x, mixed.image)))
        labeled, mixed = labeled.seen_by(output.rows(0, n)), mixed.seen_by(output.rows(n))
        self.bank.update(output.logits[:n], labeled.target)
        target = weigh_and_mix(self.weigh, paste, weak, labeled, mixed)

        # 4. losses over sampled pixels
        losses = {
            **labeled_terms(self.student, self.criterion, output.rows(0, n), labeled.target),
            "unlabeled": weight * self._consistency(output.logits[n:], target),
        }
        if self.options.on_labeled:
            on_l = self.label(on_x, torch.ones_like(batch.y, dtype=torch.bool), t).only(_certainty(on_x))
            losses["labeled_consistency"] = weight * self._consistency(output.logits[:n], on_l)
        statistics = pseudo_label_statistics(label, batch.u_hidden) | logged(self.weigh, self.mix)
        spread = torch.stack((self.bank.value.max() - self.bank.value.min(), self.bank.value.new_ones(())))
        return Step(losses, statistics | {"confidence_spread": spread})

    def _consistency(self, logits: Tensor, target: Target) -> Tensor:
        """sum(w CE) / sum(w) over the pixels that the sampling keeps; one random map per class for the whole batch."""
        chance = torch.rand(len(self.bank.value), *logits.shape[-2:], device=logits.device)
        kept = chance < self.bank.keep_rate(self.options.gamma)[:, None, None]
        picked = kept.expand(len(logits), -1, -1, -1).gather(1, logits.detach().argmax(1, keepdim=True))[:, 0]
        return pixel_cross_entropy(logits, target.only(picked.float()), "kept")


def _certainty(output: Output) -> Tensor:
    """Square of the highest probability, (B, H, W)."""
    return output.logits.float().softmax(1).amax(1) ** 2


def build(recipe: Recipe, classes: int) -> AEL:
    student, o = make_student(recipe, classes), recipe[AELOptions]
    bank = ConfidenceBank(classes, o.momentum, o.absent_decays, o.random_start)
    return AEL(
        student, o, bank, label=ConfidentLabels(recipe.consistency.tau), weigh=weigher(recipe, classes),
        mix=mixer(recipe, AdaptiveCutMix(bank, o.least_area), classes),
        paste=CopyPaste(bank, o.paste_p, o.paste_classes, o.paste_among) if o.paste_p else None,
        criterion=criterion(recipe), **teacher_options(recipe),
    )  # fmt: skip


def settings(base: Recipe) -> Recipe:
    """AEL's released numbers at paper scale: OHEM on both data sets."""
    base = base.having(replace(base.consistency, decay=0.99))
    if base.scale != "paper":
        return base
    city = base.data == "cityscapes"
    return base.having(
        replace(base.network, output_stride=8),
        replace(base.optimization, lr=1e-2, head_lr_factor=10.0, ohem=True),
        replace(base.consistency, tau=0.0 if city else 0.7),
        AELOptions(least_area=0.005, paste_classes=3) if city else base[AELOptions],
    )


METHOD = Method(
    "ael", title="AEL", color="#17a2a2", options=AELOptions, build=build, reads=("tau", "decay", "teacher"),
    settings=settings, unlabeled_weights=("ael.unlabeled_weight",), paper="Hu et al., NeurIPS 2021", cite="hu2021ael",
    year=2021, chapter="notebooks/hosts",
)  # fmt: skip
