"""DGCL: density-guided contrastive learning (Wang et al., "Hunting Sparsity", CVPR 2023).

Within a class, features in sparse regions are under-trained.  The density of a feature is its mean similarity to its
nearest neighbors in a memory of the class; the sparsest features of a batch (anchors q) are drawn to the mean r of the
densest ones of batch and memory, and away from random features of other classes (Eq. 7 to 13):

    L_contra = mean_q -log( e^(cos(q, r) / tau) / (e^(cos(q, r) / tau) + sum_n e^(cos(q, n) / tau)) )

    seams: label, auxiliary (weak)   host: MeanTeacher   state: the memory   chapter: notebooks/dgcl
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import torch
import torch.nn as nn
import torch.nn.functional as F
from torch import Tensor

from ..banks import ClassBank, from_everywhere, largest, processes, some
from ..components import EntropyFilter
from ..hosts.mean_teacher import MeanTeacher
from ..losses import info_nce
from ..models.deeplabv3plus import DeepLabV3Plus
from ..types import IGNORE, PseudoLabeler, View

Sampling = Literal["density", "confidence", "random"]
Center = Literal["projections", "fresh_projections", "features"]


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

    Defaults are the released code's numbers, and per-class readiness instead of its wait for every bank.

    Args:
        classes, width, embedding: K, D, E.
        bank, quota: vectors a class holds, and most it takes in one step.
        pixels: most pixels of a class measured in one step.
        scales: k of the neighbor graphs, (k,) for a single one (Table 7).
        anchors, keys, negatives: per class; `keys` from the batch and as many from the bank.
        tau, weight: temperature and factor of the loss.
        sampling: what anchors are low and keys high in (Table 6); "random": random anchors, center of all pixels.
        memory: measure density in, and take keys from, the bank as well (Table 5 V); False: the batch alone (IV).
        exclude: classes that are not contrasted and have no memory, only serve as negatives (released code on VOC:
            background, whose bank it fills but never reads).
        labels: filter of the unlabeled pixels; None: the pseudo-labels of self-training (paper).
        ready: a class takes part once its own bank, or "all" banks (released code), can measure density.
        center: mean of projections, stored ones included (released code); "fresh_projections": stored features are
            projected anew; "features": projection of the mean feature (Eq. 12, 13).
        negatives_of: one draw for each "class" (released code) or each "anchor" (paper; out of 8 times as many).
        cosine, positive_in_denominator: see `info_nce`.
        reduction: "mean" over anchors, then classes (released code), or "sum" of both (Eq. 13).
        own_neighbor: see `density`.
        equal_when_few: a class of at most max(scales) pixels counts as equally dense everywhere (released code).
        project: features (n, D) -> projections (n, E); needed unless center is "projections".
    """

    on: Literal["weak", "mixed"] = "weak"

    def __init__(
        self, classes: int, width: int, embedding: int, *, bank: int = 10_000, quota: int = 1_000, pixels: int = 10_000,
        scales: tuple[int, ...] = (8, 16, 32), anchors: int = 200, keys: int = 50, negatives: int = 512,
        tau: float = 0.5, weight: float = 0.5, sampling: Sampling = "density", memory: bool = True,
        exclude: tuple[int, ...] = (0,), labels: PseudoLabeler | None = None, ready: Literal["class", "all"] = "class",
        center: Center = "projections", negatives_of: Literal["class", "anchor"] = "class", cosine: bool = True,
        positive_in_denominator: bool = True, reduction: Literal["mean", "sum"] = "mean", own_neighbor: bool = False,
        equal_when_few: bool = False, project: Callable[[Tensor], Tensor] | None = None,
    ) -> None:  # fmt: skip
        super().__init__()
        if sampling == "random" and memory:
            raise ValueError("random sampling takes its center from the batch alone; it needs memory=False")
        if center != "projections" and project is None:
            raise ValueError(f"center={center!r} needs the projection head, got project=None")
        if min(embedding, quota, pixels, anchors, keys, negatives, *scales) < 1:
            raise ValueError("embedding, quota, pixels, anchors, keys, negatives and scales must be at least 1")
        # A vector in the bank: feature / length, length, projection, score (density or confidence) when it was stored.
        self.columns = width + embedding + 2
        self.bank = ClassBank(classes, bank, self.columns) if memory else None
        self.width, self.quota, self.pixels, self.scales = width, quota, pixels, scales
        self.anchors, self.keys, self.negatives, self.tau, self.weight = anchors, keys, negatives, tau, weight
        self.sampling, self.exclude, self.labels, self.ready = sampling, exclude, labels, ready
        self.center, self.negatives_of, self.cosine = center, negatives_of, cosine
        self.positive_in_denominator, self.reduction = positive_in_denominator, reduction
        self.own_neighbor, self.equal_when_few = own_neighbor, equal_when_few
        self.project = None if center == "projections" else project
        self.enough = min(max(quota, keys, *scales), bank - 1)  # a bank that holds more can measure density
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
            return self.weight * self._loss(choices, seen.embedding)

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
        if self.sampling == "confidence":
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
            if k in self.exclude or not (contrasted or held):
                continue
            mine = some((seen.labels == k).nonzero()[:, 0], self.pixels if contrasted else self.quota)
            unit = seen.features[mine]
            length = unit.norm(dim=1, keepdim=True).clamp(min=1e-12)
            unit /= length
            score = self._score(k, unit, mine, seen, measurable=not held or held[k] > self.enough)
            if contrasted:
                choices.append(self._choose(k, mine, score, seen))
            if held:
                new = some(torch.arange(len(mine), device=mine.device), max(1, self.quota // processes()))
                parts = (unit[new], length[new], seen.embedding[mine[new]], score[new, None])
                rows.append(torch.cat(parts, 1))
                owners.append(seen.labels[mine[new]])
        self._log(choices, len([k for k in present if k not in self.exclude]))
        if self.bank is not None:
            new_rows, new_owners = from_everywhere(torch.cat(rows), torch.cat(owners), len(held) * self.quota)
            self.bank.push(new_rows, new_owners, quota=self.bank.rows.shape[1])
        return choices

    def _is_ready(self, held: list[int], k: int) -> bool:
        if self.bank is None:
            return True
        if self.ready == "class":
            return held[k] > self.enough
        return all(n == self.bank.rows.shape[1] for other, n in enumerate(held) if other not in self.exclude)

    def _score(self, k: int, unit: Tensor, mine: Tensor, seen: Seen, measurable: bool) -> Tensor:
        """What the pixels of class k are ranked by: density, confidence, or 0 where there is nothing to rank by."""
        if self.sampling == "confidence":
            return seen.confidence[mine]
        if self.sampling == "random" or not measurable:
            return unit.new_zeros(len(unit))
        if self.equal_when_few and len(unit) <= max(self.scales):
            return unit.new_ones(len(unit))
        neighbors = unit if self.bank is None else self.bank[k][:, : self.width]
        return density(unit, neighbors, self.scales, self.own_neighbor and self.bank is not None)

    def _choose(self, k: int, mine: Tensor, score: Tensor, seen: Seen) -> Choice:
        n = len(mine)
        if self.sampling == "random":
            dense = torch.arange(n, device=mine.device)
            sparse = some(dense, self.anchors)
        else:
            sparse = score.topk(min(self.anchors, n), largest=False).indices
            dense = score.topk(min(self.keys, n)).indices
        stored = seen.features.new_empty(0, self.columns)
        if self.bank is not None:
            stored = self.bank[k]
            stored = stored[stored[:, -1].topk(min(self.keys, len(stored))).indices]
        others = ((seen.labels != k) & (seen.labels != IGNORE)).nonzero()[:, 0]
        negatives = some(others, self.negatives * (8 if self.negatives_of == "anchor" else 1))
        scores = torch.stack((score.mean(), score[sparse].mean(), score[dense].mean()))
        return Choice(mine[sparse], self._center(mine[dense], stored, seen), negatives, scores)

    def _center(self, keys: Tensor, stored: Tensor, seen: Seen) -> Tensor:
        """(E,) from pixels of the batch and vectors (m, D + E + 2) of the bank."""
        fresh = seen.embedding[keys]
        if self.project is None:
            return torch.cat((fresh, stored[:, self.width + 1 : -1])).mean(0)
        features = stored[:, : self.width] * stored[:, self.width, None]
        if self.center == "fresh_projections":
            return torch.cat((fresh, self.project(features))).mean(0)
        return self.project(torch.cat((seen.features[keys], features)).mean(0, keepdim=True))[0]

    def _loss(self, choices: list[Choice], embedding: Tensor) -> Tensor:
        if not choices:
            return embedding.sum() * 0
        anchors = embedding[torch.cat([c.anchors for c in choices])].split([len(c.anchors) for c in choices])
        per_anchor = self.negatives if self.negatives_of == "anchor" else None
        terms = [
            info_nce(
                a, c.center[None], embedding.detach()[c.negatives], self.tau, cosine=self.cosine,
                positive_in_denominator=self.positive_in_denominator, per_anchor=per_anchor, reduction=self.reduction,
            )
            for a, c in zip(anchors, choices, strict=True)
        ]  # fmt: skip
        return torch.stack(terms).sum() if self.reduction == "sum" else torch.stack(terms).mean()

    def _log(self, choices: list[Choice], present: int) -> None:
        device = self.statistics["contrast_kept"].device
        self.statistics["contrast_classes"] = torch.tensor([len(choices), present], device=device).float()
        if choices and self.sampling != "random":
            means = torch.stack([c.scores for c in choices]).sum(0)
            for name, total in zip(("pixels", "anchors", "keys"), means, strict=True):
                pair = torch.stack((total, torch.full_like(total, len(choices))))
                self.statistics[f"{self.sampling}_of_{name}"] = pair


def _at(logits: Tensor, size: torch.Size) -> Tensor:
    """Logits on the feature grid: at side 4 n + 1 the very ones the classifier gave there."""
    return F.interpolate(logits.float(), size=tuple(size), mode="bilinear", align_corners=True)


def dgcl(
    student: DeepLabV3Plus, classes: int, *, auxiliary: DensityContrast | None = None, **seams: Any
) -> MeanTeacher:
    """DGCL on its own host; every argument of MeanTeacher can be given, `auxiliary` replaces the default contrast."""
    if auxiliary is None:
        contrast_labels = EntropyFilter(0.8, least=0.1)
        auxiliary = DensityContrast(classes, student.width, student.embedding, labels=contrast_labels)
    plain: dict[str, Any] = {"label": EntropyFilter(0.2), "unlabeled_weight": 0.5, "color": False}
    return MeanTeacher(student, auxiliary=auxiliary, **(plain | seams))
