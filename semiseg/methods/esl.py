"""ESL: enhanced soft label (Ma et al., ICCV 2023).

Where the teacher hesitates it is still sure that the pixel belongs to one of a few *dominant* classes: the label keeps
them all instead of discarding the pixel (`DynamicLabels`, Eq. 3 to 5).  What this blurs between those classes, a
contrast sharpens again: each class is divided into *parts*, prototypes of backbone features found by K-means, and a
pixel is pulled to a remembered vector of its part and pushed from those of all other parts (`PixelToPart`, Eq. 7-12).

No code was released.  What the paper leaves open is settled here, marked [C] and defended in the chapter.

    seams: label, auxiliary      host: MeanTeacher      state: prototypes, a queue per part      chapter: notebooks/esl

In shape comments P is the number of parts of a class and A the number of anchors.
"""

from __future__ import annotations

from typing import Any, Literal, get_args

import torch
import torch.nn as nn
import torch.nn.functional as F
from torch import Tensor

from ..banks import ClassBank, Draw, pixels_at
from ..components import CutMix
from ..hosts.mean_teacher import MeanTeacher
from ..losses import picked_products
from ..models.deeplabv3plus import DeepLabV3Plus
from ..types import IGNORE, Output, Target, View
from .parts import Parts, group_means

Rule = Literal["dynamic", "top", "hard"]
ClassDivisor = Literal["classes", "present"]
BLOCK = 1024  # anchors multiplied with the whole bank at once: bounds memory, changes no number


class DynamicLabels:
    """Pseudo-labeler: the teacher's probabilities of the dominant classes, renormalized (Eq. 3 to 5).

    Every valid pixel is supervised, however unsure the teacher is.

    Args:
        rule: "dynamic": the fewest classes whose probabilities sum to eta, and those tied with the last of them;
            "top": the `top` likeliest (Table 3, "Top-5"); "hard": the likeliest alone (Table 2).
        eta: in (0, 1].  At most the largest probability: a hard label; 1: the whole prediction of the teacher.
        top: number of classes of the rule "top".
    """

    def __init__(self, eta: float = 0.95, rule: Rule = "dynamic", top: int = 5) -> None:
        if not 0 < eta <= 1 or top < 1:
            raise ValueError(f"DynamicLabels needs 0 < eta <= 1 and top >= 1, got eta={eta}, top={top}")
        if rule not in get_args(Rule):
            raise ValueError(f"unknown rule {rule!r}; expected one of {', '.join(get_args(Rule))}")
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
        embedding: E, width of the network's projection head.
        parts: of each class; their number P = 1 contrasts pixels with regions (Table 4).
        queue: q, remembered vectors per part; not in the paper [C].
        temperature: sigma (Eq. 10).
        negatives: N_s, drawn for each anchor.
        draw: "entries": every remembered vector of the other parts is equally likely; "classes": each other part is.
        share: of the eligible pixels of a class, to become anchors.
        max_anchors: of a class in one step; None: no bound.
        sure: zeta (Eq. 9), the teacher's probability above which an unlabeled pixel is eligible.
        divisor: of the sum over classes, "classes" (K, paper) or those "present".
        weight: lambda_2 (Eq. 11).
    """

    on: Literal["weak", "mixed"] = "mixed"

    def __init__(
        self,
        classes: int,
        embedding: int,
        parts: Parts,
        *,
        queue: int = 128,
        temperature: float = 0.5,
        negatives: int = 255,
        draw: Draw = "entries",
        share: float = 0.1,
        max_anchors: int | None = None,
        sure: float = 0.95,
        divisor: ClassDivisor = "classes",
        weight: float = 0.1,
    ) -> None:
        super().__init__()
        if embedding < 1:
            raise ValueError("PixelToPart needs a projection head: build the network with embedding > 0")
        if not 0 < share <= 1 or temperature <= 0 or negatives < 1:
            given = f"share={share}, temperature={temperature}, negatives={negatives}"
            raise ValueError(f"PixelToPart needs 0 < share <= 1, temperature > 0 and negatives >= 1, got {given}")
        self.parts, self.bank = parts, ClassBank(classes * parts.active.shape[1], queue, embedding)
        self.temperature, self.negatives, self.draw, self.share = temperature, negatives, draw, share
        self.max_anchors, self.sure, self.divisor, self.weight = max_anchors, sure, divisor, weight
        self.statistics: dict[str, Tensor] = {}  # of the last call

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
        return self.weight * loss

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
        sure = p.gather(1, torch.where(label == IGNORE, 0, label)[:, None])[:, 0] > self.sure
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
        wanted = (self.share * there).long().clamp(min=1, max=self.max_anchors)
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
        return total / (k if self.divisor == "classes" else (of_class > 0).sum())

    def _block(self, anchors: Tensor, part: Tensor) -> Tensor:
        """The loss of each normalized anchor (n, E), (n,): one product with the whole bank, of which 1 + N_s stay."""
        slots = self.bank.draw(part, self.negatives, self.draw)
        cosine = picked_products(anchors, self.bank.rows.flatten(0, 1), slots)
        with torch.no_grad():
            n, of_class = len(part), self.parts.active.shape[1] * self.bank.rows.shape[1]
            self._log("cosine_positive", cosine[:, 0].sum(), n)
            self._log("cosine_negative", cosine[:, 1:].sum(), n * self.negatives)
            same = slots[:, 1:] // of_class == slots[:, :1] // of_class
            self._log("negatives_of_same_class", same.sum(), n * self.negatives)
        return F.cross_entropy(cosine / self.temperature, torch.zeros_like(part), reduction="none")

    def _log(self, name: str, total: Tensor, count: int | Tensor) -> None:
        pair = torch.stack((total, torch.as_tensor(count, device=total.device))).detach().float()
        self.statistics[name] = self.statistics.get(name, 0) + pair


def esl(student: DeepLabV3Plus, classes: int, *, auxiliary: PixelToPart | None = None, **seams: Any) -> MeanTeacher:
    """ESL on its own host; every argument of MeanTeacher can be given, `auxiliary` replaces the default contrast."""
    if auxiliary is None:
        width = int(student.project[-1].out_channels) if student.project is not None else 0  # type: ignore[arg-type]
        auxiliary = PixelToPart(classes, width, Parts(classes, 5, student.backbone.deep_channels))
    plain: dict[str, Any] = {"label": DynamicLabels(), "mix": CutMix(1.0), "color": False}
    plain |= {"unlabeled_weight": 0.2, "decay": 0.99}
    return MeanTeacher(student, auxiliary=auxiliary, **(plain | seams))
