"""Numbers of the WPL chapter by hand: steadiness, weighted accuracy, box accuracy, the three groups of pixels."""

from pathlib import Path

import matplotlib
import matplotlib.pyplot as plt
import pandas as pd
import pytest
import torch
import toys
from torch import Tensor

from semiseg.data.boxes import Boxes, Detections, component_boxes
from semiseg.methods.wpl import RankWeight
from semiseg.recipes import recipe
from semiseg.report import wpl as report
from semiseg.runs import Run

matplotlib.use("Agg")
THINGS = (1, 2, 3)


class Oracle(torch.nn.Module):
    """Predicts the color of the blobs, wrong in the left columns, with features that name the predicted class."""

    def __init__(self, wrong: int = 0) -> None:
        super().__init__()
        self.wrong = wrong

    def forward(self, x: Tensor):
        from semiseg.types import Output

        colors = torch.tensor(toys.Blobs.palette).float() * 0.6 / 255 + 30 / 255
        colors = (colors - torch.tensor([0.485, 0.456, 0.406])) / torch.tensor([0.229, 0.224, 0.225])
        label = ((x[:, None] - colors[None, :, :, None, None]) ** 2).sum(2).argmin(1)
        label[:, :, : self.wrong] = (label[:, :, : self.wrong] + 1) % 4
        hot = torch.nn.functional.one_hot(label, 4).movedim(-1, 1).float()
        return Output(20 * hot, hot, hot[:, :0], hot)


def test_the_oracle_is_right_where_it_should_be() -> None:
    data = toys.Blobs()
    view = report.look(Oracle(8), data, data.val[0])
    right = view.target.hard == view.hidden
    assert right[:, :, 8:].all() and not right[:, :, :8].any()


def test_steadiness_is_0_for_equal_features_and_grows_with_their_spread() -> None:
    prototypes = torch.eye(4, 6)[:3] + 0.1
    same = prototypes[torch.tensor([0, 0, 1, 1])]
    table = report.steadiness(same, torch.tensor([0, 0, 1, 1]), prototypes, 1, ["a", "b", "c"])
    assert table.index.tolist() == ["a", "b"] and (table["values"] < 1e-6).all() and (table.indices == 0).all()
    scaled = same * torch.tensor([1.0, 9, 1, 9])[:, None]
    table = report.steadiness(scaled, torch.tensor([0, 0, 1, 1]), prototypes, 1, ["a", "b", "c"])
    assert (table["values"] > 0.3).all() and (table.indices == 0).all(), "ranks do not see a scale"
    swapped = prototypes[torch.tensor([1, 1])]
    assert report.steadiness(swapped, torch.tensor([0, 0]), prototypes, 1, ["a"]).indices.item() == 1.0


def run(tmp_path: Path, **last: float) -> Run:
    made = recipe("unimatch", "digits", "1_8", "smoke").as_dict() | {"wpl": {"similarity": "rank"}}
    metrics = {"epoch": [1, 2], **{name: [0.5, value] for name, value in last.items()}}
    pd.DataFrame(metrics).to_csv(tmp_path / "metrics.csv", index=False)
    return Run(tmp_path, {"recipe": made, "last": {"teacher": {"miou": 0.5}}})


def test_weighted_accuracy_by_hand(tmp_path: Path) -> None:
    one = run(tmp_path, pseudo_label_accuracy=0.75, weight_right=0.8, weight_wrong=0.4, weight=0.7)
    row = report.weighted_accuracy([one]).iloc[0]
    assert row.method == "UniMatch + WPL" and row.plain == 75.0
    assert row.weighted == pytest.approx(100 * 0.75 * 0.8 / (0.75 * 0.8 + 0.25 * 0.4), abs=0.01)
    figure = report.weight_curves(one)
    assert [b.get_height() for b in figure.axes[0].containers[0]] == pytest.approx([50, 75])
    plt.close(figure)


def test_box_accuracy_counts_sure_boxes_that_overlap_enough() -> None:
    data = toys.Blobs()
    found = {}
    for i, key in enumerate(data.val):
        boxes = component_boxes(data.mask(key), THINGS)
        shift = 0.0 if i % 2 else 8.0  # half of each wrong box lies outside
        found[key] = Boxes(boxes.edges + shift, boxes.labels, torch.full_like(boxes.scores, 0.9))
    table = report.box_accuracy(Detections(found), data, data.val, THINGS, score=0.85)
    assert table.loc["all", "boxes"] == 4 and table.loc["all", "accuracy, %"] == 50.0
    none = report.box_accuracy(Detections(found), data, data.val, THINGS, score=0.95)
    assert none.loc["all", "boxes"] == 0 and pd.isna(none.loc["all", "accuracy, %"])


def test_groups_split_the_confident_pixels_and_boxes_pick_the_right_ones() -> None:
    data = toys.Blobs()
    found = Detections({key: component_boxes(data.mask(key), THINGS) for key in data.val})
    table = report.three_groups(Oracle(8), found, data, data.val, score=0.5, sure=0.9)
    total = table["confident: pixels"]
    assert (total == table["confident, in a box: pixels"] + table["confident, in no box: pixels"]).all()
    assert total[:4].sum() == len(data.val) * 32 * 32
    assert table.loc["classes with boxes", "confident, in a box: accuracy, %"] == 100.0
    assert table.loc["classes with boxes", "confident, in no box: accuracy, %"] < 100
    assert table.loc["background", "confident, in a box: pixels"] == 0


def test_pictures_show_weights_and_boxes() -> None:
    data = toys.Blobs()
    weigher = RankWeight(4, 4, k=1)
    weigher.labeled.push(torch.eye(4), torch.arange(4), quota=4)
    figure = report.weights(Oracle(8), weigher, data, data.val[:2])
    shown = figure.axes[4].images[0].get_array()
    assert shown.min() == 1, "each predicted class agrees with its prototype"
    plt.close(figure)
    found = Detections({key: component_boxes(data.mask(key), THINGS) for key in data.val})
    figure = report.boxes_picture(found, data, data.val, THINGS, 0.5)
    assert sum(len(ax.patches) for ax in figure.axes) == 2 * sum(len(found[k].labels) for k in data.val)
    plt.close(figure)
