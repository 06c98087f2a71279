"""What UPC is compared with in Fig. 1a and Tables 5 and 6: other ways to deal with the noise of a pseudo-label.

Each is a Mixer.  `rows` is the number of rows that an unlabeled image becomes, every one with a draw of its own and,
where there are enough, another labeled image: what RAS gains by more rows can be told from what patches gain.
The `statistics` of each are of its last call, as `statistics.mixing_statistics` says.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor

from ..components import NoMix, random_box
from ..statistics import mixing_statistics
from ..types import Paste, View
from .pasting import draw_donors, paste_labeled, patch_numbers

AREA, RATIO = (0.02, 0.4), (0.3, 1 / 0.3)  # the box of ST++'s cutout


class LabeledCutMix:
    """Mixer: in every image one random box of a labeled image (Tables 5 and 6, "CutMix").

    Args:
        rows: per image.
        area: bounds of the box's share of the image.
        ratio: bounds of height / width.
        known: see `pasting.draw_donors`.

    Raises:
        ValueError: a bound out of range.
    """

    def __init__(
        self, rows: int = 1, area: tuple[float, float] = AREA, ratio: tuple[float, float] = RATIO, known: float = 0.0
    ) -> None:
        _check_box(rows, area, ratio)
        self.rows, self.area, self.ratio, self.known = rows, area, ratio, known
        self.statistics: dict[str, Tensor] = {}

    @torch.no_grad()
    def __call__(self, own: View, donors: View) -> Paste:
        masks = [_boxes(own, self.area, self.ratio) for _ in range(self.rows)]
        paste = paste_labeled(masks, draw_donors(self.rows, len(own.image), donors, self.known))
        self.statistics = mixing_statistics(paste, own, donors)
        return paste


class LabeledCopyPaste:
    """Mixer: all pixels of one random foreground class of a labeled image (Table 5, "Copy-Paste").

    An image whose donor shows no foreground stays as it is.

    Args:
        rows: per image.
        background: the class that is never copied; None: all may be (Cityscapes).
        known: see `pasting.draw_donors`.
    """

    def __init__(self, rows: int = 1, background: int | None = 0, known: float = 0.0) -> None:
        if rows < 1:
            raise ValueError(f"rows must be >= 1, got {rows}")
        self.rows, self.background, self.known = rows, background, known
        self.statistics: dict[str, Tensor] = {}

    @torch.no_grad()
    def __call__(self, own: View, donors: View) -> Paste:
        partner = draw_donors(self.rows, len(own.image), donors, self.known)
        masks = [torch.stack([self._object(donors, int(j)) for j in row]) for row in partner]
        paste = paste_labeled(masks, partner)
        self.statistics = mixing_statistics(paste, own, donors)
        return paste

    def _object(self, donors: View, j: int) -> Tensor:
        """(H, W) bool: the pixels of a class that donor j shows."""
        label, known = donors.target.hard[j], donors.target.denominator[j] > 0
        shown = label[known].unique()
        shown = shown if self.background is None else shown[shown != self.background]
        if not len(shown):
            return torch.zeros_like(known)
        return known & (label == shown[int(torch.randint(len(shown), ()))])


class RandomErasing:
    """Mixer: in every image one random box of noise, without label (Table 5).

    Args: as of `LabeledCutMix`.
    """

    def __init__(self, rows: int = 1, area: tuple[float, float] = AREA, ratio: tuple[float, float] = RATIO) -> None:
        _check_box(rows, area, ratio)
        self.rows, self.area, self.ratio = rows, area, ratio
        self.statistics: dict[str, Tensor] = {}

    @torch.no_grad()
    def __call__(self, own: View, donors: View) -> Paste:
        erased = torch.cat([_boxes(own, self.area, self.ratio) for _ in range(self.rows)])
        paste = Paste(NoMix()(own, donors).source.repeat(self.rows, 1, 1), erased)
        self.statistics = mixing_statistics(paste, own, donors)
        return paste


class PixelErasing:
    """Mixer: the least certain pixels become noise without label, as many as k of n x n patches have (Fig. 1a).

    Args: as of `UPCOptions`.
    """

    def __init__(self, n: int, k: Sequence[int], rows: Literal["all", "sample"]) -> None:
        self.n, self.k, self.rows = n, k, rows
        self.statistics: dict[str, Tensor] = {}

    @torch.no_grad()
    def __call__(self, own: View, donors: View) -> Paste:
        b, h, w = own.target.weight.shape
        pixels = [torch.as_tensor(k).expand(b) * h * w // self.n**2 for k in patch_numbers(self.k, self.rows, b)]
        erased = torch.cat([least_certain(own, number) for number in pixels])
        paste = Paste(NoMix()(own, donors).source.repeat(len(erased) // b, 1, 1), erased)
        self.statistics = mixing_statistics(paste, own, donors)
        return paste


def least_certain(own: View, number: Tensor) -> Tensor:
    """The pixels of each image with the highest entropy, `number` (B,) of them, padding last: (B, H, W) bool.

    Raises ValueError for a view without entropy.
    """
    if own.entropy is None:
        raise ValueError("pixel erasing needs the entropy of the pseudo-labels: give the view `entropy`")
    uncertainty = torch.where(own.target.denominator > 0, own.entropy, -1.0).flatten(1)
    rank = uncertainty.sort(dim=1, descending=True, stable=True).indices.argsort(1)
    return (rank < number.to(rank.device)[:, None]).view_as(own.entropy)


def _boxes(own: View, area: tuple[float, float], ratio: tuple[float, float]) -> Tensor:
    """A box in each image, (B, H, W) bool."""
    masks = torch.zeros(own.target.weight.shape, dtype=torch.bool, device=own.image.device)
    height, width = masks.shape[1:]
    for mask in masks:
        mask[random_box(height, width, area, ratio)] = True
    return masks


def _check_box(rows: int, area: tuple[float, float], ratio: tuple[float, float]) -> None:
    if rows < 1 or not 0 < area[0] <= area[1] < 1 or not 0 < ratio[0] <= 1 <= ratio[1]:
        raise ValueError(f"needs rows >= 1, area in (0, 1) and a ratio around 1, got {rows=} {area=} {ratio=}")
