"""Model selection on held-out labeled images: who is held out, what is exported, and that validation has no say."""

from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor
from toys import Blobs

from semiseg.data.held_out import held_out_of, hold_out
from semiseg.data.splits import seeded_split
from semiseg.evaluate import Scores, scorer
from semiseg.hosts.supervised import Supervised
from semiseg.inference.model import load_exported
from semiseg.options import Evaluation
from semiseg.recipe import Recipe, recipe
from semiseg.runs import Run, keep
from semiseg.training.checkpoint import Keep
from semiseg.training.run import train

DATA = Blobs(train=32)
SPLIT = seeded_split(DATA.train, "1_4", 0)


def smoke(share: float = 0.3, method: str = "mean_teacher") -> Recipe:
    changes = {"optimization.epoch_steps": 4, "evaluation.every": 1, "evaluation.held_out": share}
    return recipe(method, "digits", "1_4", "smoke").changed(changes)


def go(folder: Path, r: Recipe, data: Blobs = DATA, **options) -> Run:
    return train(r, data, SPLIT, folder, progress=False, **options)


class OtherVal(Blobs):
    """The same images, other truths for validation."""

    def mask(self, key: str) -> Tensor:
        mask = super().mask(key)
        return torch.where(mask == 0, 2, 0).to(torch.uint8) if key in self.val else mask


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Run:
    return go(tmp_path_factory.mktemp("runs") / "run", smoke())


def test_held_out_images_are_a_seeded_share_that_leaves_every_class() -> None:
    kept, held = hold_out(DATA, SPLIT.labeled, 0.3, 0)
    assert len(held) == round(0.3 * len(SPLIT.labeled)) and not set(kept) & set(held)
    assert sorted(kept + held) == sorted(SPLIT.labeled) and kept == tuple(k for k in SPLIT.labeled if k in kept)
    assert hold_out(DATA, SPLIT.labeled[::-1], 0.3, 0)[1] == held[::-1]
    assert any(hold_out(DATA, SPLIT.labeled, 0.3, seed)[1] != held for seed in range(1, 5))
    every = {int(c) for key in SPLIT.labeled for c in DATA.mask(key).unique()}
    for seed in range(8):
        kept, held = hold_out(DATA, SPLIT.labeled, 0.9, seed)
        assert {int(c) for key in kept for c in DATA.mask(key).unique()} == every and held


def test_nothing_can_be_held_out_of_one_image_or_of_single_witnesses() -> None:
    with pytest.raises(ValueError, match="none of 1 labeled images can be held out"):
        hold_out(DATA, SPLIT.labeled[:1], 0.5, 0)
    by_class = {int(DATA.mask(key).max()): key for key in DATA.train}
    with pytest.raises(ValueError, match=r"none of 3 labeled images can be held out.*set held_out to 0"):
        hold_out(DATA, tuple(by_class.values()), 0.5, 0)
    with pytest.raises(ValueError, match=r"evaluation\.held_out should be less than 1, got 1"):
        Evaluation(held_out=1)


def test_recipes_without_held_out_images_keep_their_hash() -> None:
    assert "held_out" not in recipe("ddfp").as_dict()["evaluation"]
    assert smoke(0.0).sha256 != smoke(0.3).sha256 and smoke(0.3).as_dict()["evaluation"]["held_out"] == 0.3
    assert Recipe.from_dict(smoke(0.3).as_dict()).evaluation == smoke(0.3).evaluation


def test_the_selected_epoch_is_the_best_on_held_out_images(finished: Run) -> None:
    chosen, m = finished.record["selected"], finished.metrics.set_index("epoch")
    assert chosen["epoch"] == m.held_out_teacher.idxmax()
    assert chosen["teacher"]["miou"] == pytest.approx(m.miou_teacher[chosen["epoch"]], rel=1e-5)
    assert finished.exported == chosen["teacher"] and finished.miou == finished.record["last"]["teacher"]["miou"]
    assert held_out_of(finished.folder) == hold_out(DATA, SPLIT.labeled, 0.3, 0)[1]
    assert finished.record["held_out"]["images"] == len(held_out_of(finished.folder))
    assert (finished.folder / "labeled.txt").read_text().split() == list(SPLIT.labeled), "the split is as published"
    assert not list(finished.folder.glob("selected*"))


def test_exported_weights_are_of_that_epoch(finished: Run) -> None:
    r = smoke()
    teacher = load_exported(r, len(DATA.classes), finished.folder / "model.safetensors").teacher
    found = scorer(r.evaluation, DATA, DATA.val, 32)(teacher)
    assert vars(found)["miou"] == finished.record["selected"]["teacher"]["miou"]
    held = scorer(r.evaluation, DATA, held_out_of(finished.folder), 32)(teacher)
    assert held.miou == finished.record["selected"]["held_out"]["teacher"]["miou"]


def test_an_earlier_epoch_can_be_selected(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The second epoch by decree: what is exported is what training had then."""
    from semiseg.training import selection

    r, marks = smoke(), iter((0.1, 0.1, 0.9, 0.9, 0.2, 0.2, 0.9, 0.9))
    usual = selection.Selection.__call__

    def decreed(self, host, rows, scores, epoch):
        fake = selection.Selection(self.folder, lambda network: replace(self.score(network), miou=next(marks)))
        return usual(fake, host, rows, scores, epoch)

    monkeypatch.setattr(selection.Selection, "__call__", decreed)
    run = go(tmp_path / "run", r)
    assert run.record["selected"]["epoch"] == 2, "a tie goes to the earlier epoch"
    teacher = load_exported(r, len(DATA.classes), run.folder / "model.safetensors").teacher
    found = scorer(r.evaluation, DATA, DATA.val, 32)(teacher).miou
    assert found == run.record["selected"]["teacher"]["miou"]
    assert run.metrics.miou_teacher[1] == pytest.approx(found, rel=1e-5)


def test_the_choice_is_by_held_out_scores_whatever_validation_says(tmp_path: Path) -> None:
    from semiseg.training.selection import Selection

    held, rows, host = iter((0.5, 0.5, 0.8, 0.8, 0.7, 0.7)), [], Supervised(torch.nn.Linear(1, 1))
    select = Selection(tmp_path, lambda network: Scores(next(held), 0.0, (), ()))
    for epoch, val in enumerate((0.9, 0.1, 0.99), 1):
        both = {name: Scores(val, 0.0, (), ()) for name in ("student", "teacher")}
        rows.append({"epoch": epoch, "miou_teacher": val} | select(host, rows, both, epoch))
    chosen = select.export(tmp_path / "model.safetensors")
    assert (chosen["epoch"], chosen["teacher"]["miou"], chosen["held_out"]["teacher"]["miou"]) == (2, 0.1, 0.8)


def test_validation_masks_do_not_take_part(finished: Run, tmp_path: Path) -> None:
    other = go(tmp_path / "run", smoke(), OtherVal(train=32))
    assert other.record["last"]["teacher"]["miou"] != finished.record["last"]["teacher"]["miou"], "validation changed"
    assert other.record["selected"]["epoch"] == finished.record["selected"]["epoch"]
    assert other.metrics.held_out_teacher.tolist() == finished.metrics.held_out_teacher.tolist()
    a, b = (load_file(run.folder / "model.safetensors") for run in (finished, other))
    assert all(torch.equal(a[k], b[k]) for k in a)


def test_held_out_masks_are_not_learned_from(finished: Run, tmp_path: Path) -> None:
    """With other truths on the held-out images the curve of training is the same."""
    held = held_out_of(finished.folder)

    class Swapped(Blobs):
        """Figure and ground change places: the same classes in every image, whatever the network says another score."""

        def mask(self, key: str) -> Tensor:
            mask = super().mask(key)
            return torch.where(mask == 0, mask.max(), 0).to(torch.uint8) if key in held else mask

    other = go(tmp_path / "run", smoke(), Swapped(train=32))
    assert other.metrics.loss_labeled.tolist() == finished.metrics.loss_labeled.tolist()
    assert other.metrics.loss_unlabeled.dropna().tolist() == finished.metrics.loss_unlabeled.dropna().tolist()
    assert other.metrics.held_out_teacher.tolist() != finished.metrics.held_out_teacher.tolist()


@pytest.mark.parametrize("method", ["mean_teacher", "stpp"])
def test_a_resumed_run_selects_the_same(method: str, finished: Run, tmp_path: Path) -> None:
    r = smoke(method=method)
    whole = finished if method == "mean_teacher" else go(tmp_path / "whole", r)
    for pause in (1, 3):
        with pytest.raises(InterruptedError):
            go(tmp_path / "parts", r, stop_after=pause)
    parts = go(tmp_path / "parts", r)
    assert parts.record["selected"] == whole.record["selected"]
    a, b = (load_file(run.folder / "model.safetensors") for run in (whole, parts))
    assert a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)
    pd.testing.assert_frame_equal(whole.metrics.drop(columns="seconds"), parts.metrics.drop(columns="seconds"))


def test_a_stage_that_keeps_its_best_network_asks_the_held_out_images(tmp_path: Path) -> None:
    host, rows = Supervised(torch.nn.Linear(1, 1)), [{"epoch": 1, "miou_student": 0.1, "held_out_student": 0.9}]
    keeper = Keep("student", best=True)
    keeper(tmp_path, host, rows)
    before = (tmp_path / "network-best.safetensors").read_bytes()
    with torch.no_grad():
        host.student.weight.add_(1)
    rows.append({"epoch": 2, "miou_student": 0.8, "held_out_student": 0.5})
    keeper(tmp_path, host, rows)
    assert (tmp_path / "network-best.safetensors").read_bytes() == before


def test_kept_records_say_who_was_held_out(finished: Run, tmp_path: Path) -> None:
    assert held_out_of(keep(finished.folder, tmp_path)) == held_out_of(finished.folder)
