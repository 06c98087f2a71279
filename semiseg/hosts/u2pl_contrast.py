"""U2PL's contrast: what a pixel is unlikely to be is known even where its class is not.

The classes that the teacher ranks low at an uncertain pixel are certainly not its own.  The pixel becomes a negative of
these classes, in one queue per class.  Anchors are reliable pixels of the student, their positive m_c is the mean of
the teacher's reliable pixels of the class:

    L_c = mean_{c, a} -log( e^(cos(a, m_c) / tau) / (e^(cos(a, m_c) / tau) + sum_n e^(cos(a, n) / tau)) )

    component: auxiliary (mixed)   host: U2PL   state: a queue per class
"""

from __future__ import annotations

from typing import Literal

import torch
import torch.distributed as dist
import torch.nn as nn
import torch.nn.functional as F
from torch import Tensor

from ..banks import ClassBank, from_everywhere, pixels_at, processes, some
from ..components import EntropyFilter, quantile
from ..losses import info_nce
from ..options import Options, option, options
from ..types import IGNORE, Output, View

Halves = tuple[Tensor, Tensor]


@options
class U2PLOptions(Options):
    """U2PL; decay, teacher, divisor and the share of mixed batches are in `Consistency`.

    Numbers of pixels are for 32 maps of 129 x 129 features, a step of the released code on PASCAL VOC.  Classes are
    ranked by the teacher's probability from 0, the likeliest; with two or three of them low_rank must be lowered, which
    building the host checks.
    """

    part = "u2pl"
    embedding: int = option("width of the projection head", default=256, gt=0)
    unlabeled_weight: float = option("of the unlabeled loss", default=1.0, symbol="λ_u", ge=0)
    weight: float = option("of the contrast; 0: none", default=0.1, symbol="λ_c", ge=0)
    drop: float = option(
        "share of uncertain pixels at first; it falls to 0 epoch by epoch", default=0.2, symbol="α_0", ge=0, lt=1
    )
    mixer: Literal["cutmix", "classmix"] = option("what is pasted", default="cutmix")
    color: bool = option("True: on the color-jittered image; False: pasting alone is the strong view", default=False)
    queue: int = option("vectors kept for a class", default=30_000, gt=0)
    first_queue: int = option("vectors kept for class 0, which is background or road", default=50_000, gt=0)
    quota: int | None = option(
        "most new vectors a class takes in one step, drawn at random; none: all (released code), of which one step of "
        "PASCAL VOC brings about twice what a queue holds, so that labeled pixels never stay in it",
        default=3_000,
        gt=0,
    )
    anchors: int = option("drawn for each class, with replacement", default=256, symbol="M", gt=0)
    negatives: int = option("drawn for each anchor, with replacement", default=50, symbol="N", gt=0)
    temperature: float = option("of the contrast", default=0.5, symbol="τ", gt=0)
    sure: float = option(
        "the teacher's probability of its class from which a reliable pixel is an anchor",
        default=0.3,
        symbol="δ_p",
        ge=0,
        lt=1,
    )
    low_rank: int = option(
        "an unlabeled pixel is a negative of the classes ranked from here, a labeled one of those above that are "
        "not its own",
        default=3,
        symbol="r_l",
        ge=1,
    )
    high_rank: int = option("and below here", default=20, symbol="r_h")
    reliable: Literal["kept", "surest"] = option(
        "unlabeled pixels that are not unreliable; surest: the share alpha_t of lowest entropy, which shrinks to none "
        "in the end (released code)",
        default="kept",
    )
    keys: Literal["others", "own"] = option(
        "of which classes a pixel is a negative; own: only unlabeled pixels that have the class as pseudo-label "
        "although the teacher now ranks it low, which two looks of the teacher alone can bring about (released code)",
        default="others",
    )
    pairs: Literal["class", "position"] = option(
        "the anchors of a class meet its own queue; position: of n classes present only those numbered below n have "
        "anchors, and class i meets the queue of the i-th class present (released code)",
        default="class",
    )
    copy_epochs: int = option(
        "after the warm-up the teacher stays a copy for so long (released code: 1)", default=0, unit="epochs", ge=0
    )

    def __post_init__(self) -> None:
        if not self.low_rank < self.high_rank:
            raise ValueError(f"U2PL needs low_rank < high_rank, got {self.low_rank} and {self.high_rank}")


class UnreliableContrast(nn.Module):
    """Auxiliary loss: anchors against unreliable pixels that are certainly of another class.

    A share alpha_t of the unlabeled pixels, those of highest entropy, is unreliable.  Labeled pixels are reliable, and
    candidates for negatives too.  Classes are ranked by the teacher's probability, 0 for the likeliest.

    Args:
        classes: K.
        options: the numbers; `embedding` is the width of the network's projection head.
        drop: gives alpha_t, as for the pseudo-labels.

    Raises:
        ValueError: ranks that leave the queues empty.
    """

    on: Literal["weak", "mixed"] = "mixed"

    def __init__(self, classes: int, options: U2PLOptions, drop: EntropyFilter) -> None:
        super().__init__()
        check_ranks(options.low_rank, classes)
        sizes = (options.queue if k else options.first_queue for k in range(classes))
        self.queues = nn.ModuleList(ClassBank(1, size, options.embedding) for size in sizes)
        self.options, self.drop = options, drop
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
            return self.options.weight * self.contrast(student, teacher, label, probability, reliable)

    @torch.no_grad()
    def divide(self, view: View, t: float, size: torch.Size) -> tuple[Tensor, Tensor]:
        """Which pixels of a view are reliable, and which are unreliable: (B, h, w) bool each."""
        assert view.entropy is not None
        uncertainty, known, share = view.entropy, view.target.weight > 0, self.drop.share(t)
        if not known.any():
            nothing = known.new_zeros(len(known), *size)
            return nothing, nothing
        unreliable = uncertainty >= quantile(uncertainty[known], 1 - share)
        reliable = (
            uncertainty <= quantile(uncertainty[known], share) if self.options.reliable == "surest" else ~unreliable
        )
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
        o = self.options
        pixel = candidate.flatten().nonzero()[:, 0]
        of_labeled = pixel < label[: len(teacher[0])].numel()
        negative_of = self.negative_of(label.flatten()[pixel], pixels_at(probability, pixel), of_labeled)
        places = pixel[negative_of.T.nonzero()[:, 1]].split(negative_of.sum(0).tolist())
        most = [_held(queue) if o.quota is None else max(1, o.quota // processes()) for queue in self.queues]
        chosen = [some(i, n) if o.quota else i[-n:] for i, n in zip(places, most, strict=True)]
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
        o = self.options
        rank = probability.argsort(dim=1, descending=True, stable=True).argsort(dim=1)
        unlikely = (rank >= o.low_rank) & (rank < o.high_rank)
        own = label[:, None] == torch.arange(rank.shape[1], device=label.device)
        if o.keys == "own":
            return unlikely & own & ~labeled[:, None]
        return torch.where(labeled[:, None], (rank < o.low_rank) & ~own, unlikely)

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
        o = self.options
        center, count = _class_means(teacher, torch.where(reliable, label, IGNORE), len(self.queues))
        present = count.nonzero()[:, 0].tolist()
        pools, filled = self._pools(label, probability, reliable), self._filled().tolist()
        owners = range(len(present)) if o.pairs == "position" else present
        pairs = [(c, q) for c, q in zip(owners, present, strict=True) if len(pools[c]) and filled[q]]
        self.statistics["anchors"] = _pair(o.anchors * len(pairs) * (len(present) > 1), 1, center)
        if len(present) < 2 or not pairs:
            return student[0][:0].sum()
        terms = []
        for c, q in pairs:
            device, number = label.device, o.anchors * o.negatives
            anchor = _pick(student, pools[c][torch.randint(len(pools[c]), (o.anchors,), device=device)])
            drawn = torch.randint(filled[q], (number,), device=device)
            negative = self.queues[q].rows[0, drawn].view(o.anchors, o.negatives, -1)
            unit = F.normalize(anchor, dim=1)
            terms.append(info_nce(unit, center[c : c + 1], negative, o.temperature, cosine=False))
        return torch.stack(terms).sum() / len(present)

    @torch.no_grad()
    def _pools(self, label: Tensor, probability: Tensor, reliable: Tensor) -> list[Tensor]:
        """For each class the pixels that may become its anchors."""
        index = torch.where(reliable, label, 0)[:, None]
        chosen = (reliable & (probability.gather(1, index)[:, 0] > self.options.sure)).flatten().nonzero()[:, 0]
        owner, order = label.flatten()[chosen].sort(stable=True)
        return list(chosen[order].split(torch.bincount(owner, minlength=len(self.queues)).tolist()))

    def _filled(self) -> Tensor:
        return torch.cat([queue.filled for queue in self.queues])  # type: ignore[misc]


def check_ranks(low_rank: int, classes: int) -> None:
    """Raise ValueError for ranks at which no unlabeled pixel could become a negative."""
    if low_rank >= classes:
        raise ValueError(
            f"u2pl.low_rank={low_rank} with {classes} classes: ranks count from 0, so no class is ever ranked "
            f"{low_rank} or lower and unreliable pixels would never be negatives; choose one in 1..{classes - 1}, "
            "as in --set u2pl.low_rank=1"
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
