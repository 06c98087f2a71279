"""A data set of large images, made smaller."""

from __future__ import annotations

import hashlib

import torch
from torch import Tensor
from torchvision.transforms import InterpolationMode
from torchvision.transforms.v2 import functional as F

from semiseg.data.dataset import KnowsSize, SegmentationData, folders_of, with_mask


class Shrunk:
    """Any data set with images and masks resized so that no side is longer than `longest` pixels.

    Cityscapes and photographs become small enough for a laptop; scores are of the small images and are not comparable
    with published ones.  Images bilinearly with antialiasing, masks by the nearest pixel; small ones stay as they are.
    Raises ValueError where `longest` is below 16.
    """

    def __init__(self, data: SegmentationData, longest: int) -> None:
        if longest < 16:
            raise ValueError(f"images need a longest side of at least 16 pixels, got {longest}")
        self.data, self.longest = data, longest
        self.name, self.classes, self.palette, self.mirror = data.name, data.classes, data.palette, data.mirror
        self.train, self.val = data.train, data.val
        self.masked, self.folders = with_mask(data), folders_of(data)
        self.sha256 = hashlib.sha256(f"{data.sha256} longest {longest}".encode()).hexdigest()

    def image(self, key: str) -> Tensor:
        """(3, H, W) uint8."""
        image = self.data.image(key)
        size = self._small(*image.shape[-2:])
        return F.resize(image, size, InterpolationMode.BILINEAR, antialias=True)

    def mask(self, key: str) -> Tensor | None:
        """(H, W) uint8, None where there is none."""
        mask = self.data.mask(key)
        if mask is None:
            return None
        small: Tensor = F.resize(mask[None], self._small(*mask.shape), InterpolationMode.NEAREST_EXACT)[0]
        return small.to(torch.uint8)

    def size(self, key: str) -> tuple[int, int]:
        """Height and width, without decoding where the data set knows how."""
        known = self.data.size(key) if isinstance(self.data, KnowsSize) else self.data.image(key).shape[-2:]
        height, width = self._small(*known)
        return height, width

    def _small(self, height: int, width: int) -> list[int]:
        factor = min(1.0, self.longest / max(height, width))
        return [max(1, round(height * factor)), max(1, round(width * factor))]
