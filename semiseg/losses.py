"""Losses shared by more than one paper."""

from __future__ import annotations

from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from .options import Divisor
from .types import Output, Target


def _ratio(total: Tensor, divisor: Tensor) -> Tensor:
    """total / divisor, and 0 with a defined gradient where the divisor is 0."""
    return total / torch.where(divisor > 0, divisor, torch.ones_like(divisor))


def pixel_cross_entropy(logits: Tensor, target: Target, divisor: Divisor = "kept") -> Tensor:
    """Cross-entropy with hard or soft labels, each pixel times its weight.

    Args:
        logits: (B, K, H, W).
        target: labels, weights and denominators, (B, H, W) each (soft labels (B, K, H, W)).
        divisor: "kept" divides by the sum of weights, the mean over supervised pixels (released code of DDFP);
            "valid" divides by the sum of denominators, so that a rejected pixel still counts in the divisor
            (DDFP Eq. 4 and 15, UniMatch, WPL); "kept_scaled" is "kept" times all pixels over supervised ones (released
            code of DGCL, after U2PL), so that the fewer are kept the more the term weighs; "kept_scaled_known" counts
            among all pixels those with a denominator alone, without padding.

    Returns:
        A scalar; 0 when no pixel is supervised.
    """
    ce = F.cross_entropy(logits.float(), target.label, reduction="none")
    total, kept = (ce * target.weight).sum(), target.weight.sum()
    if divisor.startswith("kept_scaled"):
        every = (target.denominator > 0).sum() if divisor == "kept_scaled_known" else target.weight.numel()
        return _ratio(_ratio(total, kept) * every, (target.weight > 0).sum())
    return _ratio(total, kept if divisor == "kept" else target.denominator.sum())


def labeled_cross_entropy(output: Output, target: Target) -> Tensor:
    """The labeled term of every host (DDFP Eq. 1)."""
    return pixel_cross_entropy(output.logits, target)


def hard_pixel_cross_entropy(output: Output, target: Target, share: float | None = None) -> Tensor:
    """The labeled term over hard pixels only, as on Cityscapes (`ohem_cross_entropy`).

    share: of all pixels of the batch, padding included, at least so many count as hard; None: 100,000 pixels.
    """
    if share is None:
        return ohem_cross_entropy(output.logits, target)
    return ohem_cross_entropy(output.logits, target, min_kept=max(1, round(share * target.weight.numel())))


def squared_error(logits: Tensor, target: Target, over_classes: Literal["mean", "sum"] = "mean") -> Tensor:
    """Squared difference of the prediction and a soft label, each pixel times its weight.

    Args:
        logits: (B, K, H, W), before the softmax.
        target: soft labels (B, K, H, W), or hard ones (B, H, W), which count as one-hot.
        over_classes: "mean" (mean teacher) or "sum" (French et al., 2020), which is K times as much.

    Returns:
        The sum over pixels, divided by the sum of denominators: a scalar; 0 when no pixel counts.
    """
    probability = logits.float().softmax(1)
    label = target.label
    if label.dim() == 3:
        label = F.one_hot(label, logits.shape[1]).movedim(-1, 1)
    difference = (probability - label).square()
    per_pixel = difference.sum(1) if over_classes == "sum" else difference.mean(1)
    return _ratio((per_pixel * target.weight).sum(), target.denominator.sum())


def ohem_cross_entropy(logits: Tensor, target: Target, threshold: float = 0.7, min_kept: int = 100_000) -> Tensor:
    """Online hard example mining (Shrivastava et al., 2016), the Cityscapes criterion of CPS, U2PL and AugSeg.

    Keeps the pixels whose probability of the true class is below `threshold`, and at least the `min_kept` hardest.

    Args:
        logits: (B, K, H, W).
        target: hard labels (B, H, W); pixels of weight 0 are never kept.
        threshold: probability in (0, 1].
        min_kept: number of pixels of the whole batch.

    Returns:
        The mean cross-entropy of the kept pixels, a scalar.
    """
    ce = F.cross_entropy(logits.float(), target.hard, reduction="none")[target.weight > 0]
    if not len(ce):
        return logits.sum() * 0
    with torch.no_grad():
        probability = (-ce).exp()
        hardest = probability.kthvalue(min(min_kept, len(ce))).values
        keep = probability <= hardest.clamp(min=threshold)
    return ce[keep].mean()


def info_nce(
    anchor: Tensor, positive: Tensor, negative: Tensor, tau: float, *, cosine: bool = True,
    positive_in_denominator: bool = True, per_anchor: int | None = None, reduction: Literal["mean", "sum"] = "mean",
) -> Tensor:  # fmt: skip
    """Contrast of each anchor with one positive and negatives, positive inside the denominator (van den Oord, 2018).

    Args:
        anchor: (N, E), normalized here, as are the others.
        positive: (N, E), or (1, E) shared by all anchors.
        negative: (M, E) shared, or (N, M, E) for each anchor its own.
        tau: temperature > 0.
        cosine: normalize; False: plain inner products (DGCL Eq. 13).
        positive_in_denominator: False: the denominator holds negatives only (DGCL Eq. 13), which is not bounded by 0.
        per_anchor: each anchor draws so many of the negatives; None: all.
        reduction: over anchors.

    Returns:
        A scalar; 0 without anchors.
    """
    if not len(anchor):
        return anchor.sum()
    a, p, n = (F.normalize(v, dim=-1) if cosine else v for v in (anchor, positive, negative))
    against = a @ n.T if n.dim() == 2 else torch.einsum("ne,nme->nm", a, n)
    if per_anchor is not None and per_anchor < against.shape[1]:
        against = against.gather(1, torch.rand_like(against).topk(per_anchor, dim=1).indices)
    with_positive = (a * p).sum(-1, keepdim=True)
    every = torch.cat((with_positive, against), 1) if positive_in_denominator else against
    terms = (every / tau).logsumexp(1) - with_positive[:, 0] / tau
    return terms.mean() if reduction == "mean" else terms.sum()


class _PickedProducts(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, a: Tensor, rows: Tensor, picked: Tensor) -> Tensor:
        ctx.save_for_backward(rows, picked)
        return (a @ rows.T).gather(1, picked)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        rows, picked = ctx.saved_tensors
        return grad.new_zeros(len(grad), len(rows)).scatter_add_(1, picked, grad) @ rows, None, None


def picked_products(a: Tensor, rows: Tensor, picked: Tensor) -> Tensor:
    """(a @ rows.T).gather(1, picked), but the full product is not kept for the backward pass.

    Args:
        a: (n, E).
        rows: (M, E), without gradient.
        picked: (n, m) long in 0..M-1; a row may be picked more than once.

    Returns:
        (n, m).
    """
    return _PickedProducts.apply(a, rows, picked)
