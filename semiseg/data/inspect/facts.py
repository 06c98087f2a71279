"""What can be found out about one image and its mask, whatever is wrong with them."""

from __future__ import annotations

import hashlib
import os
import zlib
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Literal, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from semiseg.data.dataset import SegmentationData

Trouble = Literal["", "missing", "unreadable", "color", "deep", "outside"]
_UNREADABLE: tuple[Trouble, str] = ("unreadable", "")
_ORIENTATION = 0x0112  # the EXIF tag


@runtime_checkable
class OnDisk(Protocol):
    """A data set of files, which can be looked at where reading them through the data set fails."""

    def files(self, key: str) -> tuple[Path, Path | None]:
        """The image and, where there is one, its mask."""
        ...

    def stray_masks(self) -> tuple[Path, ...]:
        """Mask files that belong to no image."""
        ...


@dataclass(frozen=True)
class Facts:
    """One image and its mask."""

    key: str
    size: tuple[int, int] | None = None  # height and width, pixels; None: unreadable
    digest: str = ""  # of the decoded pixels
    mode: str = ""  # of the file, as PIL calls it; empty where there is no file
    turned: bool = False  # the file asks viewers to rotate or mirror it, which is done
    fault: str = ""  # why the image cannot be read
    mask_size: tuple[int, int] | None = None
    counts: NDArray[np.int64] | None = None  # (256,) pixels of the mask by value; None: no mask, or unreadable
    trouble: Trouble = ""  # what is wrong with the mask
    mask_fault: str = ""  # in words


def examine(data: SegmentationData, keys: Iterable[str]) -> Iterator[Facts]:
    """Facts about each image, in order, gathered by several threads."""
    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
        yield from pool.map(partial(_facts, data), keys)


def _facts(data: SegmentationData, key: str) -> Facts:
    facts = _with_mask(data, _with_image(data, Facts(key)))
    if not isinstance(data, OnDisk) or facts.fault:
        return facts
    with Image.open(data.files(key)[0]) as file:
        return replace(facts, mode=file.mode, turned=file.getexif().get(_ORIENTATION, 1) != 1)


def _with_image(data: SegmentationData, facts: Facts) -> Facts:
    try:
        pixels = data.image(facts.key).permute(1, 2, 0).numpy()
    except (OSError, ValueError) as error:
        return replace(facts, fault=_brief(data, facts.key, error))
    digest = hashlib.blake2b(repr(pixels.shape).encode() + np.ascontiguousarray(pixels).tobytes(), digest_size=16)
    return replace(facts, size=pixels.shape[:2], digest=digest.hexdigest())


def _with_mask(data: SegmentationData, facts: Facts) -> Facts:
    try:
        mask = data.mask(facts.key)
    except (OSError, ValueError) as error:
        reason = _brief(data, facts.key, error)
        path = data.files(facts.key)[1] if isinstance(data, OnDisk) else None
        trouble, detail = _look(path) if path else _UNREADABLE
        if path and trouble == "outside":  # the data set knows which of the values are the wrong ones
            detail = reason.removeprefix(f"mask {path.name} ")
        return replace(facts, trouble=trouble, mask_fault=detail or reason)
    if mask is None:
        return replace(facts, trouble="missing")
    counts = np.bincount(mask.numpy().ravel(), minlength=256)
    strangers = [v for v in np.flatnonzero(counts).tolist() if len(data.classes) <= v < 255]
    facts = replace(facts, mask_size=(mask.shape[0], mask.shape[1]), counts=counts)
    return replace(facts, trouble="outside", mask_fault=f"values {_some(strangers)}") if strangers else facts


def _look(path: Path) -> tuple[Trouble, str]:
    """Why a data set refused a mask file, from the file itself."""
    try:
        with Image.open(path) as file:
            mode, pixels = file.mode, np.asarray(file)
    except (OSError, SyntaxError, EOFError, ValueError, zlib.error):
        return _UNREADABLE
    if pixels.ndim == 3:
        colors = np.unique(pixels.reshape(-1, pixels.shape[2]), axis=0).tolist()
        return "color", f"mode {mode}, colors {_some([tuple(c) for c in colors])}"
    if pixels.dtype != np.uint8:
        return "deep", f"mode {mode}, values up to {pixels.max()}"
    return "outside", f"values {_some(np.unique(pixels).tolist())}"


def _some(values: Sequence[object]) -> str:
    shown = ", ".join(map(str, values[:6]))
    return f"{shown} and {len(values) - 6} more" if len(values) > 6 else shown


def _brief(data: SegmentationData, key: str, error: Exception) -> str:
    """The message without the folders, which are the same for all files."""
    text = str(error)
    if isinstance(data, OnDisk):
        for path in data.files(key):
            text = text.replace(f"{path.parent}{os.sep}", "") if path else text
    return text
