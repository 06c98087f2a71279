"""Mask2Former's set loss with weighted and ignored pixels: transformers' loss but for the two terms that read pixels.

In transformers' loss, as in the released one, an ignored pixel belongs to no mask and so teaches every mask to leave it
out.  Here each image brings the weight of its pixels along, sampled at the same random points as its masks.
"""

from __future__ import annotations

from types import SimpleNamespace

import torch
import torch.distributed as dist
import torch.nn.functional as F
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from ..banks import processes
from ..hosts.mask2former import mask_set
from ..types import Target
from .mask2former import MaskQueries, transformers

transformers()  # says how to install it where it is missing
from transformers.models.mask2former.modeling_mask2former import (  # noqa: E402
    Mask2FormerHungarianMatcher,
    Mask2FormerLoss,
)


def planes_of(target: Target) -> tuple[Tensor, list[Tensor]]:
    """Label maps as sets of masks.

    Returns:
        (B, 2 + n, H, W): weight and denominator of each pixel, then the masks times the weight, 0 where an image has
        fewer than n classes; and the classes of each image's masks, (n_i,) long.
    """
    sets = [mask_set(target, row) for row in range(len(target.weight))]
    most = max(map(len, sets), default=0)
    planes = target.weight.new_zeros(len(sets), 2 + most, *target.weight.shape[-2:])
    planes[:, 0], planes[:, 1] = target.weight, target.denominator
    for row, masks in enumerate(sets):
        for i, mask in enumerate(masks.values(), 2):
            planes[row, i] = mask * target.weight[row]
    device = target.weight.device
    return planes, [torch.tensor(list(masks), dtype=torch.long, device=device) for masks in sets]


def sampled(maps: Tensor, points: Tensor, padding: str = "zeros") -> Tensor:
    """(B, C, H, W) at points (B, P, 2), x and y in [0, 1] -> (B, C, P), bilinear."""
    grid = 2 * points[:, :, None] - 1
    return F.grid_sample(maps, grid, align_corners=False, padding_mode=padding)[..., 0]


class Matcher(Mask2FormerHungarianMatcher):
    """Which query answers for which mask: least cost over all pairs, as in the library but for weighted pixels."""

    @torch.no_grad()
    def forward(
        self, masks_queries_logits: Tensor, class_queries_logits: Tensor, mask_labels: Tensor,
        class_labels: list[Tensor],
    ) -> list[tuple[Tensor, Tensor]]:  # fmt: skip
        """(B, Q, h, w), (B, Q, K + 1), `planes_of` a target -> per image the matched queries and their masks."""
        points = torch.rand(len(mask_labels), self.num_points, 2, device=mask_labels.device)
        said = sampled(masks_queries_logits, points)
        weight, counted = sampled(mask_labels[:, :2], points, "border").unbind(1)
        inside = sampled(mask_labels[:, 2:], points).transpose(1, 2)  # (B, P, n)
        p = said.sigmoid()
        # sum of w * bce(x, y) over points, with w * y = inside
        bce = torch.einsum("bqp,bp->bq", F.softplus(said), weight)[..., None] - said @ inside
        bce = bce / _safe(counted.sum(1))[:, None, None]
        union = torch.einsum("bqp,bp->bq", p, weight)[..., None] + inside.sum(1)[:, None]
        dice = 1 - (2 * p @ inside + 1) / (union + 1)
        pixels = (self.cost_mask * bce + self.cost_dice * dice).cpu()
        sure = class_queries_logits.softmax(-1).cpu()
        pairs = []
        for row, labels in enumerate(class_labels):
            cost = pixels[row, :, : len(labels)] - self.cost_class * sure[row][:, labels.cpu()]
            pairs.append(linear_sum_assignment(torch.nan_to_num(cost, nan=torch.finfo(cost.dtype).max)))
        return [(torch.as_tensor(q), torch.as_tensor(i)) for q, i in pairs]


class MaskLoss(Mask2FormerLoss):
    """Cross-entropy of the class of every query, binary cross-entropy and dice of every matched mask, after each layer.

    A pixel of weight 0 enters neither the mask terms nor the matching; a factor (WPL) scales it there.  The class term
    knows no pixels: a query that only an ignored region could explain learns "no object", and an image without a
    known pixel teaches nothing else.

    Args:
        classes: K.
        points: random points at which masks are compared, three quarters of them where the mask is least sure.
        no_object: weight of the class "no object" (0.1).
        weights: of the three terms, in loss and matching (2, 5, 5).
    """

    def __init__(
        self, classes: int, *, points: int = 12_544, no_object: float = 0.1,
        weights: tuple[float, float, float] = (2.0, 5.0, 5.0),
    ) -> None:  # fmt: skip
        config = SimpleNamespace(
            num_labels=classes, no_object_weight=no_object, train_num_points=points, oversample_ratio=3.0,
            importance_sample_ratio=0.75, class_weight=weights[0], mask_weight=weights[1], dice_weight=weights[2],
        )  # fmt: skip
        terms = ("loss_cross_entropy", "loss_mask", "loss_dice")
        super().__init__(config, dict(zip(terms, weights, strict=True)))
        c, m, d = weights
        self.matcher = Matcher(cost_class=c, cost_mask=m, cost_dice=d, num_points=points)

    def losses(self, queries: MaskQueries, target: Target) -> dict[str, Tensor]:
        """The three terms, weighted and summed over layers: scalars "class", "mask", "dice".

        Mask terms are divided by the number of masks in the batch, the mean of it over processes.
        The target has hard labels.
        """
        planes, labels = planes_of(target)
        each = [(m.float(), c.float()) for m, c in zip(queries.masks, queries.classes, strict=True)]
        earlier = [{"masks_queries_logits": m, "class_queries_logits": c} for m, c in each[:-1]]
        with torch.autocast(planes.device.type, enabled=False):
            found = self(*each[-1], planes, labels, earlier)

        def total(term: str) -> Tensor:
            return self.weight_dict[term] * torch.stack([v for k, v in found.items() if k.startswith(term)]).sum()

        return {"class": total("loss_cross_entropy"), "mask": total("loss_mask"), "dice": total("loss_dice")}

    def get_num_masks(self, class_labels: list[Tensor], device: torch.device) -> Tensor:
        """Replaces the library's, which asks accelerate: the mean number of masks of a process, at least 1."""
        number = torch.tensor(float(sum(map(len, class_labels))), device=device)
        if processes() > 1:
            dist.all_reduce(number)
            number /= processes()
        return number.clamp(min=1)

    def loss_masks(
        self, masks_queries_logits: Tensor, mask_labels: Tensor, indices: list[tuple[Tensor, Tensor]], num_masks: Tensor
    ) -> dict[str, Tensor]:
        """Replaces the library's: `mask_labels` is what `planes_of` gives."""
        rows, queries = self._get_predictions_permutation_indices(indices)
        _, masks = self._get_targets_permutation_indices(indices)
        said = masks_queries_logits[rows, queries][:, None]
        with torch.no_grad():
            points = self.sample_points_using_uncertainty(
                said, self.calculate_uncertainty, self.num_points, self.oversample_ratio, self.importance_sample_ratio
            )
            weight, counted = sampled(mask_labels[rows, :2], points, "border").unbind(1)
            inside = sampled(mask_labels[rows, 2 + masks][:, None], points)[:, 0]
        x = sampled(said, points)[:, 0]
        p = x.sigmoid()
        bce = (weight * F.softplus(x) - x * inside).sum(1) / _safe(counted.sum(1))
        dice = 1 - (2 * (p * inside).sum(1) + 1) / ((p * weight).sum(1) + inside.sum(1) + 1)
        return {"loss_mask": bce.sum() / num_masks, "loss_dice": dice.sum() / num_masks}


def _safe(divisor: Tensor) -> Tensor:
    """1 where nothing counts: the sum above it is 0, too."""
    return torch.where(divisor > 0, divisor, torch.ones_like(divisor))
