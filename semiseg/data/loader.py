"""Batches as a pure function of seed and step, whatever the number of workers, so that a resumed run is bit-equal."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Iterator, Sequence
from functools import lru_cache, partial
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from semiseg.data.boxes import Detections, planes
from semiseg.data.dataset import LabeledFromDisk, SegmentationData
from semiseg.data.resident import Drawn, Images, OnHost
from semiseg.data.splits import Split
from semiseg.data.transforms import MEAN, SMALLEST, STD, Cutout, Normalize, Strong, StrongView, WeakView
from semiseg.types import Batch


class Draws(NamedTuple):
    """What is random about a batch, image by image."""

    labeled: list[Drawn]
    unlabeled: list[Drawn]


class TrainingStream(Dataset[Batch]):
    """`stream[step]` is the whole batch of that step.

    Labeled and unlabeled images come in two endless sequences.  Each is a row of passes over its list, every pass in
    a fresh order drawn from the seed, without replacement; batches run across the ends of passes.  The place of an
    image in its sequence seeds its augmentation.  Of world x batch places per step, rank r takes the r-th `batch`.
    Where the split leaves nothing unlabeled, the labeled images also serve as unlabeled ones, in an order of their own.

    strong_labels: labeled images get the strong view's colors too.  unlabeled=False: no unlabeled images are loaded,
    and the batch has none (supervised training).  cutout: probability that an unlabeled image whose label comes from
    disk loses a rectangle, in its strong views and in that label; or the `Cutout` that does it.  objects: detected
    boxes of every unlabeled image.  weak: what draws crops, called with crop, scale and mirror.  crops: of each
    unlabeled image, drawn one from another independently: the batch holds all first crops, then all second ones, ...
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
        strong: Strong | None = None,
        mean: Sequence[float] = MEAN,
        std: Sequence[float] = STD,
        rank: int = 0,
        world: int = 1,
        strong_labels: bool = False,
        unlabeled: bool = True,
        cutout: float | Cutout = 0.0,
        objects: Detections | None = None,
        weak: Callable[..., WeakView] = WeakView,
        crops: int = 1,
    ) -> None:
        if min(batch, views, crops) < 1 or not 0 <= rank < world:
            raise ValueError(f"{batch=} {views=} {crops=} must be at least 1 and rank below world: {rank=} {world=}")
        if crop < SMALLEST:
            raise ValueError(f"crop must be at least {SMALLEST} pixels for the strong view's blur, not {crop}")
        if not split.labeled:
            raise ValueError(f"split {split.name} has no labeled images")
        self.data, self.split, self.seed = data, split, seed
        self.batch, self.views, self.rank, self.world = batch, views, rank, world
        self.weak, self.strong, self.crops = weak(crop, scale, mirror=data.mirror), strong or StrongView(), crops
        self.normalize = Normalize(mean, std)
        self.strong_labels, self.unlabeled = strong_labels, unlabeled
        self.cutout, self.objects = cutout if isinstance(cutout, Cutout) else Cutout(cutout), objects

    def __getitem__(self, step: int) -> Batch:
        return self.finish(self.packed(step))

    def packed(self, step: int) -> Batch:
        """The batch as it travels: images and labels in bytes, a quarter of the memory of floats."""
        images = OnHost(self.data, *self.ids(step))
        return self.render(self.draw(step, images.size), images)

    def draw(self, step: int, size: Callable[[str], tuple[int, int]]) -> Draws:
        """Everything random about a batch.  size: height and width of an image by its id."""
        labeled, unlabeled = self.ids(step)
        tags = ["unlabeled", *(f"unlabeled {crop}" for crop in range(2, self.crops + 1))]
        with torch.random.fork_rng(devices=[]):
            return Draws(
                self._drawn("labeled", step, labeled, size),
                [each for tag in tags for each in self._drawn(tag, step, unlabeled, size)],
            )

    def _drawn(self, tag: str, step: int, ids: Sequence[str], size: Callable[[str], tuple[int, int]]) -> list[Drawn]:
        views, cuts, drawn = int(self.strong_labels), False, []
        if tag != "labeled":
            views, cuts = self.views, isinstance(self.data, LabeledFromDisk)
        for place, key in zip(self._places(step), ids, strict=False):
            torch.default_generator.manual_seed(_number(self.seed, tag, place))  # torch's own reseeds the GPU as well
            at = self.weak.place(*size(key))
            colors = [self.strong.draw() for _ in range(views)]
            drawn.append(Drawn(key, at, colors, self.cutout.draw(views, at.crop, at.crop) if cuts else None))
        return drawn

    def render(self, draws: Draws, images: Images) -> Batch:
        """The batch that was drawn, in bytes, where the images are."""
        labeled, unlabeled = draws
        crop, weak = images.crops(*draws)
        x, y = crop.image, crop.label
        if self.strong_labels:
            x = self.strong.paint(x, [each.colors[0] for each in labeled])
        if weak is None:
            return Batch(x, y, x[:0], x[None, :0], y[:0].bool(), y[:0])
        colors = [each.colors[view] for view in range(self.views) for each in unlabeled]
        strong = weak.image.expand(self.views, *weak.image.shape)
        strong = self.strong.paint(strong.flatten(0, 1), colors).view_as(strong)
        for row, each in enumerate(unlabeled):
            if each.cut is not None and weak.given is not None:
                self.cutout.cut_(strong[:, row], weak.given[row], each.cut)
        return Batch(
            x, y, weak.image, strong, weak.valid, weak.label, weak.given, weak.entropy,
            None if self.objects is None else torch.stack([self._planes(each, images) for each in unlabeled]),
        )  # fmt: skip

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

    def _planes(self, drawn: Drawn, images: Images) -> Tensor:
        """Boxes of an image as planes (K, crop, crop) of its crop."""
        assert self.objects is not None
        at = drawn.at
        boxes = at.boxes(self.objects[drawn.key], *images.size(drawn.key))
        return planes(boxes, len(self.data.classes), (at.crop, at.crop), images.device)


class Batches:
    """Batches of some steps in order: packed, where asked by worker processes, sent, and finished where they arrive.

    Where images are kept (`resident`) workers only draw, and batches are rendered where the images are.
    """

    def __init__(
        self, stream: TrainingStream, steps: range, workers: int, send: Callable[[Batch], Batch], images: Images | None
    ) -> None:
        self.stream, self.steps, self.workers, self.send, self.images = stream, steps, workers, send, images

    @property
    def where(self) -> str | None:
        """The kind of device that images are kept on, and colors computed; None: they are read and sent."""
        return None if self.images is None else self.images.device.type

    def __len__(self) -> int:
        return len(self.steps)

    def __iter__(self) -> Iterator[Batch]:
        stream, images = self.stream, self.images
        if images is None:
            return (stream.finish(self.send(packed)) for packed in self._made(stream.packed))
        return (
            stream.finish(stream.render(draws, images)) for draws in self._made(partial(stream.draw, size=images.size))
        )

    def _made(self, make: Callable[[int], Any]) -> DataLoader[Any]:
        # The DataLoader must not draw on the global generator, on which the model's dropout depends.
        return DataLoader(
            _Steps(make), batch_size=None, sampler=self.steps, num_workers=self.workers, collate_fn=_as_it_is,
            generator=torch.Generator(),
        )  # fmt: skip


class _Steps(Dataset[Any]):
    def __init__(self, make: Callable[[int], Any]) -> None:
        self.make = make

    def __getitem__(self, step: int) -> Any:
        return self.make(step)


def _as_it_is(made: Any) -> Any:
    return made


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
    strong: Strong | None = None,
    mean: Sequence[float] = MEAN,
    std: Sequence[float] = STD,
    workers: int = 0,
    rank: int = 0,
    world: int = 1,
    strong_labels: bool = False,
    unlabeled: bool = True,
    cutout: float | Cutout = 0.0,
    objects: Detections | None = None,
    weak: Callable[..., WeakView] = WeakView,
    crops: int = 1,
    send: Callable[[Batch], Batch] = lambda batch: batch,
    keep: Callable[..., Images | None] = lambda *_: None,
) -> Batches:
    """Batches of steps start..steps-1: `batch` labeled and `batch` unlabeled images, on each of `world` ranks.

    crop: side of the square crops, pixels.  scale: bounds of the long side's random factor.  views: strong views per
    image.  strong: what makes them; None: StrongView.  mean, std: of RGB in 0..1.
    strong_labels, unlabeled, cutout, objects, weak, crops: see TrainingStream.
    send: puts a batch on its device, in bytes.
    keep: data, labeled ids and unlabeled ids -> those images on that device (`resident`), or None: they are sent.
    Iterating leaves torch's global random state as it was.
    """
    if not 0 <= start <= steps:
        raise ValueError(f"start must be between 0 and steps = {steps}, not {start}")
    augmentation = partial(
        TrainingStream, crop=crop, scale=scale, views=views, strong=strong, mean=mean, std=std, weak=weak, crops=crops
    )
    images = partial(augmentation, strong_labels=strong_labels, unlabeled=unlabeled, cutout=cutout, objects=objects)
    stream = images(data, split, batch=batch, seed=seed, rank=rank, world=world)
    kept = keep(data, split.labeled, (split.unlabeled or split.labeled) if unlabeled else ())
    return Batches(stream, range(start, steps), workers, send, kept)


def _key_at(ids: Sequence[str], seed: int, tag: str, place: int) -> str:
    lap, index = divmod(place, len(ids))
    return ids[_permutation(len(ids), seed, tag, lap)[index]]


@lru_cache(maxsize=8)
def _permutation(n: int, seed: int, tag: str, lap: int) -> list[int]:
    generator = torch.Generator().manual_seed(_number(seed, f"{tag} pass", lap))
    return torch.randperm(n, generator=generator).tolist()


def _number(seed: int, tag: str, place: int) -> int:
    return int.from_bytes(hashlib.sha256(f"{seed}:{tag}:{place}".encode()).digest()[:4], "big")
