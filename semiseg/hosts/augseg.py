"""AugSeg (Zhao et al., CVPR 2023): mean teacher with random intensities and label injection where it is unsure.

The host is MeanTeacher; what is AugSeg's own is the strong view (data/intensity.py) and the mixer here.
"""

from __future__ import annotations

import math
from dataclasses import replace
from typing import TYPE_CHECKING, Literal

import torch
from torch import Tensor

from ..build import mixer
from ..components import entropy
from ..data.intensity import RandomIntensity
from ..options import Evaluation, Optimization, Options, option, options
from ..registry import Method
from ..types import Output, Paste, View
from .mean_teacher import MeanTeacher, mean_teacher

if TYPE_CHECKING:
    from ..recipe import Recipe


@options
class AugSegOptions(Options):
    """AugSeg; tau and decay are in `Consistency`."""

    part = "augseg"
    changes: int = option("most changes of intensity of the strong view", default=3, symbol="k", gt=0)
    inject: tuple[float, float] = option("parameters of Beta of the labeled boxes", default=(8.0, 2.0))
    cut: tuple[float, float] = option("parameters of Beta of the mixed boxes", default=(4.0, 4.0))
    adaptive: bool = option(
        "inject more where the teacher is unsure; False: into every image (an ablation)", default=True
    )
    unlabeled_weight: float = option("of the unlabeled loss", default=1.0, symbol="λ_u", ge=0)
    copy_epochs: int = option("the teacher is the student for so long", default=1, unit="epochs", ge=0)
    padding: bool = option(
        "padding of unlabeled images is labeled, learned and counted as any pixel (released code)",
        default=False, later=True,
    )  # fmt: skip
    ramp: Literal["after_copy", "from_start"] = option(
        "the first steps of the average, in which it follows faster, count from the last copy, or from the first "
        "step (released code)", default="after_copy", later=True,
    )  # fmt: skip

    def __post_init__(self) -> None:
        if min(*self.inject, *self.cut) <= 0:
            raise ValueError(f"parameters of Beta must be > 0, got {self.inject} and {self.cut}")


def image_confidence(output: Output, valid: Tensor) -> Tensor:
    """rho: mean over the valid pixels of (1 - H / log K) max_k p_k, (B,) in [0, 1]; 0 where no pixel is valid.

    Args:
        output: the teacher's, logits (B, K, H, W).
        valid: (B, H, W), > 0 where the image is.
    """
    certain = 1 - entropy(output.logits) / math.log(output.logits.shape[1])
    each = certain * output.logits.float().softmax(1).amax(1) * (valid > 0)
    return each.sum((1, 2)) / (valid > 0).sum((1, 2)).clamp(min=1)


class AdaptiveInjection:
    """Mixer: adaptive label injection, then CutMix, with one permutation pi of the batch.

    1. On a copy, image j gets a box of the labeled image pi(j), with probability 1 - rho_j.
    2. Image i gets a box of that copy of image pi(i).

    So labeled pixels arrive only where the second box of i meets the first of pi(i).  The sides of a box are
    sqrt(1 - lambda) of the image's, lambda ~ Beta; its center is uniform in [1/8, 1) of each side, and it is cut at the
    borders.

    Args:
        inject, cut: the two parameters of Beta of stages 1 and 2, > 0.
        adaptive: False: every image is injected into (AugSeg's ablation).
    """

    def __init__(self, inject: tuple[float, float], cut: tuple[float, float], adaptive: bool = True) -> None:
        self.inject, self.cut, self.adaptive = inject, cut, adaptive

    def __call__(self, own: View, donors: View) -> Paste:
        b, h, w = own.target.weight.shape
        device = own.image.device
        rows = torch.arange(b, device=device)
        partner = torch.randperm(b, device=device)
        injected = _boxes(self.inject, b, h, w, device)
        if self.adaptive:
            assert own.teacher is not None
            sure = image_confidence(own.teacher, own.target.denominator)
            injected &= (torch.rand(b, device=device) > sure)[:, None, None]
        labeled = b + partner % len(donors.image)
        copy = torch.where(injected, labeled[:, None, None], rows[:, None, None])
        return Paste(torch.where(_boxes(self.cut, b, h, w, device), copy[partner], rows[:, None, None]))


def _boxes(beta: tuple[float, float], b: int, h: int, w: int, device: torch.device) -> Tensor:
    """(b, h, w) bool: boxes of one size, each around a center of its own."""
    side = math.sqrt(1 - torch.distributions.Beta(*torch.tensor(beta)).sample().item())
    box_h, box_w = int(h * side), int(w * side)
    y, x = (torch.randint(n // 8, n, (b, 1, 1), device=device) for n in (h, w))
    rows, columns = torch.arange(h, device=device)[:, None], torch.arange(w, device=device)
    inside_h = (rows >= y - box_h // 2) & (rows < y + box_h // 2)
    return inside_h & (columns >= x - box_w // 2) & (columns < x + box_w // 2)


def build(recipe: Recipe, classes: int) -> MeanTeacher:
    """The unlabeled loss is a mean over all pixels that are not padding (released code: padding too)."""
    o = recipe[AugSegOptions]
    return mean_teacher(
        recipe, classes, mix=mixer(recipe, AdaptiveInjection(o.inject, o.cut, o.adaptive), classes), unlabeled_from=0.0,
        unlabeled_weight=o.unlabeled_weight, copy_until=o.copy_epochs / recipe.optimization.epochs,
        count_copies=o.ramp == "from_start", padding=o.padding,
    )  # fmt: skip


def settings(base: Recipe) -> Recipe:
    """AugSeg's released numbers at paper scale; its divisor counts every pixel, ours those that are not padding."""
    base = base.having(replace(base.consistency, divisor="valid"))
    if base.scale != "paper":
        return base
    if base.data != "cityscapes":
        return base.having(Evaluation("whole", 513))
    return base.having(
        Optimization(800, batch=16, epochs=240, lr=1e-2, head_lr_factor=1.0, weight_decay=5e-4, ohem=True),
        replace(base.consistency, tau=0.0, decay=0.996),
        Evaluation("sliding", 800, 534),
    )


def official(base: Recipe) -> Recipe:
    """ZhenZHAO/AugSeg @ 7ead870: padding is a pixel, and the ramp of the average starts with the training."""
    base = base.having(replace(base[AugSegOptions], padding=True, ramp="from_start"))
    if base.scale != "paper" or base.data not in ("voc", "cityscapes"):
        return base
    network = replace(
        base.network, stem="deep", multi_grid=(2, 2, 4), projection=1, pyramid_dropout=0.0, dropout=0.0
    )  # fmt: skip
    optimization = replace(base.optimization, padding_color="mean")
    if base.data == "voc":
        return base.having(network, replace(optimization, resize_base=500))
    return base.having(network, optimization, replace(base.evaluation, step=533, border="cut"))


METHOD = Method(
    "augseg", title="AugSeg", color="#e6ab02", options=AugSegOptions, build=build,
    reads=("tau", "decay", "divisor", "teacher"), settings=settings,
    readings={"official": official}, loading=lambda recipe: {"strong": RandomIntensity(recipe[AugSegOptions].changes)},
    unlabeled_weights=("augseg.unlabeled_weight",), paper="Zhao et al., CVPR 2023", cite="zhao2023augseg", year=2023,
    chapter="notebooks/hosts",
)  # fmt: skip
