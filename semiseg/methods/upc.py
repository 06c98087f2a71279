"""UPC: uncertainty-aware patch CutMix (Fang et al., ICCV 2023).

Wrong pixels of a pseudo-label stand together, and the teacher doubts that region as a whole.  So the image is divided
into n x n patches, the k with the largest sum of entropy are *replaced*, image and label, by the same patches of a
labeled image (Eq. 3 to 6), and this is done for several k with several labeled images (RAS, Eq. 7).

    component: mix      hosts: every one with unlabeled images      state: none      chapter: notebooks/upc

No code was released.  What the paper leaves open is settled here and defended in the chapter.  The rivals of Tables 5
and 6 are in `upc_controls`.

In shape comments D is the number of labeled images in the batch, R that of output rows per unlabeled image.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from ..options import Options, option, options
from ..registry import PlugIn
from ..statistics import mixing_statistics
from ..types import IGNORE, Mixer, Paste, View
from .pasting import draw_donors, paste_labeled, patch_numbers
from .upc_controls import LabeledCopyPaste, LabeledCutMix, PixelErasing, RandomErasing

if TYPE_CHECKING:
    from ..recipe import Recipe

Divide = Literal["sum", "mean"]
Select = Literal["uncertainty", "random", "oracle", "oracle_area"]


@options
class UPCOptions(Options):
    """What replaces uncertain regions of unlabeled images; Tables 5 to 8 vary `replace`, `rows`, `select`, `k` and `n`.

    The controls, `replace` other than "patches", read `rows` and the number of k; "erase_pixels" also n and k, for the
    area k / n^2 that it erases.
    """

    part = "upc"
    n: int = option("patches per side", default=4, symbol="N", equation="Eq. 3", ge=1)
    k: tuple[int, ...] = option(
        "patches replaced; several numbers: the redundant augmentation strategy (RAS)",
        default=(2, 3, 5),
        symbol="k",
        equation="Eq. 4, 7",
        min_length=1,
    )
    rows: Literal["all", "sample"] = option(
        "all: a row per k, each with another labeled image; sample: one row, k drawn anew each time",
        default="sample",
        equation="Eq. 7",
    )
    select: Select = option("which patches are replaced, see `scores` (Table 7)", default="uncertainty")
    divide: Divide = option(
        "of the entropy in a patch; mean: no advantage for the larger last one", default="sum", equation="Eq. 3"
    )
    known: float = option(
        "least share of a donor's pixels that have a label; 0: any labeled crop", default=0.0, ge=0, le=1
    )
    replace: Literal["patches", "box", "copy_paste", "erase", "erase_pixels"] = option(
        "patches, or a rival of them (Tables 5 and 6, Fig. 1a)", default="patches"
    )

    def __post_init__(self) -> None:
        if min(self.k) < 0 or max(self.k) > self.n**2:
            raise ValueError(f"UPC needs n >= 1 and each k in 0..n*n, got n={self.n}, k={self.k}")


# --- the operator: functions of tensors ---------------------------------------------------


def prediction_entropy(p: Tensor) -> Tensor:
    """Eq. 1, with 0 ln 0 = 0: class scores (B, K, H, W) >= 0 -> entropy (B, H, W) in nats, in [0, ln K].

    The scores of a pixel are divided by their sum first, as sums over test-time views or the class scores of
    Mask2Former need it; where all are 0 the prediction is uniform.
    """
    p = p.float()
    total = p.sum(1, keepdim=True)
    normalized = torch.where(total > 0, p / torch.where(total > 0, total, 1.0), 1 / p.shape[1])
    return torch.special.entr(normalized).sum(1)


def patch_edges(side: int, n: int) -> Tensor:
    """Where n patches begin and end along a side of so many pixels: (n + 1,) long, floor(i side / n).

    Every pixel is in exactly one patch, and lengths differ by at most 1.  Raises ValueError unless 1 <= n <= side.
    """
    if not 1 <= n <= side:
        raise ValueError(f"cannot divide {side} pixels into n={n} patches; n must be in 1..{side}")
    return torch.arange(n + 1) * side // n


def patch_sums(plane: Tensor, n: int, divide: Divide = "sum") -> Tensor:
    """Eq. 3: sum of a plane (B, H, W) in each of n x n patches, (B, n, n) float64.

    From cumulative sums, rows first; a patch of zeros has exactly 0, so that ties are ties.

    divide: "mean" divides by the pixels of a patch, which differ by a pixel per side where n does not divide it.
    Raises ValueError where n is larger than a side.
    """
    rows, columns = (patch_edges(side, n).to(plane.device) for side in plane.shape[-2:])
    by_column = F.pad(plane.cumsum(2, dtype=torch.double), (1, 0))[:, :, columns].diff(dim=2)
    sums = F.pad(by_column.cumsum(1), (0, 0, 1, 0))[:, rows].diff(dim=1)
    return sums if divide == "sum" else sums / (rows.diff()[:, None] * columns.diff())


def top_patches(score: Tensor, k: int | Tensor) -> Tensor:
    """The k patches of each image with the highest score; of equal ones the first, by rows.

    Args:
        score: (B, n, n).
        k: number in 0..n*n, or one for each image, (B,) long.

    Returns:
        (B, n, n) bool.  Those of a smaller k are among those of a larger one.

    Raises:
        ValueError: k out of range.
    """
    b, n, _ = score.shape
    number = torch.as_tensor(k).expand(b)
    if not bool(((number >= 0) & (number <= n * n)).all()):
        raise ValueError(f"k must be in 0..{n * n}, the number of patches for n={n}, got {k}")
    order = score.flatten(1).sort(dim=1, descending=True, stable=True).indices
    return (order.argsort(1) < number.to(score.device)[:, None]).view(b, n, n)


def patch_mask(chosen: Tensor, size: tuple[int, int] | torch.Size) -> Tensor:
    """Eq. 4: chosen patches (B, n, n) bool -> their pixels, (B, H, W) bool."""
    rows, columns = (_patch_of(side, chosen.shape[1], chosen.device) for side in size)
    return chosen[:, rows][:, :, columns]


def _patch_of(side: int, n: int, device: torch.device) -> Tensor:
    """The patch of each line of pixels, (side,) long."""
    return torch.arange(n).repeat_interleave(patch_edges(side, n).diff()).to(device)


# --- which patches: scores, (B, n, n), the highest are replaced ---------------------------


def uncertainty(own: View, n: int, divide: Divide = "sum") -> Tensor:
    """Entropy of the teacher's prediction in each patch; padding counts as 0.  Raises ValueError without entropy."""
    if own.entropy is None:
        raise ValueError("UPC needs the entropy of the pseudo-labels: give the view `entropy`")
    return patch_sums(torch.where(own.target.denominator > 0, own.entropy.float(), 0.0), n, divide)


def noise(own: View) -> tuple[Tensor, Tensor]:
    """Where the pseudo-label is wrong, and where that is known: (B, H, W) bool each.

    Raises ValueError where no true mask is known.
    """
    if own.hidden is None or not bool((own.hidden != IGNORE).any()):
        raise ValueError("the oracle needs true masks of unlabeled images, and this data has none; choose select= anew")
    known = (own.hidden != IGNORE) & (own.target.denominator > 0)
    return known & (own.target.hard != own.hidden), known


def patch_miou(own: View, n: int) -> Tensor:
    """Mean IoU of pseudo-label and truth in each patch, over the classes of either: (B, n, n) float64.

    1 where no pixel is known.  Raises ValueError where no true mask is known.
    """
    wrong, known = noise(own)
    label, truth = own.target.hard, own.hidden
    assert truth is not None
    b, classes = len(label), int(torch.where(known, torch.maximum(label, truth), 0).max()) + 1
    rows, columns = (_patch_of(side, n, label.device) for side in label.shape[1:])
    image = torch.arange(b, device=label.device).view(b, 1, 1)
    patch = (image * n + rows[:, None]) * n + columns

    def count(where: Tensor, of: Tensor) -> Tensor:
        found = torch.bincount((patch * classes + of)[where], minlength=b * n * n * classes)
        return found.view(b, n, n, classes).double()

    hits = count(known & ~wrong, label)
    union = count(known, label) + count(known, truth) - hits
    return (hits / union).nanmean(-1).nan_to_num(1.0)


def scores(own: View, n: int, select: Select = "uncertainty", divide: Divide = "sum") -> Tensor:
    """How much each patch should be replaced, (B, n, n) float64, >= 0; patches of padding alone have -1.

    Args:
        own: unlabeled images with pseudo-labels.
        n: patches per side.
        select: "uncertainty" (Eq. 3); "random"; "oracle": 1 - mean IoU with the truth, of equals the one with more
            wrong pixels (Table 7); "oracle_area": number of wrong pixels.
        divide: the entropy's sum (Eq. 3) or its mean.

    Raises:
        ValueError: what the selection reads is not known.
    """
    content = patch_sums(own.target.denominator > 0, n) > 0
    match select:
        case "uncertainty":
            score = uncertainty(own, n, divide)
        case "random":
            score = torch.rand(content.shape, dtype=torch.double).to(content.device)
        case "oracle":
            wrong, _ = noise(own)
            score = 1 - patch_miou(own, n) + 1e-12 * patch_sums(wrong, n, "mean")
        case "oracle_area":
            score = patch_sums(noise(own)[0], n)
    return torch.where(content, score, -1.0)


# --- the mixer ----------------------------------------------------------------------------


class PatchCutMix:
    """Mixer: the k least certain of n x n patches come from a labeled image (Eq. 3 to 7).

    `statistics` is of the last call: see `statistics.mixing_statistics`.

    Args:
        options: the numbers.

    Raises:
        ValueError: when called, n larger than a side of the images.
    """

    def __init__(self, options: UPCOptions) -> None:
        self.options = options
        self.statistics: dict[str, Tensor] = {}

    @torch.no_grad()
    def __call__(self, own: View, donors: View) -> Paste:
        o = self.options
        b, *size = own.target.weight.shape
        score = scores(own, o.n, o.select, o.divide)
        masks = [patch_mask(top_patches(score, k), torch.Size(size)) for k in patch_numbers(o.k, o.rows, b)]
        paste = paste_labeled(masks, draw_donors(len(masks), b, donors, o.known))
        self.statistics = mixing_statistics(paste, own, donors)
        return paste


def build(recipe: Recipe, width: int, classes: int) -> Mixer:
    """The mixer that the options ask for: UPC, or a control."""
    o = recipe[UPCOptions]
    rows = len(o.k) if o.rows == "all" else 1
    match o.replace:
        case "box":
            return LabeledCutMix(rows, known=o.known)
        case "copy_paste":
            background = None if recipe.data in ("cityscapes", "camvid") else 0
            return LabeledCopyPaste(rows, background, o.known)
        case "erase":
            return RandomErasing(rows)
        case "erase_pixels":
            return PixelErasing(o.n, o.k, o.rows)
    return PatchCutMix(o)


def check(recipe: Recipe) -> None:
    """Raise ValueError for more patches than pixels."""
    n, crop = recipe[UPCOptions].n, recipe.optimization.crop
    if n > crop:
        raise ValueError(f"UPC: crops of {crop} pixels cannot be divided into n={n} patches per side")


PLUG_IN = PlugIn(
    "upc", title="UPC", component="mix", build=build, options=UPCOptions, at_scale=lambda recipe: (UPCOptions(),),
    check=check, shade=0.35, marker="diamond", paper="Fang et al., ICCV 2023", cite="fang2023upc", year=2023,
    chapter="notebooks/upc",
)  # fmt: skip
