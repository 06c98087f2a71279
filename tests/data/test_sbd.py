"""VOC's blended training set: whose mask wins, which images are in, and an interrupted conversion."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import trees
from PIL import Image
from scipy.io import savemat

from semiseg.data.fetch.sbd import blended_masks, read_sbd
from semiseg.data.open import open_data, open_split
from semiseg.data.sets.voc import VOC, voc_palette
from semiseg.recipe import recipe
from semiseg.training.run import train


def mat(path: Path, ids: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    savemat(path, {"GTcls": {"Boundaries": np.zeros(20), "Segmentation": ids, "CategoriesPresent": [1]}})


@pytest.fixture
def folders(tmp_path: Path) -> tuple[Path, Path]:
    """VOC: a, b to train, v, w to validate.  SBD: a, c, d, e and v.  VOC has images of all of them."""
    voc, sbd = trees.voc(tmp_path / "VOC2012", ["b", "a"], ["v", "w"]), tmp_path / "benchmark_RELEASE" / "dataset"
    for i, key in enumerate("acdev"):
        mat(sbd / f"cls/{key}.mat", trees.blocks([0, 15]))
        trees.save(voc / f"JPEGImages/{key}.jpg", trees.pixels(50 + i))
    trees.write(sbd / "train.txt", ["a", "c", "d"]), trees.write(sbd / "val.txt", ["e", "v"])
    return sbd, voc


def masks(voc: Path) -> dict[str, list[int]]:
    found = {}
    for path in sorted((voc / "SegmentationClassAug").iterdir()):
        with Image.open(path) as mask:
            assert mask.mode in ("L", "P")
            found[path.name] = np.unique(np.asarray(mask)).tolist()
    return found


def test_own_masks_win_and_validation_images_never_train(folders: tuple[Path, Path]) -> None:
    sbd, voc = folders
    assert blended_masks(sbd.parents[1], voc) == 5
    own, theirs = [0, 8, 12, 255], [0, 15]
    assert masks(voc) == {
        "a.png": own, "b.png": own, "c.png": theirs, "d.png": theirs, "e.png": theirs, "v.png": own, "w.png": own,
    }  # fmt: skip
    data = VOC(voc)
    assert (data.train, data.val) == (("a", "b", "c", "d", "e"), ("v", "w"))
    assert data.mask("c")[0, [0, 39]].tolist() == [0, 15]
    with Image.open(voc / "SegmentationClassAug/c.png") as mask:
        assert mask.mode == "P" and tuple(mask.getpalette()[45:48]) == voc_palette(16)[15]
    classic = VOC(voc, train_list="train", masks="SegmentationClass")
    assert classic.train == ("b", "a")


def test_an_interrupted_conversion_goes_on(folders: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    sbd, voc = folders
    whole = (sbd / "cls/d.mat").read_bytes()
    (sbd / "cls/d.mat").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ValueError, match=r"d.mat does not hold GTcls.Segmentation of SBD"):
        blended_masks(sbd, voc)
    assert not (voc / "ImageSets/Segmentation/train_aug.txt").exists()
    assert set(masks(voc)) == {"a.png", "b.png", "c.png"}
    (sbd / "cls/d.mat").write_bytes(whole)
    read: list[str] = []
    monkeypatch.setattr("semiseg.data.fetch.sbd.read_sbd", lambda path: read.append(path.stem) or read_sbd(path))
    assert blended_masks(sbd, voc) == 5 and read == ["d", "e"]
    assert not list((voc / "SegmentationClassAug").glob("*.part"))


@pytest.mark.parametrize(
    ("spoil", "error", "message"),
    [
        (lambda s, v: shutil.rmtree(s / "cls"), FileNotFoundError, "no folder cls with SBD's .mat files in"),
        (lambda s, v: (s / "val.txt").unlink(), FileNotFoundError, "list file .*dataset.val.txt does not exist"),
        (lambda s, v: (s / "cls/d.mat").unlink(), FileNotFoundError,
         r"cls: 1 of 3 SBD masks are missing, the first: d"),
        (lambda s, v: (v / "JPEGImages/e.jpg").unlink(), FileNotFoundError,
         r"JPEGImages: 1 of 7 images are missing, the first: e"),
        (lambda s, v: (v / "SegmentationClass/w.png").unlink(), FileNotFoundError,
         r"SegmentationClass: 1 of 4 masks are missing, the first: w"),
        (lambda s, v: shutil.rmtree(v / "SegmentationClass"), FileNotFoundError, "SegmentationClass does not exist"),
        (lambda s, v: mat(s / "cls/c.mat", trees.blocks([0, 77])), ValueError, "c.mat holds values from 0 to 77; vali"),
        (lambda s, v: mat(s / "cls/c.mat", trees.blocks([0, 1], 20, 40)), ValueError,
         r"c.mat is 20 x 40 but .*c.jpg 40 x 40"),
    ],
)  # fmt: skip
def test_what_is_missing_or_broken_is_named(
    folders: tuple[Path, Path], spoil: Callable, error: type, message: str
) -> None:
    spoil(*folders)
    with pytest.raises(error, match=message):
        blended_masks(*folders)
    if error is FileNotFoundError:
        assert not (folders[1] / "SegmentationClassAug").exists(), "nothing is written"


def test_the_blended_set_trains(folders: tuple[Path, Path], tmp_path: Path) -> None:
    blended_masks(*folders)
    data = open_data("voc", str(folders[1]))
    run = train(recipe("mean_teacher", "voc", "1_2", "smoke"), data, open_split(data, "1_2", 0), tmp_path / "run",
                progress=False)  # fmt: skip
    assert (run.record["split"]["labeled"], run.record["split"]["unlabeled"]) == (2, 3)
