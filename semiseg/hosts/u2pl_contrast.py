"""U2PL's contrast: what a pixel is unlikely to be is known even where its class is not.

The classes that the teacher ranks low at an uncertain pixel are certainly not its own.  The pixel becomes a negative of
these classes, in one queue per class.  Anchors are reliable pixels of the student, their positive m_c is the mean of
the teacher's reliable pixels of the class:

    L_c = mean_{c, a} -log( e^(cos(a, m_c) / tau) / (e^(cos(a, m_c) / tau) + sum_n e^(cos(a, n) / tau)) )

    seam: auxiliary (mixed)   host: U2PL   state: a queue per class
"""

from __future__ import annotations

from typing import Literal, get_args

import torch
import torch.distributed as dist
import torch.nn as nn
import torch.nn.functional as F
from torch import Tensor

from ..banks import ClassBank, from_everywhere, pixels_at, processes, some
from ..components import EntropyFilter, quantile
from ..losses import info_nce
from ..types import IGNORE, Output, View

Keys = Literal["others", "own"]
Pairs = Literal["class", "position"]
Reliable = Literal["kept", "surest"]
Halves = tuple[Tensor, Tensor]


class UnreliableContrast(nn.Module):
    """Auxiliary loss: anchors against unreliable pixels that are certainly of another class.

    A share alpha_t of the unlabeled pixels, those of highest entropy, is unreliable.  Labeled pixels are reliable, and
    candidates for negatives too.  Classes are ranked by the teacher's probability, 0 for the likeliest.

    Args:
        classes: K.
        embedding: E, width of the network's projection head.
        drop: gives alpha_t, as for the pseudo-labels.
        queue, first_queue: vectors kept for a class, and for class 0, which is background or road.
        quota: most new vectors a class takes in one step, drawn at random; None: all (released code).  Without a bound
            one step of PASCAL VOC brings about twice what a queue holds, and labeled pixels never stay in it.
        anchors: drawn for each class, with replacement.
        negatives: drawn for each anchor, with replacement.
        temperature: tau.
        sure: the teacher's probability of its class from which a reliable pixel is an anchor.
        low_rank, high_rank: an unlabeled pixel is a negative of the classes ranked low_rank to high_rank - 1, a labeled
            one of the classes ranked below low_rank that are not its own.
        reliable: "kept": unlabeled pixels that are not unreliable; "surest": the share alpha_t of lowest entropy, which
            shrinks to none in the end (released code).
        keys: "others": as said above; "own": only unlabeled pixels that have the class as pseudo-label although the
            teacher now ranks it low, which two different looks of the teacher alone can bring about (released code).
        pairs: "class": the anchors of a class meet its own queue; "position": of n classes present only those numbered
            below n have anchors, and class i meets the queue of the i-th class present (released code).
        weight: of the loss.

    Raises:
        ValueError: no projection head, ranks that leave the queues empty, an unknown option.
    """

    on: Literal["weak", "mixed"] = "mixed"

    def __init__(
        self, classes: int, embedding: int, *, drop: EntropyFilter | None = None, queue: int = 30_000,
        first_queue: int = 50_000, quota: int | None = 3_000, anchors: int = 256, negatives: int = 50,
        temperature: float = 0.5, sure: float = 0.3, low_rank: int = 3, high_rank: int = 20,
        reliable: Reliable = "kept", keys: Keys = "others", pairs: Pairs = "class", weight: float = 0.1,
    ) -> None:  # fmt: skip
        super().__init__()
        if embedding < 1:
            raise ValueError("UnreliableContrast needs a projection head: build the network with embedding > 0")
        check_ranks(low_rank, high_rank, classes)
        for value, valid in ((reliable, Reliable), (keys, Keys), (pairs, Pairs)):
            if value not in get_args(valid):
                raise ValueError(f"unknown option {value!r}; expected one of {', '.join(get_args(valid))}")
        self.queues = nn.ModuleList(ClassBank(1, queue if k else first_queue, embedding) for k in range(classes))
        self.drop = drop or EntropyFilter(0.2)
        self.quota, self.anchors, self.negatives, self.temperature = quota, anchors, negatives, temperature
        self.sure, self.low_rank, self.high_rank = sure, low_rank, high_rank
        self.reliable, self.keys, self.pairs, self.weight = reliable, keys, pairs, weight
        self.statistics: dict[str, Tensor] = {}  # of the last call

    def forward(self, labeled: View, unlabeled: View, t: float) -> Tensor:
        """The weighted loss of views with student, teacher, and the entropy of the same look of the teacher."""
        assert labeled.student is not None and labeled.teacher is not None
        assert unlabeled.student is not None and unlabeled.teacher is not None
        with torch.autocast(labeled.image.device.type, enabled=False):
            size = labeled.student.embedding.shape[-2:]
            label = torch.cat((labeled.target.at(size), unlabeled.target.at(size)))
            probability = torch.cat((_probability(labeled.teacher, size), _probability(unlabeled.teacher, size)))
            known = label[: len(labeled.image)] != IGNORE
            reliable, unreliable = (torch.cat((known, mask)) for mask in self.divide(unlabeled, t, size))
            teacher = (labeled.teacher.embedding, unlabeled.teacher.embedding)
            self.remember(teacher, label, probability, unreliable)
            student = (labeled.student.embedding, unlabeled.student.embedding)
            return self.weight * self.contrast(student, teacher, label, probability, reliable)

    @torch.no_grad()
    def divide(self, view: View, t: float, size: torch.Size) -> tuple[Tensor, Tensor]:
        """Which pixels of a view are reliable, and which are unreliable: (B, h, w) bool each."""
        assert view.entropy is not None
        doubt, known, share = view.entropy, view.target.weight > 0, self.drop.share(t)
        if not known.any():
            nothing = known.new_zeros(len(known), *size)
            return nothing, nothing
        unreliable = doubt >= quantile(doubt[known], 1 - share)
        reliable = doubt <= quantile(doubt[known], share) if self.reliable == "surest" else ~unreliable
        masks = torch.stack((reliable & known, unreliable & known), 1).float()
        masks = F.interpolate(masks, size=tuple(size), mode="nearest") > 0
        return masks[:, 0], masks[:, 1]

    @torch.no_grad()
    def remember(self, teacher: Halves, label: Tensor, probability: Tensor, candidate: Tensor) -> None:
        """Push new negatives of every class, normalized.

        Args:
            teacher: embeddings (B, E, h, w) of the labeled and of the unlabeled images.
            label: (B, h, w) long, of both.
            probability: the teacher's (B, K, h, w).
            candidate: (B, h, w) bool, labeled and unreliable pixels.
        """
        pixel = candidate.flatten().nonzero()[:, 0]
        of_labeled = pixel < label[: len(teacher[0])].numel()
        negative_of = self.negative_of(label.flatten()[pixel], pixels_at(probability, pixel), of_labeled)
        places = pixel[negative_of.T.nonzero()[:, 1]].split(negative_of.sum(0).tolist())
        most = [_held(queue) if self.quota is None else max(1, self.quota // processes()) for queue in self.queues]
        chosen = [some(i, n) if self.quota else i[-n:] for i, n in zip(places, most, strict=True)]
        owner = torch.repeat_interleave(label.new_tensor([len(index) for index in chosen]))
        vectors = F.normalize(_pick(teacher, torch.cat(chosen)), dim=1)
        vectors, owner = from_everywhere(vectors, owner, _most_anywhere(owner))
        for k, queue in enumerate(self.queues):
            new = vectors[owner == k]
            queue.append(new, owner.new_zeros(len(new)))  # type: ignore[operator]
        filled = self._filled()
        self.statistics = {
            "new_keys": _pair(sum(map(len, chosen)), 1, filled),
            "queue_filled": _pair(filled.sum(), sum(map(_held, self.queues)), filled),
            "queues_empty": _pair((filled == 0).sum(), len(filled), filled),
        }

    def negative_of(self, label: Tensor, probability: Tensor, labeled: Tensor) -> Tensor:
        """Of which classes a pixel is a negative: (n,) long, (n, K), (n,) bool -> (n, K) bool."""
        rank = probability.argsort(dim=1, descending=True, stable=True).argsort(dim=1)
        unlikely = (rank >= self.low_rank) & (rank < self.high_rank)
        own = label[:, None] == torch.arange(rank.shape[1], device=label.device)
        if self.keys == "own":
            return unlikely & own & ~labeled[:, None]
        return torch.where(labeled[:, None], (rank < self.low_rank) & ~own, unlikely)

    def contrast(
        self, student: Halves, teacher: Halves, label: Tensor, probability: Tensor, reliable: Tensor
    ) -> Tensor:
        """The loss before its weight, a scalar; 0 where fewer than two classes have reliable pixels.

        Args:
            student, teacher: embeddings (B, E, h, w) of the labeled and of the unlabeled images.
            label: (B, h, w) long, of both.
            probability: the teacher's (B, K, h, w).
            reliable: (B, h, w) bool.
        """
        center, count = _class_means(teacher, torch.where(reliable, label, IGNORE), len(self.queues))
        present = count.nonzero()[:, 0].tolist()
        pools, filled = self._pools(label, probability, reliable), self._filled().tolist()
        owners = range(len(present)) if self.pairs == "position" else present
        pairs = [(c, q) for c, q in zip(owners, present, strict=True) if len(pools[c]) and filled[q]]
        self.statistics["anchors"] = _pair(self.anchors * len(pairs) * (len(present) > 1), 1, center)
        if len(present) < 2 or not pairs:
            return student[0][:0].sum()
        terms = []
        for c, q in pairs:
            device, number = label.device, self.anchors * self.negatives
            anchor = _pick(student, pools[c][torch.randint(len(pools[c]), (self.anchors,), device=device)])
            drawn = torch.randint(filled[q], (number,), device=device)
            negative = self.queues[q].rows[0, drawn].view(self.anchors, self.negatives, -1)
            unit = F.normalize(anchor, dim=1)
            terms.append(info_nce(unit, center[c : c + 1], negative, self.temperature, cosine=False))
        return torch.stack(terms).sum() / len(present)

    @torch.no_grad()
    def _pools(self, label: Tensor, probability: Tensor, reliable: Tensor) -> list[Tensor]:
        """For each class the pixels that may become its anchors."""
        index = torch.where(reliable, label, 0)[:, None]
        chosen = (reliable & (probability.gather(1, index)[:, 0] > self.sure)).flatten().nonzero()[:, 0]
        owner, order = label.flatten()[chosen].sort(stable=True)
        return list(chosen[order].split(torch.bincount(owner, minlength=len(self.queues)).tolist()))

    def _filled(self) -> Tensor:
        return torch.cat([queue.filled for queue in self.queues])  # type: ignore[misc]


def check_ranks(low_rank: int, high_rank: int, classes: int) -> None:
    """Raise ValueError for ranks at which no unlabeled pixel could become a negative."""
    if not 1 <= low_rank < high_rank:
        raise ValueError(f"U2PL needs 1 <= low_rank < high_rank, got low_rank={low_rank}, high_rank={high_rank}")
    if low_rank >= classes:
        raise ValueError(
            f"low_rank={low_rank} with {classes} classes: ranks count from 0, so no class is ever ranked {low_rank} or "
            f"lower and unreliable pixels would never be negatives; choose low_rank in 1..{classes - 1}, "
            "as in replace(recipe, u2pl=replace(recipe.u2pl, low_rank=1))"
        )


@torch.no_grad()
def _probability(output: Output, size: torch.Size) -> Tensor:
    """(B, K, h, w).  Where crop and map share their corners, as 513 and 129, the logits are those before upsampling."""
    logits = F.interpolate(output.logits.float(), size=tuple(size), mode="bilinear", align_corners=True)
    return logits.softmax(1)


@torch.no_grad()
def _class_means(features: Halves, label: Tensor, classes: int) -> tuple[Tensor, Tensor]:
    """Mean feature of each class as a unit vector (K, E), and its number of pixels (K,); labels >= K belong to none."""
    mask = F.one_hot(label.clamp(max=classes), classes + 1)[..., :classes].float()
    of_half = zip(features, mask.split([len(half) for half in features]), strict=True)
    total = torch.stack([torch.einsum("behw,bhwk->ke", half.float(), chosen) for half, chosen in of_half]).sum(0)
    return F.normalize(total, dim=1), mask.sum((0, 1, 2))


def _pick(halves: Halves, index: Tensor) -> Tensor:
    """Rows (n, E) of the pixels of both halves (B, E, h, w), numbered through; neither map is copied."""
    border = halves[0][:, 0].numel()
    first = pixels_at(halves[0], index.clamp(max=border - 1))
    second = pixels_at(halves[1], (index - border).clamp(min=0))
    return torch.where((index < border)[:, None], first, second).float()


def _held(queue: nn.Module) -> int:
    """How many vectors a queue can hold."""
    assert isinstance(queue, ClassBank)
    return queue.rows.shape[1]


def _most_anywhere(items: Tensor) -> int:
    """The largest number of items in any process."""
    number = torch.tensor(len(items), device=items.device)
    if processes() > 1:
        dist.all_reduce(number, dist.ReduceOp.MAX)
    return int(number)


def _pair(total: Tensor | float, count: float, like: Tensor) -> Tensor:
    """A statistic: (2,), a sum and a count."""
    return torch.stack([torch.as_tensor(v, device=like.device).float() for v in (total, count)])
