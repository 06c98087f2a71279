"""Numbers of the WPL chapter by hand: steadiness, weighted accuracy, ablations."""

from dataclasses import replace
from pathlib import Path

import matplotlib
import matplotlib.pyplot as plt
import pandas as pd
import pytest
import torch
import toys
from oracle import Oracle
from torch import Tensor

from semiseg.methods.wpl import RankWeight, WPLOptions, with_alpha
from semiseg.recipe import recipe
from semiseg.runs import Run
from semiseg.types import View
from semiseg_book.chapters import wpl as report

matplotlib.use("Agg")


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


def made(folder: Path, miou: float, alpha: float = 1.0, **options: object) -> Run:
    """A record whose last epoch has 3 right pixels for each wrong one, at twice the weight."""
    base = recipe("unimatch", "digits", "1_8", "smoke").having(WPLOptions(**options))  # type: ignore[arg-type]
    last = {"pseudo_label_accuracy": 0.75, "weight_right": 0.8, "weight_wrong": 0.4, "weight": 0.7}
    folder.mkdir()
    metrics = {"epoch": [1, 2], **{name: [0.5, value] for name, value in last.items()}}
    pd.DataFrame(metrics).to_csv(folder / "metrics.csv", index=False)
    return Run(folder, {"recipe": with_alpha(base, alpha).as_dict(), "last": {"teacher": {"miou": miou}}})


def test_weight_curves_show_the_metrics(tmp_path: Path) -> None:
    figure = report.weight_curves(made(tmp_path / "a", 0.5))
    assert [b.get_height() for b in figure.axes[0].containers[0]] == pytest.approx([50, 75])
    plt.close(figure)


def test_ablations_name_every_change_and_mix_no_two(tmp_path: Path) -> None:
    plain = recipe("unimatch", "digits", "1_8", "smoke").as_dict()
    alone = replace(made(tmp_path / "f", 0.9), record={"recipe": plain})
    table = report.ablations(
        [
            made(tmp_path / "a", 0.5), made(tmp_path / "b", 0.7), made(tmp_path / "c", 0.4, k=3),
            made(tmp_path / "d", 0.3, reliable="none"), made(tmp_path / "e", 0.2, alpha=0.4), alone,
        ]
    )  # fmt: skip
    assert table.changed.tolist() == ["default", "k = 3", "reliable = none", "weights = [0.1, 0.1, 0.2]"]
    assert table["mean"].tolist() == [60.0, 40.0, 30.0, 20.0] and table.seeds.tolist() == [2, 1, 1, 1]
    assert table.plain.tolist() == [75.0] * 4
    assert table.weighted.tolist() == pytest.approx([100 * 0.75 * 0.8 / (0.75 * 0.8 + 0.25 * 0.4)] * 4, abs=0.01)


def test_mean_weights_tell_right_from_wrong(tmp_path: Path) -> None:
    data = toys.Blobs()

    class ByColumn(RankWeight):
        def forward(self, view: View) -> Tensor:
            return torch.full(view.target.hard.shape, 0.75).index_fill(2, torch.arange(8), 0.25)

    table = report.mean_weights(Oracle(8), ByColumn(4, 4, WPLOptions(k=1)), data, data.val, 0.9)
    assert table.loc["all", "right: pixels"] == 4 * 32 * 24 and table.loc["all", "wrong: pixels"] == 4 * 32 * 8
    assert table.loc["all", "right: mean W"] == 0.75 and table.loc["all", "wrong: mean W"] == 0.25
    assert table.iloc[:4].filter(like="pixels").sum().tolist() == table.loc["all"].filter(like="pixels").tolist()
    none = report.mean_weights(Oracle(8), ByColumn(4, 4, WPLOptions(k=1)), data, data.val, 1.1)
    assert none.loc["all", "right: pixels"] == 0 and pd.isna(none.loc["all", "right: mean W"])


def test_pictures_show_weights() -> None:
    data = toys.Blobs()
    weigher = RankWeight(4, 4, WPLOptions(k=1, offset=0.0))
    weigher.labeled.push(torch.eye(4), torch.arange(4), quota=4)
    figure = report.weights(Oracle(8), weigher, data, data.val[:2])
    shown = figure.axes[4].images[0].get_array()
    assert shown.min() == 1, "each predicted class agrees with its prototype"
    plt.close(figure)
