"""PASCAL VOC, and any image set laid out like it."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from semiseg.data.files import FOREIGN, listing, read_rgb, size_of, translate
from semiseg.data.splits import read_list
from semiseg.types import IGNORE

CLASSES = (
    "background", "aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow", "diningtable",
    "dog", "horse", "motorbike", "person", "pottedplant", "sheep", "sofa", "train", "tvmonitor",
)  # fmt: skip


def voc_palette(n: int) -> tuple[tuple[int, int, int], ...]:
    """VOC's colors: bits 0, 1, 2 of the class id become the highest bits of R, G, B, the next three the next lower."""

    def channel(index: int, shift: int) -> int:
        return sum(((index >> (3 * bit + shift)) & 1) << (7 - bit) for bit in range(3))

    return tuple((channel(i, 0), channel(i, 1), channel(i, 2)) for i in range(n))


class VOC:
    """Images in JPEGImages/*.jpg, masks in SegmentationClassAug or SegmentationClass/*.png, lists in
    ImageSets/Segmentation/*.txt.

    `classes` selects foreground classes by name: ids become 0 = background, then 1, 2, ... in the given order, and
    pixels of all other classes are IGNORE.  `masks` names the folder of masks; by default it is SegmentationClassAug
    where there is one.  Masks are gray or palette PNG files holding class ids.  Training images need no mask.

    Folders are listed and lists are read here; images and masks only when they are asked for.
    Raises FileNotFoundError or ValueError naming the folder, list or file at fault.
    """

    name = "voc"
    mirror = True

    def __init__(
        self,
        root: str | Path,
        *,
        classes: Sequence[str] | None = None,
        train_list: str = "train_aug",
        val_list: str = "val",
        masks: str | None = None,
    ) -> None:
        chosen = _chosen(classes)
        self.root = Path(root)
        self.folders = (self.root,)
        if not self.root.is_dir():
            raise FileNotFoundError(f"root {self.root} does not exist; expected a folder laid out like PASCAL VOC")
        if masks is None:
            masks = "SegmentationClassAug" if (self.root / "SegmentationClassAug").is_dir() else "SegmentationClass"
        self._images, self._masks = self.root / "JPEGImages", self.root / masks
        self.classes = tuple(CLASSES[i] for i in chosen)
        self.palette = tuple(voc_palette(len(CLASSES))[i] for i in chosen)
        self._ids = _translation(chosen)
        images, mask_files = listing(self._images, ".jpg"), listing(self._masks, ".png")
        self.train = self._read(train_list, images, "image", self._images)
        self.val = self._read(val_list, images, "image", self._images)
        self._read(val_list, mask_files, "mask", self._masks)
        self._image_keys, self._mask_keys = frozenset(images), frozenset(mask_files)
        used = dict.fromkeys(self.train + self.val)
        files = [[f"JPEGImages/{key}.jpg", images[key]] for key in used]
        files += [[f"{masks}/{key}.png", mask_files[key]] for key in used if key in mask_files]
        content = json.dumps([self.classes, self.train, self.val, files])
        self.sha256 = hashlib.sha256(content.encode()).hexdigest()

    @property
    def masked(self) -> tuple[str, ...]:
        """Training ids with a mask."""
        return tuple(key for key in self.train if key in self._mask_keys)

    def image(self, key: str) -> Tensor:
        """(3, H, W) uint8.  Raises ValueError naming the file where it cannot be decoded."""
        return torch.from_numpy(read_rgb(self._images / f"{key}.jpg")).permute(2, 0, 1)

    def mask(self, key: str) -> Tensor | None:
        """(H, W) uint8, None without a file.  Raises ValueError naming it where it holds anything but class ids."""
        path = self._masks / f"{key}.png"
        if not path.is_file():
            return None
        return torch.from_numpy(translate(path, self._ids))

    def size(self, key: str) -> tuple[int, int]:
        """Height and width of the image from its header, without decoding it."""
        return size_of(self._images / f"{key}.jpg")

    def files(self, key: str) -> tuple[Path, Path | None]:
        """Image and mask file."""
        mask = self._masks / f"{key}.png"
        return self._images / f"{key}.jpg", mask if mask.is_file() else None

    def stray_masks(self) -> tuple[Path, ...]:
        """Mask files without image."""
        return tuple(self._masks / f"{key}.png" for key in sorted(self._mask_keys - self._image_keys))

    def _read(self, name: str, there: dict[str, int], kind: str, folder: Path) -> tuple[str, ...]:
        lists = self.root / "ImageSets" / "Segmentation"
        path = lists / f"{name}.txt"
        if not path.is_file():
            found = ", ".join(sorted(p.stem for p in lists.glob("*.txt"))) or "none"
            raise FileNotFoundError(f"list file {path} does not exist; lists in this folder: {found}")
        ids = read_list(path)
        if absent := [key for key in ids if key not in there]:
            raise FileNotFoundError(
                f"{path} names {len(absent)} ids without {kind} in {folder}, the first: {absent[0]}"
            )
        return ids


def _chosen(classes: Sequence[str] | None) -> tuple[int, ...]:
    """VOC ids of the selected classes, background first."""
    if classes is None:
        return tuple(range(len(CLASSES)))
    names = [name for name in classes if name != CLASSES[0]]
    if unknown := [name for name in names if name not in CLASSES]:
        raise ValueError(f"unknown classes {', '.join(map(repr, unknown))}; valid are {', '.join(CLASSES[1:])}")
    if not names or len(set(names)) < len(names):
        raise ValueError(f"select at least one foreground class, each of them once; got {list(classes)}")
    return (0, *(CLASSES.index(name) for name in names))


def _translation(chosen: Sequence[int]) -> np.ndarray:
    """Class id by value in the file."""
    table = np.full(256, FOREIGN, dtype=np.uint8)
    table[: len(CLASSES)] = IGNORE
    table[IGNORE] = IGNORE
    table[list(chosen)] = np.arange(len(chosen), dtype=np.uint8)
    return table
