"""Detected boxes on their way into training: through the geometry of a crop, into batches, into the record."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import toys

from semiseg.data.boxes import Boxes, Detections, component_boxes, planes
from semiseg.data.loader import TrainingStream
from semiseg.data.splits import first
from semiseg.data.transforms import WeakView
from semiseg.notebook import open_split
from semiseg.options import WPL
from semiseg.recipes import recipe
from semiseg.runs import Run, keep
from semiseg.train import train

ALL = (1, 2, 3)


@pytest.mark.parametrize("side", [20, 32, 70])
def test_boxes_follow_resizing_padding_cropping_and_mirroring(side: int) -> None:
    """A box analytically moved covers the mask of the box moved as pixels, up to a pixel of rounding."""
    mask = torch.zeros(40, 50, dtype=torch.uint8)
    mask[7:29, 11:40] = 1
    image = mask.expand(3, -1, -1) * 100
    boxes = component_boxes(mask, (1,))
    view, seen = WeakView(side, (0.5, 2.0), mirror=True), 0
    for seed in range(40):
        torch.manual_seed(seed)
        place = view.place(40, 50)
        crop = view.crop_at(place, image, mask)
        moved = place.boxes(boxes, 40, 50)
        inside = planes(moved, 2, (side, side))[1]
        away = inside != (crop.label == 1)
        shrunk = torch.nn.functional.max_pool2d((~away).float()[None, None], 3, 1, 1)[0, 0] == 0
        assert not shrunk.any(), "more than a pixel of difference"
        assert not (inside & ~crop.valid).any(), "no box on padding"
        seen += int(inside.any())
    assert seen > 20


def everywhere(data: toys.Blobs) -> Detections:
    return Detections({key: component_boxes(data.mask(key), ALL) for key in data.train})


def test_batches_bring_planes_that_match_the_hidden_masks() -> None:
    data = toys.Blobs()
    split = first(data.train, 4, 0)
    plain = TrainingStream(data, split, crop=32, batch=4, seed=0)[3]
    with_boxes = TrainingStream(data, split, crop=32, batch=4, seed=0, objects=everywhere(data))[3]
    assert plain.u_boxes is None and torch.equal(plain.u_strong, with_boxes.u_strong)
    assert with_boxes.u_boxes.shape == (4, 4, 32, 32) and with_boxes.u_boxes.dtype == torch.bool
    agree = []
    for planes_of, hidden in zip(with_boxes.u_boxes, with_boxes.u_hidden, strict=True):
        agree += [(planes_of[k] == (hidden == k)).float().mean() for k in ALL]
    assert min(agree) > 0.9 and with_boxes.u_boxes[:, 0].sum() == 0


def small(method: str = "mean_teacher", **options: object):
    base = recipe(method, "digits", "1_4", "smoke")
    return replace(base, wpl=WPL(**{"sure": 0.0} | options), detector=replace(base.detector, min_pixels=1))


def test_training_makes_detections_keeps_them_with_the_run_and_names_them(tmp_path: Path) -> None:
    data = toys.Blobs()
    split = open_split(data, "1_4", 0)
    run = train(small(), data, split, tmp_path / "local" / "run", progress=False)
    found = Detections.read(run.folder / "detections.safetensors")
    assert list(found.found) == list(split.unlabeled) and run.record["detector"]["sha256"] == found.sha256
    assert run.label == "mean_teacher+wpl" and run.record["recipe"]["detector"]["epochs"] == 1
    assert run.metrics.weight.iloc[-1] >= 0 and "weight_right" in run.metrics
    kept = keep(run.folder, tmp_path / "committed", weights=True)
    assert Detections.read(kept / "detections.safetensors").sha256 == found.sha256
    assert Run.read(kept).label == run.label
    assert any(name.startswith("weigh.") for name in _names(run.folder / "model.safetensors"))


def _names(path: Path) -> list[str]:
    from safetensors import safe_open

    with safe_open(path, "pt") as file:
        return list(file.keys())


def test_runs_may_share_detections_and_a_paused_run_keeps_its_own(tmp_path: Path, monkeypatch) -> None:
    data = toys.Blobs()
    split = open_split(data, "1_4", 0)
    shared = tmp_path / "shared" / "boxes.safetensors"
    with pytest.raises(InterruptedError):
        train(small(), data, split, tmp_path / "a", progress=False, detections=shared, stop_after=1)
    before = shared.read_bytes()
    import semiseg.models.detector as module

    monkeypatch.setattr(module, "train_detector", lambda *a: pytest.fail("trained again"))
    one = train(small(), data, split, tmp_path / "a", progress=False, detections=shared)
    other = train(small("augseg"), data, split, tmp_path / "b", progress=False, detections=shared)
    assert one.record["detector"] == other.record["detector"] and shared.read_bytes() == before
    note = json.loads((one.folder / "detections.json").read_text())
    assert note["split"] == split.sha256


def test_no_detector_where_none_is_asked(tmp_path: Path) -> None:
    data = toys.Blobs()
    run = train(small(reliable="none"), data, open_split(data, "1_4", 0), tmp_path / "run", progress=False)
    assert "detector" not in run.record and "detector" not in run.record["recipe"]
    assert not (run.folder / "detections.safetensors").exists()


def test_boxes_below_the_score_do_not_count() -> None:
    one = Boxes(torch.tensor([[0.0, 0, 9, 9]]), torch.tensor([1]), torch.tensor([0.5]))
    assert Detections({"a": one}).above(0.85)["a"].edges.shape == (0, 4)
