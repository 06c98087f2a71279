"""DGCL: density-guided contrastive learning (Wang et al., "Hunting Sparsity", CVPR 2023).

Within a class, features in sparse regions are under-trained.  The density of a feature is its mean similarity to its
nearest neighbors in a memory of the class; the sparsest features of a batch (anchors q) are drawn to the mean r of the
densest ones of batch and memory, and away from random features of other classes (Eq. 7 to 13):

    L_contra = mean_q -log( e^(cos(q, r) / tau) / (e^(cos(q, r) / tau) + sum_n e^(cos(q, n) / tau)) )

    components: label, auxiliary (weak)   host: MeanTeacher   state: the memory   chapter: notebooks/dgcl
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING, Literal, NamedTuple

import torch
import torch.nn as nn
import torch.nn.functional as F
from torch import Tensor

from ..banks import ClassBank, from_everywhere, largest, processes, some
from ..build import make_student
from ..components import EntropyFilter
from ..hosts.mean_teacher import WITHOUT_TAU, MeanTeacher, mean_teacher
from ..losses import info_nce
from ..options import Consistency, Evaluation, Network, Options, option, options
from ..registry import Method
from ..types import IGNORE, PseudoLabeler, View

if TYPE_CHECKING:
    from ..recipe import Recipe


@options
class DGCLOptions(Options):
    """The density-guided contrast and its pseudo-labels.  Numbers of pixels are for 8 maps of 129 x 129 features.

    Each default is the better founded reading; see `paper` and `official`.  weight=0 leaves out the contrast and its
    head (Table 5, II); sampling="random" with memory=False is plain contrast (III), memory=False alone is (IV).
    """

    part = "dgcl"
    embedding: int = option("width of the projection head", default=256, gt=0)
    weight: float = option("of the contrast", default=0.5, symbol="λ_contra", ge=0)
    unlabeled_weight: float = option("of self-training", default=0.5, symbol="λ_unsup", ge=0)
    color: bool = option(
        "True: on the color-jittered view; False: CutMix alone, in paper and released code", default=False
    )
    drop: float = option(
        "share of uncertain pixels that get no pseudo-label at first",
        default=0.2,
        symbol="β_0",
        equation="Eq. 6",
        ge=0,
        lt=1,
    )
    contrast_drop: tuple[float, float] | None = option(
        "the same for the contrast: first and least (released code); none: as the pseudo-labels (paper)",
        default=(0.8, 0.1),
    )
    drop_falls: Literal["steps", "epochs", "steps_after_warm_up"] = option(
        "how the share falls: with every step (paper), epoch by epoch (released code), or ours",
        default="steps_after_warm_up",
        equation="Eq. 6",
    )
    bank: int = option("vectors a class holds", default=10_000, symbol="|P^c|", gt=0)
    quota: int = option("most vectors a class takes in one step", default=1_000, gt=0)
    pixels: int = option("most pixels of a class measured in one step", default=10_000, gt=0)
    scales: tuple[int, ...] = option(
        "neighbors of the graphs, one number for a single graph (Table 7)",
        default=(8, 16, 32),
        symbol="k",
        equation="Eq. 7, 8",
        min_length=1,
    )
    anchors: int = option("sparsest pixels of a class", default=200, symbol="|Q^c|", equation="Eq. 10", gt=0)
    keys: int = option(
        "densest pixels of a class from the batch, and as many from the bank", default=50, equation="Eq. 11", gt=0
    )
    negatives: int = option("pixels of other classes", default=512, gt=0)
    tau: float = option("temperature", default=0.5, symbol="τ", equation="Eq. 13", gt=0)
    sampling: Literal["density", "confidence", "random"] = option(
        "what anchors are low and keys high in (Table 6); random: random anchors, center of all pixels",
        default="density",
    )
    memory: bool = option(
        "measure density in, and take keys from, the bank as well (Table 5, V); False: the batch alone (IV)",
        default=True,
    )
    exclude: tuple[int, ...] = option(
        "classes that are not contrasted and have no memory, only serve as negatives (released code on VOC: "
        "background, whose bank it fills but never reads)",
        default=(0,),
    )
    ready: Literal["class", "all"] = option(
        "a class takes part once its own bank, or all banks (released code), can measure density", default="class"
    )
    center: Literal["projections", "fresh_projections", "features"] = option(
        "mean of projections, stored ones included (released code); fresh_projections: stored features are projected "
        "anew; features: projection of the mean feature",
        default="projections",
        symbol="r^c",
        equation="Eq. 12, 13",
    )
    negatives_of: Literal["class", "anchor"] = option(
        "one draw for each class (released code) or each anchor (paper; out of 8 times as many)", default="class"
    )
    cosine: bool = option("see `losses.info_nce`", default=True)
    positive_in_denominator: bool = option("see `losses.info_nce`", default=True)
    reduction: Literal["mean", "sum"] = option(
        "over anchors, then classes (released code), or the sum of both", default="mean", equation="Eq. 13"
    )
    own_neighbor: bool = option("see `density`", default=False)
    equal_when_few: bool = option(
        "a class of at most max(scales) pixels counts as equally dense everywhere (released code)", default=False
    )

    def __post_init__(self) -> None:
        if min(self.scales) < 1:
            raise ValueError(f"dgcl.scales must be >= 1, got {self.scales}")
        if self.sampling == "random" and self.memory:
            raise ValueError("sampling='random' takes its center from the batch alone; it needs memory=False")


def density(unit: Tensor, neighbors: Tensor, scales: tuple[int, ...], own: bool = False, block: int = 512) -> Tensor:
    """Multi-scale density (Eq. 7, 8): cosine similarity to the k nearest neighbors, averaged over the scales k.

    One top-k serves all scales, since each neighborhood is the beginning of the next.

    Args:
        unit, neighbors: (n, D) and (m, D), rows of length 1.
        scales: the k; a k above m is cut to m.
        own: count the feature among its own neighbors, the graph in P + {v} of the paper.
        block: rows whose similarities are held at a time.

    Returns:
        (n,), at most 1.
    """
    sizes = [min(k, len(neighbors) + own) for k in scales]
    share = unit.new_tensor([sum((place < k) / k for k in sizes) / len(sizes) for place in range(max(sizes))])
    nearest = [largest(rows @ neighbors.T, len(share) - own)[0] for rows in unit.split(block)]
    similar = torch.cat(nearest) @ share[int(own) :]
    return similar + share[0] if own else similar


class Choice(NamedTuple):
    """What one class contributes to the loss; pixels are numbered over labeled, then unlabeled images."""

    anchors: Tensor  # (n,) pixels
    center: Tensor  # (E,)
    negatives: Tensor  # (m,) pixels
    scores: Tensor  # (3,) mean score of all pixels, of the anchors, of the keys in the batch


class Seen(NamedTuple):
    """The N pixels of a step on the feature grid."""

    features: Tensor  # (N, D) without gradient
    embedding: Tensor  # (N, E)
    labels: Tensor  # (N,), IGNORE where the pixel takes no part
    confidence: Tensor  # (N,) of the teacher; empty unless it is sampled by


class DensityContrast(nn.Module):
    """Auxiliary loss: density-guided contrast with class memory banks (Sec. 3.4).

    Args:
        classes, width: K, D.
        options: the numbers; `embedding` is E, channels of the projection head.
        labels: filter of the unlabeled pixels; None: the pseudo-labels of self-training (paper).
        project: features (n, D) -> projections (n, E); needed unless center is "projections".
    """

    on: Literal["weak", "mixed"] = "weak"

    def __init__(
        self, classes: int, width: int, options: DGCLOptions, *, labels: PseudoLabeler | None = None,
        project: Callable[[Tensor], Tensor] | None = None,
    ) -> None:  # fmt: skip
        super().__init__()
        o = options
        if o.center != "projections" and project is None:
            raise ValueError(f"center={o.center!r} needs the projection head, got project=None")
        # A vector in the bank: feature / length, length, projection, score (density or confidence) when it was stored.
        self.columns = width + o.embedding + 2
        self.bank = ClassBank(classes, o.bank, self.columns) if o.memory else None
        self.width, self.options, self.labels = width, options, labels
        self.project = None if o.center == "projections" else project
        self.enough = min(max(o.quota, o.keys, *o.scales), o.bank - 1)  # a bank that holds more can measure density
        self.statistics: dict[str, Tensor] = {}

    def forward(self, labeled: View, unlabeled: View, t: float) -> Tensor:
        """weight * L_contra, 0 while no class is ready; then the banks take in this step's pixels.

        Args:
            labeled, unlabeled: views with teacher and student.
            t: share of training done.
        """
        assert labeled.student is not None
        self.statistics = {}
        with torch.autocast(labeled.student.features.device.type, enabled=False):
            seen = self._see(labeled, unlabeled, t)
            choices = self._choose_and_remember(seen)
            return self.options.weight * self._loss(choices, seen.embedding)

    def _see(self, labeled: View, unlabeled: View, t: float) -> Seen:
        students = [view.student for view in (labeled, unlabeled) if view.student is not None]
        size = students[0].features.shape[-2:]
        features = torch.cat([s.features.detach().movedim(1, -1) for s in students]).flatten(0, 2).float()
        embedding = torch.cat([s.embedding.movedim(1, -1) for s in students]).flatten(0, 2).float()
        target, teacher = unlabeled.target, unlabeled.teacher
        valid = F.interpolate(target.denominator[:, None], size=tuple(size), mode="nearest")[:, 0] > 0
        if self.labels is not None:
            assert teacher is not None
            coarse = self.labels(teacher._replace(logits=_at(teacher.logits, size)), valid, t)
            on_u = torch.where(coarse.weight > 0, coarse.hard, IGNORE)
        else:
            on_u = target.at(size)
        self.statistics["contrast_kept"] = torch.stack(((on_u != IGNORE).sum(), valid.sum())).float()
        confidence = embedding.new_empty(0)
        if self.options.sampling == "confidence":
            logits = torch.cat([_at(view.teacher.logits, size) for view in (labeled, unlabeled) if view.teacher])
            confidence = logits.softmax(1).amax(1).flatten()
        labels = torch.cat((labeled.target.at(size), on_u)).flatten()
        return Seen(features, embedding, labels, confidence)

    @torch.no_grad()
    def _choose_and_remember(self, seen: Seen) -> list[Choice]:
        held = [] if self.bank is None else self.bank.filled.tolist()
        present = [k for k in seen.labels.unique().tolist() if k != IGNORE]
        choices, rows, owners = [], [seen.features.new_empty(0, self.columns)], [seen.labels[:0]]
        for k in present:
            contrasted = len(present) > 1 and self._is_ready(held, k)
            if k in self.options.exclude or not (contrasted or held):
                continue
            mine = some((seen.labels == k).nonzero()[:, 0], self.options.pixels if contrasted else self.options.quota)
            unit = seen.features[mine]
            length = unit.norm(dim=1, keepdim=True).clamp(min=1e-12)
            unit /= length
            score = self._score(k, unit, mine, seen, measurable=not held or held[k] > self.enough)
            if contrasted:
                choices.append(self._choose(k, mine, score, seen))
            if held:
                new = some(torch.arange(len(mine), device=mine.device), max(1, self.options.quota // processes()))
                parts = (unit[new], length[new], seen.embedding[mine[new]], score[new, None])
                rows.append(torch.cat(parts, 1))
                owners.append(seen.labels[mine[new]])
        self._log(choices, len([k for k in present if k not in self.options.exclude]))
        if self.bank is not None:
            new_rows, new_owners = from_everywhere(torch.cat(rows), torch.cat(owners), len(held) * self.options.quota)
            self.bank.push(new_rows, new_owners, quota=self.bank.rows.shape[1])
        return choices

    def _is_ready(self, held: list[int], k: int) -> bool:
        if self.bank is None:
            return True
        if self.options.ready == "class":
            return held[k] > self.enough
        return all(n == self.bank.rows.shape[1] for other, n in enumerate(held) if other not in self.options.exclude)

    def _score(self, k: int, unit: Tensor, mine: Tensor, seen: Seen, measurable: bool) -> Tensor:
        """What the pixels of class k are ranked by: density, confidence, or 0 where there is nothing to rank by."""
        if self.options.sampling == "confidence":
            return seen.confidence[mine]
        if self.options.sampling == "random" or not measurable:
            return unit.new_zeros(len(unit))
        if self.options.equal_when_few and len(unit) <= max(self.options.scales):
            return unit.new_ones(len(unit))
        neighbors = unit if self.bank is None else self.bank[k][:, : self.width]
        return density(unit, neighbors, self.options.scales, self.options.own_neighbor and self.bank is not None)

    def _choose(self, k: int, mine: Tensor, score: Tensor, seen: Seen) -> Choice:
        n = len(mine)
        if self.options.sampling == "random":
            dense = torch.arange(n, device=mine.device)
            sparse = some(dense, self.options.anchors)
        else:
            sparse = score.topk(min(self.options.anchors, n), largest=False).indices
            dense = score.topk(min(self.options.keys, n)).indices
        stored = seen.features.new_empty(0, self.columns)
        if self.bank is not None:
            stored = self.bank[k]
            stored = stored[stored[:, -1].topk(min(self.options.keys, len(stored))).indices]
        others = ((seen.labels != k) & (seen.labels != IGNORE)).nonzero()[:, 0]
        negatives = some(others, self.options.negatives * (8 if self.options.negatives_of == "anchor" else 1))
        scores = torch.stack((score.mean(), score[sparse].mean(), score[dense].mean()))
        return Choice(mine[sparse], self._center(mine[dense], stored, seen), negatives, scores)

    def _center(self, keys: Tensor, stored: Tensor, seen: Seen) -> Tensor:
        """(E,) from pixels of the batch and vectors (m, D + E + 2) of the bank."""
        fresh = seen.embedding[keys]
        if self.project is None:
            return torch.cat((fresh, stored[:, self.width + 1 : -1])).mean(0)
        features = stored[:, : self.width] * stored[:, self.width, None]
        if self.options.center == "fresh_projections":
            return torch.cat((fresh, self.project(features))).mean(0)
        return self.project(torch.cat((seen.features[keys], features)).mean(0, keepdim=True))[0]

    def _loss(self, choices: list[Choice], embedding: Tensor) -> Tensor:
        o = self.options
        if not choices:
            return embedding.sum() * 0
        anchors = embedding[torch.cat([c.anchors for c in choices])].split([len(c.anchors) for c in choices])
        per_anchor = o.negatives if o.negatives_of == "anchor" else None
        terms = [
            info_nce(
                a, c.center[None], embedding.detach()[c.negatives], o.tau, cosine=o.cosine,
                positive_in_denominator=o.positive_in_denominator, per_anchor=per_anchor, reduction=o.reduction,
            )
            for a, c in zip(anchors, choices, strict=True)
        ]  # fmt: skip
        return torch.stack(terms).sum() if o.reduction == "sum" else torch.stack(terms).mean()

    def _log(self, choices: list[Choice], present: int) -> None:
        device = self.statistics["contrast_kept"].device
        self.statistics["contrast_classes"] = torch.tensor([len(choices), present], device=device).float()
        if choices and self.options.sampling != "random":
            means = torch.stack([c.scores for c in choices]).sum(0)
            for name, total in zip(("pixels", "anchors", "keys"), means, strict=True):
                pair = torch.stack((total, torch.full_like(total, len(choices))))
                self.statistics[f"{self.options.sampling}_of_{name}"] = pair


def _at(logits: Tensor, size: torch.Size) -> Tensor:
    """Logits on the feature grid: at side 4 n + 1 the very ones the classifier gave there."""
    return F.interpolate(logits.float(), size=tuple(size), mode="bilinear", align_corners=True)


def falling(recipe: Recipe, drop: float, least: float = 0.0) -> EntropyFilter:
    """The entropy filter that drops so much at first; the options say how that falls over training."""
    falls, warm_up = recipe[DGCLOptions].drop_falls, recipe.consistency.unlabeled_from_epoch
    epochs = recipe.optimization.epochs
    stages = epochs - warm_up if falls == "epochs" else None
    return EntropyFilter(drop, least=least, start=0.0 if falls == "steps" else warm_up / epochs, stages=stages)


def build(recipe: Recipe, classes: int) -> MeanTeacher:
    o, auxiliary = recipe[DGCLOptions], None
    student = make_student(recipe, classes, embedding=o.embedding if o.weight else 0)
    if o.weight:
        labels = None if o.contrast_drop is None else falling(recipe, *o.contrast_drop)
        auxiliary = DensityContrast(classes, student.width, o, labels=labels, project=student.embed)
    return mean_teacher(
        recipe, classes, student, label=falling(recipe, o.drop), auxiliary=auxiliary, color=o.color,
        unlabeled_weight=o.unlabeled_weight,
    )  # fmt: skip


def fewer_pixels(pixels: int, embedding: int) -> DGCLOptions:
    """The numbers for a step that shows fewer pixels than the 8 x 129 x 129 of the released code on one GPU.

    Each shrinks as the side of a square of that area: at 32 maps of 8 x 8 to an eighth.  The scales of the neighbor
    graphs stay, so that Table 7 can be repeated with its own numbers.
    """
    side, usual = (pixels / (8 * 129**2)) ** 0.5, DGCLOptions()
    counts = ("bank", "quota", "pixels", "anchors", "keys", "negatives")
    return replace(usual, embedding=embedding, **{name: round(getattr(usual, name) * side) for name in counts})


def settings(base: Recipe) -> Recipe:
    """Cityscapes at paper scale: OHEM (Sec. 4.1); output stride, rates, ten epochs of labels alone and the window are
    the released code's.  At other scales as many pixels as a step shows."""
    o = base.optimization
    if base.scale == "smoke":
        return base.having(
            DGCLOptions(
                embedding=16, bank=32, quota=8, pixels=64, scales=(2, 4), anchors=8, keys=4, negatives=16
            )
        )  # fmt: skip
    if base.scale != "paper":
        return base.having(fewer_pixels(2 * o.batch * (o.crop // 4) ** 2, base.network.width))
    if base.data != "cityscapes":
        return base
    return base.having(
        Network("resnet101", 8, rates=(12, 24, 36)), replace(o, ohem=True), Consistency(unlabeled_from_epoch=10),
        DGCLOptions(exclude=()), Evaluation("sliding", 800, 533),
    )  # fmt: skip


def paper(base: Recipe) -> Recipe:
    """256 anchors and 256 + 256 keys at 129 x 129, Eq. 13 as printed, one filter for pseudo-labels and contrast."""
    own, usual = base[DGCLOptions], DGCLOptions()
    own = replace(
        own, weight=1.0, unlabeled_weight=1.0, contrast_drop=None, drop_falls="steps",
        anchors=round(own.anchors * 256 / usual.anchors), keys=round(own.keys * 256 / usual.keys),
        exclude=(), center="features", negatives_of="anchor", cosine=False, positive_in_denominator=False,
        reduction="sum", own_neighbor=True,
    )  # fmt: skip
    return base.having(own, replace(base.consistency, divisor="valid"))


def official(base: Recipe) -> Recipe:
    """Gavinwxy/DGCL @ 5f41130: no contrast until every bank is full, and its weight once more over the processes.

    The contrast is averaged over the processes twice, so its 0.5 acts as 0.125 on the 4 GPUs of PASCAL VOC and as
    0.0625 on the 8 of Cityscapes.
    """
    gpus = 8 if base.data == "cityscapes" else 4
    own = replace(base[DGCLOptions], weight=0.5 / gpus, drop_falls="epochs", ready="all", equal_when_few=True)
    return base.having(own, replace(base.consistency, divisor="kept_scaled", teacher="ema_train"))


METHOD = Method(
    "dgcl", title="DGCL", color="#55a868", options=DGCLOptions, build=build, reads=WITHOUT_TAU, settings=settings,
    readings={"paper": paper, "official": official}, plain=lambda made: made.changed({"dgcl.weight": 0.0}),
    paper="Wang et al., CVPR 2023", cite="wang2023dgcl", year=2023, chapter="notebooks/dgcl",
)  # fmt: skip
