"""Figures of the ESL chapter: the numbers they draw, by hand; what they refuse."""

from pathlib import Path

import matplotlib.pyplot as plt
import pandas as pd
import pytest
import torch
import torch.nn.functional as F

from semiseg.build import build
from semiseg.data.sets.digits import Digits
from semiseg.data.transforms import Normalize
from semiseg.hosts.mean_teacher import MeanTeacher
from semiseg.methods.esl import DynamicLabels
from semiseg.recipe import recipe
from semiseg.runs import Run
from semiseg.types import Output
from semiseg_book.chapters import esl as figures

DATA = Digits(train_scenes=8, val_scenes=12)
IDS = DATA.val[:6]


@pytest.fixture(autouse=True)
def close_figures():
    yield
    plt.close("all")


class Knowing(torch.nn.Module):
    """Sure of the truth, or, at pixels near its edges, equally of the truth and of the background."""

    def forward(self, x: torch.Tensor) -> Output:
        key = next(k for k in DATA.val + DATA.train if torch.equal(Normalize()(DATA.image(k)[None]), x))
        mask = DATA.mask(key)
        logits = 20 * F.one_hot(mask.long(), len(DATA.classes)).movedim(-1, 0).float()
        logits[0][figures.near_edge(mask, 1)] = 20
        return Output(logits[None], x, x, x)


def test_near_edge_by_hand() -> None:
    mask = torch.zeros(1, 6, dtype=torch.long)
    mask[0, 3:] = 5
    assert figures.near_edge(mask, 1).tolist() == [[False, False, True, True, False, False]]
    assert figures.near_edge(mask, 2).sum() == 4 and not figures.near_edge(torch.full((4, 4), 7), 1).any()


def test_dominant_classes_are_counted_by_place() -> None:
    _, frame = figures.dominant_maps(Knowing(), DATA, IDS, DynamicLabels(0.95))
    foreground = frame[frame.pixels > 0].groupby(["place", "dominant"]).pixels.sum()
    assert set(foreground.index) >= {("inside", "1 class"), ("near an edge", "2 classes")}
    assert ("inside", "2 classes") not in foreground.index
    assert frame[frame.dominant == "3 or more"].pixels.sum() == 0
    assert frame.pixels.sum() == len(IDS) * 32 * 32
    assert frame.groupby(["image", "place"]).share.sum().tolist() == pytest.approx([1.0] * 2 * len(IDS))


def test_the_pixel_of_figure_1_is_the_least_sure_or_the_one_asked_for() -> None:
    key = figures.most_hesitant(Knowing(), DATA, IDS)
    _, frame = figures.hesitation(Knowing(), DATA, key, DynamicLabels(0.95))
    assert sorted(frame.probability)[-2:] == pytest.approx([0.5, 0.5], abs=1e-4)
    assert frame.dominant.sum() == 2 and frame.label.sum() == pytest.approx(1)
    _, corner = figures.hesitation(Knowing(), DATA, key, DynamicLabels(0.95), (0, 0))
    assert corner.dominant.sum() == 1


def fake(tmp_path: Path, name: str, esl: dict, **columns: list[float]) -> Run:
    folder = tmp_path / name
    folder.mkdir()
    pd.DataFrame({"epoch": range(1, 1 + len(next(iter(columns.values())))), **columns}).to_csv(
        folder / "metrics.csv", index=False
    )
    record = {
        "recipe": {"method": "esl", "seed": 0, "esl": esl}, "data": {"classes": ["a", "b"]},
        "split": {"labeled": 7}, "last": {"teacher": {"miou": 0.5}},
    }  # fmt: skip
    return Run(folder, record)


def test_class_shares_are_of_the_last_epoch_and_their_distance_by_hand(tmp_path: Path) -> None:
    columns = {"true_0": [0.1, 0.6], "true_1": [0.9, 0.4], "soft_0": [0.0, 0.7], "soft_1": [0.0, 0.3]}
    soft = fake(tmp_path, "soft", {}, **columns, hard_0=[0.0, 0.8], hard_1=[0.0, 0.2])
    hard = fake(tmp_path, "hard", {}, hard_0=[0.0, 0.9], hard_1=[0.0, 0.1])
    for other, far in ((None, 0.2), (hard, 0.3)):
        _, frame = figures.class_distribution(figures.class_shares(soft, other))
        distance = frame.groupby("source").distance_to_truth.first()
        assert distance.to_dict() == pytest.approx({"truth": 0, "hard labels": far, "dynamic soft labels": 0.1})
    with pytest.raises(ValueError, match="logged no class shares"):
        figures.class_shares(soft, fake(tmp_path, "other", {}, kept=[1.0]))


def test_figure_7a_takes_runs_without_contrast(tmp_path: Path) -> None:
    made = {
        "a": {"label": "hard", "parts": 0}, "b": {"label": "dynamic", "parts": 0},
        "c": {"label": "dynamic", "parts": 5}, "d": {"label": "top", "parts": 0},
    }  # fmt: skip
    frame = figures.label_runs([fake(tmp_path, name, esl, kept=[1.0]) for name, esl in made.items()])
    assert frame.label.tolist() == ["hard labels", "dynamic soft labels"] and frame.miou.tolist() == [50, 50]
    assert len(figures.hard_against_soft(frame).frame) == 2


def host(parts: int = 3) -> MeanTeacher:
    torch.manual_seed(0)
    made = recipe("esl", "digits", "1_8", "smoke")
    h = build(made.changed({"esl.parts": parts}), len(DATA.classes)).eval()
    assert isinstance(h, MeanTeacher)
    if parts:
        for key in DATA.val:
            out = figures.look(h.teacher.model, DATA, key)
            h.auxiliary.parts.collected.zero_()
            h.auxiliary.parts.collect(out.deep, figures.truth_at(DATA, key, out.deep.shape[-2:]))
    return h


def test_pairs_have_the_role_of_their_part() -> None:
    ids = figures.of_one_class(DATA, DATA.val, 4)
    shown = [set(DATA.mask(key).unique().tolist()) - {0} for key in ids]
    assert set.intersection(*shown) and len(ids) > 1
    frame = figures.pairs(host(), DATA, ids).frame
    positive = frame[frame.role == "positive"]
    assert positive[["class", "part"]].drop_duplicates().shape[0] == 1 and positive.image.nunique() > 1
    assert (positive["class"] == positive.anchor_class).all() and frame.cosine.between(-1.001, 1.001).all()
    assert frame.pixels.groupby(frame.image).sum().le(8 * 8).all()
    with pytest.raises(ValueError, match="without the contrast"):
        figures.pairs(host(parts=0), DATA, ids)


def test_right_by_place_of_one_who_knows_all_but_the_edges() -> None:
    frame = figures.at_edges(DATA, IDS, {"knowing": Knowing()}).frame.set_index("place")
    assert frame.share_right["inside"] == 1 and frame.share_right["near an edge"] < 0.9
    assert frame.pixels.sum() == len(IDS) * 32 * 32


def test_embeddings_are_of_the_largest_parts() -> None:
    classes = [1, 2, 3, 4]
    for h, width in ((host(), 32), (host(parts=0), 16)):
        sample = figures.embedding_sample(h, DATA, DATA.val, classes, per_part=5)
        assert sample.shape[1] == 2 + width and set(sample.part) <= {1, 2}
        assert sample.groupby(["class", "part"]).size().max() <= 5
        assert set(sample["class"]) <= {DATA.classes[c] for c in classes}
    drawn = figures.embedding_maps({"one": sample}, dict(zip(DATA.classes, DATA.palette, strict=True))).frame
    assert len(drawn) == len(sample)
