from __future__ import annotations

import hashlib
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from torch import Tensor

from semiseg.data.splits import (
    SPLITS,
    Split,
    first,
    missing_classes,
    read_list,
    seeded_split,
    split_from_files,
    write_lists,
)

TRAIN = tuple(f"img_{i:03d}" for i in range(100))


class Masks:
    """Enough of a data set for `missing_classes`."""

    name, mirror, sha256 = "masks", True, ""
    classes: tuple[str, ...] = ("background", "cat", "dog", "cow")
    palette: tuple[tuple[int, int, int], ...] = ((0, 0, 0),) * 4
    train: tuple[str, ...] = ("a", "b", "c")
    val: tuple[str, ...] = ()

    def image(self, key: str) -> Tensor:
        return torch.zeros(3, 2, 2, dtype=torch.uint8)

    def mask(self, key: str) -> Tensor | None:
        values = {"a": [0, 0, 1, 255], "b": [0, 3, 3, 3]}
        return torch.tensor(values[key], dtype=torch.uint8).reshape(2, 2) if key in values else None


def listed(folder: Path, name: str, text: str) -> Path:
    path = folder / name
    path.write_text(text, encoding="utf-8")
    return path


@pytest.mark.parametrize("seed", [0, 1])
def test_partitions_are_nested_disjoint_and_complete(seed: int) -> None:
    splits = [seeded_split(TRAIN, name, seed) for name in SPLITS]
    assert [len(s.labeled) for s in splits] == [6, 12, 25, 50, 100]
    for split in splits:
        assert not set(split.labeled) & set(split.unlabeled)
        assert set(split.labeled) | set(split.unlabeled) == set(TRAIN)
        assert list(split.unlabeled) == sorted(split.unlabeled)  # the order of TRAIN
    for small, large in pairwise(splits):
        assert large.labeled[: len(small.labeled)] == small.labeled
    assert splits[-1].unlabeled == ()
    assert first(TRAIN, 7, seed).labeled == splits[1].labeled[:7]


def test_a_split_is_pinned_and_independent_of_the_order_of_train() -> None:
    split = seeded_split(("a", "b", "c", "d", "e", "f", "g", "h"), "1_4", 0)
    assert split.labeled == seeded_split(tuple("hgfedcba"), "1_4", 0).labeled
    assert split.labeled != seeded_split(tuple("abcdefgh"), "1_4", 1).labeled
    assert split.labeled == ("h", "f") and split.unlabeled == ("a", "b", "c", "d", "e", "g")
    assert split.sha256 == "25a2e0eaab691f2fc5d241ebeec14f35d03bc91f323538a09e44bc6271e4f6cb"  # by sha256sum


def test_smallest_partition_keeps_one_labeled_image() -> None:
    assert len(seeded_split(("a", "b", "c"), "1_16", 0).labeled) == 1


def test_hash_tells_where_the_labeled_list_ends() -> None:
    assert Split("x", ("a",), ("b",), "file").sha256 != Split("x", ("a", "b"), (), "file").sha256
    assert Split("x", ("a",), ("b",), "file").sha256 == Split("y", ("a",), ("b",), "seeded").sha256


def test_written_lists_give_the_hash_and_read_back(tmp_path: Path) -> None:
    split = seeded_split(TRAIN, "1_8", 3)
    write_lists(split, tmp_path / "new" / "folder")
    labeled, unlabeled = (tmp_path / "new" / "folder" / f"{kind}.txt" for kind in ("labeled", "unlabeled"))
    assert hashlib.sha256(labeled.read_bytes() + b"\n" + unlabeled.read_bytes()).hexdigest() == split.sha256
    assert sorted(p.name for p in labeled.parent.iterdir()) == ["labeled.txt", "unlabeled.txt"]
    for again in (split_from_files(labeled, unlabeled, TRAIN), split_from_files(labeled, None, TRAIN)):
        assert (again.labeled, again.unlabeled, again.sha256) == (split.labeled, split.unlabeled, split.sha256)
        assert (again.name, again.family) == ("labeled", "file")


def test_list_formats_of_the_field(tmp_path: Path) -> None:
    text = "\ufeff2007_000032\n\nJPEGImages/2007_000033.jpg Masks/2007_000033.png\r\n a/b/frame.01.png \nf.02\n"
    assert read_list(listed(tmp_path, "l.txt", text)) == ("2007_000032", "2007_000033", "frame.01", "f.02")


def test_ids_with_slashes_and_spaces(tmp_path: Path) -> None:
    known = ("a/1", "a", "b", "IMG", "IMG 2", "x y/3", "city_0")
    text = "img/a/1.png mask/b.png\nimg/b.jpg img/a.jpg\nIMG 2\nIMG\nroot\\x y\\3.png\ngt/city_0_leftImg8bit.png\n"
    found = read_list(listed(tmp_path, "l.txt", text), known)
    assert found == ("a/1", "b", "IMG 2", "IMG", "x y/3", "city_0")
    split = Split("s", ("x y/3", "IMG 2"), ("a/1",), "file")
    write_lists(split, tmp_path)
    assert split_from_files(tmp_path / "labeled.txt", tmp_path / "unlabeled.txt", known).sha256 == split.sha256


def test_only_images_with_masks_are_drawn() -> None:
    every = seeded_split(TRAIN, "1_4", 0)
    some = seeded_split(TRAIN, "1_4", 0, TRAIN[:40])
    assert len(some.labeled) == 10 and set(some.labeled) <= set(TRAIN[:40]) and len(some.unlabeled) == 90
    assert seeded_split(TRAIN, "1_4", 0, TRAIN).sha256 == every.sha256
    assert seeded_split(TRAIN, "full", 0, TRAIN[:40]).unlabeled == TRAIN[40:]
    with pytest.raises(ValueError, match="no training image has a mask, so none can be labeled"):
        seeded_split(TRAIN, "full", 0, ())


def test_bad_requests() -> None:
    with pytest.raises(ValueError, match=r"unknown split '1_3'; valid are 1_16, 1_8, 1_4, 1_2, full"):
        seeded_split(TRAIN, "1_3", 0)
    with pytest.raises(ValueError, match="a partition larger than the set: 183 labeled images of 100"):
        first(TRAIN, 183, 0)
    with pytest.raises(ValueError, match="at least one labeled image, not 0"):
        first(TRAIN, 0, 0)
    with pytest.raises(ValueError, match="each of them once"):
        seeded_split(("a", "a"), "full", 0)
    with pytest.raises(ValueError, match="each of them once"):
        seeded_split((), "full", 0)


def test_bad_lists(tmp_path: Path) -> None:
    good = listed(tmp_path, "good.txt", "img_000\nimg_001\n")
    with pytest.raises(FileNotFoundError, match=r"nowhere.txt does not exist"):
        split_from_files(tmp_path / "nowhere.txt", None, TRAIN)
    with pytest.raises(ValueError, match=r"empty.txt: the list is empty"):
        split_from_files(good, listed(tmp_path, "empty.txt", "\n \n"), TRAIN)
    with pytest.raises(ValueError, match=r"twice.txt: 2 ids repeat, the first: img_004"):
        split_from_files(listed(tmp_path, "twice.txt", "img_003\nimg_004\nimg_004\nimg_003\n"), None, TRAIN)
    with pytest.raises(ValueError, match=r"alien.txt: 2 of 3 ids are not training images, the first: martian"):
        split_from_files(listed(tmp_path, "alien.txt", "img_003\nmartian\nvenusian\n"), None, TRAIN)
    with pytest.raises(ValueError, match=r"both.txt: 1 ids are also in .*good.txt, the first: img_001"):
        split_from_files(good, listed(tmp_path, "both.txt", "img_002\nimg_001\n"), TRAIN)


def test_missing_classes() -> None:
    data = Masks()
    assert missing_classes(data, Split("x", ("a",), ("b", "c"), "file")) == ("dog", "cow")
    assert missing_classes(data, Split("x", ("a", "b"), ("c",), "file")) == ("dog",)
    with pytest.raises(ValueError, match="labeled image c of masks has no mask"):
        missing_classes(data, Split("x", ("a", "c"), ("b",), "file"))
