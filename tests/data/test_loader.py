from __future__ import annotations

import traceback
from collections import Counter
from collections.abc import Iterable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from semiseg.data.cached import Cached
from semiseg.data.evaluation import evaluation_batches
from semiseg.data.loader import TrainingStream, training_batches
from semiseg.data.resident import OnDevice
from semiseg.data.sets.voc import VOC
from semiseg.data.splits import Split, first, seeded_split
from semiseg.data.transforms import WeakView
from semiseg.types import IGNORE, Batch

PLAIN: dict[str, Any] = {
    "mean": (0.0, 0.0, 0.0),
    "std": (1.0, 1.0, 1.0),
    "scale": (1.0, 1.0),
}  # pixel / 255, no resizing


class Toy:
    """Image i is all 10 * i (RGB alike), its mask all i; images divisible by `unmasked` have no mask."""

    name, sha256, mirror = "toy", "", False
    classes: tuple[str, ...] = tuple("abcdefghijklmnopqrstuvwxy")
    palette: tuple[tuple[int, int, int], ...] = ((0, 0, 0),) * 25

    def __init__(self, n: int = 12, side: int = 9, unmasked: int = 1000) -> None:
        self.train: tuple[str, ...] = tuple(map(str, range(1, n + 1)))
        self.val: tuple[str, ...] = ("20", "21", "24", "22", "23")
        self.side, self.unmasked, self.reads = side, unmasked, Counter[str]()

    def image(self, key: str) -> Tensor:
        self.reads[key] += 1
        width = self.side + (4 if key in ("22", "23") else 0)
        return torch.full((3, self.side, width), 10 * int(key), dtype=torch.uint8)

    def mask(self, key: str) -> Tensor | None:
        return None if int(key) % self.unmasked == 0 else torch.full_like(self.image(key)[0], int(key))


class Textured(Toy):
    """Random pixels and labels, so that any difference in augmentation shows."""

    def image(self, key: str) -> Tensor:
        return torch.randint(0, 256, (3, 20, 26), dtype=torch.uint8, generator=torch.Generator().manual_seed(int(key)))

    def mask(self, key: str) -> Tensor | None:
        return self.image(key)[0] % 20


def equal(one: Batch, two: Batch) -> bool:
    pairs = list(zip(one, two, strict=True))
    absent = all((a is None) == (b is None) for a, b in pairs)
    return absent and all(a.dtype == b.dtype and torch.equal(a, b) for a, b in pairs if a is not None)


def keys(images: Tensor) -> list[str]:
    """Which toy images a plainly normalized batch shows, by its upper left pixels."""
    return [str(round(float(image[0, 0, 0]) * 25.5)) for image in images]


def test_strong_labels_change_colors_and_nothing_else() -> None:
    data = Textured()
    split = first(data.train, 3, 0)
    plain, strong = (TrainingStream(data, split, crop=16, batch=4, seed=0, strong_labels=s)[0] for s in (False, True))
    assert torch.equal(plain.y, strong.y) and not torch.equal(plain.x, strong.x)
    assert all(torch.equal(a, b) for a, b in zip(plain[2:6], strong[2:6], strict=True))


def test_without_unlabeled_images_the_labeled_ones_are_the_same_and_no_others_are_read() -> None:
    data = Toy()
    split = first(data.train, 3, 0)
    both = TrainingStream(data, split, crop=9, batch=4, seed=0)[5]
    data.reads.clear()
    alone = TrainingStream(data, split, crop=9, batch=4, seed=0, unlabeled=False)[5]
    assert torch.equal(both.x, alone.x) and torch.equal(both.y, alone.y)
    assert [len(v) for v in (alone.u_weak, alone.u_strong[0], alone.u_valid, alone.u_hidden)] == [0, 0, 0, 0]
    assert set(data.reads) <= set(split.labeled)


def test_shapes_and_types() -> None:
    data = Textured()
    batch = TrainingStream(data, first(data.train, 3, 0), crop=16, batch=4, seed=0, views=2)[0]
    assert isinstance(batch, Batch)
    assert batch.x.shape == batch.u_weak.shape == (4, 3, 16, 16) and batch.u_strong.shape == (2, 4, 3, 16, 16)
    assert batch.y.shape == batch.u_hidden.shape == batch.u_valid.shape == (4, 16, 16)
    assert [v.dtype for v in batch[:6]] == [torch.float32, torch.int64, *[torch.float32] * 2, torch.bool, torch.int64]
    assert not torch.equal(batch.u_strong[0], batch.u_strong[1])


def test_batches_depend_on_seed_and_step_alone() -> None:
    data = Textured()
    split = seeded_split(data.train, "1_4", 0)
    options: dict[str, Any] = {"crop": 16, "batch": 3, "steps": 6, "views": 2}
    one = list(training_batches(data, split, seed=1, **options))
    assert len(one) == 6
    assert all(map(equal, one, training_batches(data, split, seed=1, workers=2, **options)))
    rest = list(training_batches(data, split, seed=1, start=4, **options))
    assert len(rest) == 2 and all(map(equal, one[4:], rest))
    assert not any(map(equal, one, training_batches(data, split, seed=2, **options)))
    assert not any(equal(one[0], other) for other in one[1:])


def test_seed_and_place_choose_order_and_augmentation() -> None:
    data = Textured()
    streams = [TrainingStream(data, first(data.train, 1, 0), crop=16, batch=4, seed=seed) for seed in (0, 1)]
    crops = [*streams[0][0].x, *streams[1][0].x]  # eight times the same image
    assert len({crop.numpy().tobytes() for crop in crops}) == 8
    toy = Toy(n=16)
    plain = [TrainingStream(toy, first(toy.train, 4, 0), crop=9, batch=4, seed=s, **PLAIN)[0] for s in range(5)]
    assert len({tuple(keys(batch.x)) for batch in plain}) > 1
    assert len({tuple(keys(batch.u_weak)) for batch in plain}) > 1


def test_more_views_leave_the_first_as_it_was() -> None:
    data = Textured()
    split = first(data.train, 3, 0)
    one, three = (TrainingStream(data, split, crop=16, batch=2, seed=0, views=v)[5] for v in (1, 3))
    assert torch.equal(one.u_strong[0], three.u_strong[0]) and torch.equal(one.u_weak, three.u_weak)


def test_iterating_leaves_the_global_generator() -> None:
    data = Textured()
    torch.manual_seed(7)
    before = torch.get_rng_state()
    for workers in (0, 1):
        list(training_batches(data, first(data.train, 3, 0), crop=16, batch=2, steps=2, seed=0, workers=workers))
    next(evaluation_batches(data, data.val))
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("world", [1, 3])
def test_every_image_comes_once_per_pass(world: int) -> None:
    data = Toy(n=16)
    split = first(data.train, 4, 0)  # 12 unlabeled; 6 steps of 4 images in all are two passes of those, six of these
    size = 4 if world == 1 else 2  # three ranks of 2 images see 12 in two steps
    labeled: list[str] = []
    unlabeled: list[str] = []
    for step in range(6):
        for rank in range(world):
            batch = TrainingStream(data, split, crop=9, batch=size, seed=0, rank=rank, world=world, **PLAIN)[step]
            labeled += keys(batch.x)
            unlabeled += keys(batch.u_weak)
            assert [str(int(y[0, 0])) for y in batch.y] == labeled[-size:]
    for ids, seen in ((split.labeled, labeled), (split.unlabeled, unlabeled)):
        passes = [seen[i : i + len(ids)] for i in range(0, len(seen), len(ids))]
        assert len(passes) >= 2 and all(sorted(p) == sorted(ids) for p in passes)
        assert len({tuple(p) for p in passes}) > 1  # a fresh order every time


def test_ranks_share_the_places_of_one_sequence() -> None:
    data = Textured()
    split = first(data.train, 3, 0)
    whole = TrainingStream(data, split, crop=16, batch=4, seed=0)[2]
    halves = [TrainingStream(data, split, crop=16, batch=2, seed=0, rank=rank, world=2)[2] for rank in range(2)]
    assert torch.equal(torch.cat([h.x for h in halves]), whole.x)
    assert torch.equal(torch.cat([h.u_strong for h in halves], 1), whole.u_strong)


def test_list_shorter_than_a_batch_continues_into_the_next_pass() -> None:
    data = Toy(n=5)
    batch = TrainingStream(data, first(data.train, 2, 0), crop=9, batch=6, seed=0, **PLAIN)[0]
    assert list(Counter(keys(batch.x)).values()) == [3, 3] and list(Counter(keys(batch.u_weak)).values()) == [2, 2, 2]


def test_all_labeled_images_serve_as_unlabeled_too() -> None:
    data = Toy(n=8)
    batch = TrainingStream(data, seeded_split(data.train, "full", 0), crop=9, batch=8, seed=0, **PLAIN)[0]
    assert sorted(keys(batch.u_weak)) == sorted(keys(batch.x)) == sorted(data.train)
    assert keys(batch.u_weak) != keys(batch.x)


def test_hidden_masks_and_padding() -> None:
    data = Toy(n=12, side=6, unmasked=2)  # even images have no mask
    split = Split("x", ("1", "3"), tuple(str(i) for i in range(4, 13)), "file")
    batch = TrainingStream(data, split, crop=10, batch=9, seed=0, **PLAIN)[0]
    for key, hidden, valid in zip(keys(batch.u_weak), batch.u_hidden, batch.u_valid, strict=True):
        assert valid[:6, :6].all() and valid.sum() == 36
        assert (hidden[~valid] == IGNORE).all()
        assert (hidden[valid] == (IGNORE if int(key) % 2 == 0 else int(key))).all()
    assert (batch.y[:, 6:] == IGNORE).all() and (batch.x[:, :, 6:] == 0).all()
    assert (batch.u_strong[0, :, :, :5, :5] != batch.u_weak[:, :, :5, :5]).any()  # a crop of its own color


def test_bad_requests() -> None:
    data = Toy(unmasked=5)
    split = Split("x", ("5",), ("1", "2"), "file")
    with pytest.raises(ValueError, match="labeled image 5 of toy has no mask"):
        TrainingStream(data, split, crop=9, batch=1, seed=0)[0]
    with pytest.raises(ValueError, match="split x has no labeled images"):
        TrainingStream(data, Split("x", (), ("1",), "file"), crop=9, batch=1, seed=0)
    with pytest.raises(ValueError, match=r"batch=0 .* at least 1"):
        TrainingStream(data, split, crop=9, batch=0, seed=0)
    with pytest.raises(ValueError, match="crop must be at least 7 pixels for the strong view's blur, not 6"):
        TrainingStream(data, split, crop=6, batch=1, seed=0)
    with pytest.raises(ValueError, match="rank below world: rank=2 world=2"):
        TrainingStream(data, split, crop=9, batch=1, seed=0, rank=2, world=2)
    with pytest.raises(ValueError, match="start must be between 0 and steps = 3, not 4"):
        training_batches(data, split, crop=9, batch=1, steps=3, start=4, seed=0)


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """VOC layout: labeled a, unlabeled u, validation v; sizes of u's image and mask differ."""
    for folder in ("JPEGImages", "SegmentationClass", "ImageSets/Segmentation"):
        (tmp_path / folder).mkdir(parents=True)
    pixels = np.random.default_rng(0).integers(0, 256, (12, 16, 3), dtype=np.uint8)
    for key in "auv":
        Image.fromarray(pixels).save(tmp_path / "JPEGImages" / f"{key}.jpg")
        Image.new("L", (16, 13 if key == "u" else 12), 3).save(tmp_path / "SegmentationClass" / f"{key}.png")
    (tmp_path / "ImageSets/Segmentation/train_aug.txt").write_text("a\nu\n")
    (tmp_path / "ImageSets/Segmentation/val.txt").write_text("v\n")
    return tmp_path


def assert_fails(batches: Iterable[Batch], message: str) -> None:
    iterator = iter(batches)
    with pytest.raises(ValueError, match=message) as caught:
        next(iterator)
    traceback.clear_frames(
        caught.tb
    )  # they hold the iterator, and left to the garbage collector it takes seconds to go
    del iterator


@pytest.mark.parametrize("workers", [0, 1])
def test_files_at_fault_are_named_even_by_workers(tree: Path, workers: int) -> None:
    split = Split("x", ("a",), ("u",), "file")
    batches = training_batches(VOC(tree), split, crop=8, batch=1, steps=1, seed=0, workers=workers)
    assert_fails(batches, r"voc: image u is 12 x 16 but its mask 13 x 16")
    (tree / "SegmentationClass" / "u.png").unlink()
    assert all((batch.u_hidden == IGNORE).all() for batch in batches)
    path = tree / "JPEGImages" / "u.jpg"
    path.write_bytes(path.read_bytes()[:-100])
    assert_fails(batches, r"image .*u.jpg is corrupt, truncated")


@pytest.mark.parametrize("workers", [0, 1])
def test_evaluation_keeps_order_and_batches_equal_sizes(workers: int) -> None:
    data = Toy()
    options: dict[str, Any] = {"mean": (0.0,) * 3, "std": (1.0,) * 3, "workers": workers}
    batches = list(evaluation_batches(data, data.val, batch=2, **options))
    assert [b[0] for b in batches] == [("20", "21"), ("24",), ("22", "23")]
    for ids, images, masks in batches:
        assert images.dtype == torch.float32 and masks.dtype == torch.int64
        assert images.shape == (len(ids), 3, 9, masks.shape[-1]) and masks.shape[:2] == (len(ids), 9)
        assert keys(images) == list(ids) and masks[:, 0, 0].tolist() == [int(i) for i in ids]
    assert [b[0] for b in evaluation_batches(data, data.val, **options)] == [(key,) for key in data.val]


def test_evaluation_needs_fitting_masks(tree: Path) -> None:
    with pytest.raises(ValueError, match="toy: image 20, to be evaluated, has no mask"):
        list(evaluation_batches(Toy(unmasked=5), ("20",)))
    with pytest.raises(ValueError, match="voc: image u, to be evaluated, is 12 x 16 but its mask 13 x 16"):
        list(evaluation_batches(VOC(tree), ("v", "u")))


def test_cached_reads_once_and_changes_nothing() -> None:
    data = Textured()
    split = seeded_split(data.train, "1_4", 0)
    counted = Toy()
    cached = Cached(counted)
    for _ in range(3):
        assert cached.image("3").unique().tolist() == [30]
    assert counted.reads["3"] == 1
    stored = Cached(data)
    plain = training_batches(data, split, crop=16, batch=6, steps=6, seed=0)
    assert all(map(equal, plain, training_batches(stored, split, crop=16, batch=6, steps=6, seed=0)))
    assert all(torch.equal(stored.image(key), data.image(key)) for key in data.train)
    assert Cached(Toy(unmasked=2)).mask("4") is None


def test_cache_stops_at_its_limit_and_knows_sizes() -> None:
    data = Toy(side=32)  # 3072 bytes an image
    cached = Cached(data, gib=2 * 3072 / 2**30)
    for _ in range(2):
        for key in ("1", "2", "3"):
            assert torch.equal(cached.image(key), data.image(key))
    assert [data.reads[key] for key in ("1", "2", "3")] == [3, 3, 4]  # two reads each are the comparison's
    assert cached.size("3") == (32, 32) and data.reads["3"] == 5
    with pytest.raises(ValueError, match="more than 0 GiB of memory, got 0"):
        Cached(data, gib=0)


def test_cache_asks_for_sizes_without_decoding(tree: Path) -> None:
    (tree / "JPEGImages" / "u.jpg").write_bytes((tree / "JPEGImages" / "u.jpg").read_bytes()[:-100])
    assert Cached(VOC(tree)).size("u") == (12, 16)  # the header is whole


def test_a_second_crop_of_each_image_follows_the_first_ones_and_changes_nothing_else() -> None:
    data = Textured()
    split = first(data.train, 3, 0)
    one, two = (TrainingStream(data, split, crop=16, batch=4, seed=0, views=2, crops=n)[2] for n in (1, 2))
    assert torch.equal(one.x, two.x) and two.u_weak.shape[0] == two.u_valid.shape[0] == 8
    for name in ("u_weak", "u_valid", "u_hidden"):
        assert torch.equal(getattr(one, name), getattr(two, name)[:4]), name
    assert torch.equal(one.u_strong, two.u_strong[:, :4]) and two.u_strong.shape[:2] == (2, 8)
    assert all(not torch.equal(a, b) for a, b in zip(*two.u_weak.chunk(2), strict=True)), "drawn anew"
    plain = Toy()
    pair = TrainingStream(plain, first(plain.train, 3, 0), crop=9, batch=4, seed=0, crops=2, **PLAIN)[2]
    assert keys(pair.u_weak[:4]) == keys(pair.u_weak[4:]), "of the same images"
    with pytest.raises(ValueError, match="crops=0"):
        TrainingStream(data, split, crop=16, batch=4, seed=0, crops=0)


@pytest.mark.parametrize("color", [(0, 0, 0), (124, 116, 104)])
def test_centered_padding_is_the_same_where_images_are_kept_together(color: tuple[int, int, int]) -> None:
    data = Textured()
    split, view = first(data.train, 3, 0), partial(WeakView, padding="center", color=color, scales=(0.5, 1.0, 2.0))
    stream = TrainingStream(data, split, crop=32, batch=6, seed=0, weak=view)
    kept = OnDevice(data, split.labeled, split.unlabeled, "cpu")
    for step in range(4):
        assert equal(stream.packed(step), stream.render(stream.draw(step, kept.size), kept))
