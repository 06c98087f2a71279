"""Weak and strong views as in DDFP (and UniMatch, ST++), composed from torchvision.transforms.v2.

All randomness comes from torch's global CPU generator, so seeding it makes a view reproducible.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torchvision import tv_tensors
from torchvision.transforms import InterpolationMode, v2
from torchvision.transforms.v2 import functional as F

from semiseg.types import IGNORE

MEAN = (0.485, 0.456, 0.406)  # of ImageNet, RGB in 0..1
STD = (0.229, 0.224, 0.225)
_BLUR = 13  # width of the kernel in pixels: three sigmas of the widest blur to each side
SMALLEST = _BLUR // 2 + 1  # side of the smallest image that can be reflected at its border for the blur


class WeakCrop(NamedTuple):
    """What a weak view leaves of an image; the three planes show the same pixels."""

    image: Tensor  # (3, crop, crop) uint8, 0 on padding
    label: Tensor  # (crop, crop) uint8, IGNORE where unknown and on padding
    valid: Tensor  # (crop, crop) bool, False on padding
    given: Tensor | None = None  # (crop, crop) uint8, a label from disk, IGNORE on padding
    entropy: Tensor | None = None  # (crop, crop) uint8, its coded entropy, 0 on padding


class WeakView(nn.Module):
    """Geometry only: random long side, padding to the right and bottom, random crop, mirror with p = 0.5.

    `scale` bounds the factor of the long side.  `mirror=False` for sets in which a mirrored image is no valid image.
    """

    def __init__(self, crop: int, scale: tuple[float, float] = (0.5, 2.0), *, mirror: bool) -> None:
        super().__init__()
        steps: list[nn.Module] = [RandomLongSide(scale), PadTo(crop), v2.RandomCrop(crop)]
        self.geometry = v2.Compose(steps + [v2.RandomHorizontalFlip(0.5)] * mirror)

    def forward(self, image: Tensor, mask: Tensor | None, given: tuple[Tensor, Tensor] | None = None) -> WeakCrop:
        """(3, H, W) uint8 and (H, W) uint8 or None (nothing known) -> crops of both.

        given: a pseudo-label and its entropy, (H, W) uint8 each; the label is resized as a mask, the entropy as an
        image, bilinearly.
        """
        height, width = image.shape[-2:]
        # Padding is filled with IGNORE in all planes: the second one tells padding from an unknown label.
        planes = torch.zeros(2 if given is None else 3, height, width, dtype=torch.uint8)
        planes[0] = IGNORE if mask is None else mask
        if given is None:
            crop, planes = self.geometry(tv_tensors.Image(image), tv_tensors.Mask(planes))
            label, padding = planes.as_subclass(Tensor)
            return WeakCrop(crop.as_subclass(Tensor), label, padding == 0)
        planes[2] = given[0]
        doubt = tv_tensors.Image(given[1][None])
        crop, planes, doubt = self.geometry(tv_tensors.Image(image), tv_tensors.Mask(planes), doubt)
        label, padding, pseudo = planes.as_subclass(Tensor)
        return WeakCrop(crop.as_subclass(Tensor), label, padding == 0, pseudo, doubt.as_subclass(Tensor)[0])


class StrongView(v2.Compose):
    """Color only, on top of a weak view: jitter (p 0.8), grayscale (p 0.2), Gaussian blur of sigma 0.1 to 2 (p 0.5).

    (3, H, W) uint8 -> the same.  No side may be shorter than SMALLEST pixels.
    """

    def __init__(self) -> None:
        jitter = v2.ColorJitter(brightness=0.5, contrast=0.5, saturation=0.5, hue=0.25)
        blur = SeparableBlur(_BLUR, (0.1, 2.0))
        super().__init__([v2.RandomApply([jitter], 0.8), v2.RandomGrayscale(0.2), v2.RandomApply([blur], 0.5)])


class Cutout(nn.Module):
    """One rectangle of noise whose label is IGNORE (DeVries and Taylor, 2017; in ST++ on unlabeled images alone).

    Its area and the ratio of height to width are uniform; size and place are drawn anew until it lies inside.

    Args:
        p: probability.
        area: bounds, shares of the image.
        ratio: bounds of height / width.
    """

    def __init__(
        self, p: float = 0.5, area: tuple[float, float] = (0.02, 0.4), ratio: tuple[float, float] = (0.3, 1 / 0.3)
    ) -> None:
        super().__init__()
        if not 0 <= p <= 1 or not 0 < area[0] <= area[1] < 1 or not 0 < ratio[0] <= ratio[1]:
            raise ValueError(f"Cutout needs p in [0, 1], area in (0, 1) and ratio > 0, got {p=}, {area=}, {ratio=}")
        self.p, self.area, self.ratio = p, area, ratio

    def forward(self, images: Tensor, label: Tensor) -> tuple[Tensor, Tensor]:
        """Views (V, 3, H, W) uint8 of one image and its label (H, W) -> copies without the same rectangle."""
        if torch.rand(()) >= self.p:
            return images, label
        rows, columns = self._rectangle(*label.shape)
        images, label = images.clone(), label.clone()
        images[..., rows, columns] = torch.randint(256, images[..., rows, columns].shape, dtype=torch.uint8)
        label[rows, columns] = IGNORE
        return images, label

    def _rectangle(self, height: int, width: int) -> tuple[slice, slice]:
        while True:
            u = torch.rand(4).tolist()
            area = (self.area[0] + (self.area[1] - self.area[0]) * u[0]) * height * width
            ratio = self.ratio[0] + (self.ratio[1] - self.ratio[0]) * u[1]
            h, w = max(1, round((area * ratio) ** 0.5)), max(1, round((area / ratio) ** 0.5))
            y, x = int(u[2] * height), int(u[3] * width)
            if y + h <= height and x + w <= width:
                return slice(y, y + h), slice(x, x + w)


class Normalize(v2.Compose):
    """(..., 3, H, W) uint8 -> float32 with the given mean and deviation (of RGB in 0..1) removed."""

    def __init__(self, mean: Sequence[float] = MEAN, std: Sequence[float] = STD) -> None:
        super().__init__([v2.ToDtype(torch.float32, scale=True), v2.Normalize(mean, std)])


class RandomLongSide(v2.Transform):
    """Resizes so that the long side is a uniform integer in [scale[0], scale[1]] times its length.

    Bilinear with antialiasing for images; for masks the nearest pixel by its center, as PIL does: v2's own choice
    for masks rounds down and so shifts a shrunk mask against its image by up to half a pixel.
    """

    def __init__(self, scale: tuple[float, float]) -> None:
        super().__init__()
        if not 0 < scale[0] <= scale[1]:
            raise ValueError(f"scale must be two positive factors in ascending order, not {tuple(scale)}")
        self.scale = scale

    def make_params(self, flat_inputs: list[Any]) -> dict[str, Any]:
        height, width = F.get_size(flat_inputs[0])
        long = max(height, width)
        low, high = (max(1, int(long * factor)) for factor in self.scale)
        side = int(torch.randint(low, high + 1, ()))
        return {"size": [max(1, int(s * side / long + 0.5)) for s in (height, width)]}

    def transform(self, inpt: Any, params: dict[str, Any]) -> Any:
        if not isinstance(inpt, tv_tensors.Mask):
            return F.resize(inpt, params["size"], InterpolationMode.BILINEAR, antialias=True)
        nearest = F.resize(inpt.as_subclass(Tensor), params["size"], InterpolationMode.NEAREST_EXACT)
        return tv_tensors.wrap(nearest, like=inpt)


class PadTo(v2.Transform):
    """Pads to at least size x size, to the right and bottom only: images with 0, masks with IGNORE."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.size = size

    def make_params(self, flat_inputs: list[Any]) -> dict[str, Any]:
        height, width = F.get_size(flat_inputs[0])
        return {"padding": [0, 0, max(0, self.size - width), max(0, self.size - height)]}

    def transform(self, inpt: Any, params: dict[str, Any]) -> Any:
        if not any(params["padding"]):
            return inpt
        return F.pad(inpt, params["padding"], fill=IGNORE if isinstance(inpt, tv_tensors.Mask) else 0)


class SeparableBlur(v2.GaussianBlur):
    """v2's blur, rows then columns instead of one two-dimensional kernel: at 321 pixels 2.7 times as fast."""

    def transform(self, inpt: Any, params: dict[str, Any]) -> Any:
        (width, height), sigma = self.kernel_size, params["sigma"]
        rows = F.gaussian_blur(inpt.float(), [width, 1], sigma)
        return F.gaussian_blur(rows, [1, height], sigma).round().to(inpt.dtype)
