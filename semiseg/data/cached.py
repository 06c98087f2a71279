"""A data set whose decoded images stay in memory."""

from __future__ import annotations

import math

from torch import Tensor

from semiseg.data.dataset import KnowsSize, SegmentationData, folders_of, with_mask


class Cached:
    """Any data set with each image and mask decoded once and kept in memory, up to `gib` gibibytes.

    What no longer fits is decoded each time.  Every worker process keeps what it decodes itself, so with w workers up
    to w + 1 times as much memory is taken.  Raises ValueError where `gib` is not above 0.
    """

    def __init__(self, data: SegmentationData, gib: float = math.inf) -> None:
        if not gib > 0:
            raise ValueError(f"a cache needs more than 0 GiB of memory, got {gib}")
        self.data = data
        self.name, self.classes, self.palette = data.name, data.classes, data.palette
        self.train, self.val, self.mirror, self.sha256 = data.train, data.val, data.mirror, data.sha256
        self.masked, self.folders = with_mask(data), folders_of(data)
        self._images: dict[str, Tensor] = {}
        self._masks: dict[str, Tensor | None] = {}
        self._room = gib * 2**30

    def image(self, key: str) -> Tensor:
        """(3, H, W) uint8, shared: do not write to it."""
        if key in self._images:
            return self._images[key]
        image = self.data.image(key)
        if self._fits(image):
            self._images[key] = image
        return image

    def mask(self, key: str) -> Tensor | None:
        """(H, W) uint8, shared: do not write to it."""
        if key in self._masks:
            return self._masks[key]
        mask = self.data.mask(key)
        if mask is None or self._fits(mask):
            self._masks[key] = mask
        return mask

    def size(self, key: str) -> tuple[int, int]:
        """Height and width, without decoding where the data set knows how."""
        if key not in self._images and isinstance(self.data, KnowsSize):
            return self.data.size(key)
        height, width = self.image(key).shape[-2:]
        return height, width

    def _fits(self, plane: Tensor) -> bool:
        if plane.numel() > self._room:
            return False
        self._room -= plane.numel()
        return True
