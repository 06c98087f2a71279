"""Batches as a pure function of seed and step, whatever the number of workers, so that a resumed run is bit-equal."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import lru_cache, partial

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, default_collate

from semiseg.data.boxes import Detections, planes
from semiseg.data.dataset import LabeledFromDisk, SegmentationData
from semiseg.data.splits import Split
from semiseg.data.transforms import MEAN, SMALLEST, STD, Cutout, Normalize, Place, StrongView, WeakCrop, WeakView, hw
from semiseg.types import Batch


class TrainingStream(Dataset[Batch]):
    """`stream[step]` is the whole batch of that step.

    Labeled and unlabeled images come in two endless sequences.  Each is a row of passes over its list, every pass in
    a fresh order drawn from the seed, without replacement; batches run across the ends of passes.  The place of an
    image in its sequence seeds its augmentation.  Of world x batch places per step, rank r takes the r-th `batch`.
    Where the split leaves nothing unlabeled, the labeled images also serve as unlabeled ones, in an order of their own.

    strong_labels: labeled images get the strong view's colors too.  unlabeled=False: no unlabeled images are loaded,
    and the batch has none (supervised training).  cutout: probability that an unlabeled image whose label comes from
    disk loses a rectangle, in its strong views and in that label.  objects: detected boxes of every unlabeled image.
    """

    def __init__(
        self,
        data: SegmentationData,
        split: Split,
        *,
        crop: int,
        batch: int,
        seed: int,
        scale: tuple[float, float] = (0.5, 2.0),
        views: int = 1,
        strong: Callable[[Tensor], Tensor] | None = None,
        mean: Sequence[float] = MEAN,
        std: Sequence[float] = STD,
        rank: int = 0,
        world: int = 1,
        strong_labels: bool = False,
        unlabeled: bool = True,
        cutout: float = 0.0,
        objects: Detections | None = None,
    ) -> None:
        if min(batch, views) < 1 or not 0 <= rank < world:
            raise ValueError(f"{batch=} {views=} must be at least 1 and rank below world: {rank=} {world=}")
        if crop < SMALLEST:
            raise ValueError(f"crop must be at least {SMALLEST} pixels for the strong view's blur, not {crop}")
        if not split.labeled:
            raise ValueError(f"split {split.name} has no labeled images")
        self.data, self.split, self.seed = data, split, seed
        self.batch, self.views, self.rank, self.world = batch, views, rank, world
        self.weak, self.strong = WeakView(crop, scale, mirror=data.mirror), strong or StrongView()
        self.normalize = Normalize(mean, std)
        self.strong_labels, self.unlabeled = strong_labels, unlabeled
        self.cutout, self.objects = Cutout(cutout), objects

    def __getitem__(self, step: int) -> Batch:
        return self.finish(self.packed(step))

    def packed(self, step: int) -> Batch:
        """The batch as it travels: images and labels in bytes, a quarter of the memory of floats."""
        labeled = [self._labeled(place) for place in self._places(step)]
        x, y = default_collate([crop.image for crop in labeled]), default_collate([crop.label for crop in labeled])
        if not self.unlabeled:
            return Batch(x, y, x[:0], x[None, :0], y[:0].bool(), y[:0])
        weak, strong, boxes = zip(*(self._unlabeled(place) for place in self._places(step)), strict=True)
        views = default_collate([view for row in zip(*strong, strict=True) for view in row])
        given = [(crop.given, crop.entropy) for crop in weak if crop.given is not None and crop.entropy is not None]
        return Batch(
            x=x,
            y=y,
            u_weak=default_collate([crop.image for crop in weak]),
            u_strong=views.unflatten(0, (-1, len(weak))),
            u_valid=default_collate([crop.valid for crop in weak]),
            u_hidden=default_collate([crop.label for crop in weak]),
            u_given=default_collate([label for label, _ in given]) if given else None,
            u_entropy=default_collate([entropy for _, entropy in given]) if given else None,
            u_boxes=None if self.objects is None else default_collate(list(boxes)),
        )

    def finish(self, packed: Batch) -> Batch:
        """What `packed` made -> the batch, on the device where it is."""
        one_nat = 255 / math.log(len(self.data.classes))
        return packed._replace(
            x=self.normalize(packed.x),
            y=packed.y.long(),
            u_weak=self.normalize(packed.u_weak),
            u_strong=self.normalize(packed.u_strong),
            u_hidden=packed.u_hidden.long(),
            u_given=None if packed.u_given is None else packed.u_given.long(),
            u_entropy=None if packed.u_entropy is None else packed.u_entropy / one_nat,
        )

    def ids(self, step: int) -> tuple[list[str], list[str]]:
        """The labeled and the unlabeled images of a step."""
        labeled = [_key_at(self.split.labeled, self.seed, "labeled", place) for place in self._places(step)]
        among = self.split.unlabeled or self.split.labeled
        unlabeled = [_key_at(among, self.seed, "unlabeled", place) for place in self._places(step)]
        return labeled, unlabeled if self.unlabeled else []

    def _places(self, step: int) -> range:
        start = (step * self.world + self.rank) * self.batch
        return range(start, start + self.batch)

    def _labeled(self, place: int) -> WeakCrop:
        key = _key_at(self.split.labeled, self.seed, "labeled", place)
        image, mask = self._load(key)
        if mask is None:
            raise ValueError(f"labeled image {key} of {self.data.name} has no mask")
        with _seeded(self.seed, "labeled", place):
            crop: WeakCrop = self.weak(image, mask)
            return crop._replace(image=self.strong(crop.image)) if self.strong_labels else crop

    def _unlabeled(self, place: int) -> tuple[WeakCrop, list[Tensor], Tensor | None]:
        """The weak crop, strong views of it (3, crop, crop) each, and boxes as planes (K, crop, crop)."""
        key = _key_at(self.split.unlabeled or self.split.labeled, self.seed, "unlabeled", place)
        image, mask = self._load(key)
        given = self.data.given(key) if isinstance(self.data, LabeledFromDisk) else None
        with _seeded(self.seed, "unlabeled", place):
            at = self.weak.place(*image.shape[-2:])
            crop = self.weak.crop_at(at, image, mask, given)
            strong = [self.strong(crop.image) for _ in range(self.views)]
            if crop.given is not None:
                views, label = self.cutout(torch.stack(strong), crop.given)
                crop, strong = crop._replace(given=label), list(views)
            return crop, strong, self._planes(key, at, image)

    def _planes(self, key: str, at: Place, image: Tensor) -> Tensor | None:
        if self.objects is None:
            return None
        boxes = at.boxes(self.objects[key], *image.shape[-2:])
        return planes(boxes, len(self.data.classes), (at.crop, at.crop))

    def _load(self, key: str) -> tuple[Tensor, Tensor | None]:
        image, mask = self.data.image(key), self.data.mask(key)
        if mask is not None and mask.shape != image.shape[-2:]:
            raise ValueError(f"{self.data.name}: image {key} is {hw(image)} but its mask {hw(mask)} (height x width)")
        return image, mask


class Batches:
    """Batches of some steps in order: packed, where asked by worker processes, sent, and finished where they arrive."""

    def __init__(self, stream: TrainingStream, steps: range, workers: int, send: Callable[[Batch], Batch]) -> None:
        self.stream, self.steps, self.workers, self.send = stream, steps, workers, send

    def __len__(self) -> int:
        return len(self.steps)

    def __iter__(self) -> Iterator[Batch]:
        # The DataLoader must not draw on the global generator, on which the model's dropout depends.
        loader = DataLoader(
            _Packed(self.stream), batch_size=None, sampler=self.steps, num_workers=self.workers,
            generator=torch.Generator(),
        )  # fmt: skip
        for packed in loader:
            yield self.stream.finish(self.send(packed))


class _Packed(Dataset[Batch]):
    def __init__(self, stream: TrainingStream) -> None:
        self.stream = stream

    def __getitem__(self, step: int) -> Batch:
        return self.stream.packed(step)


def training_batches(
    data: SegmentationData,
    split: Split,
    *,
    crop: int,
    batch: int,
    steps: int,
    seed: int,
    start: int = 0,
    scale: tuple[float, float] = (0.5, 2.0),
    views: int = 1,
    strong: Callable[[Tensor], Tensor] | None = None,
    mean: Sequence[float] = MEAN,
    std: Sequence[float] = STD,
    workers: int = 0,
    rank: int = 0,
    world: int = 1,
    strong_labels: bool = False,
    unlabeled: bool = True,
    cutout: float = 0.0,
    objects: Detections | None = None,
    send: Callable[[Batch], Batch] = lambda batch: batch,
) -> Batches:
    """Batches of steps start..steps-1: `batch` labeled and `batch` unlabeled images, on each of `world` ranks.

    crop: side of the square crops, pixels.  scale: bounds of the long side's random factor.  views: strong views per
    image.  strong: what makes them; None: StrongView.  mean, std: of RGB in 0..1.
    strong_labels, unlabeled, cutout, objects: see TrainingStream.  send: puts a batch on its device, in bytes.
    Iterating leaves torch's global random state as it was.
    """
    if not 0 <= start <= steps:
        raise ValueError(f"start must be between 0 and steps = {steps}, not {start}")
    augmentation = partial(TrainingStream, crop=crop, scale=scale, views=views, strong=strong, mean=mean, std=std)
    images = partial(augmentation, strong_labels=strong_labels, unlabeled=unlabeled, cutout=cutout, objects=objects)
    stream = images(data, split, batch=batch, seed=seed, rank=rank, world=world)
    return Batches(stream, range(start, steps), workers, send)


def _key_at(ids: Sequence[str], seed: int, tag: str, place: int) -> str:
    lap, index = divmod(place, len(ids))
    return ids[_permutation(len(ids), seed, tag, lap)[index]]


@lru_cache(maxsize=8)
def _permutation(n: int, seed: int, tag: str, lap: int) -> list[int]:
    generator = torch.Generator().manual_seed(_number(seed, f"{tag} pass", lap))
    return torch.randperm(n, generator=generator).tolist()


@contextmanager
def _seeded(seed: int, tag: str, place: int) -> Iterator[None]:
    """Reproducible torch.rand inside, global state untouched; torch.manual_seed would reseed the GPU as well."""
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(_number(seed, tag, place))
        yield


def _number(seed: int, tag: str, place: int) -> int:
    return int.from_bytes(hashlib.sha256(f"{seed}:{tag}:{place}".encode()).digest()[:4], "big")
