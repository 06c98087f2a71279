"""Detected boxes on their way into training: through the geometry of a crop, into batches, into the record."""

import json
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
import torch
import toys
from safetensors.torch import load_file

from semiseg.build import build, mixer
from semiseg.components import CutMix
from semiseg.data.boxes import Boxes, Detections, component_boxes, planes
from semiseg.data.loader import TrainingStream
from semiseg.data.open import open_split
from semiseg.data.splits import Split, first
from semiseg.data.transforms import WeakView
from semiseg.hosts.ael import AdaptiveCutMix, ConfidenceBank
from semiseg.hosts.augseg import AdaptiveInjection
from semiseg.hosts.cps import ToggledBoxes
from semiseg.hosts.u2pl import ClassMix
from semiseg.hosts.unimatch import RandomBox
from semiseg.methods.upc import UPCOptions
from semiseg.methods.wpl import WPLOptions
from semiseg.recipe import Recipe, recipe
from semiseg.runs import Run, keep
from semiseg.training.run import train
from semiseg.types import IGNORE, Mixer, Output, Target, View

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


def small(method: str = "mean_teacher", **options: object) -> Recipe:
    base = recipe(method, "digits", "1_4", "smoke")
    return base.having(WPLOptions(**{"sure": 0.0} | options)).changed({"detector.min_pixels": 1})


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
    import semiseg.methods.detector as module

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


# --- boxes under mixers and cutout ------------------------------------------------------------


def painted(b: int = 4, side: int = 32) -> View:
    """Images that are 1 inside a box of class 1 and 0 outside; the box of every image elsewhere."""
    inside = torch.zeros(b, 2, side, side, dtype=torch.bool)
    for i in range(b):
        box = Boxes(torch.tensor([[3.0 * i, 2, 3 * i + 14, 9 + 4 * i]]), torch.tensor([1]), torch.ones(1))
        inside[i] = planes(box, 2, (side, side))
    label, ones = inside[:, 1].long(), torch.ones(b, side, side)
    logits = torch.stack((1 - label, label), 1).float()
    output = Output(logits, logits, logits[:, :0], logits)
    image = inside[:, 1:].float().expand(-1, 3, -1, -1)
    return View(image, Target(label, ones, ones), output, entropy=torch.rand(b, side, side), boxes=inside)


def upc(**options: str) -> Mixer:
    made = mixer(recipe("mean_teacher").having(UPCOptions(**options)), None, classes=2)
    assert made is not None
    return made


BANK = ConfidenceBank(2)
MIXERS = {
    "cutmix": CutMix(p=1.0),
    "unimatch": RandomBox(p=1.0),
    "augseg": AdaptiveInjection((8.0, 2.0), (4.0, 4.0), adaptive=False),
    "ael": AdaptiveCutMix(BANK, least=0.01),
    "classmix": ClassMix(p=1.0),
    "toggled": ToggledBoxes(3, (0.25, 0.5)),
    **{f"upc-{rows}": upc(rows=rows) for rows in ("sample", "all")},
    **{f"upc-{kind}": upc(replace=kind) for kind in ("box", "copy_paste", "erase", "erase_pixels")},
}


@pytest.mark.parametrize("name", MIXERS)
def test_boxes_move_with_the_pixels_under_every_mixer(name: str) -> None:
    torch.manual_seed(0)
    moved = 0
    for _ in range(8):
        own = painted()
        donors = replace(own, image=torch.full_like(own.image, 0.5), boxes=None)
        paste = MIXERS[name](own, donors)
        mixed, foreign = paste.view(own, donors), paste.source >= len(own.image)
        kept = ~foreign if paste.erased is None else ~foreign & ~paste.erased
        assert mixed.boxes is not None and mixed.boxes.dtype == torch.bool
        assert torch.equal(mixed.boxes[:, 1][kept], mixed.image[:, 0][kept] == 1), "a box left its pixels"
        assert mixed.boxes.movedim(1, -1)[foreign].all(), "no box confirms a pasted label, nor does one refuse it"
        rows = torch.arange(len(paste.source))[:, None, None] % len(own.image)
        moved += int((paste.source != rows).sum()) + (0 if paste.erased is None else int(paste.erased.sum()))
    assert moved > 0, "nothing was mixed"


class FromDisk(toys.Blobs):
    """With pseudo-labels on disk, which happen to be right."""

    def given(self, key: str) -> tuple[torch.Tensor, torch.Tensor]:
        return self.mask(key), torch.zeros_like(self.mask(key))


def test_cutout_leaves_boxes_where_they_are_and_confirms_nothing_inside() -> None:
    data = FromDisk()
    split, options = first(data.train, 4, 0), {"crop": 32, "batch": 4, "seed": 0, "objects": everywhere(FromDisk())}
    plain, cut = (TrainingStream(data, split, cutout=p, **options)[3] for p in (0.0, 1.0))
    assert torch.equal(plain.u_boxes, cut.u_boxes) and torch.equal(plain.u_valid, cut.u_valid)
    lost = (cut.u_given == IGNORE) & (plain.u_given != IGNORE)
    assert (lost & cut.u_boxes.any(1)).any()
    host = build(small("stpp"), 4).train()
    seen: list[View] = []
    host.weigh.observe = lambda labeled, mixed: seen.append(mixed)
    host.losses(cut, 0.5)
    assert (seen[0].target.denominator[lost] == 0).all() and (
        seen[0].target.denominator[~lost & cut.u_valid] == 1
    ).all()


# --- whole runs -------------------------------------------------------------------------------


@pytest.mark.parametrize("method", ["unimatch", "augseg", "ael", "u2pl", "stpp"])
def test_a_paused_run_ends_with_the_same_banks_and_weights(method: str, tmp_path: Path) -> None:
    data = toys.Blobs()
    split, shared = open_split(data, "1_4", 0), tmp_path / "boxes.safetensors"
    r = small(method, box_score=0.0)
    r = r.having(UPCOptions()) if method == "u2pl" else r
    go = partial(train, r, data, split, progress=False, detections=shared)
    whole = go(tmp_path / "whole")
    pause = 7 if method == "stpp" else 2
    with pytest.raises(InterruptedError):
        go(tmp_path / "parts", stop_after=pause)
    parts = go(tmp_path / "parts")
    a, b = (load_file(run.folder / "model.safetensors") for run in (whole, parts))
    assert a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)
    banks = [int(a[f"weigh.{name}.filled"].sum()) for name in ("labeled", "unlabeled")]
    assert banks[0] > 0 and (banks[1] > 0 or method in ("ael", "stpp")), "those two call everything background so early"
    assert whole.metrics.drop(columns="seconds").equals(parts.metrics.drop(columns="seconds"))
    assert whole.record["detector"] == parts.record["detector"]


def test_one_labeled_image_stops_before_training_with_the_way_out(tmp_path: Path) -> None:
    data = toys.Blobs()
    split = Split("own", data.train[:1], data.train[1:], "file")
    with pytest.raises(ValueError, match="blobs gives 1; WPL needs none with reliable='confidence' or 'none'"):
        train(small(), data, split, tmp_path / "run", progress=False)
    assert not (tmp_path / "run").exists()
    run = train(small(reliable="confidence"), data, split, tmp_path / "other", progress=False)
    assert "detector" not in run.record and run.metrics.weight.notna().any()
