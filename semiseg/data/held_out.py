"""Labeled images that are not learned from: they choose the epoch, so that the validation set need not."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path

from torch import bincount

from ..types import IGNORE
from .dataset import SegmentationData

HELD_OUT = "held_out.txt"  # in the folder of a run


def hold_out(
    data: SegmentationData, labeled: Sequence[str], share: float, seed: int
) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Labeled images -> those that are learned from, in their order, and those held out.

    The images are taken in the order of SHA256 of "held out:seed:id", the same on any platform; one that is the last
    to show some class stays with the others, so a few less than the share may be held out.  At least one is.

    Args:
        data: for its masks.
        labeled: ids with a mask.
        share: of the images, in (0, 1).
        seed: of the order.

    Raises:
        ValueError: too few images to hold one out and learn every class from the rest.
    """
    present = {key: _classes(data, key) for key in labeled}
    left = {c: sum(c in there for there in present.values()) for c in set().union(*present.values())}
    wanted, held = min(max(1, round(share * len(labeled))), len(labeled) - 1), set[str]()
    for key in sorted(labeled, key=lambda k: hashlib.sha256(f"held out:{seed}:{k}".encode()).digest()):
        if len(held) >= wanted:
            break
        if all(left[c] > 1 for c in present[key]):
            held.add(key)
            for c in present[key]:
                left[c] -= 1
    if not held:
        raise ValueError(
            f"{data.name}: none of {len(labeled)} labeled images can be held out, each is the only one of some class "
            "or of all; label more, or set held_out to 0"
        )
    return tuple(k for k in labeled if k not in held), tuple(k for k in labeled if k in held)


def held_out_of(folder: Path) -> tuple[str, ...]:
    """Ids that a finished run held out; none where it used all labeled images."""
    path = folder / HELD_OUT
    return tuple(path.read_text().splitlines()) if path.is_file() else ()


def _classes(data: SegmentationData, key: str) -> frozenset[int]:
    mask = data.mask(key)
    if mask is None:
        raise ValueError(f"labeled image {key} of {data.name} has no mask")
    return frozenset(bincount(mask.flatten(), minlength=256).nonzero().flatten().tolist()) - {IGNORE}
