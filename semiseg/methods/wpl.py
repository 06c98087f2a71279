"""WPL: pseudo-labels weighted by rank statistics and a detector (Howlader et al., ECCV 2024).

Pixels of one class share their most activated feature channels, whatever the values.  The weight of a pseudo-labeled
pixel i of class c is the share of the k strongest channels of the class prototype that are also among its own (Eq. 6):

    W_i = s / k,   s = | top_k(z_i) and top_k(prototype_c) |

and 1 + s / k in the released code and by default here, so that no pixel is lost.

A prototype is the mean of labeled features and of unlabeled ones that a detector confirms (Sec. 3.3, 3.4).

    component: weigh   hosts: every one that weighs   state: two banks   chapter: notebooks/wpl
"""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch
import torch.nn as nn
import torch.nn.functional as F
from torch import Tensor

from ..banks import ClassBank, as_pixels, from_everywhere, largest, pixels_at, processes, some
from ..options import Options, option, options, unknown
from ..registry import PlugIn, method, methods
from ..runs import DETECTIONS
from ..scales import EMBEDDED
from ..statistics import share
from ..types import IGNORE, View
from .detector import DetectorOptions, find_objects

if TYPE_CHECKING:
    from ..recipe import Recipe
    from ..training.loop import Fit


@options
class WPLOptions(Options):
    """The weights of pseudo-labels by rank statistics; Table 3 varies `reliable`, Fig. 6 and 7 `similarity` and `k`."""

    part = "wpl"
    k: int = option("strongest channels compared (Fig. 7)", default=5, symbol="k", equation="Eq. 6", gt=0)
    offset: float = option(
        "W = offset + s / k: 1 (released code, from which the paper's results come) or 0 (paper)",
        default=1.0,
        equation="Eq. 6",
        ge=0,
    )
    similarity: Literal["rank", "cosine", "euclidean"] = option(
        "or what it is compared with: cosine of pixel and prototype (Fig. 6); euclidean, 1 - d / 2 of their unit "
        "vectors at distance d (supplement, which gives no formula)",
        default="rank",
    )
    reliable: Literal["detector", "confidence", "none"] = option(
        "which unlabeled pixels feed the prototypes: sure ones inside a box of their class (RPPI); confidence: sure "
        "ones; none: labeled pixels alone (PPW, Table 3)",
        default="detector",
    )
    sure: float = option("probability from which a pixel is stored", default=0.95, ge=0, le=1)
    memory: int = option("vectors of a class in each bank", default=256, gt=0)
    quota: int = option("most vectors a class stores per image of a batch", default=1, gt=0)
    resolution: Literal["features", "full"] = option(
        "rank on the feature grid; full: on features brought to image size (released code)", default="features"
    )
    unknown: float | None = option("W of a class without prototype; none: s = 0", default=None, ge=0)
    in_divisor: bool = option(
        "the weights also enter the divisor of the loss (released code); False: it counts pixels",
        default=True,
        equation="Eq. 5",
    )
    box_score: float = option("of detections that confirm pixels; 0.95 on Cityscapes", default=0.85, ge=0, le=1)


def signatures(prototypes: Tensor, k: int) -> Tensor:
    """The k strongest channels of each prototype, by signed value; of equal ones the first.

    Args:
        prototypes: (K, D).
        k: 1..D.

    Returns:
        (K, k) long.
    """
    return prototypes.sort(dim=1, descending=True, stable=True).indices[:, :k]


def shared_channels(features: Tensor, signature: Tensor) -> Tensor:
    """s for every class: how many channels of its signature are among the strongest of a pixel.

    A channel is among them when no more than k - 1 others exceed it and it is active, that is above 0: a dead channel
    says nothing, and channels that tie at the k-th place all count.

    Args:
        features: (B, D, h, w).
        signature: (K, k) long, see `signatures`.

    Returns:
        (B, K, h, w) long in 0..k.
    """
    b, _, h, w = features.shape
    pixels = as_pixels(features).contiguous()
    weakest = largest(pixels, signature.shape[1])[0].amin(1, keepdim=True)
    asked = pixels.index_select(1, signature.flatten())
    hits = ((asked >= weakest) & (asked > 0)).unflatten(1, signature.shape).sum(2)
    return hits.view(b, h, w, -1).movedim(-1, 1)


class RankWeight(nn.Module):
    """Pixel weighter by rank statistics; `observe` feeds the banks, a call weighs (Eq. 5, 6).

    Args:
        classes, width: K, D.
        options: the numbers.

    Raises:
        ValueError: more strongest channels than there are.
    """

    def __init__(self, classes: int, width: int, options: WPLOptions) -> None:
        super().__init__()
        if options.k > width:
            raise ValueError(f"wpl.k must be in 1..{width}, the number of feature channels, got {options.k}")
        self.labeled, self.unlabeled = (ClassBank(classes, options.memory, width) for _ in range(2))
        self.options, self.in_divisor = options, options.in_divisor
        self.unknown = options.offset if options.unknown is None else options.unknown
        self.statistics: dict[str, Tensor] = {}

    def exported_state(self) -> dict[str, Any]:
        """Both banks."""
        return self.state_dict()

    @torch.no_grad()
    def observe(self, labeled: View, mixed: View) -> None:
        """Store sure and correct labeled pixels, and reliable unlabeled ones as the student sees them.

        Args:
            labeled: with target and student.
            mixed: with target, teacher, student, and boxes where a detector is asked.  Without boxes nothing
                unlabeled is confirmed.
        """
        assert labeled.student is not None and mixed.student is not None
        features = self._map(labeled.student.features, labeled.student.logits)
        size = features.shape[-2:]
        truth, known = nearest(labeled.target.hard, size), nearest(labeled.target.weight, size) > 0
        p = nearest(labeled.student.logits.detach().float(), size).softmax(1)
        right = p.argmax(1) == truth
        self._store(self.labeled, features, truth, right & known & (p.amax(1) > self.options.sure))
        if self.options.reliable == "none" or (self.options.reliable == "detector" and mixed.boxes is None):
            return
        assert mixed.teacher is not None
        label = nearest(mixed.target.hard, size)
        p = nearest(mixed.teacher.logits.float(), size).softmax(1).gather(1, label[:, None])[:, 0]
        reliable = (p >= self.options.sure) & (nearest(mixed.target.denominator, size) > 0)
        if self.options.reliable == "detector":
            assert mixed.boxes is not None
            reliable &= nearest(mixed.boxes, size).gather(1, label[:, None])[:, 0]
        self._store(self.unlabeled, self._map(mixed.student.features, mixed.student.logits), label, reliable)

    @torch.no_grad()
    def forward(self, view: View) -> Tensor:
        """W (B, H, W) of a view with teacher features and pseudo-labels; `unknown` without a prototype."""
        assert view.teacher is not None
        prototypes, ready = self.prototypes()
        similar = self.similarities(self._map(view.teacher.features, view.teacher.logits), prototypes)
        of_class = torch.where(ready[:, None, None], self.options.offset + similar, self.unknown)
        label = view.target.hard
        rows, columns = _places(label.shape[-2:], similar.shape[-2:], label.device)
        factor = of_class[torch.arange(len(label), device=label.device)[:, None, None], label, rows, columns]
        self.statistics = _statistics(factor, view) | {"prototypes": share(ready, torch.ones_like(ready))}
        return factor

    def prototypes(self) -> tuple[Tensor, Tensor]:
        """Mean of all stored vectors of each class (K, D), and which classes have one: those with a labeled vector."""
        rows = torch.cat((self.labeled.rows, self.unlabeled.rows), 1)  # empty slots hold zeros
        counts = self.labeled.filled + self.unlabeled.filled
        return rows.sum(1) / counts.clamp(min=1)[:, None], self.labeled.filled > 0

    def similarities(self, features: Tensor, prototypes: Tensor) -> Tensor:
        """Of each pixel of (B, D, h, w) to each prototype (K, D), in [0, 1] (cosine of ReLU features): (B, K, h, w)."""
        if self.options.similarity == "rank":
            return shared_channels(features, signatures(prototypes, self.options.k)) / self.options.k
        cosine = torch.einsum("bdhw,kd->bkhw", F.normalize(features.float(), dim=1), F.normalize(prototypes, dim=1))
        return (
            cosine.clamp(min=0) if self.options.similarity == "cosine" else 1 - (2 - 2 * cosine).clamp(min=0).sqrt() / 2
        )

    def _map(self, features: Tensor, logits: Tensor) -> Tensor:
        """Features (B, D, h, w) on the grid they are compared on."""
        if self.options.resolution == "features":
            return features.detach().float()
        return F.interpolate(features.detach().float(), size=logits.shape[-2:], mode="bilinear", align_corners=True)

    def _store(self, bank: ClassBank, features: Tensor, labels: Tensor, chosen: Tensor) -> None:
        """At most `quota` of the chosen pixels per image and class, over all processes."""
        most = max(1, self.options.quota * len(labels) // processes())
        places, owners = chosen.flatten().nonzero()[:, 0], labels[chosen]
        kept = torch.cat([places[:0], *(some(places[owners == c], most) for c in owners.unique())])
        vectors, owners = from_everywhere(pixels_at(features, kept), labels.flatten()[kept], most * len(bank.rows))
        bank.push(vectors, owners, quota=bank.rows.shape[1])


def _places(fine: torch.Size, coarse: torch.Size, device: torch.device) -> tuple[Tensor, Tensor]:
    """Rows (H, 1) and columns (W,) of the coarse grid that the pixels of the fine one fall into."""
    rows, columns = (torch.arange(n, device=device) * m // n for n, m in zip(fine, coarse, strict=True))
    return rows[:, None], columns


def nearest(plane: Tensor, size: torch.Size) -> Tensor:
    """(..., H, W) of any type -> (..., h, w), as `F.interpolate(mode="nearest")`."""
    rows, columns = _places(size, plane.shape[-2:], plane.device)
    return plane[..., rows, columns]


def _statistics(factor: Tensor, view: View) -> dict[str, Tensor]:
    """Mean weight of the kept pixels, and of those whose pseudo-label is right and wrong where the truth is known."""
    kept = view.target.weight > 0
    found = {"weight": _mean(factor, kept)}
    if view.hidden is not None:
        known, right = kept & (view.hidden != IGNORE), view.target.hard == view.hidden
        found |= {"weight_right": _mean(factor, known & right), "weight_wrong": _mean(factor, known & ~right)}
    return found


def _mean(values: Tensor, among: Tensor) -> Tensor:
    return torch.stack(((values * among).sum(), among.sum().float()))


def build(recipe: Recipe, width: int, classes: int) -> RankWeight:
    return RankWeight(classes, width, recipe[WPLOptions])


def at_scale(recipe: Recipe) -> tuple[WPLOptions, DetectorOptions]:
    """The same numbers everywhere, and a detector as large as the images ask for."""
    if recipe.scale == "paper":
        return WPLOptions(), DetectorOptions()
    if recipe.scale == "smoke" or recipe.data in EMBEDDED:
        small = DetectorOptions("tiny", None, 64, batch=16, epochs=60, patience=20, lr=3e-3, min_pixels=8, most=5)
        return WPLOptions(), replace(small, epochs=1) if recipe.scale == "smoke" else small
    return WPLOptions(), DetectorOptions(
        "mobilenet_v2", size=224, epochs=40, patience=8, lr=3e-4, min_pixels=16, most=20
    )  # fmt: skip


def with_objects(task: Fit, shared: Path | None) -> Fit:
    """The training with detected boxes where the recipe asks for them; a copy stays in its folder."""
    o = task.recipe[WPLOptions]
    if o.reliable != "detector":
        return task
    detector, own = task.recipe[DetectorOptions], task.folder / DETECTIONS
    if shared is not None and not own.is_file():
        find_objects(task.data, task.split, detector, shared, task.recipe.seed)
        for suffix in (".json", ".safetensors"):
            shutil.copyfile(shared.with_suffix(suffix), own.with_suffix(suffix))
    found = find_objects(task.data, task.split, detector, own, task.recipe.seed)
    made = json.loads(own.with_suffix(".json").read_text())
    about = {name: made[name] for name in ("epochs", "best", "duration_s", "sha256")}
    return replace(task, objects=found.above(o.box_score), record={**task.record, "detector": about})


def with_alpha(base: Recipe, alpha: float) -> Recipe:
    """The recipe with the weights of its pseudo-label terms times alpha (WPL Eq. 7).

    Raises ValueError for a method that names none.
    """
    names = method(base.method).unlabeled_weights
    if not names:
        able = [name for name, each in methods().items() if each.unlabeled_weights]
        raise ValueError(unknown("host with a factor alpha", base.method, able))

    def times(value: Any) -> Any:
        return tuple(alpha * v for v in value) if isinstance(value, tuple) else alpha * value

    return base.changed({name: times(base.value(name)) for name in names})


def paper(base: Recipe) -> Recipe:
    """Eq. 5 and 6 to the letter: weights from 0 on, every pixel in the divisor."""
    return base.having(replace(base[WPLOptions], offset=0.0, in_divisor=False))


def official(base: Recipe) -> Recipe:
    """cvlab-stonybrook/Weighting-Pseudo-Labels @ b0492232."""
    return base.having(replace(base[WPLOptions], offset=1.0, in_divisor=True, resolution="full", box_score=0.95))


PLUG_IN = PlugIn(
    "wpl", title="WPL", component="weigh", build=build, options=WPLOptions, at_scale=at_scale,
    companion=DetectorOptions,
    asks=lambda options: options.reliable == "detector", prepare=with_objects,
    readings={"paper": paper, "official": official}, shade=-0.45,
    marker="square", paper="Howlader et al., ECCV 2024", cite="howlader2024wpl", year=2024, chapter="notebooks/wpl",
)  # fmt: skip
