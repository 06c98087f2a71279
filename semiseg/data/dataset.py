"""What every data set looks like to the rest of the package."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Protocol, runtime_checkable

if TYPE_CHECKING:
    from torch import Tensor


class SegmentationData(Protocol):
    """Images by id, masks by id where they exist.  An unlabeled image needs no mask."""

    name: str
    classes: tuple[str, ...]  # index = class id; 0 is the background where there is one
    palette: tuple[tuple[int, int, int], ...]  # one RGB color per class
    train: tuple[str, ...]  # ids of all training images, labeled or not
    val: tuple[str, ...]
    mirror: bool  # whether a left-right mirrored image is a valid image of the set (digits: no)
    sha256: str  # of what identifies the data: content for the embedded set, lists and classes for files

    def image(self, key: str) -> Tensor:
        """(3, H, W) uint8."""
        ...

    def mask(self, key: str) -> Tensor | None:
        """(H, W) uint8, 255 = ignore; None where there is no mask."""
        ...


@runtime_checkable
class LabeledFromDisk(Protocol):
    """A data set that also knows pseudo-labels of unlabeled images (`data.pseudo_labels.PseudoLabeled`)."""

    def given(self, key: str) -> tuple[Tensor, Tensor]:
        """Label (H, W) uint8, and entropy (H, W) uint8 with 255 for ln K, K being the number of classes."""
        ...


@runtime_checkable
class KnowsSize(Protocol):
    """A data set that tells an image's height and width without decoding it."""

    def size(self, key: str) -> tuple[int, int]: ...


@runtime_checkable
class KnowsMasks(Protocol):
    """A data set that tells which training images have a mask, without opening any."""

    @property
    def masked(self) -> tuple[str, ...]: ...


@runtime_checkable
class InFolders(Protocol):
    """A data set that tells which folders its files lie in."""

    @property
    def folders(self) -> tuple[Path, ...]: ...


def folders_of(data: SegmentationData) -> tuple[Path, ...]:
    """The folders that hold a data set; none for one that is embedded."""
    return data.folders if isinstance(data, InFolders) else ()


def with_mask(data: SegmentationData) -> tuple[str, ...]:
    """Training images that can be labeled; all of them where the data set does not say."""
    return data.masked if isinstance(data, KnowsMasks) else data.train


def ids_of(data: SegmentationData, part: str) -> tuple[str, ...]:
    """Ids of the part "train", "val", "tune" (for choices) or "test" (for final results), where the set has it.

    Raises ValueError where it does not.
    """
    ids: tuple[str, ...] = getattr(data, part, ())
    if not ids and hasattr(data, "data"):  # one set around another
        return ids_of(data.data, part)
    if not ids:
        raise ValueError(f"{data.name} has no part {part!r}")
    return ids
