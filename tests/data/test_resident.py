"""Images kept on a device give the batches of the loader."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from semiseg.data import color
from semiseg.data.boxes import Detections, component_boxes
from semiseg.data.gather import Sources, bilinear, nearest
from semiseg.data.intensity import RandomIntensity
from semiseg.data.loader import TrainingStream, training_batches
from semiseg.data.resident import SHARE, OnDevice, OnHost, resident
from semiseg.data.splits import Split, first
from semiseg.data.transforms import WeakView
from semiseg.types import IGNORE, Batch

DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU"))]


class Sized:
    """Images of many sizes; masks of labels 0 to 3 and IGNORE, every fifth without."""

    name, classes, mirror, sha256 = "sized", tuple("abcd"), True, ""
    palette = ((0, 0, 0),) * 4
    train: tuple[str, ...] = tuple(map(str, range(20)))
    val: tuple[str, ...] = ("20",)

    def image(self, key: str) -> Tensor:
        g = torch.Generator().manual_seed(int(key))
        size = torch.randint(9, 80, (2,), generator=g).tolist()
        return torch.randint(0, 256, (*size, 3), dtype=torch.uint8, generator=g).permute(2, 0, 1)

    def mask(self, key: str) -> Tensor | None:
        if int(key) % 5 == 4:
            return None
        label = self.image(key)[0] % 5
        return torch.where(label == 4, IGNORE, label)


class Given(Sized):
    """With labels from disk."""

    def given(self, key: str) -> tuple[Tensor, Tensor]:
        assert key not in ("0", "1", "2"), "labeled images have none"
        return self.image(key)[1] % 4, self.image(key)[2]


SPLIT = Split("x", ("0", "1", "2"), tuple(map(str, range(3, 20))), "file")
OPTIONS: dict[str, dict[str, Any]] = {
    "plain": {},
    "views": {"views": 2, "strong_labels": True},
    "intensity": {"strong": RandomIntensity()},
    "labeled": {"unlabeled": False},
    "far": {"scale": (0.2, 3.0)},
}


def on_device(device: str) -> Any:
    return lambda data, labeled, unlabeled: OnDevice(data, labeled, unlabeled, device)


def difference(one: Batch, two: Batch) -> tuple[int, float]:
    """Everything but colors is equal; of bytes of colored images the largest difference and the share that differ."""
    most, share = 0, 0.0
    for name, a, b in zip(Batch._fields, one, two, strict=True):
        assert (a is None) == (b is None), name
        if a is None or b is None:
            continue
        b = b.cpu()
        assert a.dtype == b.dtype and a.shape == b.shape, name
        if name in ("x", "u_strong") and a.numel():
            gap = (a.int() - b.int()).abs()
            most, share = max(most, int(gap.max())), max(share, float((gap > 0).float().mean()))
        else:
            assert torch.equal(a, b), name
    return most, share


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("name", OPTIONS)
def test_batches_rendered_on_a_device_are_the_loaders(name: str, device: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for data in (Sized(), Given()):
        cut = {"cutout": 0.7} if isinstance(data, Given) else {}
        options = {"crop": 24, "batch": 5, "seed": 2, **OPTIONS[name], **cut}
        stream, images = TrainingStream(data, SPLIT, **options), on_device(device)(data, SPLIT.labeled, SPLIT.unlabeled)
        with monkeypatch.context() as patched:
            patched.setattr(color, "one_by_one", lambda images: False)  # as on a GPU
            rendered = [stream.render(stream.draw(step, images.size), images) for step in range(4)]
        for step, found in enumerate(rendered):
            most, share = difference(stream.packed(step), found)
            # A hue turns with its rounding; all else is off by one, where a mean lies at the edge of being rounded.
            assert share < 2e-3 and most <= (255 if device == "cuda" else 1), (step, most, share)


def test_on_the_cpu_kept_images_change_nothing_whoever_draws() -> None:
    data, options = Sized(), {"crop": 24, "batch": 5, "steps": 6, "seed": 0, "views": 2}

    def keep(data: Sized, labeled: tuple[str, ...], unlabeled: tuple[str, ...]) -> Any:
        return resident(data, labeled, unlabeled, device=torch.device("cpu"), wanted=True)

    plain = list(training_batches(data, SPLIT, **options))
    for workers, start in ((0, 0), (2, 0), (0, 3)):
        found = training_batches(data, SPLIT, workers=workers, start=start, keep=keep, **options)
        assert found.where == "cpu" and training_batches(data, SPLIT, **options).where is None
        for one, two in zip(plain[start:], found, strict=True):
            assert all(a is b or torch.equal(a, b) for a, b in zip(one, two, strict=True))


def test_boxes_and_everything_random_are_the_loaders() -> None:
    data = Sized()
    boxes = Detections({
        key: component_boxes(torch.full((1, 1), IGNORE) if data.mask(key) is None else data.mask(key), range(4))
        for key in data.train
    })  # fmt: skip
    stream = TrainingStream(data, SPLIT, crop=24, batch=4, seed=1, objects=boxes)
    images = OnDevice(data, SPLIT.labeled, SPLIT.unlabeled, "cpu")
    sizes = {key: (data.image(key).shape[-2], data.image(key).shape[-1]) for key in data.train}
    for step in range(3):
        drawn = stream.draw(step, images.size)
        assert str(drawn) == str(stream.draw(step, sizes.__getitem__)), "whatever else was drawn before"
        found, expected = stream.render(drawn, images).u_boxes, stream.packed(step).u_boxes
        assert found is not None and expected is not None and expected.any() and torch.equal(found, expected)


@pytest.mark.parametrize("device", DEVICES)
def test_gathered_crops_are_those_of_a_place_to_the_last_bit(device: str) -> None:
    torch.manual_seed(0)
    padded = 0
    for crop, scale in ((7, (0.1, 0.3)), (24, (0.5, 2.0)), (40, (0.9, 1.1)), (64, (2.0, 3.0)), (31, (1.0, 1.0))):
        images = [torch.randint(0, 256, (3, *torch.randint(1, 90, (2,)).tolist()), dtype=torch.uint8) for _ in range(9)]
        view = WeakView(crop, scale, mirror=True)
        places = [view.place(*image.shape[-2:]) for image in images]
        sizes = [(image.shape[-2], image.shape[-1]) for image in images]
        starts = torch.tensor([0, *(h * w for h, w in sizes)]).cumsum(0).tolist()
        flat = torch.cat([image.flatten(1).t() for image in images]).to(device)
        sources = Sources.of(places, sizes, starts[:-1], torch.device(device))
        for found, what in ((bilinear(flat, sources), "image"), (sources.valid, "valid")):
            for row, (place, image) in enumerate(zip(places, images, strict=True)):
                assert torch.equal(found[row].cpu(), place.image(image) if what == "image" else place.valid()), place
        labels = nearest(flat[:, :1].contiguous(), sources)
        assert all(
            torch.equal(a.cpu(), p.nearest(i[0], IGNORE)) for a, p, i in zip(labels, places, images, strict=True)
        )
        padded += int((~sources.valid).sum())
    assert padded > 0


def test_large_batches_are_gathered_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    data = Sized()
    images, stream = (
        OnDevice(data, data.train[:3], data.train[3:], "cpu"),
        TrainingStream(data, SPLIT, crop=24, batch=6, seed=0),
    )
    whole = stream.render(stream.draw(0, images.size), images)
    monkeypatch.setattr("semiseg.data.gather._AT_ONCE", 2000)
    assert torch.equal(stream.render(stream.draw(0, images.size), images).u_weak, whole.u_weak)


def test_images_are_kept_where_they_are_few_enough_or_wanted(monkeypatch: pytest.MonkeyPatch) -> None:
    data = Sized()
    need = 4 * sum(data.image(key)[0].numel() for key in data.train)
    monkeypatch.setattr("semiseg.data.resident.OnDevice", lambda *_: "kept")
    for free, expected in ((SHARE * need + SHARE, "kept"), (SHARE * need, None)):
        monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device, free=free: (free, free))
        assert resident(data, SPLIT.labeled, SPLIT.unlabeled, torch.device("cuda")) == expected
    assert resident(data, SPLIT.labeled, SPLIT.unlabeled, torch.device("cuda"), True) == "kept"
    assert resident(data, SPLIT.labeled, SPLIT.unlabeled, torch.device("cpu")) is None
    assert isinstance(resident(data, SPLIT.labeled, SPLIT.unlabeled, torch.device("cpu"), True), OnHost)


@pytest.mark.parametrize("kept", [OnHost, lambda *arguments: OnDevice(*arguments, "cpu")])
def test_what_cannot_be_kept_is_named(kept: Any) -> None:
    with pytest.raises(ValueError, match="labeled image 4 of sized has no mask"):
        kept(Sized(), ("4",), ("1",))

    class Unfitting(Sized):
        def mask(self, key: str) -> Tensor:
            return self.image(key)[0, 1:]

    with pytest.raises(ValueError, match=r"sized: image 1 is (\d+) x (\d+) but its mask \d+ x \2 \(height x width\)"):
        kept(Unfitting(), (), ("1",))


def test_all_labeled_images_can_be_kept() -> None:
    data, split = Sized(), first(("0", "1", "2", "3"), 4, 0)
    stream, images = (
        TrainingStream(data, split, crop=16, batch=3, seed=0),
        OnDevice(data, split.labeled, split.labeled, "cpu"),
    )
    assert difference(stream.packed(1), stream.render(stream.draw(1, images.size), images))[0] <= 1
