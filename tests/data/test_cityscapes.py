"""Cityscapes in the official layout: the 19 classes, names of published lists, large images."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import trees

from semiseg.data.inspect.report import inspect
from semiseg.data.open import open_data, open_split
from semiseg.data.sets.cityscapes import CLASSES, Cityscapes
from semiseg.data.splits import split_from_files

TRAIN = ("aachen_000000_000019", "aachen_000001_000019", "ulm_000000_000019", "ulm_000001_000019")
TRAIN_ID = {
    7: 0, 8: 1, 11: 2, 12: 3, 13: 4, 17: 5, 19: 6, 20: 7, 21: 8, 22: 9, 23: 10, 24: 11, 25: 12, 26: 13, 27: 14,
    28: 15, 31: 16, 32: 17, 33: 18,
}  # fmt: skip


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return trees.cityscapes(tmp_path)


def test_label_ids_become_19_classes_and_the_rest_is_ignored(root: Path) -> None:
    data = Cityscapes(root)
    assert (data.train, data.val, data.masked) == (TRAIN, ("lindau_000000_000019",), TRAIN)
    assert len(data.classes) == 19 and (data.classes[13], data.palette[13]) == ("car", (0, 0, 142))
    mask = data.mask("ulm_000001_000019")
    assert mask is not None and mask.shape == (32, 70)
    assert mask[0, ::2].tolist() == [*(TRAIN_ID.get(label, 255) for label in range(34)), 255]
    assert data.image("ulm_000001_000019").shape == (3, 32, 70)


def test_masks_of_training_ids_are_read_as_they_are(tmp_path: Path) -> None:
    mask = Cityscapes(trees.cityscapes(tmp_path, "labelTrainIds")).mask(TRAIN[0])
    assert mask is not None and mask.unique().tolist() == [*range(19), 255]


def test_published_lists_name_frames_or_paths(root: Path) -> None:
    data = Cityscapes(root)
    for lines in (
        ["leftImg8bit/train/ulm/ulm_000001_000019_leftImg8bit.png gtFine/train/ulm/ulm_000001_000019_gtFine.png"],
        ["/images/train/ulm_000001_000019_leftImg8bit.png\t/segmentation/train/ulm_000001_000019.png"],
        ["ulm_000001_000019"],
    ):
        split = split_from_files(trees.write(root / "labeled.txt", lines), None, data.train)
        assert split.labeled == ("ulm_000001_000019",) and split.unlabeled == TRAIN[:3]
    assert Cityscapes(root, train_list="labeled.txt").train == ("ulm_000001_000019",)


def test_unlabeled_frames_need_no_mask(root: Path) -> None:
    shutil.rmtree(root / "gtFine/train/ulm")
    trees.save(root / "leftImg8bit/train_extra/bonn/bonn_000000_000019_leftImg8bit.png", trees.pixels(5, 32, 70))
    data = Cityscapes(root, extra=True)
    assert data.masked == TRAIN[:2] and data.mask(TRAIN[2]) is None and data.train[-1] == "bonn_000000_000019"
    split = open_split(data, "full", 0)
    assert set(split.labeled) == set(TRAIN[:2]) and split.unlabeled == (*TRAIN[2:], "bonn_000000_000019")


def test_shrunk_images_keep_their_shape_and_their_labels(root: Path) -> None:
    data = open_data("cityscapes", str(root), longest=35)
    key = data.train[0]
    mask, whole = data.mask(key), Cityscapes(root).mask(key)
    assert data.image(key).shape == (3, 16, 35) and data.size(key) == (16, 35)
    assert mask.dtype == torch.uint8 and set(mask.unique().tolist()) <= set(whole.unique().tolist())
    assert data.sha256 != Cityscapes(root).sha256
    assert open_data("cityscapes", str(root), longest=70).image(key).equal(Cityscapes(root).image(key))
    with pytest.raises(ValueError, match="longest: 5 is not a whole number in the valid range, 16 or more"):
        open_data("cityscapes", str(root), longest=5)


def test_inspect_tells_the_truth(root: Path) -> None:
    data = Cityscapes(root)
    report = inspect(data, open_split(data, "full", 0))
    assert report.ok and report.classes["labeled, images"].to_dict() == {**dict.fromkeys(CLASSES, 4), "(ignored)": 4}
    trees.save(root / "gtFine/train/ulm/ulm_000001_000019_gtFine_labelIds.png", trees.blocks([7, 40], 32, 70))
    (finding,) = inspect(data, open_split(data, "full", 0)).of("error")
    assert finding.what == "1 mask with values that are no class"


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda r: (r / "leftImg8bit").rename(r / "x"), "holds no folder leftImg8bit; expected the layout of City"),
        (lambda r: shutil.rmtree(r / "leftImg8bit/val"), "folder .*val does not exist"),
        (lambda r: shutil.rmtree(r / "gtFine"), "folder .*gtFine.train does not exist"),
        (lambda r: [p.unlink() for p in r.glob("gtFine/*/*/*.png")], "no .*_gtFine_labelIds.png in .*gtFine_trainval"),
        (lambda r: [p.unlink() for p in r.glob("gtFine/val/*/*.png")], "1 validation images .* have no mask"),
        (lambda r: [p.unlink() for p in r.glob("leftImg8bit/train/*/*.png")], "no training images in"),
    ],
)
def test_bad_trees(root: Path, spoil: Callable, message: str) -> None:
    spoil(root)
    with pytest.raises(FileNotFoundError, match=message):
        Cityscapes(root)


def test_classes_cannot_be_chosen(root: Path) -> None:
    with pytest.raises(ValueError, match="classes can be chosen for data='voc' and named for data='folder' only"):
        open_data("cityscapes", str(root), "car")
