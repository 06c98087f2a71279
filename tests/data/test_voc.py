from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from semiseg.data.sets.voc import CLASSES, VOC, voc_palette


def write_mask(path: Path, values: np.ndarray, palette: bool = True) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    image = Image.fromarray(values.astype(np.uint8))
    if palette:
        image = image.convert("L")
        image.putpalette([channel for color in voc_palette(256) for channel in color])
        assert image.mode == "P"
    image.save(path)


def write_image(path: Path, height: int, width: int, seed: int = 0) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path, quality=95)


def write_list(root: Path, name: str, ids: list[str]) -> None:
    path = root / "ImageSets" / "Segmentation" / f"{name}.txt"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(f"{key}\n" for key in ids))


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """Images a, b (no mask), v; masks hold background, cat = 8, cow = 10, person = 15 and 255."""
    for i, key in enumerate("abv"):
        write_image(tmp_path / "JPEGImages" / f"{key}.jpg", 20, 30, seed=i)
    values = np.zeros((20, 30))
    values[:5], values[5:10], values[10:15, :10], values[19] = 8, 10, 15, 255
    for key in "av":
        write_mask(tmp_path / "SegmentationClassAug" / f"{key}.png", values)
    write_list(tmp_path, "train_aug", ["a", "b"])
    write_list(tmp_path, "val", ["v"])
    return tmp_path


def test_reads_images_lists_and_palette_masks(tree: Path) -> None:
    data = VOC(tree)
    assert (data.train, data.val, data.classes, data.mirror) == (("a", "b"), ("v",), CLASSES, True)
    image, mask = data.image("a"), data.mask("a")
    assert image.shape == (3, 20, 30) and image.dtype == torch.uint8
    reference = np.asarray(Image.open(tree / "JPEGImages" / "a.jpg").convert("RGB")).astype(int)
    assert np.abs(image.permute(1, 2, 0).numpy().astype(int) - reference).max() <= 2  # two JPEG decoders
    assert mask is not None and mask.dtype == torch.uint8 and mask.shape == (20, 30)
    assert mask.unique().tolist() == [0, 8, 10, 15, 255] and mask[0, 0] == 8 and mask[19, 0] == 255
    assert data.mask("b") is None
    assert data.size("a") == (20, 30)


def test_gray_and_four_bit_palette_masks_hold_the_same_ids(tree: Path) -> None:
    values = np.arange(600).reshape(20, 30) % 16
    folder = tree / "SegmentationClassAug"
    write_mask(folder / "a.png", values, palette=False)
    gray = VOC(tree).mask("a")
    write_mask(folder / "a.png", values)
    with Image.open(folder / "a.png") as mask:
        mask.save(folder / "b.png", bits=4)
    four_bits = VOC(tree).mask("b")
    assert gray is not None and four_bits is not None
    assert gray.tolist() == four_bits.tolist() == values.tolist()


def test_gray_images_have_three_channels(tree: Path) -> None:
    Image.new("L", (30, 20), 77).save(tree / "JPEGImages" / "a.jpg")
    image = VOC(tree).image("a")
    assert image.shape == (3, 20, 30) and image.unique().tolist() == [77]


def test_subset_of_classes_renumbers_and_ignores_the_rest(tree: Path) -> None:
    data = VOC(tree, classes=("cow", "cat"))
    assert data.classes == ("background", "cow", "cat")
    assert data.palette == ((0, 0, 0), (64, 128, 0), (64, 0, 0))
    mask, full = data.mask("a"), VOC(tree).mask("a")
    assert mask is not None and full is not None
    for old, new in ((0, 0), (10, 1), (8, 2), (15, 255), (255, 255)):
        assert mask[full == old].unique().tolist() == [new]
    assert VOC(tree, classes=("background", "cow", "cat")).classes == data.classes


def test_standard_palette() -> None:
    palette = voc_palette(256)
    assert palette[:4] == ((0, 0, 0), (128, 0, 0), (0, 128, 0), (128, 128, 0))
    assert (palette[15], palette[20], palette[255]) == ((192, 128, 128), (0, 64, 128), (224, 224, 192))
    assert len(set(palette)) == 256


def test_folder_of_masks_is_found_or_named(tree: Path) -> None:
    (tree / "SegmentationClassAug").rename(tree / "SegmentationClass")
    assert VOC(tree).mask("a") is not None
    (tree / "SegmentationClass").rename(tree / "mine")
    assert VOC(tree, masks="mine").mask("a") is not None
    with pytest.raises(FileNotFoundError, match=r"SegmentationClass does not exist"):
        VOC(tree)


def test_hash_follows_lists_classes_and_file_sizes(tree: Path) -> None:
    def again() -> str:
        return VOC(tree).sha256

    seen = [again()]
    assert again() == seen[0]
    seen.append(VOC(tree, classes=("cat",)).sha256)
    write_list(tree, "train_aug", ["b", "a"])
    seen.append(again())
    write_image(tree / "JPEGImages" / "a.jpg", 20, 31)
    seen.append(again())
    write_mask(tree / "SegmentationClassAug" / "b.png", np.zeros((20, 30)))
    seen.append(again())
    write_image(tree / "JPEGImages" / "unlisted.jpg", 20, 30)
    assert again() == seen[-1]
    write_list(tree, "train_aug", ["b"])
    write_list(tree, "val", ["a", "v"])
    seen.append(again())
    assert len(set(seen)) == len(seen)


@pytest.mark.parametrize(
    ("spoil", "options", "error", "message"),
    [
        (lambda r: r.rename(r.with_name("away")), {}, FileNotFoundError, r"root .* does not exist; expected .* PASCAL"),
        (lambda r: (r / "JPEGImages").rename(r / "x"), {}, FileNotFoundError, r"folder .*JPEGImages does not exist"),
        (
            lambda r: None,
            {"train_list": "trian"},
            FileNotFoundError,
            r"trian.txt .* lists in this folder: train_aug, val",
        ),
        (lambda r: write_list(r, "val", []), {}, ValueError, r"val.txt: the list is empty"),
        (lambda r: write_list(r, "val", ["v", "v"]), {}, ValueError, r"val.txt: 1 ids repeat, the first: v"),
        (
            lambda r: write_list(r, "train_aug", ["a", "x", "y"]),
            {},
            FileNotFoundError,
            r"train_aug.txt names 2 ids without image in .*JPEGImages, the first: x",
        ),
        (
            lambda r: write_list(r, "val", ["b"]),
            {},
            FileNotFoundError,
            r"val.txt names 1 ids without mask in .*ClassAug, the first: b",
        ),
        (
            lambda r: None,
            {"classes": ["cat", "unicorn"]},
            ValueError,
            r"unknown classes 'unicorn'; valid are aeroplane,",
        ),
        (lambda r: None, {"classes": ["cat", "cat"]}, ValueError, r"each of them once"),
        (lambda r: None, {"classes": ["background"]}, ValueError, r"at least one foreground class"),
    ],
)
def test_opening_a_bad_tree(
    tree: Path, spoil: Callable[[Path], object], options: dict[str, object], error: type[Exception], message: str
) -> None:
    spoil(tree)
    with pytest.raises(error, match=message):
        VOC(tree, **options)  # type: ignore[arg-type]


def test_corrupt_and_missing_images_name_the_file(tree: Path) -> None:
    data = VOC(tree)
    path = tree / "JPEGImages" / "a.jpg"
    whole = path.read_bytes()
    for part in (whole[: len(whole) // 2], b"", b"no image at all"):
        path.write_bytes(part)
        with pytest.raises(ValueError, match=r"image .*a.jpg is corrupt, truncated or not an image file"):
            data.image("a")
    with pytest.raises(ValueError, match=r"image .*a.jpg is corrupt"):
        data.size("a")
    path.unlink()
    for read in (data.image, data.size):
        with pytest.raises(FileNotFoundError, match=r"image .*a.jpg does not exist"):
            read("a")


def test_bad_masks_name_the_file(tree: Path) -> None:
    data = VOC(tree, classes=("cat",))
    path = tree / "SegmentationClassAug" / "a.png"
    write_mask(path, np.random.default_rng(0).integers(0, 21, (20, 30)))
    path.write_bytes(path.read_bytes()[:-300])
    with pytest.raises(ValueError, match=r"mask .*a.png is corrupt"):
        data.mask("a")
    Image.new("RGB", (30, 20)).save(path)
    with pytest.raises(ValueError, match=r"mask .*a.png has mode RGB; a mask holds class ids"):
        data.mask("a")
    write_mask(path, np.resize([0, 8, 15, 21, 200, 255], (20, 30)))
    with pytest.raises(ValueError, match=r"mask .*a.png holds the values \[21, 200\]; valid are 0 to 20 and 255"):
        data.mask("a")
