"""A data set with further unlabeled images, of any origin."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import torch
from torch import Tensor

from semiseg.data.dataset import SegmentationData, folders_of, with_mask
from semiseg.data.files import found, read_rgb, size_of
from semiseg.data.inspect.facts import OnDisk


class WithUnlabeled:
    """Any data set, and all images below a folder as further unlabeled ones; classes and validation stay.

    With PASCAL VOC and train2017 of COCO, split "full", this is UPC's test of unlabeled images from elsewhere
    (Table 4): all VOC training images are labeled, all COCO images are not.

    Args:
        data: a data set of files.
        folder: of images, nested or not; the ids are FOLDER/PATH, so those of COCO are train2017/000000000009.

    Raises FileNotFoundError for a folder without images, ValueError where an id is one of the data set.
    """

    def __init__(self, data: SegmentationData, folder: str | Path) -> None:
        if not isinstance(data, OnDisk):
            raise ValueError(f"{data.name} is no data set of files; unlabeled images can be added to such a one only")
        folder = Path(folder)
        self.data: SegmentationData = data
        self._on_disk: OnDisk = data
        self._extra = {f"{folder.name}/{key}": path for key, path in found(folder).items()}
        if not self._extra:
            raise FileNotFoundError(f"no images below {folder}")
        if both := self._extra.keys() & {*data.train, *data.val}:
            raise ValueError(f"{len(both)} ids of {folder} are also in {data.name}, the first: {min(both)}")
        self.name, self.classes, self.palette, self.mirror = data.name, data.classes, data.palette, data.mirror
        self.train, self.val = (*data.train, *self._extra), data.val
        self.masked, self.folders = with_mask(data), (*folders_of(data), folder)
        sizes = [(key, path.stat().st_size) for key, path in self._extra.items()]
        self.sha256 = hashlib.sha256(json.dumps([data.sha256, sizes]).encode()).hexdigest()

    def image(self, key: str) -> Tensor:
        """(3, H, W) uint8.  Raises ValueError naming the file where it cannot be decoded."""
        if key not in self._extra:
            return self.data.image(key)
        return torch.from_numpy(read_rgb(self._extra[key])).permute(2, 0, 1)

    def mask(self, key: str) -> Tensor | None:
        """(H, W) uint8; None for the further images."""
        return None if key in self._extra else self.data.mask(key)

    def size(self, key: str) -> tuple[int, int]:
        """Height and width of the image from its header, without decoding it."""
        return size_of(self.files(key)[0])

    def files(self, key: str) -> tuple[Path, Path | None]:
        """Image and mask file."""
        return (self._extra[key], None) if key in self._extra else self._on_disk.files(key)

    def stray_masks(self) -> tuple[Path, ...]:
        """Mask files without image."""
        return self._on_disk.stray_masks()
