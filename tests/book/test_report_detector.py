"""The detector's numbers by hand: boxes found and missed, the three groups of pixels, and their record."""

from pathlib import Path

import matplotlib
import matplotlib.pyplot as plt
import pandas as pd
import pytest
import torch
import toys
from oracle import Oracle

from semiseg.data.boxes import Boxes, Detections, component_boxes
from semiseg.data.open import open_split
from semiseg.methods.wpl import WPLOptions
from semiseg.recipe import recipe
from semiseg.runs import Run
from semiseg.training.run import train
from semiseg_book.chapters import wpl as report

matplotlib.use("Agg")
THINGS = (1, 2, 3)


def perfect(data: toys.Blobs) -> Detections:
    return Detections({key: component_boxes(data.mask(key), THINGS) for key in data.val})


def test_box_accuracy_counts_sure_boxes_that_overlap_enough_and_true_ones_that_were_found() -> None:
    data = toys.Blobs()
    found = {}
    for i, key in enumerate(data.val):
        boxes = component_boxes(data.mask(key), THINGS)
        shift = 0.0 if i % 2 else 8.0  # half of each wrong box lies outside
        found[key] = Boxes(boxes.edges + shift, boxes.labels, torch.full_like(boxes.scores, 0.9))
    found[data.val[3]] = Boxes(*(v[:0] for v in found[data.val[3]]))
    counts = report.count_boxes(Detections(found), data, data.val, THINGS, score=0.85)
    assert counts.loc["all"].tolist() == [3, 1, 4, 1]
    table = report.box_accuracy(counts)
    assert table.loc["all", "accuracy, %"] == pytest.approx(33.3) and table.loc["all", "recall, %"] == 25.0
    none = report.count_boxes(Detections(found), data, data.val, THINGS, score=0.95)
    assert none.loc["all"].tolist() == [0, 0, 4, 0] and pd.isna(report.box_accuracy(none).loc["all", "accuracy, %"])
    assert report.count_boxes(perfect(data), data, data.val, THINGS, score=0.5, iou=1.0).loc["all"].tolist() == [4] * 4


def test_groups_split_the_confident_pixels_and_boxes_pick_the_right_ones() -> None:
    data = toys.Blobs()
    counts = report.count_groups(Oracle(8), perfect(data), data, data.val, score=0.5, sure=0.9)
    table = report.three_groups(counts)
    total = table["confident: pixels"]
    assert (total == table["confident, in a box: pixels"] + table["confident, in no box: pixels"]).all()
    assert total[:4].sum() == len(data.val) * 32 * 32
    assert table.loc["classes with boxes", "confident, in a box: accuracy, %"] == 100.0
    assert table.loc["classes with boxes", "confident, in no box: accuracy, %"] < 100
    assert table.loc["background", "confident, in a box: pixels"] == 0
    boxed = sorted({int(k) for key in data.val for k in perfect(data)[key].labels})
    assert total["classes with boxes"] == total.iloc[boxed].sum() < total[:4].sum()


def test_the_picture_shows_both_kinds_of_boxes() -> None:
    data = toys.Blobs()
    figure = report.boxes_picture(perfect(data), data, data.val, THINGS, 0.5)
    assert sum(len(ax.patches) for ax in figure.axes) == 2 * sum(len(perfect(data)[k].labels) for k in data.val)
    plt.close(figure)


def test_a_record_is_of_one_run_and_read_as_it_was_measured(tmp_path: Path) -> None:
    data = toys.Blobs()
    base = recipe("mean_teacher", "digits", "1_4", "smoke").having(WPLOptions(sure=0.0, box_score=0.0))
    base = base.changed({"detector.min_pixels": 1})
    run = train(base, data, open_split(data, "1_4", 0), tmp_path / "run", progress=False)
    written = report.record_detector(run, data, tmp_path / "kept", images=5)
    found, boxes, groups = report.read_record(tmp_path / "kept")
    assert found == written and found["recipe_sha256"] == run.record["recipe_sha256"]
    assert found["training"]["sha256"] == Detections.read(run.folder / "detections.safetensors").sha256
    assert found["split"]["sha256"] == run.record["split"]["sha256"] and found["images"] == 12
    assert set(boxes) == {"0.8", "0.5"} and groups is not None
    detections, ids = Detections.read(run.folder / "detections.safetensors"), open_split(data, "1_4", 0).unlabeled
    counts = report.count_boxes(detections, data, ids, THINGS, score=0.0, iou=0.5)
    pd.testing.assert_frame_equal(boxes["0.5"], report.box_accuracy(counts))
    assert groups["confident: pixels"][:4].sum() == 5 * 32 * 32
    (run.folder / "model.safetensors").unlink()
    report.record_detector(run, data, tmp_path / "kept")
    assert report.read_record(tmp_path / "kept")[2] is None, "no network, no groups"

    class Other(toys.Blobs):
        sha256 = "1" * 64

    with pytest.raises(ValueError, match="was trained on other data than blobs here"):
        report.record_detector(run, Other(), tmp_path / "kept")
    with pytest.raises(ValueError, match="asked no detector"):
        report.record_detector(Run(tmp_path, {}), data, tmp_path / "kept")
