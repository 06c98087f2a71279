"""Weak and strong views as in DDFP (and UniMatch, ST++).

All randomness comes from torch's global CPU generator, so seeding it makes a view reproducible.  What is drawn and what
is computed is exactly what a composition of torchvision.transforms.v2 draws and computes (tests hold both against each
other); written out, it is several times as fast.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import Any, Literal, NamedTuple, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torchvision.transforms import InterpolationMode
from torchvision.transforms.v2 import functional as F

from semiseg.data.boxes import Boxes
from semiseg.data.color import Factors, as_bytes, gaussian_blur, gray, groups, jitter, together
from semiseg.types import IGNORE

MEAN = (0.485, 0.456, 0.406)  # of ImageNet, RGB in 0..1
STD = (0.229, 0.224, 0.225)
_BLUR = 13  # width of the kernel in pixels: three sigmas of the widest blur to each side
MEAN_COLOR = (124, 116, 104)  # MEAN as bytes
SMALLEST = _BLUR // 2 + 1  # side of the smallest image that can be reflected at its border for the blur


class WeakCrop(NamedTuple):
    """What a weak view leaves of an image; the three planes show the same pixels."""

    image: Tensor  # (3, crop, crop) uint8
    label: Tensor  # (crop, crop) uint8, IGNORE where unknown and on padding
    valid: Tensor  # (crop, crop) bool, False on padding
    given: Tensor | None = None  # (crop, crop) uint8, a label from disk, IGNORE on padding
    entropy: Tensor | None = None  # (crop, crop) uint8, its coded entropy, 0 on padding


class Place(NamedTuple):
    """Where a weak view looks: resized to `height` x `width`, padded, cropped, mirrored."""

    height: int
    width: int
    top: int  # of the crop in the resized image; below 0: so much padding comes first
    left: int
    crop: int  # side of the square crop
    mirrored: bool
    color: tuple[int, int, int] = (0, 0, 0)  # of padding

    @property
    def seen(self) -> tuple[slice, slice]:
        """Rows and columns of the resized image inside the crop."""
        rows, columns = (slice(max(start, 0), start + self.crop) for start in (self.top, self.left))
        return rows, columns

    def image(self, image: Tensor) -> Tensor:
        """(C, H, W) uint8 -> (C, crop, crop) by bilinear interpolation with antialiasing.

        Padding has its color in an image, 0 in a plane (C = 1).
        """
        resized = F.resize_image(image, [self.height, self.width], InterpolationMode.BILINEAR, antialias=True)
        framed = self._framed(resized[:, *self.seen], 0)
        if any(self.color) and len(framed) == 3:
            framed = torch.where(self.valid(), framed, framed.new_tensor(self.color)[:, None, None])
        return framed

    def nearest(self, plane: Tensor, fill: float) -> Tensor:
        """(..., H, W) of any type -> (..., crop, crop) by the nearest pixel, `fill` on padding.

        Nearest by the pixel's center, as PIL does: v2's own choice for masks rounds down and so shifts a shrunk mask
        against its image by up to half a pixel.
        """
        seen = self.seen
        rows, columns = (_sources(*pair) for pair in zip(plane.shape[-2:], (self.height, self.width), strict=True))
        # a twentieth of the time of torch's index_select
        picked = plane.numpy().take(rows[seen[0]], -2).take(columns[seen[1]], -1)
        return self._framed(torch.from_numpy(picked), fill)

    def boxes(self, boxes: Boxes, height: int, width: int) -> Boxes:
        """Boxes of an image of that size -> the same in pixels of the crop, cut at its borders and at the padding."""
        scale = boxes.edges.new_tensor([self.width / width, self.height / height]).repeat(2)
        first = max(-self.left, 0), max(-self.top, 0)
        last = min(self.width - self.left, self.crop), min(self.height - self.top, self.crop)
        edges = boxes.edges * scale - boxes.edges.new_tensor([self.left, self.top]).repeat(2)
        edges = edges.maximum(edges.new_tensor(first).repeat(2)).minimum(edges.new_tensor(last).repeat(2))
        if self.mirrored:
            left, top, right, bottom = edges.unbind(1)
            edges = torch.stack((self.crop - right, top, self.crop - left, bottom), 1)
        return boxes._replace(edges=edges)

    def valid(self) -> Tensor:
        """(crop, crop) bool, False on padding."""
        return self._framed(torch.ones(self.height, self.width, dtype=torch.bool)[self.seen], False)

    def _framed(self, seen: Tensor, fill: float) -> Tensor:
        """Padded to the crop's size, mirrored, contiguous."""
        height, width = seen.shape[-2:]
        if min(height, width) < self.crop:
            left, top = max(-self.left, 0), max(-self.top, 0)
            sides = [left, self.crop - width - left, top, self.crop - height - top]
            seen = torch.nn.functional.pad(seen, sides, value=fill)
        seen = seen.contiguous()
        return seen.flip(-1) if self.mirrored else seen


class WeakView:
    """Geometry only: random long side, padding, random crop, mirror with p = 0.5.

    The long side becomes a uniform integer in [scale[0], scale[1]] times its length.  `mirror=False` for sets in which
    a mirrored image is no valid image.  Raises ValueError for factors that are not positive and ascending.

    Args:
        base: what the scale is of instead of the long side's own length, pixels.
        law: "halves": factors below 1 are as likely as those above, uniform in each half, and both sides are rounded
            down.
        scales: the only factors, each as likely.
        padding: of images smaller than the crop, to the right and bottom, or by half on either side.
        color: of padding.
    """

    def __init__(
        self, crop: int, scale: tuple[float, float] = (0.5, 2.0), *, mirror: bool, base: int | None = None,
        law: Literal["uniform", "halves"] = "uniform", scales: Sequence[float] | None = None,
        padding: Literal["corner", "center"] = "corner", color: tuple[int, int, int] = (0, 0, 0),
    ) -> None:  # fmt: skip
        if not 0 < scale[0] <= scale[1]:
            raise ValueError(f"scale must be two positive factors in ascending order, not {tuple(scale)}")
        self.crop, self.scale, self.mirror = crop, scale, mirror
        self.base, self.law, self.scales, self.padding, self.color = base, law, scales, padding, color

    def __call__(self, image: Tensor, mask: Tensor | None, given: tuple[Tensor, Tensor] | None = None) -> WeakCrop:
        """(3, H, W) uint8 and (H, W) uint8 or None (nothing known) -> crops of both; `given` as of `crop_at`."""
        return self.crop_at(self.place(*image.shape[-2:]), image, mask, given)

    @staticmethod
    def crop_at(
        place: Place, image: Tensor, mask: Tensor | None, given: tuple[Tensor, Tensor] | None = None
    ) -> WeakCrop:
        """The crop at a place already drawn.

        given: a pseudo-label and its entropy, (H, W) uint8 each; the label is resized as a mask, the entropy as an
        image, bilinearly.
        """
        valid = place.valid()
        label = torch.full_like(valid, IGNORE, dtype=torch.uint8) if mask is None else place.nearest(mask, IGNORE)
        crop = WeakCrop(place.image(image), label, valid)
        if given is None:
            return crop
        return crop._replace(given=place.nearest(given[0], IGNORE), entropy=place.image(given[1][None])[0])

    def place(self, height: int, width: int) -> Place:
        """Draws a place in an image of that size; other planes of the image can be cropped by it too."""
        height, width = self._resized(height, width)
        top, left = (
            int(torch.randint(0, s - self.crop + 1, ())) if s > self.crop else self._padded(s) for s in (height, width)
        )
        return Place(height, width, top, left, self.crop, self.mirror and bool(torch.rand(1) < 0.5), self.color)

    def _resized(self, height: int, width: int) -> tuple[int, int]:
        long = max(height, width)
        base = self.base or long
        if self.scales is None and self.law == "uniform":
            low, high = (max(1, int(base * factor)) for factor in self.scale)
            side = int(torch.randint(low, high + 1, ()))
            return max(1, int(height * side / long + 0.5)), max(1, int(width * side / long + 0.5))
        if self.scales is not None:
            factor = self.scales[int(torch.randint(len(self.scales), ()))]
        else:
            factor = uniform(*((self.scale[0], 1.0) if torch.rand(()) < 0.5 else (1.0, self.scale[1])))
        return max(1, int(height * factor * base / long)), max(1, int(width * factor * base / long))

    def _padded(self, side: int) -> int:
        return -((self.crop - side) // 2) if self.padding == "center" else 0


class Colors(NamedTuple):
    """What a strong view does to one image."""

    order: tuple[int, ...]  # of brightness 0, contrast 1, saturation 2 and hue 3; empty: no jitter
    factors: Factors
    gray: bool
    sigma: float  # of the blur, pixels; 0: none


class Strong(Protocol):
    """A change of colors: what is random is drawn first, and is small; then it is done, on any device."""

    def draw(self) -> Any:
        """For one image, from torch's global CPU generator."""
        ...

    def paint(self, images: Tensor, drawn: Sequence[Any]) -> Tensor:
        """(n, 3, H, W) uint8 and what was drawn for each -> the same in other colors."""
        ...


class StrongView:
    """Color only, on top of a weak view: jitter (p 0.8), grayscale (p 0.2), Gaussian blur of sigma 0.1 to 2 (p 0.5).

    No side may be shorter than SMALLEST pixels.
    """

    def __call__(self, image: Tensor) -> Tensor:
        """(3, H, W) uint8 -> the same, drawn and painted."""
        return self.paint(image[None], [self.draw()])[0]

    def draw(self) -> Colors:
        order: tuple[int, ...] = ()
        factors = (1.0, 1.0, 1.0, 0.0)
        if torch.rand(1).item() < 0.8:
            order = tuple(torch.randperm(4).tolist())
            factors = (uniform(0.5, 1.5), uniform(0.5, 1.5), uniform(0.5, 1.5), uniform(-0.25, 0.25))
        grayed = torch.rand(1).item() < 0.2
        return Colors(order, factors, grayed, uniform(0.1, 2.0) if torch.rand(1).item() < 0.5 else 0.0)

    def paint(self, images: Tensor, drawn: Sequence[Colors]) -> Tensor:
        out = images.clone()
        for part, some in groups(out, range(len(drawn))):
            _paint_(part, [drawn[i] for i in some])
        return out


def _paint_(images: Tensor, drawn: Sequence[Colors]) -> None:
    jittered, grayed, blurred = ([i for i, each in enumerate(drawn) if each[k]] for k in (0, 2, 3))
    for part, some in together(images, jittered):
        part.copy_(jitter(part, [drawn[i].order for i in some], [drawn[i].factors for i in some]))
    for part, _ in together(images, grayed):
        part.copy_(as_bytes(gray(part.float())).expand_as(part))
    for part, some in together(images, blurred):
        part.copy_(gaussian_blur(part, _BLUR, [drawn[i].sigma for i in some]))


def uniform(low: float, high: float) -> float:
    return torch.empty(1).uniform_(low, high).item()


class Cut(NamedTuple):
    """A rectangle that loses its label, and what is put there."""

    rows: slice
    columns: slice
    noise: Tensor  # (V, 3, h, w) uint8


class Cutout:
    """One rectangle of noise whose label is IGNORE (DeVries and Taylor, 2017; in ST++ on unlabeled images alone).

    Its area and the ratio of height to width are uniform; size and place are drawn anew until it lies inside.

    Args:
        p: probability.
        area: bounds, shares of the image.
        ratio: bounds of height / width.
        whole: makes pixels of a side: round, or int (released code).
    """

    def __init__(
        self, p: float = 0.5, area: tuple[float, float] = (0.02, 0.4), ratio: tuple[float, float] = (0.3, 1 / 0.3),
        whole: Callable[[float], int] = round,
    ) -> None:  # fmt: skip
        if not 0 <= p <= 1 or not 0 < area[0] <= area[1] < 1 or not 0 < ratio[0] <= ratio[1]:
            raise ValueError(f"Cutout needs p in [0, 1], area in (0, 1) and ratio > 0, got {p=}, {area=}, {ratio=}")
        self.p, self.area, self.ratio, self.whole = p, area, ratio, whole

    def __call__(self, images: Tensor, label: Tensor) -> tuple[Tensor, Tensor]:
        """Views (V, 3, H, W) uint8 of one image and its label (H, W) -> copies without the same rectangle."""
        cut = self.draw(len(images), *label.shape)
        if cut is None:
            return images, label
        images, label = images.clone(), label.clone()
        self.cut_(images, label, cut)
        return images, label

    def draw(self, views: int, height: int, width: int) -> Cut | None:
        """For so many views of an image of that size; None: it stays whole."""
        if torch.rand(()) >= self.p:
            return None
        rows, columns = self._rectangle(height, width)
        size = (views, 3, rows.stop - rows.start, columns.stop - columns.start)
        return Cut(rows, columns, torch.randint(256, size, dtype=torch.uint8))

    @staticmethod
    def cut_(images: Tensor, label: Tensor, cut: Cut) -> None:
        """Cut out of views (V, 3, H, W) and their label (H, W), in place."""
        images[..., cut.rows, cut.columns] = cut.noise.to(images.device, non_blocking=True)
        label[cut.rows, cut.columns] = IGNORE

    def _rectangle(self, height: int, width: int) -> tuple[slice, slice]:
        while True:
            u = torch.rand(4).tolist()
            area = (self.area[0] + (self.area[1] - self.area[0]) * u[0]) * height * width
            ratio = self.ratio[0] + (self.ratio[1] - self.ratio[0]) * u[1]
            h, w = max(1, self.whole((area * ratio) ** 0.5)), max(1, self.whole((area / ratio) ** 0.5))
            y, x = int(u[2] * height), int(u[3] * width)
            if y + h <= height and x + w <= width:
                return slice(y, y + h), slice(x, x + w)


class Normalize:
    """(..., 3, H, W) uint8 -> float32 with the given mean and deviation (of RGB in 0..1) removed."""

    def __init__(self, mean: Sequence[float] = MEAN, std: Sequence[float] = STD) -> None:
        self.mean, self.std = tuple(mean), tuple(std)

    def __call__(self, image: Tensor) -> Tensor:
        out = image.to(torch.float32, memory_format=torch.contiguous_format, copy=True)
        for channel, mean, std in zip(out.unbind(-3), self.mean, self.std, strict=True):  # one fits into the cache
            channel.mul_(1 / 255).sub_(mean).div_(std)
        return out


def hw(image: Tensor) -> str:
    """Height and width of (..., H, W), for messages."""
    return f"{image.shape[-2]} x {image.shape[-1]}"


@lru_cache(maxsize=256)
def _sources(length: int, resized: int) -> NDArray[np.int64]:
    """From which of `length` pixels each of the `resized` ones is copied: torch's own "nearest-exact"."""
    line = torch.arange(length, dtype=torch.float32)[None, None]
    return torch.nn.functional.interpolate(line, size=resized, mode="nearest-exact")[0, 0].long().numpy()
