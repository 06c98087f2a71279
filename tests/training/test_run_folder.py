"""Where a run goes: nothing of a user's is ever replaced, and every run has a place of its own."""

import hashlib
from dataclasses import replace
from pathlib import Path

import pytest
import trees
from toys import Blobs, command

from semiseg.data.sets.folder import Folder
from semiseg.data.shrunk import Shrunk
from semiseg.data.splits import seeded_split
from semiseg.data.unlabeled import WithUnlabeled
from semiseg.inference.export import export_model
from semiseg.recipe import recipe
from semiseg.runs import Run
from semiseg.training.folder import run_name
from semiseg.training.run import train

DATA = Blobs()
SPLIT = seeded_split(DATA.train, "1_4", 0)


def content(folder: Path) -> dict[str, str]:
    """SHA256 of every file below a folder."""
    files = (p for p in sorted(folder.rglob("*")) if p.is_file())
    return {str(p.relative_to(folder)): hashlib.sha256(p.read_bytes()).hexdigest() for p in files}


def mine(root: Path) -> Path:
    """A folder of images with masks for training and validation."""
    for part in ("", "val/"):
        for key in range(4):
            trees.save(root / f"{part}images/{key}.png", trees.pixels(key))
            trees.save(root / f"{part}masks/{key}.png", trees.blocks([0, 1]))
    return root


@pytest.mark.parametrize("where", [".", "images", "images/deep", "runs/local/new", ".."])
def test_a_run_in_above_or_at_the_images_is_refused_and_they_stay(where: str, tmp_path: Path) -> None:
    root = mine(tmp_path / "data" / "mine")
    before = content(tmp_path)
    for more in ((), ("--overwrite",)):
        result = command(
            "train", "--data", "folder", "--root", root, "--scale", "smoke", "--method", "supervised", "--set",
            "network.backbone=tiny", "--no-progress", "--out", root / where, *more,
        )  # fmt: skip
        assert isinstance(result.exception, ValueError) and "would mix with the images" in str(result.exception)
    assert content(tmp_path) == before


def test_further_unlabeled_images_are_guarded_too(tmp_path: Path) -> None:
    trees.save(tmp_path / "more/1.jpg", trees.pixels(1))
    data = Shrunk(WithUnlabeled(Folder(mine(tmp_path / "mine")), tmp_path / "more"), 32)
    before = content(tmp_path)
    split = seeded_split(data.train, "full", 0, data.masked)
    with pytest.raises(ValueError, match="would mix with the images"):
        train(recipe("supervised", "folder", "full", "smoke"), data, split, tmp_path / "more/run", progress=False)
    assert content(tmp_path) == before


@pytest.mark.parametrize("overwrite", [False, True])
@pytest.mark.parametrize("taken", ["run/thesis.tex", "run.partial/thesis.tex", "run"])
def test_a_folder_with_other_files_is_refused(taken: str, overwrite: bool, tmp_path: Path) -> None:
    (tmp_path / taken).parent.mkdir(exist_ok=True)
    (tmp_path / taken).write_text("years of work")
    with pytest.raises(ValueError, match=r"files that are of no run, as thesis\.tex|is a file"):
        train(recipe("supervised", "digits", "1_4", "smoke"), DATA, SPLIT, tmp_path / "run", overwrite=overwrite)
    assert content(tmp_path) == {taken: hashlib.sha256(b"years of work").hexdigest()}


def test_a_finished_run_is_replaced_when_asked_and_only_then(tmp_path: Path) -> None:
    r = recipe("supervised", "digits", "1_4", "smoke")
    out = tmp_path / "run"
    train(r, DATA, SPLIT, out, progress=False)
    before = content(tmp_path)
    with pytest.raises(ValueError, match="holds a finished run"):
        train(replace(r, seed=1), DATA, SPLIT, out, progress=False)
    assert content(tmp_path) == before
    again = train(replace(r, seed=1), DATA, SPLIT, out, progress=False, overwrite=True)
    assert again.record["recipe"]["seed"] == 1 and [p.name for p in tmp_path.iterdir()] == ["run"]

    (out / "notes.txt").write_text("mine")
    before = content(tmp_path)
    with pytest.raises(ValueError, match=r"holds notes\.txt beside a finished run"):
        train(r, DATA, SPLIT, out, progress=False, overwrite=True)
    assert content(tmp_path) == before


def test_what_came_beside_a_run_while_another_was_made_is_moved_not_removed(tmp_path: Path) -> None:
    from semiseg.training.folder import move_into_place

    for name in ("new", "run"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "run.json").write_text(name)
    (tmp_path / "run/late.txt").write_text("mine")
    move_into_place(tmp_path / "new", tmp_path / "run")
    texts = [p.read_text() for p in sorted(tmp_path.rglob("*")) if p.is_file()]
    assert (tmp_path / "run/run.json").read_text() == "new" and sorted(texts) == ["mine", "new"]


def test_an_export_removes_nothing_but_an_earlier_export(run: Run, tmp_path: Path) -> None:
    out = export_model(run, tmp_path / "model")
    export_model(run, out, overwrite=True)
    (out / "paper.tex").write_text("mine")
    with pytest.raises(ValueError, match=r"holds paper\.tex beside an earlier export"):
        export_model(run, out, overwrite=True)
    (tmp_path / "model.partial").mkdir()
    (tmp_path / "model.partial/keep").write_text("mine")
    (out / "paper.tex").unlink()
    export_model(run, out, overwrite=True)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["model", "model.partial"]
    assert (tmp_path / "model.partial/keep").read_text() == "mine"


def test_a_name_says_what_makes_a_run_different(tmp_path: Path) -> None:
    usual = recipe("ddfp", "digits", "1_4", "smoke")
    other = usual.changed({"optimization.lr": 1.0})
    assert run_name(usual, DATA, SPLIT) == usual.name == "digits-smoke/ddfp-1_4-seed0"
    assert run_name(other, DATA, SPLIT) == f"{usual.name}-{other.sha256[:8]}"
    listed = replace(SPLIT, family="mine.txt")
    assert run_name(usual, DATA, listed) != usual.name, "a list by another is not the seeded partition"

    names = set()
    for number, ends in enumerate(("a", "b")):
        root = mine(tmp_path / ends)
        trees.save(root / f"images/{10 + number}.png", trees.pixels(number))
        data = Folder(root)
        for longest in (0, 32):
            seen = Shrunk(data, longest) if longest else data
            split = seeded_split(seen.train, "full", 0, data.masked)
            names.add(run_name(recipe("ddfp", "folder", "full", "smoke"), seen, split))
    assert len(names) == 4, "other images, or the same at another size, are another run"
