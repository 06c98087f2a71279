"""What is wrong with a data set, found before training starts."""

from __future__ import annotations

import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import torch
from torch import Tensor

from semiseg.data.dataset import KnowsSize, SegmentationData
from semiseg.types import IGNORE


def check(data: SegmentationData, labeled: Sequence[str], *, deep: bool = False) -> None:
    """Raises one ValueError or FileNotFoundError naming the first image, mask or file that would spoil a run.

    Reads the header of every image and the whole mask of every labeled and validation image: its size and its
    labels.  deep=True also decodes every image, which finds truncated files; without it they are found, by name, when
    training first decodes them.  Missing folders, lists and files are reported when the data set is opened.
    """
    if not labeled:
        raise ValueError(f"{data.name}: no labeled images")
    if strangers := set(labeled) - set(data.train):
        raise ValueError(f"{data.name}: {len(strangers)} labeled ids are not training images: {min(strangers)}")
    if leaked := set(data.train) & set(data.val):
        raise ValueError(f"{data.name}: {len(leaked)} ids are both for training and validation: {min(leaked)}")
    every, needed = [*data.train, *data.val], [*labeled, *data.val]
    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
        sizes = dict(zip(every, pool.map(partial(_size, data, deep), every), strict=True))
        present = list(pool.map(lambda key: _labels(data, key, sizes[key]), needed))
    _some_foreground(data, torch.stack(present[: len(labeled)]).any(0))
    if not torch.stack(present[len(labeled) :]).any(0)[: len(data.classes)].any():
        raise ValueError(f"{data.name}: every pixel of the {len(data.val)} validation masks is {IGNORE}, to be ignored")


def _size(data: SegmentationData, deep: bool, key: str) -> tuple[int, int]:
    if isinstance(data, KnowsSize) and not deep:
        return data.size(key)
    height, width = data.image(key).shape[-2:]
    return height, width


def _labels(data: SegmentationData, key: str, size: tuple[int, int]) -> Tensor:
    """Which of the values 0..255 the mask holds, (256,) bool."""
    mask = data.mask(key)
    if mask is None:
        raise ValueError(f"{data.name}: image {key}, labeled or for validation, has no mask")
    if tuple(mask.shape) != size:
        lying = "; the EXIF tag of an image is followed, of a mask not" if tuple(mask.shape) == size[::-1] else ""
        raise ValueError(
            f"{data.name}: image {key} is {size[0]} x {size[1]} "
            f"but its mask {mask.shape[0]} x {mask.shape[1]} (height x width){lying}"
        )
    present = torch.bincount(mask.flatten(), minlength=256) > 0
    if outside := present[len(data.classes) : IGNORE].nonzero().flatten().add(len(data.classes)).tolist():
        raise ValueError(
            f"{data.name}: the mask of {key} holds the values {outside}; "
            f"valid are 0 to {len(data.classes) - 1} and {IGNORE} (ignore)"
        )
    return present


def _some_foreground(data: SegmentationData, present: Tensor) -> None:
    """Binary masks saved as 0 and 255 look like background and 'ignore'."""
    if present[IGNORE] and not present[1 : len(data.classes)].any():
        raise ValueError(
            f"{data.name}: the labeled masks hold no class but {data.classes[0]}, and {IGNORE}, "
            f"which means 'ignore'; save masks with class ids 0, 1, 2, ...; of a folder of your own, "
            f"values = [0, {IGNORE}] in classes.toml will do"
        )
