"""ESL: enhanced soft label (Ma et al., ICCV 2023).

Where the teacher hesitates it is still sure that the pixel belongs to one of a few *dominant* classes: the label keeps
them all instead of discarding the pixel (`DynamicLabels`, Eq. 3 to 5).  What this blurs between those classes, a
contrast sharpens again: each class is divided into *parts*, prototypes of backbone features found by K-means, and a
pixel is pulled to a remembered vector of its part and pushed from those of all other parts (`PixelToPart`, Eq. 7-12).

No code was released.  What the paper leaves open is settled here, marked [C] and defended in the chapter.

    components: label, auxiliary   host: MeanTeacher   state: prototypes, a queue per part   chapter: notebooks/esl

In shape comments P is the number of parts of a class and A the number of anchors.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any, Literal

import torch
import torch.nn as nn
import torch.nn.functional as F
from torch import Tensor

from ..banks import ClassBank, Draw, pixels_at
from ..build import make_student
from ..hosts.mean_teacher import WITHOUT_TAU, MeanTeacher, mean_teacher
from ..losses import picked_products
from ..options import Evaluation, Options, option, options
from ..registry import Method
from ..scales import EMBEDDED
from ..types import IGNORE, Output, Target, View
from .parts import Parts, group_means

if TYPE_CHECKING:
    from ..recipe import Recipe

Rule = Literal["dynamic", "top", "hard"]
BLOCK = 1024  # anchors multiplied with the whole bank at once: bounds memory, changes no number


@options
class ESLOptions(Options):
    """The dynamic soft label and the pixel-to-part contrast; Tables 2 to 4 vary `label`, `eta` and `parts`.

    Shares, probabilities, temperatures and momenta are the paper's at every scale.
    """

    part = "esl"
    label: Rule = option(
        "which classes a label keeps; top: 5 of them; hard: one", default="dynamic", symbol="y*", equation="Eq. 3"
    )
    eta: float = option(
        "probability that the dominant classes sum to", default=0.95, symbol="η", equation="Eq. 4", gt=0, le=1
    )
    parts: int = option(
        "of a class; 1 contrasts pixels with regions (Table 4); 0: no contrast", default=5, symbol="K", ge=0
    )
    embedding: int = option("width of the projection head", default=512, gt=0)
    queue: int = option("remembered vectors per part; not in the paper [C]", default=128, symbol="q", gt=0)
    negatives: int = option("drawn for each anchor", default=255, symbol="N_s", equation="Eq. 10", gt=0)
    draw: Draw = option(
        "every remembered vector of the other parts is equally likely; classes: each other part is, so that those with "
        "few vectors count as much",
        default="entries",
    )
    temperature: float = option("of the contrast", default=0.5, symbol="σ", equation="Eq. 10", gt=0)
    share: float = option("of the eligible pixels of a class, to become anchors", default=0.1, gt=0, le=1)
    max_anchors: int | None = option("of a class in one step; none: no bound (paper)", default=1024, gt=0)
    sure: float = option(
        "the teacher's probability above which an unlabeled pixel is eligible",
        default=0.95,
        symbol="ζ",
        equation="Eq. 9",
    )
    momentum: float = option("of the prototypes", default=0.99, symbol="θ", equation="Eq. 12", ge=0, lt=1)
    divisor: Literal["classes", "present"] = option(
        "of the sum over classes: K (paper), or those present", default="classes"
    )
    color: bool = option(
        "True: on the color-jittered image; False: CutMix alone is the strong view (paper)", default=False
    )
    unlabeled_weight: float = option("of self-training", default=0.2, symbol="λ_1", equation="Eq. 11", ge=0)
    contrast_weight: float = option("of the contrast", default=0.1, symbol="λ_2", equation="Eq. 11", ge=0)
    collect_steps: int = option("that gather features for K-means", default=183, unit="steps", gt=0)


class DynamicLabels:
    """Pseudo-labeler: the teacher's probabilities of the dominant classes, renormalized (Eq. 3 to 5).

    Every valid pixel is supervised, however unsure the teacher is.

    Args:
        eta: in (0, 1].  At most the largest probability: a hard label; 1: the whole prediction of the teacher.
        rule: "dynamic": the fewest classes whose probabilities sum to eta, and those tied with the last of them;
            "top": the `top` likeliest (Table 3, "Top-5"); "hard": the likeliest alone (Table 2).
        top: number of classes of the rule "top".
    """

    def __init__(self, eta: float, rule: Rule = "dynamic", top: int = 5) -> None:
        if not 0 < eta <= 1 or top < 1:
            raise ValueError(f"DynamicLabels needs 0 < eta <= 1 and top >= 1, got eta={eta}, top={top}")
        self.eta, self.rule, self.top = eta, rule, top

    def __call__(self, output: Output, valid: Tensor, t: float) -> Target:
        return Target(self.soften(output.logits.float().softmax(1)), valid.float(), valid.float())

    def soften(self, p: Tensor) -> Tensor:
        """Probabilities (B, K, H, W) -> labels y* of the same shape; a class is dominant where its share is > 0."""
        if self.rule == "hard":
            return torch.zeros_like(p).scatter_(1, p.argmax(1, keepdim=True), 1.0)
        top = min(self.top, p.shape[1])
        least = p.topk(top, 1).values.amin(1) if self.rule == "top" else self._least_dominant(p)
        kept = torch.where(p >= least[:, None], p, 0.0)
        return kept / kept.sum(1, keepdim=True)

    def _least_dominant(self, p: Tensor) -> Tensor:
        """delta (Eq. 4), (B, H, W): a class stays while the likelier ones together have less than eta.

        Stated so, the likeliest always stays, and no rounding of a total just below 1 can lose a pixel.
        """
        least = p.amax(1)
        unsure = (least < self.eta) | (self.eta == 1)  # elsewhere the likeliest is enough
        ranked = p.movedim(1, -1)[unsure].sort(-1, descending=True).values
        likelier = F.pad(ranked.cumsum(-1)[:, :-1], (1, 0))
        least[unsure] = torch.where((likelier < self.eta) | (self.eta == 1), ranked, 2.0).amin(-1)
        return least


class PixelToPart(nn.Module):
    """Auxiliary loss: pixel-to-part contrast (Sec. 3.3).

    The first calls hand the teacher's labeled features to `Parts` and return 0, until it has clustered them.  As the
    host calls after its warm-up, the encoder has seen labels by then; without warm-up it is the pretrained one, as in
    the paper [C].

    Args:
        classes: K.
        deep: L, width of the backbone's features.
        options: the numbers; `parts` >= 1.
    """

    on: Literal["weak", "mixed"] = "mixed"

    def __init__(self, classes: int, deep: int, options: ESLOptions) -> None:
        super().__init__()
        o = self.options = options
        self.parts = Parts(classes, o.parts, deep, momentum=o.momentum, collect_steps=o.collect_steps)
        self.bank = ClassBank(classes * o.parts, o.queue, o.embedding)
        self.statistics: dict[str, Tensor] = {}  # of the last call

    def exported_state(self) -> dict[str, Any]:
        """The prototypes."""
        return {f"parts.{name}": value for name, value in self.parts.state_dict().items()}

    def forward(self, labeled: View, unlabeled: View, t: float) -> Tensor:
        assert labeled.student is not None and labeled.teacher is not None
        assert unlabeled.student is not None and unlabeled.teacher is not None
        self.statistics = {}
        halves = ((labeled, labeled.teacher), (unlabeled, unlabeled.teacher))
        coarse = [view.target.at(teacher.deep.shape[-2:]) for view, teacher in halves]
        if not self.parts.ready:
            self.parts.collect(labeled.teacher.deep, coarse[0])
            return labeled.student.embedding[:0].sum()
        nearest = [self.parts.nearest(teacher.deep) for _, teacher in halves]
        size = labeled.student.embedding.shape[-2:]
        label = [view.target.at(size) for view, _ in halves]
        part = [self.parts.assign(n, y) for n, y in zip(nearest, label, strict=True)]
        for (_, teacher), of_pixel in zip(halves, part, strict=True):
            self._remember(teacher.embedding, of_pixel)

        owner = torch.cat([p.flatten() for p in part])
        border = part[0].numel()
        eligible = owner >= 0
        eligible[border:] &= self._certain(unlabeled, label[1]).flatten()
        chosen = self._choose(owner, eligible)
        first, second = chosen[chosen < border], chosen[chosen >= border]
        anchors = (pixels_at(labeled.student.embedding, first), pixels_at(unlabeled.student.embedding, second - border))
        loss = self._contrast(torch.cat(anchors), owner[torch.cat((first, second))])

        seen = [(out.deep, self.parts.assign(n, y)) for (_, out), n, y in zip(halves, nearest, coarse, strict=True)]
        self._log("parts_in_batch", self.parts.follow(seen).sum(), self.parts.active.sum())
        self.parts.start(labeled.teacher.deep, coarse[0])
        return self.options.contrast_weight * loss

    @torch.no_grad()
    def _remember(self, embedding: Tensor, part: Tensor) -> None:
        """Push the mean of each part of each image (Eq. 8), normalized.  embedding (B, E, h, w), part (B, h, w)."""
        n = len(self.bank.rows)
        image = torch.arange(len(part), device=part.device)[:, None, None]
        mean, count = group_means(embedding, torch.where(part < 0, -1, image * n + part), len(part) * n)
        there = count.nonzero()[:, 0]
        self.bank.append(F.normalize(mean[there], dim=1), there % n)
        self._log("part_size", count.sum(), len(there))
        self._log("bank_filled", self.bank.filled.sum(), n * self.bank.rows.shape[1])

    @torch.no_grad()
    def _certain(self, view: View, label: Tensor) -> Tensor:
        """(B, h, w) bool: the teacher's probability of the label exceeds zeta, or a label was pasted (entropy 0)."""
        assert view.teacher is not None
        size = tuple(label.shape[-2:])
        p = F.interpolate(view.teacher.logits.float(), size=size, mode="nearest").softmax(1)
        sure = p.gather(1, torch.where(label == IGNORE, 0, label)[:, None])[:, 0] > self.options.sure
        if view.entropy is not None:
            sure |= F.interpolate(view.entropy[:, None], size=size, mode="nearest")[:, 0] == 0
        return sure

    @torch.no_grad()
    def _choose(self, owner: Tensor, eligible: Tensor) -> Tensor:
        """Indices of the anchors: a share of the eligible pixels of each class, at least one where there are any.

        owner (N,) long, the part of each pixel; eligible (N,) bool.
        """
        k, p = self.parts.active.shape
        index = eligible.nonzero()[:, 0]
        index = index[torch.randperm(len(index), device=index.device)]
        c, order = (owner[index] // p).sort(stable=True)
        there = torch.bincount(c, minlength=k)
        wanted = (self.options.share * there).long().clamp(min=1, max=self.options.max_anchors)
        rank = torch.arange(len(c), device=c.device) - (there.cumsum(0) - there)[c]
        return index[order][rank < wanted[c]]

    def _contrast(self, anchors: Tensor, part: Tensor) -> Tensor:
        """InfoNCE (Eq. 10): mean over the anchors of a class, summed over classes, divided as `divisor` says.

        anchors (A, E), the student's; part (A,) long.  Returns a scalar; 0 without anchors or without negatives.
        """
        k, p = self.parts.active.shape
        of_class = torch.bincount(part // p, minlength=k)
        self._log("anchors", of_class.sum(), 1)
        if not len(anchors) or (self.bank.filled > 0).sum() < 2:
            return anchors[:0].sum()
        blocks = zip(F.normalize(anchors.float(), dim=1).split(BLOCK), part.split(BLOCK), strict=True)
        each = torch.cat([self._block(a, of_anchor) for a, of_anchor in blocks])
        total = (each / of_class[part // p]).sum()
        return total / (k if self.options.divisor == "classes" else (of_class > 0).sum())

    def _block(self, anchors: Tensor, part: Tensor) -> Tensor:
        """The loss of each normalized anchor (n, E), (n,): one product with the whole bank, of which 1 + N_s stay."""
        slots = self.bank.draw(part, self.options.negatives, self.options.draw)
        cosine = picked_products(anchors, self.bank.rows.flatten(0, 1), slots)
        with torch.no_grad():
            n, of_class = len(part), self.parts.active.shape[1] * self.bank.rows.shape[1]
            self._log("cosine_positive", cosine[:, 0].sum(), n)
            self._log("cosine_negative", cosine[:, 1:].sum(), n * self.options.negatives)
            same = slots[:, 1:] // of_class == slots[:, :1] // of_class
            self._log("negatives_of_same_class", same.sum(), n * self.options.negatives)
        return F.cross_entropy(cosine / self.options.temperature, torch.zeros_like(part), reduction="none")

    def _log(self, name: str, total: Tensor, count: int | Tensor) -> None:
        pair = torch.stack((total, torch.as_tensor(count, device=total.device))).detach().float()
        self.statistics[name] = self.statistics.get(name, 0) + pair


def build(recipe: Recipe, classes: int) -> MeanTeacher:
    o = recipe[ESLOptions]
    student = make_student(recipe, classes, embedding=o.embedding if o.parts else 0)
    return mean_teacher(
        recipe, classes, student, label=DynamicLabels(o.eta, o.label), unlabeled_weight=o.unlabeled_weight,
        auxiliary=PixelToPart(classes, student.backbone.deep_channels, o) if o.parts else None, color=o.color,
    )  # fmt: skip


def settings(base: Recipe) -> Recipe:
    """Every batch is mixed, and at paper scale Sec. 4.1.

    Output stride, decay and sliding step are not in the paper; they are those of U2PL, whose settings it shares.
    """
    base = base.having(_own(base), replace(base.consistency, cutmix_p=1.0, decay=0.99))
    if base.scale != "paper":
        return base
    optimization = replace(base.optimization, batch=8, head_lr_factor=10.0)
    base = base.having(replace(base.network, output_stride=8))
    if base.data != "cityscapes":
        return base.having(optimization)
    return base.having(
        replace(optimization, weight_decay=5e-4, ohem=True), replace(base.consistency, unlabeled_from_epoch=0),
        Evaluation("sliding", 769, 513),
    )  # fmt: skip


def _own(base: Recipe) -> ESLOptions:
    """The projection is twice as wide as the decoder's features, as the paper's 512 to 256; K-means gathers during one
    pass over the labeled images of the full partition."""
    if base.scale == "paper":
        return ESLOptions()
    if base.scale == "smoke":
        return ESLOptions(embedding=2 * base.network.width, sure=0.0, collect_steps=1)
    return ESLOptions(embedding=2 * base.network.width, collect_steps=64 if base.data in EMBEDDED else 60)


METHOD = Method(
    "esl", title="ESL", color="#8172b3", options=ESLOptions, build=build, reads=WITHOUT_TAU, settings=settings,
    plain=lambda made: made.changed({"esl.label": "hard", "esl.parts": 0}), paper="Ma et al., ICCV 2023",
    cite="ma2023esl", year=2023, chapter="notebooks/esl",
)  # fmt: skip
