"""A data set with further unlabeled images, of any origin."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import torch
from torch import Tensor

from semiseg.data.dataset import KnowsSize, SegmentationData, with_mask
from semiseg.data.facts import OnDisk
from semiseg.data.files import decode, found, opened


class WithUnlabeled:
    """Any data set, and all images below a folder as further unlabeled ones; classes and validation stay.

    With PASCAL VOC and train2017 of COCO, split "full", this is UPC's test of unlabeled images from elsewhere
    (Table 4): all VOC training images are labeled, all COCO images are not.

    Args:
        data: the data set.
        folder: of images, nested or not; the ids are FOLDER/PATH, so those of COCO are train2017/000000000009.

    Raises FileNotFoundError for a folder without images, ValueError where an id is one of the data set.
    """

    def __init__(self, data: SegmentationData, folder: str | Path) -> None:
        folder = Path(folder)
        self.data = data
        self._extra = {f"{folder.name}/{key}": path for key, path in found(folder).items()}
        if not self._extra:
            raise FileNotFoundError(f"no images below {folder}")
        if both := self._extra.keys() & {*data.train, *data.val}:
            raise ValueError(f"{len(both)} ids of {folder} are also in {data.name}, the first: {min(both)}")
        self.name, self.classes, self.palette, self.mirror = data.name, data.classes, data.palette, data.mirror
        self.train, self.val = (*data.train, *self._extra), data.val
        self.masked = with_mask(data)
        sizes = [(key, path.stat().st_size) for key, path in self._extra.items()]
        self.sha256 = hashlib.sha256(json.dumps([data.sha256, sizes]).encode()).hexdigest()

    def image(self, key: str) -> Tensor:
        """(3, H, W) uint8.  Raises ValueError naming the file where it cannot be decoded."""
        if key not in self._extra:
            return self.data.image(key)
        return torch.from_numpy(decode(self._extra[key], "image", "RGB")[1]).permute(2, 0, 1)

    def mask(self, key: str) -> Tensor | None:
        """(H, W) uint8; None for the further images."""
        return None if key in self._extra else self.data.mask(key)

    def size(self, key: str) -> tuple[int, int]:
        """Height and width, without decoding where that is known."""
        if key in self._extra:
            with opened(self._extra[key], "image") as file:
                return file.height, file.width
        if isinstance(self.data, KnowsSize):
            return self.data.size(key)
        height, width = self.data.image(key).shape[-2:]
        return height, width

    def files(self, key: str) -> tuple[Path, Path | None]:
        """Image and mask file.  Raises TypeError for an image that is no file."""
        if key in self._extra:
            return self._extra[key], None
        if isinstance(self.data, OnDisk):
            return self.data.files(key)
        raise TypeError(f"{self.data.name} is not a data set of files")

    def stray_masks(self) -> tuple[Path, ...]:
        """Mask files without image."""
        return self.data.stray_masks() if isinstance(self.data, OnDisk) else ()
