"""The loop: it learns, every phase is active, a resumed run is the same run, and bad input loses nothing."""

import json
import os
from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest
import torch
from safetensors.torch import load_file
from toys import Blobs

from semiseg.build import build
from semiseg.data.splits import Split, seeded_split
from semiseg.data.transforms import WeakView
from semiseg.recipe import Recipe, from_toml, recipe
from semiseg.registry import methods
from semiseg.runs import Run
from semiseg.training import loop
from semiseg.training.checkpoint import checkpoints, load_state, save_checkpoint
from semiseg.training.loop import make_optimizer, weak_view
from semiseg.training.run import train

DATA = Blobs()
SPLIT = seeded_split(DATA.train, "1_4", 0)
IN_STAGES = ("stpp", "mask2former")


def smoke(method: str = "ddfp", seed: int = 0) -> Recipe:
    return recipe(method, "digits", "1_4", "smoke", seed)


def go(folder: Path, r: Recipe, **options) -> Run:
    return train(r, DATA, SPLIT, folder, progress=False, **options)


@pytest.fixture(scope="module")
def finished(tmp_path_factory) -> Run:
    return go(tmp_path_factory.mktemp("runs") / "ddfp", smoke())


def test_the_record_says_what_was_done(finished: Run) -> None:
    r = finished.record
    assert r["recipe"] == smoke().as_dict() and r["recipe_sha256"] == smoke().sha256
    assert r["split"] == {
        "name": "1_4", "family": "seeded", "sha256": SPLIT.sha256, "labeled": 4, "unlabeled": 12,
        "classes_without_label": r["split"]["classes_without_label"],
    }  # fmt: skip
    assert r["data"]["sha256"] == DATA.sha256 and r["last"]["epoch"] == 4 and r["last"]["step"] == 8
    for who in ("student", "teacher"):
        assert len(r["last"][who]["iou"]) == len(DATA.classes)
        assert sum(map(sum, r["last"][who]["confusion"])) == len(DATA.val) * 32 * 32
        assert r["best"][who]["miou"] >= r["last"][who]["miou"] - 1e-9
    assert r["environment"]["packages"]["torch"] and r["peak_memory_mib"]["resident"] > 0
    assert (finished.folder / "labeled.txt").read_text().split() == list(SPLIT.labeled)
    assert {p.name for p in finished.folder.iterdir()} == {
        "run.json", "recipe.toml", "metrics.csv", "model.safetensors", "labeled.txt", "unlabeled.txt",
    }  # fmt: skip
    assert from_toml((finished.folder / "recipe.toml").read_text()) == smoke()


def test_every_phase_was_active(finished: Run) -> None:
    m = finished.metrics.set_index("epoch")
    assert m.loss_unlabeled.isna().tolist() == [True, False, False, False]
    assert m.loss_perturbed.isna().tolist() == [True, True, False, False]
    assert (m.loss_perturbed.dropna() > 0).all() and (m.flipped.dropna() > 0).all() and m.flow_nll.notna().sum() == 3
    assert (m.kept.dropna() == 1).all(), "the smoke recipe keeps every pixel"
    assert m.pseudo_label_accuracy.dropna().between(0, 1).all()
    assert m.miou_teacher.notna().tolist() == [False, True, False, True]
    assert m.miou_teacher.iloc[-1] == pytest.approx(finished.miou, rel=1e-5)


def test_exported_weights_are_the_teacher_and_the_flow(finished: Run) -> None:
    names = load_file(finished.folder / "model.safetensors").keys()
    assert any(n.startswith("teacher.model.classify") for n in names) and any(".flow." in n for n in names)
    assert not any(n.startswith("student") for n in names)


def test_a_cache_changes_nothing_but_what_is_read(tmp_path: Path) -> None:
    class Counted(Blobs):
        reads = 0

        def image(self, key: str) -> torch.Tensor:
            Counted.reads += 1
            return super().image(key)

    r = smoke("mean_teacher")
    plain = go(tmp_path / "plain", r)
    cached = train(r, Counted(), SPLIT, tmp_path / "cached", progress=False, cache=1.0)
    assert Counted.reads == len(DATA.train) + len(DATA.val)
    pd.testing.assert_frame_equal(plain.metrics.drop(columns="seconds"), cached.metrics.drop(columns="seconds"))


@pytest.mark.parametrize("method", tuple(methods()))
def test_a_resumed_run_is_bit_equal(method: str, tmp_path: Path, finished: Run) -> None:
    r = smoke(method)
    whole = finished if method == "ddfp" else go(tmp_path / "whole", r)
    for pause in (1, 3):
        with pytest.raises(InterruptedError, match="paused after"):
            go(tmp_path / "parts", r, stop_after=pause)
        part = tmp_path / "parts.partial"
        found = [c for folder in (part, *part.glob("stage*")) for c in checkpoints(folder)]
        assert len(found) == 1 or (method in IN_STAGES and (part / "stage1" / "run.json").is_file())
        assert not (tmp_path / "parts").exists()
    parts = go(tmp_path / "parts", r)
    a, b = (load_file(run.folder / "model.safetensors") for run in (whole, parts))
    assert a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)
    pd.testing.assert_frame_equal(whole.metrics.drop(columns="seconds"), parts.metrics.drop(columns="seconds"))
    assert not (tmp_path / "parts.partial").exists()


def test_a_run_on_kept_images_is_the_same_and_says_so(tmp_path: Path, finished: Run) -> None:
    with pytest.raises(InterruptedError, match="paused after"):
        go(tmp_path / "kept", smoke(), stop_after=2)
    kept = go(tmp_path / "kept", smoke(), resident=True, workers=1)
    pd.testing.assert_frame_equal(finished.metrics.drop(columns="seconds"), kept.metrics.drop(columns="seconds"))
    assert [each.record["environment"]["resident"] for each in (finished, kept)] == [None, "cpu"]
    assert "resident" not in kept.record


def test_two_seeds_differ_and_one_seed_repeats(tmp_path: Path, finished: Run) -> None:
    again, other = go(tmp_path / "again", smoke()), go(tmp_path / "other", smoke(seed=1))
    curves = [r.metrics.loss_labeled.tolist() for r in (finished, again, other)]
    assert curves[0] == curves[1] != curves[2]


@pytest.mark.parametrize("longest", [None, 1e-12])
def test_the_gradient_of_all_parameters_together_is_clipped(tmp_path: Path, longest: float | None) -> None:
    r = smoke("supervised")
    o = replace(r.optimization, optimizer="sgd", weight_decay=0.0, epochs=1, epoch_steps=2, clip_norm=longest)
    after = load_file(go(tmp_path / "run", r.having(o)).folder / "model.safetensors")
    torch.manual_seed(r.seed)
    before = dict(build(r, len(DATA.classes)).teacher.model.named_parameters())
    moved = max(float((after[f"teacher.model.{k}"] - v).detach().abs().max()) for k, v in before.items())
    assert (moved < 1e-8) == (longest is not None)


def test_supervised_training_learns(tmp_path: Path) -> None:
    r = smoke("supervised").changed("optimization.epochs=2 optimization.epoch_steps=40 consistency.decay=0.5")
    run = go(tmp_path / "long", r)
    assert run.metrics.loss_labeled.iloc[-1] < 0.6 * run.metrics.loss_labeled.iloc[0]
    assert run.miou > 0.4, "guessing the background alone gives 0.19"


def test_a_checkpoint_of_another_recipe_is_refused_and_kept(tmp_path: Path) -> None:
    with pytest.raises(InterruptedError):
        go(tmp_path / "run", smoke(), stop_after=1)
    before = checkpoints(tmp_path / "run.partial")
    other = smoke().changed({"optimization.lr": 1.0})
    with pytest.raises(ValueError, match=r"unfinished run that differs in recipe\.optimization\.lr: 1\.0 != 0\.00"):
        go(tmp_path / "run", other)
    assert checkpoints(tmp_path / "run.partial") == before


def test_a_run_that_never_came_to_an_epoch_does_not_block_another_recipe(tmp_path: Path) -> None:
    lost = smoke().changed("network.backbone=mobilenet_v2 network.weights=lost.pth")
    with pytest.raises(FileNotFoundError, match=r"no weights at lost\.pth"):
        go(tmp_path / "run", lost)
    assert go(tmp_path / "run", smoke()).record["recipe"]["network"]["backbone"] == "tiny"


def test_a_damaged_checkpoint_names_the_file(tmp_path: Path) -> None:
    with pytest.raises(InterruptedError):
        go(tmp_path / "run", smoke(), stop_after=1)
    (checkpoints(tmp_path / "run.partial")[0] / "state.pt").write_bytes(b"half")
    with pytest.raises(ValueError, match=r"state\.pt cannot be read: .*delete .*checkpoint-0000002"):
        go(tmp_path / "run", smoke())


def test_an_older_run_stays_until_the_new_one_is_done(tmp_path: Path) -> None:
    first = go(tmp_path / "run", smoke("supervised"))
    with pytest.raises(InterruptedError):
        go(tmp_path / "run", smoke("supervised", seed=3), stop_after=2, overwrite=True)
    assert Run.read(tmp_path / "run").record == first.record
    assert go(tmp_path / "run", smoke("supervised", seed=3), overwrite=True).record["recipe"]["seed"] == 3


def test_a_run_interrupted_while_it_moves_is_not_trained_again(tmp_path: Path, monkeypatch) -> None:
    def fail(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr(Path, "rename", fail)
        go(tmp_path / "run", smoke("supervised"))
    assert not (tmp_path / "run").exists()
    monkeypatch.setattr("semiseg.training.run.fit", fail)
    assert go(tmp_path / "run", smoke("supervised")).record["last"]["epoch"] == 4


def test_bad_data_is_found_before_anything_is_written(tmp_path: Path) -> None:
    class Wrong(Blobs):
        def image(self, key: str) -> torch.Tensor:
            return torch.zeros(3, 32, 32, dtype=torch.uint8)

        def mask(self, key: str) -> torch.Tensor:
            return torch.full((32, 32), 77, dtype=torch.uint8)

    with pytest.raises(ValueError, match=r"train-\d+.*77"):
        train(smoke(), Wrong(), SPLIT, tmp_path / "run", progress=False)
    with pytest.raises(ValueError, match="not training images: stranger"):
        train(smoke(), DATA, Split("x", ("stranger",), (), "file"), tmp_path / "run", progress=False)
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(PermissionError, match=r"cannot write to .*run\.partial: .*; choose another folder"):
        go(tmp_path / "file" / "run", smoke())


def test_two_processes_do_not_share_a_folder(tmp_path: Path) -> None:
    from semiseg.training.run import _claimed

    with _claimed(tmp_path / "run.partial"), pytest.raises(ValueError, match="another process is training"):
        go(tmp_path / "run", smoke())


def test_the_optimizer_holds_student_parameters_once_and_nothing_of_the_flow() -> None:
    host = build(smoke(), 4)
    groups = make_optimizer(host, smoke().optimization).param_groups
    held = [id(p) for g in groups for p in g["params"]]
    assert sorted(held) == sorted(id(p) for p in host.student.parameters())
    assert len(groups[0]["params"]) == len(list(host.student.backbone.parameters()))


def test_checkpoints_are_whole_or_absent(tmp_path: Path, monkeypatch) -> None:
    module = torch.nn.Linear(2, 2)
    save_checkpoint(tmp_path, 1, module, {"note": "first"})

    def fail(*_: object, **__: object) -> None:
        raise OSError("no space left on device")

    monkeypatch.setattr(torch, "save", fail)
    with pytest.raises(OSError, match="no space"):
        save_checkpoint(tmp_path, 2, module, {})
    (found,) = checkpoints(tmp_path)
    assert load_state(found)["note"] == "first"


def test_a_record_must_be_one(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="no finished run"):
        Run.read(tmp_path)
    (tmp_path / "run.json").write_text(json.dumps({"recipe": {}}))
    with pytest.raises(ValueError, match="is not a run record"):
        Run.read(tmp_path)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs processes that share a store")
def test_two_processes_train_one_model(tmp_path: Path) -> None:
    run = go(tmp_path / "two", smoke(), devices=2)
    assert run.metrics.loss_perturbed.dropna().gt(0).all() and run.record["last"]["step"] == 8


def test_biases_and_normalizations_do_not_decay_where_asked() -> None:
    made = recipe("supervised", "digits", "1_8", "smoke")
    o = replace(made.optimization, optimizer="sgd", lr=0.1, head_lr_factor=3.0, weight_decay=0.01)
    host = build(made, 4)
    usual, spared = make_optimizer(host, o), make_optimizer(host, replace(o, decay_norms=False))
    assert [g["weight_decay"] for g in usual.param_groups] == [0.01, 0.01]
    assert [g["weight_decay"] for g in spared.param_groups] == [0.01, 0.01, 0.0, 0.0]
    assert [g["lr"] for g in spared.param_groups] == pytest.approx([0.1, 0.3, 0.1, 0.3])
    held = [{id(p) for p in group["params"]} for group in spared.param_groups]
    assert [held[0] | held[2], held[1] | held[3]] == [{id(p) for p in g["params"]} for g in usual.param_groups]
    for name, p in host.student.named_parameters():
        of_norm = p.dim() == 1
        assert of_norm == name.endswith("bias") or "weight" in name, name
        assert (id(p) in held[2] | held[3]) == of_norm
        p.grad = torch.zeros_like(p)
    before = {name: p.clone() for name, p in host.student.named_parameters()}
    spared.step()
    moved = {name for name, p in host.student.named_parameters() if not torch.equal(p, before[name])}
    assert moved == {name for name, p in before.items() if p.dim() > 1}


def test_the_geometry_of_a_recipe_reaches_its_crops(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = {
        "optimization.resize_base": 40, "optimization.resize_law": "halves", "optimization.scales": (0.5, 1.0),
        "optimization.padding": "center", "optimization.padding_color": "mean",
    }  # fmt: skip
    made = recipe("supervised", "digits", "1_4", "smoke").changed(asked)
    view = weak_view(made.optimization)(32, made.optimization.resize, mirror=False)
    assert (view.base, view.law, view.scales) == (40, "halves", (0.5, 1.0))
    assert (view.padding, view.color) == ("center", (124, 116, 104))
    plain = weak_view(recipe("supervised").optimization)(32, mirror=True)
    assert vars(plain) == vars(WeakView(32, mirror=True))
    seen: list[object] = []
    monkeypatch.setattr(loop, "training_batches", lambda *_, **given: seen.append(given["weak"]) or 1 / 0)
    data = Blobs()
    with pytest.raises(ZeroDivisionError):
        train(made, data, seeded_split(data.train, "1_4", 0), tmp_path / "run", progress=False)
    assert vars(seen[0](32, mirror=False)) == vars(weak_view(made.optimization)(32, mirror=False))
