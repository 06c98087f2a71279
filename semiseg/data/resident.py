"""Images as batches are made of them: read when they are needed, or all of them kept in memory, of the host or a GPU."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor

from semiseg.data.dataset import KnowsSize, LabeledFromDisk, SegmentationData
from semiseg.data.gather import Sources, bilinear, nearest
from semiseg.data.transforms import Cut, Place, WeakCrop, WeakView, hw

SHARE = 4  # images are kept on a GPU by themselves where they take less than one part in so many of its free memory
_READERS = 8


class Drawn(NamedTuple):
    """Everything random about one image of a batch."""

    key: str
    at: Place
    colors: Sequence[Any] = ()  # of each strong view, as `Strong.draw` returned them
    cut: Cut | None = None


class Loaded(NamedTuple):
    """An image and what is known of its pixels, all uint8."""

    image: Tensor  # (3, H, W)
    mask: Tensor | None  # (H, W)
    given: tuple[Tensor, Tensor] | None = None  # label and entropy from disk, (H, W) each

    @property
    def size(self) -> tuple[int, int]:
        height, width = self.image.shape[-2:]
        return height, width


class Images(Protocol):
    """Where crops come from."""

    device: torch.device

    def size(self, key: str) -> tuple[int, int]: ...

    def crops(self, labeled: Sequence[Drawn], unlabeled: Sequence[Drawn]) -> tuple[WeakCrop, WeakCrop | None]:
        """Planes of `WeakCrop` with a leading dimension, those from disk of unlabeled images alone.

        Without unlabeled images None stands for them.
        """
        ...


def load(data: SegmentationData, key: str, labeled: bool = True) -> Loaded:
    """Raises ValueError where sizes differ, or where a labeled image has no mask."""
    image, mask = data.image(key), data.mask(key)
    if mask is not None and mask.shape != image.shape[-2:]:
        raise ValueError(f"{data.name}: image {key} is {hw(image)} but its mask {hw(mask)} (height x width)")
    if mask is None and labeled:
        raise ValueError(f"labeled image {key} of {data.name} has no mask")
    return Loaded(image, mask, None if labeled or not isinstance(data, LabeledFromDisk) else data.given(key))


class OnHost:
    """Labeled and unlabeled images in the memory of this process: those of one batch, or of a whole training."""

    device = torch.device("cpu")

    def __init__(self, data: SegmentationData, labeled: Iterable[str], unlabeled: Iterable[str]) -> None:
        self.labeled = {key: load(data, key, True) for key in labeled}
        self.unlabeled = {key: load(data, key, False) for key in unlabeled}

    def size(self, key: str) -> tuple[int, int]:
        return (self.unlabeled.get(key) or self.labeled[key]).size

    def crops(self, labeled: Sequence[Drawn], unlabeled: Sequence[Drawn]) -> tuple[WeakCrop, WeakCrop | None]:
        return _stacked(self.labeled, labeled), _stacked(self.unlabeled, unlabeled) if unlabeled else None


def _stacked(images: Mapping[str, Loaded], drawn: Sequence[Drawn]) -> WeakCrop:
    crops = [WeakView.crop_at(each.at, *images[each.key]) for each in drawn]
    return WeakCrop(*(None if column[0] is None else torch.stack(column) for column in zip(*crops, strict=True)))


class OnDevice:
    """Labeled and unlabeled images on a GPU, one after the other; a batch of crops is gathered there by a few kernels.

    Crops are equal to those of `OnHost` bit by bit: the interpolation's integers are the same.
    """

    def __init__(
        self, data: SegmentationData, labeled: Sequence[str], unlabeled: Sequence[str], device: torch.device | str
    ) -> None:
        self.device, keys = torch.device(device), list(dict.fromkeys([*labeled, *unlabeled]))
        self._sizes = dict(zip(keys, _read(partial(size_of, data), keys), strict=True))
        self._start, pixels = dict[str, int](), 0
        for key, (height, width) in self._sizes.items():
            self._start[key] = pixels
            pixels += height * width
        self._unknown = set[str]()  # images without mask
        self._given = isinstance(data, LabeledFromDisk)
        self._images, self._masks = self._empty(pixels, 3), self._empty(pixels, 1)
        self._labels, self._entropies = (self._empty(pixels * self._given, 1) for _ in range(2))
        self._fill(data, labeled, True)
        self._fill(data, [key for key in unlabeled if self._given or key not in set(labeled)], False)

    def _empty(self, pixels: int, channels: int) -> Tensor:
        return torch.empty(pixels, channels, dtype=torch.uint8, device=self.device)

    def _fill(self, data: SegmentationData, keys: Sequence[str], labeled: bool) -> None:
        for key, loaded in zip(keys, _read(partial(load, data, labeled=labeled), keys), strict=True):
            height, width = loaded.size
            here = slice(self._start[key], self._start[key] + height * width)
            self._images[here] = loaded.image.permute(1, 2, 0).reshape(-1, 3).to(self.device)
            if loaded.mask is None:
                self._unknown.add(key)
            else:
                self._masks[here] = loaded.mask.reshape(-1, 1).to(self.device)
            if loaded.given is not None:
                for place, plane in zip((self._labels, self._entropies), loaded.given, strict=True):
                    place[here] = plane.reshape(-1, 1).to(self.device)

    def size(self, key: str) -> tuple[int, int]:
        return self._sizes[key]

    def crops(self, labeled: Sequence[Drawn], unlabeled: Sequence[Drawn]) -> tuple[WeakCrop, WeakCrop | None]:
        at, both, n = self._sources([*labeled, *unlabeled]), [*labeled, *unlabeled], len(labeled)
        label, valid = nearest(self._masks, at), at.valid
        if unknown := [i for i, each in enumerate(both) if each.key in self._unknown]:
            label.index_fill_(0, torch.tensor(unknown).to(self.device, non_blocking=True), 255)
        planes = bilinear(self._images, at), label, valid
        first, second = (WeakCrop(*(plane[rows] for plane in planes)) for rows in (slice(n), slice(n, None)))
        if not unlabeled:
            return first, None
        if self._given:
            at = at.rows(n)
            second = second._replace(given=nearest(self._labels, at), entropy=bilinear(self._entropies, at)[:, 0])
        return first, second

    def _sources(self, drawn: Sequence[Drawn]) -> Sources:
        return Sources.of(
            [each.at for each in drawn], [self._sizes[each.key] for each in drawn],
            [self._start[each.key] for each in drawn], self.device,
        )  # fmt: skip


def size_of(data: SegmentationData, key: str) -> tuple[int, int]:
    """Height and width, without decoding where the data set knows how."""
    if isinstance(data, KnowsSize):
        return data.size(key)
    height, width = data.image(key).shape[-2:]
    return height, width


def _read(read: Callable[[str], Any], keys: Sequence[str]) -> Iterable[Any]:
    """By several threads, in order, few of them ahead."""
    with ThreadPoolExecutor(_READERS) as pool:
        for start in range(0, len(keys), 8 * _READERS):
            yield from pool.map(read, keys[start : start + 8 * _READERS])


def resident(
    data: SegmentationData,
    labeled: Sequence[str],
    unlabeled: Sequence[str],
    device: torch.device,
    wanted: bool | None = None,
) -> OnHost | OnDevice | None:
    """The images of a training kept where it computes; None: they are read when they are needed.

    Args:
        data: of which images are kept, and with pseudo-labels from disk these.
        labeled, unlabeled: ids.
        device: of the training.
        wanted: None: on a GPU where they take less than a quarter of its free memory.

    On the CPU batches are the same to the last bit as those of images that are read.  On a GPU the same is drawn and the
    same pixels are moved, but colors are computed there: values may differ by rounding (`data.color`).
    """
    keys = list(dict.fromkeys([*labeled, *unlabeled]))
    if wanted is None:
        wanted = device.type == "cuda" and _bytes(data, keys) < torch.cuda.mem_get_info(device)[0] / SHARE
    if not wanted:
        return None
    return OnHost(data, labeled, unlabeled) if device.type == "cpu" else OnDevice(data, labeled, unlabeled, device)


def _bytes(data: SegmentationData, keys: Sequence[str]) -> int:
    planes = 6 if isinstance(data, LabeledFromDisk) else 4
    return planes * sum(height * width for height, width in _read(partial(size_of, data), keys))
