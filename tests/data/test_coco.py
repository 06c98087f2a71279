"""COCO: 81 classes from either annotation, and its images as unlabeled ones of another set."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import trees

from semiseg.data.cached import Cached
from semiseg.data.inspect.report import inspect
from semiseg.data.open import open_data, open_split
from semiseg.data.sets.coco import CLASS_OF, CLASSES, COCO, write_masks
from semiseg.data.sets.digits import Digits
from semiseg.data.sets.voc import VOC
from semiseg.data.splits import split_from_files
from semiseg.data.unlabeled import WithUnlabeled

TRAIN, VAL = ("000000000009", "000000000025", "000000000030"), ("000000000139",)
PERSON, DOG, TOOTHBRUSH, GRASS = 1, 18, 90, 193


def instances(part: str, ids: tuple[str, ...]) -> dict:
    """A person of 20 x 40 pixels on the left, a dog of 10 x 10 on it, a crowd of toothbrushes in the last 2 columns."""
    found = []
    for i, key in enumerate(ids):
        crowd = {"counts": [38 * 40, 2 * 40], "size": [40, 40]}
        shapes = [
            (DOG, [[5, 5, 14, 5, 14, 14, 5, 14]], 100), (PERSON, [[0, 0, 19, 0, 19, 39, 0, 39]], 800),
            (TOOTHBRUSH, crowd, 80),
        ]  # fmt: skip
        for j, (category, shape, area) in enumerate(shapes):
            found.append({"id": 10 * i + j, "image_id": int(key), "category_id": category, "area": area,
                          "segmentation": shape, "iscrowd": int(isinstance(shape, dict))})  # fmt: skip
    images = [{"id": int(key), "file_name": f"{key}.jpg", "height": 40, "width": 40} for key in ids]
    return {"images": images, "annotations": found}


def panoptic(root: Path, part: str, ids: tuple[str, ...]) -> dict:
    """Stripes: void, a person, another one, grass; segment numbers beyond one byte."""
    numbers = np.array([0, 3_000_000, 70_000, 5], np.uint32)[trees.blocks([0, 1, 2, 3])]
    colors = np.stack([numbers & 255, numbers >> 8 & 255, numbers >> 16 & 255], -1).astype(np.uint8)
    segments = [(3_000_000, PERSON), (70_000, PERSON), (5, GRASS)]
    for key in ids:
        trees.save(root / f"annotations/panoptic_{part}/{key}.png", colors)
    return {
        "images": [{"id": int(key), "file_name": f"{key}.jpg"} for key in ids],
        "annotations": [{"image_id": int(key), "file_name": f"{key}.png",
                         "segments_info": [{"id": n, "category_id": c} for n, c in segments]} for key in ids],
    }  # fmt: skip


@pytest.fixture
def root(tmp_path: Path) -> Path:
    for part, ids in (("train2017", TRAIN), ("val2017", VAL)):
        for seed, key in enumerate(ids):
            trees.save(tmp_path / part / f"{key}.jpg", trees.pixels(seed + len(part)))
        trees.write(tmp_path / f"annotations/instances_{part}.json", [json.dumps(instances(part, ids))])
    return tmp_path


def test_categories_are_numbered_without_gaps() -> None:
    assert len(CLASSES) == 81 and len(CLASS_OF) == 80
    assert [CLASSES[CLASS_OF[c]] for c in (PERSON, DOG, 44, TOOTHBRUSH)] == ["person", "dog", "bottle", "toothbrush"]


def test_masks_from_instances(root: Path) -> None:
    assert write_masks(root, "train2017") == 3 and write_masks(root, "val2017") == 1
    data = COCO(root)
    assert (data.train, data.val, len(data.classes)) == (TRAIN, VAL, 81)
    mask = data.mask(TRAIN[1])
    assert mask is not None
    assert mask[8, [0, 7, 18, 25, 38, 39]].tolist() == [1, 17, 1, 0, 80, 80], "the dog lies on the person"
    assert int((mask == 17).sum()) == 100 and int((mask == 80).sum()) == 80
    split = split_from_files(
        trees.write(root / "l.txt", [f"train2017/{TRAIN[2]}.jpg masks/{TRAIN[2]}.png"]), None, TRAIN
    )
    assert split.labeled == (TRAIN[2],)
    assert COCO(root, train_list="l.txt").train == (TRAIN[2],)
    assert inspect(data, open_split(data, "1_2", 0)).ok


def test_masks_from_panoptic_annotation(root: Path) -> None:
    for part, ids in (("train2017", TRAIN), ("val2017", VAL)):
        trees.write(root / f"annotations/panoptic_{part}.json", [json.dumps(panoptic(root, part, ids))])
        write_masks(root, part)
    mask = COCO(root).mask(TRAIN[0])
    assert mask is not None and mask[0, [0, 15, 25, 39]].tolist() == [255, 1, 1, 0]


def test_masks_already_there_are_kept(root: Path) -> None:
    write_masks(root, "train2017")
    trees.save(root / f"masks/{TRAIN[0]}.png", trees.blocks([5]))
    (root / f"masks/{TRAIN[1]}.png").unlink()
    assert write_masks(root, "train2017") == 1
    write_masks(root, "val2017")
    assert COCO(root).mask(TRAIN[0]).unique().tolist() == [5]


def test_unlabeled_images_need_no_mask(root: Path) -> None:
    write_masks(root, "val2017")
    data = COCO(root)
    assert data.masked == () and data.mask(TRAIN[0]) is None
    with pytest.raises(ValueError, match="no training image has a mask, so none can be labeled"):
        open_split(data, "full", 0)


def _annotations(root: Path, change: Callable[[dict], object]) -> None:
    content = instances("train2017", TRAIN)
    change(content)
    trees.write(root / "annotations/instances_train2017.json", [json.dumps(content)])


@pytest.mark.parametrize(
    ("spoil", "error", "message"),
    [
        (lambda r: (r / "annotations/instances_train2017.json").unlink(), FileNotFoundError,
         "instances_train2017.json does not exist; download"),
        (lambda r: trees.write(r / "annotations/instances_train2017.json", ["{"]), ValueError, "does not hold annota"),
        (lambda r: trees.write(r / "annotations/instances_train2017.json", ["[]"]), ValueError, "does not hold annota"),
        (lambda r: _annotations(r, lambda c: c["annotations"][4].update(category_id=12)), ValueError,
         "annotation 11: category 12 is none of COCO's 80 things"),
        (lambda r: _annotations(r, lambda c: c["annotations"][2]["segmentation"].update(counts=[7])), ValueError,
         "annotation 2: run lengths must be a list that sums to 40 x 40 pixels"),
    ],
)  # fmt: skip
def test_bad_annotations(root: Path, spoil: Callable, error: type, message: str) -> None:
    spoil(root)
    with pytest.raises(error, match=message):
        write_masks(root, "train2017")


def test_bad_trees(root: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"masks does not exist; make it .*semiseg.data.sets.coco.write_masks"):
        COCO(root)
    write_masks(root, "train2017")
    with pytest.raises(FileNotFoundError, match=r"1 validation images .* have no mask, first: 000000000139"):
        COCO(root)


@pytest.fixture
def both(root: Path) -> tuple[Path, Path]:
    """VOC's layout, and COCO's."""
    voc = trees.voc(root / "voc", ["a", "b", "c"], ["v"])
    (voc / "ImageSets/Segmentation/train.txt").rename(voc / "ImageSets/Segmentation/train_aug.txt")
    return voc, root


def test_images_from_elsewhere_are_unlabeled(both: tuple[Path, Path]) -> None:
    voc, coco = both
    base = VOC(voc)
    data = open_data("voc", str(voc), unlabeled=str(coco / "train2017"))
    split = open_split(data, "full", 0)
    assert set(split.labeled) == {"a", "b", "c"} and split.unlabeled == tuple(f"train2017/{key}" for key in TRAIN)
    assert data.mask(split.unlabeled[0]) is None and data.image(split.unlabeled[0]).shape == (3, 40, 40)
    assert data.mask("a").equal(base.mask("a")) and data.image("a").equal(base.image("a"))
    assert (data.classes, data.val, data.size("a")) == (base.classes, base.val, (40, 40)) and data.sha256 != base.sha256
    assert open_split(Cached(data), "full", 0).sha256 == split.sha256
    assert {f.what for f in inspect(data, split).of("error")} == set()
    assert data.files(split.unlabeled[0]) == (coco / f"train2017/{TRAIN[0]}.jpg", None)


def test_what_cannot_be_added(both: tuple[Path, Path]) -> None:
    voc, coco = both
    (coco / "empty").mkdir()
    with pytest.raises(FileNotFoundError, match=r"no images below .*empty"):
        WithUnlabeled(VOC(voc), coco / "empty")
    with pytest.raises(FileNotFoundError, match="nowhere does not exist"):
        WithUnlabeled(VOC(voc), coco / "nowhere")
    with pytest.raises(ValueError, match="digits is no data set of files"):
        WithUnlabeled(Digits(2, 1), coco / "train2017")
    more = WithUnlabeled(VOC(voc), coco / "train2017")
    with pytest.raises(ValueError, match=r"3 ids of .*train2017 are also in voc, the first: train2017/000000000009"):
        WithUnlabeled(more, coco / "train2017")
