"""The detector learns boxes from masks, stops by held-out labeled images, and reads no other image."""

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import toys
from torch import Tensor

from semiseg.data.boxes import Boxes, component_boxes
from semiseg.data.splits import Split
from semiseg.methods import detector as module
from semiseg.methods.detector import (
    DetectorOptions,
    best_epoch,
    detect,
    f1,
    find_objects,
    hits,
    make_detector,
    thing_classes,
    train_detector,
)
from semiseg.methods.wpl import WPLOptions
from semiseg.recipe import Recipe, recipe

SMALL = DetectorOptions("tiny", None, size=64, batch=8, epochs=12, patience=12, lr=3e-3, min_pixels=4, most=5)
THINGS = (1, 2, 3)


def boxes(*rows: Sequence[float], labels: Sequence[int] = (), scores: Sequence[float] = ()) -> Boxes:
    return Boxes(
        torch.tensor(rows, dtype=torch.float32).view(-1, 4),
        torch.tensor(labels or [1] * len(rows)),
        torch.tensor(scores or [1.0] * len(rows)),
    )


def test_hits_need_overlap_and_class() -> None:
    truth = boxes((0, 0, 10, 10), labels=[2])
    found = boxes((0, 0, 10, 9), (0, 0, 10, 9), (5, 5, 15, 15), labels=[2, 1, 2])
    assert hits(found, truth, 0.8).tolist() == [True, False, False]
    assert hits(boxes(), truth, 0.5).tolist() == [] and hits(found, boxes(), 0.5).tolist() == [False] * 3


def test_f1_by_hand() -> None:
    truth = [boxes((0, 0, 10, 10)), boxes((0, 0, 10, 10), (20, 20, 30, 30))]
    found = [boxes((0, 0, 10, 10), (40, 40, 50, 50)), boxes((0, 0, 10, 10), scores=[0.6])]
    assert f1(found, truth) == pytest.approx(2 / 3)  # precision 2/3, recall 2/3
    assert f1(found, truth, score=0.7) == pytest.approx(2 * 0.5 * (1 / 3) / (0.5 + 1 / 3))
    assert f1([boxes()], [boxes((0, 0, 1, 1))]) == 0.0


class Watched(toys.Blobs):
    """Notes which images were opened."""

    def __init__(self, train: int) -> None:
        super().__init__(train=train)
        self.opened: set[str] = set()

    def image(self, key: str) -> Tensor:
        self.opened.add(key)
        return super().image(key)


def test_it_learns_from_labeled_images_alone() -> None:
    data = Watched(48)
    labeled, others = data.train[:32], data.train[32:]
    net, rows = train_detector(data, labeled, THINGS, SMALL)
    assert data.opened == set(labeled)
    assert rows[-1]["loss"] < rows[0]["loss"] and max(r["f1"] for r in rows) > rows[0]["f1"]
    found = detect(net, data, others, THINGS)
    truth = [component_boxes(data.mask(key), THINGS) for key in others]
    assert f1([found[key] for key in others], truth, score=0.3) > 0.3
    assert set(torch.cat([found[key].labels for key in others]).tolist()) <= set(THINGS)


@pytest.mark.parametrize(
    ("scores", "epochs", "best"),
    [([0.3, 0.5, 0.5, 0.4, 0.9], 4, 2), ([0.0, 0.0, 0.0, 0.2, 0.1, 0.1, 0.9], 6, 4), ([0.0] * 9, 9, 9)],
)
def test_it_stops_when_held_out_images_gain_nothing(
    scores: list[float], epochs: int, best: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two epochs without a gain, counted once anything is found; the network is that of the best epoch."""
    data, left, states = toys.Blobs(train=6), iter(scores), list[Tensor]()

    def score(*_: object) -> float:
        states.append(net_of[0].roi_heads.box_predictor.cls_score.bias.clone())
        return next(left)

    net_of: list[torch.nn.Module] = []
    made = module.make_detector
    monkeypatch.setattr(module, "make_detector", lambda *a: (net_of.append(made(*a)), net_of[0])[1])
    monkeypatch.setattr(module, "f1", score)
    net, rows = train_detector(
        data, data.train, THINGS, DetectorOptions("tiny", None, 64, epochs=9, patience=2, lr=1e-2)
    )
    assert len(rows) == epochs and best_epoch(rows)["epoch"] == best
    assert len(torch.stack(states).unique(dim=0)) == epochs
    assert torch.equal(net.roi_heads.box_predictor.cls_score.bias, states[best - 1])


def test_images_without_boxes_are_not_enough_and_neither_is_one_image() -> None:
    data = toys.Blobs()
    with pytest.raises(ValueError, match="a detector needs two labeled images with boxes, blobs gives 0"):
        train_detector(data, data.train, (0,), DetectorOptions("tiny", None, 64, min_pixels=10**6))
    with pytest.raises(ValueError, match=r"two labeled images with boxes, blobs gives 1; .* reliable='confidence'"):
        train_detector(data, data.train[:1], THINGS, SMALL)


def test_a_labeled_image_without_a_mask_is_named() -> None:
    class Unlabeled(toys.Blobs):
        def mask(self, key: str) -> Tensor | None:  # type: ignore[override]
            return None if key == "train-001" else super().mask(key)

    data = Unlabeled()
    with pytest.raises(ValueError, match="labeled image train-001 of blobs has no mask"):
        train_detector(data, data.train, THINGS, SMALL)


def test_images_without_a_thing_are_passed_over_and_boxes_of_other_classes_unknown() -> None:
    class Half(toys.Blobs):
        def mask(self, key: str) -> Tensor:
            mask = super().mask(key)
            return torch.zeros_like(mask) if int(key[-3:]) % 2 else mask

    data = Half(train=24)
    net, rows = train_detector(data, data.train, (3,), replace(SMALL, epochs=1))
    assert len(rows) == 1
    found = detect(net, data, data.train, (3,))
    assert set(torch.cat([found[key].labels for key in data.train]).tolist()) <= {3}


def test_detections_are_made_once_and_not_taken_for_others(tmp_path: Path) -> None:
    data = Watched(12)
    split = Split("own", data.train[:8], data.train[8:], "file")
    small = replace(SMALL, epochs=1)
    found = find_objects(data, split, small, tmp_path / "boxes.safetensors")
    assert list(found.found) == list(split.unlabeled)
    data.opened.clear()
    again = find_objects(data, split, small, tmp_path / "boxes.safetensors")
    assert again.sha256 == found.sha256 and not data.opened
    note = json.loads((tmp_path / "boxes.json").read_text())
    assert note["sha256"] == found.sha256 and note["things"] == [1, 2, 3] and note["epochs"] == 1
    with pytest.raises(ValueError, match="holds detections of another seed, detector"):
        find_objects(data, split, replace(small, size=32), tmp_path / "boxes.safetensors", seed=1)


def test_stuff_gets_no_boxes() -> None:
    class City(toys.Blobs):
        classes = ("road", "traffic light", "sky", "car")

    assert thing_classes(City()) == (1, 3)
    assert thing_classes(City(), ("sky", "car")) == (2, 3), "unless they are asked for by name"
    with pytest.raises(
        ValueError, match=r"unknown class of blobs 'cart'; did you mean 'car'\? Valid are road, traffic light"
    ):
        thing_classes(City(), ("cart",))


def test_chosen_things_are_part_of_the_recipe_and_of_the_file(tmp_path: Path) -> None:
    base = recipe("unimatch").having(WPLOptions())
    chosen = base.changed({"detector.things": ("3", "8")})
    assert "things" not in base.as_dict()["detector"] and chosen.as_dict()["detector"]["things"] == ["3", "8"]
    read = Recipe.from_dict(chosen.as_dict())
    assert read[DetectorOptions] == chosen[DetectorOptions] and chosen.sha256 != base.sha256
    data = Watched(12)
    split, small = Split("own", data.train[:8], data.train[8:], "file"), replace(SMALL, epochs=1, min_pixels=1)
    find_objects(data, split, small, tmp_path / "boxes.safetensors")
    with pytest.raises(ValueError, match="holds detections of another things; delete it or choose another file"):
        find_objects(data, split, replace(small, things=("red", "blue")), tmp_path / "boxes.safetensors")


@pytest.mark.parametrize("name", ["resnet18", "mobilenet_v2"])
def test_pyramids_on_torchvisions_encoders(name: str) -> None:
    net = make_detector(DetectorOptions(name, None, size=64), 3).train()
    target = {"boxes": torch.tensor([[5.0, 5, 40, 40]]), "labels": torch.tensor([1])}
    losses = net([torch.rand(3, 64, 80)], [target])
    torch.stack(list(losses.values())).sum().backward()
    stem = next(net.backbone.body.parameters())
    assert stem.grad is not None and stem.grad.abs().sum() > 0
