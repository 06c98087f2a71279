"""The two views as compositions of torchvision's transforms: slow, and what the fast ones must agree with."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torchvision import tv_tensors
from torchvision.transforms import InterpolationMode, v2
from torchvision.transforms.v2 import functional as F

from semiseg.types import IGNORE


class RandomLongSide(v2.Transform):
    def __init__(self, scale: tuple[float, float]) -> None:
        super().__init__()
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
    def __init__(self, size: int) -> None:
        super().__init__()
        self.size = size

    def make_params(self, flat_inputs: list[Any]) -> dict[str, Any]:
        height, width = F.get_size(flat_inputs[0])
        return {"padding": [0, 0, max(0, self.size - width), max(0, self.size - height)]}

    def transform(self, inpt: Any, params: dict[str, Any]) -> Any:
        return F.pad(inpt, params["padding"], fill=IGNORE if isinstance(inpt, tv_tensors.Mask) else 0)


class SeparableBlur(v2.GaussianBlur):
    def transform(self, inpt: Any, params: dict[str, Any]) -> Any:
        (width, height), sigma = self.kernel_size, params["sigma"]
        rows = F.gaussian_blur(inpt.float(), [width, 1], sigma)
        return F.gaussian_blur(rows, [1, height], sigma).round().to(inpt.dtype)


def weak_view(crop: int, scale: tuple[float, float], image: Tensor, mask: Tensor, mirror: bool) -> list[Tensor]:
    """Image, label, valid."""
    steps = [RandomLongSide(scale), PadTo(crop), v2.RandomCrop(crop)] + [v2.RandomHorizontalFlip(0.5)] * mirror
    planes = torch.stack([mask, torch.zeros_like(mask)])
    seen, planes = v2.Compose(steps)(tv_tensors.Image(image), tv_tensors.Mask(planes))
    label, padding = planes.as_subclass(Tensor)
    return [seen.as_subclass(Tensor), label, padding == 0]


def strong_view() -> v2.Compose:
    jitter, blur = v2.ColorJitter(0.5, 0.5, 0.5, 0.25), SeparableBlur(13, (0.1, 2.0))
    return v2.Compose([v2.RandomApply([jitter], 0.8), v2.RandomGrayscale(0.2), v2.RandomApply([blur], 0.5)])
