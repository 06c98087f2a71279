"""Training in stages: what the record says, and that an interruption anywhere costs nothing that is on disk."""

import errno
import json
import os
from collections.abc import Callable
from pathlib import Path

import pandas as pd
import pytest
import torch
from safetensors.torch import load_file
from toys import Blobs, student

from semiseg.data import pseudo_labels
from semiseg.data.sets.digits import Digits
from semiseg.data.splits import Split, seeded_split
from semiseg.hosts.stpp import STPPOptions
from semiseg.hosts.supervised import Supervised
from semiseg.inference.model import load_exported
from semiseg.recipe import Recipe, recipe
from semiseg.runs import Run
from semiseg.training import stages
from semiseg.training.checkpoint import Keep
from semiseg.training.loop import Fit
from semiseg.training.run import train

DATA = Blobs()
SPLIT = seeded_split(DATA.train, "1_4", 0)


def smoke(**changes) -> Recipe:
    """3 + 2 + 2 epochs of 2 steps."""
    changed = {"optimization.epochs": 2} | {f"stpp.{name}": value for name, value in changes.items()}
    return recipe("stpp", "digits", "1_4", "smoke").changed(changed)


def go(folder: Path, r: Recipe | None = None, **options) -> Run:
    return train(r or smoke(), DATA, SPLIT, folder, progress=False, **options)


@pytest.fixture(scope="module")
def finished(tmp_path_factory) -> Run:
    return go(tmp_path_factory.mktemp("runs") / "stpp")


def labels(run: Path) -> dict[str, bytes]:
    return {p.relative_to(run).as_posix(): p.read_bytes() for p in sorted(run.glob("labels/*/*.png"))}


def times(folder: Path, pattern: str) -> dict[str, int]:
    return {p.name: p.stat().st_mtime_ns for p in folder.glob(pattern)}


def equal(a: Run, b: Run) -> None:
    """Bit by bit: weights, labels, scores of images, curves of all stages."""
    x, y = (load_file(run.folder / "model.safetensors") for run in (a, b))
    assert x.keys() == y.keys() and all(torch.equal(x[k], y[k]) for k in x)
    assert labels(a.folder) == labels(b.folder) and len(labels(a.folder)) == 2 * len(SPLIT.unlabeled)
    first, second = (json.loads((run.folder / "labels/selection.json").read_text()) for run in (a, b))
    assert first["scores"] == second["scores"] and first["reliable"] == second["reliable"]
    curves = (run.stage_metrics.drop(columns="seconds") for run in (a, b))
    pd.testing.assert_frame_equal(*curves)


# --- the record ---------------------------------------------------------------------------------


def test_the_record_is_of_the_last_stage_and_lists_all(finished: Run) -> None:
    r = finished.record
    assert r["recipe"] == smoke().as_dict() and "stage" not in r and r["split"]["unlabeled"] == 12
    assert (r["last"]["epoch"], r["last"]["step"]) == (2, 4)
    listed = r["stages"]
    assert [(s["name"], s["epochs"], s["steps"]) for s in listed] == [
        ("stage1", 3, 6), ("stage2", 2, 4), ("stage3", 2, 4)
    ]  # fmt: skip
    assert listed[0]["labels"] is None
    for stage, by, epoch in ((listed[1], "stage1", 3), (listed[2], "stage2", 2)):
        found = stage["labels"]
        assert (found["by"], found["epoch"], found["network"], found["images"]) == (by, epoch, "student", 6)
        assert 0 < found["miou"] <= found["pixel_accuracy"] <= 1
    assert listed[2]["miou"] == {who: r["last"][who]["miou"] for who in ("student", "teacher")}
    assert r["selection"]["images"] == 12
    parts = [s["duration_s"] + (s["labels"] or {"duration_s": 0})["duration_s"] for s in listed]
    assert r["duration_s"] == pytest.approx(sum(parts) + r["selection"]["duration_s"], abs=0.11)


def test_the_run_keeps_labels_and_scores_and_nothing_of_the_way(finished: Run) -> None:
    assert {p.name for p in finished.folder.iterdir()} == {
        "run.json", "recipe.toml", "metrics.csv", "model.safetensors", "labeled.txt", "unlabeled.txt", "labels",
    }  # fmt: skip
    chosen = json.loads((finished.folder / "labels" / "selection.json").read_text())
    assert list(chosen["scores"]) == list(SPLIT.unlabeled)
    worst = min(chosen["scores"][key] for key in chosen["reliable"])
    assert all(0 <= s <= 1 for s in chosen["scores"].values())
    assert all(chosen["scores"][key] <= worst for key in SPLIT.unlabeled if key not in chosen["reliable"])


def test_every_stage_was_active(finished: Run) -> None:
    m = finished.stage_metrics
    assert m.stage.tolist() == [1, 1, 1, 2, 2, 3, 3] and m.epoch.tolist() == [1, 2, 3, 1, 2, 1, 2]
    assert (m.loss_labeled > 0).all() and m.loss_unlabeled.isna().tolist() == [True] * 3 + [False] * 4
    assert (m.loss_unlabeled.dropna() > 0).all() and (m.kept.dropna() == 1).all()
    last = finished.metrics
    assert "stage" not in last and last.epoch.tolist() == [1, 2]
    assert last.miou_teacher.iloc[-1] == pytest.approx(finished.miou, rel=1e-5)


def test_the_exported_network_is_the_last_stages_teacher(finished: Run) -> None:
    host = load_exported(smoke(), len(DATA.classes), finished.folder / "model.safetensors")
    saved = load_file(finished.folder / "model.safetensors")
    assert all(torch.equal(v, saved[f"teacher.model.{k}"]) for k, v in host.student.state_dict().items())


# --- interruptions ------------------------------------------------------------------------------


class Stopped(BaseException):
    """As a killed process: nothing handles it."""


def counting(monkeypatch: pytest.MonkeyPatch, name: str) -> list[str]:
    """Names of the stages for which a function of `stages` is called."""
    called, original = [], getattr(stages, name)

    def wrapped(fabric: object, task: Fit, *rest: object) -> object:
        called.append(task.folder.name)
        return original(fabric, task, *rest)

    monkeypatch.setattr(stages, name, wrapped)
    return called


def dies_after(written: int, error: BaseException) -> Callable[..., None]:
    """A `_write` that raises once so many images are on disk."""
    original, count = pseudo_labels._write, iter(range(10**6))

    def write(*arguments: object) -> None:
        if next(count) >= written:
            raise error
        original(*arguments)

    return write


def test_a_run_interrupted_in_every_way_is_bit_equal(tmp_path: Path, finished: Run, monkeypatch) -> None:
    run, part = tmp_path / "run", tmp_path / "run.partial"
    fits = counting(monkeypatch, "fit")
    for pause, there in ((1, {"stage1"}), (3, {"stage1"}), (4, {"stage1", "stage2", "labels"})):
        with pytest.raises(InterruptedError, match=f"paused after {pause} epochs"):
            go(run, stop_after=pause)
        assert {p.name for p in part.iterdir() if p.is_dir()} == there
    assert fits == ["stage1", "stage1", "stage2"], "paused exactly at the end of a stage it does not begin the next"
    first_half = times(part, "labels/masks/*.png")
    assert len(first_half) == 6 and len(times(part, "labels/entropy/*.png")) == 6

    with monkeypatch.context() as patched, pytest.raises(Stopped):
        patched.setattr(pseudo_labels, "_write", dies_after(2, Stopped()))
        go(run)
    half_way = times(part, "labels/masks/*.png")
    assert 7 < len(half_way) < 12 and not (part / "labels" / "stage3.json").exists()

    passes, begun = counting(monkeypatch, "write_labels"), len(fits)
    resumed = go(run)
    assert fits[begun:] == ["stage3"] and passes == ["run.partial"]
    equal(resumed, finished)
    assert resumed.record["stages"][0]["labels"] is None
    after = times(run, "labels/masks/*.png")
    assert first_half.items() <= half_way.items() <= after.items(), "no label is written twice"


def test_a_stopped_selection_and_first_pass_continue(tmp_path: Path, finished: Run, monkeypatch) -> None:
    run, part = tmp_path / "run", tmp_path / "run.partial"
    with monkeypatch.context() as patched, pytest.raises(Stopped):
        patched.setattr(pseudo_labels, "_write", dies_after(3, Stopped()))
        go(run)
    assert (part / "stage1" / "run.json").is_file() and not list(part.glob("stage1/checkpoint-*"))
    selected = times(part, "labels/selection.json")
    equal(go(run), finished)
    assert times(run, "labels/selection.json") == selected


def test_a_full_disk_gives_one_message_and_loses_nothing(tmp_path: Path, finished: Run, monkeypatch) -> None:
    original = os.replace

    def full(source: Path, target: Path) -> None:
        if Path(target).name == f"{SPLIT.unlabeled[0]}.png":
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        original(source, target)

    with monkeypatch.context() as patched:
        patched.setattr(pseudo_labels.os, "replace", full)
        message = r"cannot write pseudo-labels to .*labels/entropy: No space left on device; what is written stays"
        with pytest.raises(OSError, match=message):
            go(tmp_path / "run")
    equal(go(tmp_path / "run"), finished)


def test_a_folder_for_labels_that_cannot_be_made(tmp_path: Path) -> None:
    with pytest.raises(InterruptedError):
        go(tmp_path / "run", stop_after=3)
    (tmp_path / "run.partial" / "labels").mkdir()
    (tmp_path / "run.partial" / "labels" / "entropy").write_text("a file")
    with pytest.raises(OSError, match=r"cannot write pseudo-labels to .*labels/entropy: .*and the run continues"):
        go(tmp_path / "run")


def test_a_lost_network_is_named(tmp_path: Path) -> None:
    with pytest.raises(InterruptedError):
        go(tmp_path / "run", stop_after=3)
    (tmp_path / "run.partial" / "stage1" / "network-0002.safetensors").unlink()
    with pytest.raises(ValueError, match=r"network-0002\.safetensors cannot be read: .*delete .*stage1 to train that"):
        go(tmp_path / "run")


# --- plans --------------------------------------------------------------------------------------------


def task(r: Recipe, labeled: int = 4, unlabeled: int = 12, data: object = DATA) -> Fit:
    split = Split("x", tuple(f"l{i}" for i in range(labeled)), tuple(f"u{i}" for i in range(unlabeled)), "file")
    return Fit(r, data, split, Path("run"), {})


def test_labeling_again_leaves_what_is_there(tmp_path: Path) -> None:
    def flat(value: int) -> Callable[[torch.Tensor], tuple[torch.Tensor, torch.Tensor]]:
        return lambda x: (torch.full((len(x), 32, 32), value), torch.zeros(len(x), 32, 32))

    half, other = DATA.train[:5], DATA.train[5:9]
    pseudo_labels.label_images(DATA, half, tmp_path, flat(1), batch=2)
    before = times(tmp_path, "*/*.png"), {p: p.read_bytes() for p in tmp_path.glob("*/*.png")}
    pseudo_labels.label_images(DATA, (*half, *other), tmp_path, flat(2), batch=4)
    assert before[0].items() <= times(tmp_path, "*/*.png").items()
    assert all(p.read_bytes() == content for p, content in before[1].items())
    data = pseudo_labels.PseudoLabeled(DATA, tmp_path)
    assert [int(data.given(key)[0].unique()) for key in (*half, *other)] == [1] * 5 + [2] * 4


def test_processes_share_the_images(tmp_path: Path) -> None:
    seen: list[int] = []

    def predict(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        seen.append(len(x))
        return torch.zeros(len(x), 32, 32), torch.zeros(len(x), 32, 32)

    for rank in range(2):
        pseudo_labels.label_images(DATA, DATA.train[:7], tmp_path, predict, batch=2, rank=rank, world=2)
    assert seen == [2, 2, 2, 1] and len(times(tmp_path, "masks/*.png")) == 7


def test_images_of_different_size_do_not_share_a_batch(tmp_path: Path) -> None:
    class Mixed(Blobs):
        def image(self, key: str) -> torch.Tensor:
            return super().image(key)[:, : 20 if key.endswith("1") else 32]

    shapes = []

    def predict(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        shapes.append(tuple(x.shape[::2]))
        return torch.zeros(len(x), *x.shape[-2:]), torch.zeros(len(x), *x.shape[-2:])

    pseudo_labels.label_images(Mixed(), DATA.train[:4], tmp_path, predict, batch=4)
    assert shapes == [(3, 32), (1, 20)]
    assert pseudo_labels.PseudoLabeled(Mixed(), tmp_path).given("train-001")[0].shape == (20, 32)


def test_steps_of_the_published_trainings() -> None:
    voc = recipe("stpp", "voc", "1_4", "paper")
    plan = stages.plan(task(voc, 2645, 7937))
    assert [s.recipe.optimization.epochs for s in plan] == [80, 80, 80]
    first = plan[0].recipe.optimization
    assert (first.batch, first.epoch_steps, plan[0].keep.epochs) == (16, 165, (26, 53, 80))
    assert plan[1].recipe.optimization.batch == 8 and plan[1].recipe.optimization.epoch_steps is None
    assert stages.plan(task(voc, 92, 10490))[0].recipe.optimization.epoch_steps == 2 * 92 // 16, (
        "short lists count twice"
    )
    city = recipe("stpp", "cityscapes", "1_8", "paper")
    assert stages.plan(task(city, 372, 2603))[0].keep.epochs == (80, 160, 240)


def test_the_stages_of_a_short_run_have_half_the_steps() -> None:
    tiny = recipe("stpp")
    found = [s.recipe.optimization for s in stages.plan(task(tiny))]
    assert [(o.epochs * (o.epoch_steps or 0), o.batch) for o in found] == [(800, 32), (800, 16), (1600, 16)]
    assert tiny[STPPOptions].scales == (0.8, 1.0, 1.25)


def test_images_are_mirrored_only_where_a_mirrored_image_is_valid() -> None:
    for data, valid in ((DATA, True), (Digits(1, 1), False)):
        assert all(s.label.keywords["flip"] is valid for s in stages.plan(task(smoke(), data=data))[1:])


def test_self_training_without_selection_has_two_stages(tmp_path: Path) -> None:
    run = go(tmp_path / "run", smoke(select=False, teacher="best_val", labeled_by="teacher"))
    assert [s["name"] for s in run.record["stages"]] == ["stage1", "stage2"] and "selection" not in run.record
    found = run.record["stages"][1]["labels"]
    assert (found["images"], found["epoch"], found["network"]) == (12, "best", "teacher")
    assert run.metrics.loss_unlabeled.gt(0).all() and not (run.folder / "labels/selection.json").exists()


def test_one_unlabeled_image_cannot_be_halved(tmp_path: Path) -> None:
    split = Split("x", DATA.train[:4], DATA.train[4:5], "file")
    with pytest.raises(ValueError, match="ST\\+\\+ needs two unlabeled images to choose from; split x has fewer"):
        train(smoke(), DATA, split, tmp_path / "run", progress=False)
    assert not list(tmp_path.iterdir())


def test_where_everything_is_labeled_the_labeled_images_also_serve_as_unlabeled(tmp_path: Path) -> None:
    whole = Split("full", DATA.train[:6], (), "file")
    r = smoke(select=False).changed("optimization.epochs=1 optimization.epoch_steps=1")
    run = train(r, DATA, whole, tmp_path / "run", progress=False)
    assert run.record["stages"][1]["labels"]["images"] == 6 and run.record["split"]["unlabeled"] == 0


def test_the_best_network_is_the_first_of_the_highest_score(tmp_path: Path) -> None:
    torch.manual_seed(0)
    host, keep = Supervised(student()), Keep("student", (2,), best=True)
    rows: list[dict[str, float]] = []
    for epoch, score in enumerate((0.3, 0.5, 0.5, 0.4), 1):
        torch.nn.init.constant_(host.student.classify.bias, epoch)
        rows.append({"epoch": epoch, "miou_student": score, "miou_teacher": -score})
        keep(tmp_path, host, rows)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["network-0002.safetensors", "network-best.safetensors"]
    assert keep.last == "best" and Keep(epochs=(1, 3)).last == 3
    assert (keep.read(tmp_path, "best", Supervised(student())).classify.bias == 2).all()


def test_a_recipe_survives_its_record() -> None:
    r = recipe("stpp").having(STPPOptions(epochs=(6, 4), scales=(1.0,), cutout=0.0))
    again = Recipe.from_dict(r.as_dict())
    assert again[STPPOptions] == r[STPPOptions] and again.sha256 == r.sha256
