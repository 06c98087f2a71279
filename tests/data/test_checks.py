from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from semiseg.data.checks import check
from semiseg.data.sets.voc import VOC


class Small:
    """Three training images (the last without mask) and a validation image, to be spoiled by a test."""

    name, mirror, sha256 = "small", True, ""
    classes: tuple[str, ...] = ("background", "cat", "dog")
    palette: tuple[tuple[int, int, int], ...] = ((0, 0, 0),) * 3
    train: tuple[str, ...] = ("a", "b", "u")
    val: tuple[str, ...] = ("v",)

    def __init__(self) -> None:
        self.masks: dict[str, Tensor | None] = dict.fromkeys("abv", torch.eye(4, dtype=torch.uint8)) | {"u": None}

    def image(self, key: str) -> Tensor:
        return torch.zeros(3, 4, 4, dtype=torch.uint8)

    def mask(self, key: str) -> Tensor | None:
        return self.masks[key]


def test_a_sound_set_passes() -> None:
    check(Small(), ("a", "b"))
    check(Small(), ("a", "b"), deep=True)


def test_ids() -> None:
    with pytest.raises(ValueError, match="small: no labeled images"):
        check(Small(), ())
    with pytest.raises(ValueError, match="1 labeled ids are not training images: z"):
        check(Small(), ("a", "z"))
    leaking = Small()
    leaking.val = ("v", "b")
    with pytest.raises(ValueError, match="1 ids are both for training and validation: b"):
        check(leaking, ("a",))


@pytest.mark.parametrize("key", ["b", "v"])
def test_masks_of_labeled_and_validation_images(key: str) -> None:
    data = Small()
    data.masks[key] = None
    with pytest.raises(ValueError, match=f"small: image {key}, labeled or for validation, has no mask"):
        check(data, ("a", "b"))
    data.masks[key] = torch.zeros(4, 5, dtype=torch.uint8)
    with pytest.raises(ValueError, match=rf"image {key} is 4 x 4 but its mask 4 x 5 \(height x width\)"):
        check(data, ("a", "b"))
    data.masks[key] = torch.tensor([0, 2, 3, 9] * 4, dtype=torch.uint8).reshape(4, 4)
    with pytest.raises(ValueError, match=rf"mask of {key} holds the values \[3, 9\]; valid are 0 to 2 and 255"):
        check(data, ("a", "b"))


def test_masks_of_unlabeled_images_do_not_matter() -> None:
    data = Small()
    data.masks["b"] = torch.full((4, 4), 77, dtype=torch.uint8)
    check(data, ("a",))


def test_binary_masks_saved_as_0_and_255() -> None:
    data = Small()
    data.masks["a"] = torch.eye(4, dtype=torch.uint8) * 255
    with pytest.raises(ValueError, match="hold no class but background, and 255, which means 'ignore'"):
        check(data, ("a",))
    check(data, ("a", "b"))  # the other labeled image knows a class


def test_a_validation_set_without_a_labeled_pixel_scores_nothing() -> None:
    data = Small()
    data.masks[data.val[0]] = torch.full((4, 4), 255, dtype=torch.uint8)
    with pytest.raises(ValueError, match="every pixel of the 1 validation masks is 255, to be ignored"):
        check(data, ("a", "b"))


def tree(root: Path) -> None:
    """Labeled a, unlabeled u, validation v, in VOC's layout."""
    for folder in ("JPEGImages", "SegmentationClass", "ImageSets/Segmentation"):
        (root / folder).mkdir(parents=True)
    pixels = np.random.default_rng(0).integers(0, 256, (48, 64, 3), dtype=np.uint8)
    for key in "auv":
        Image.fromarray(pixels).save(root / "JPEGImages" / f"{key}.jpg")
    for key in "av":
        Image.new("L", (64, 48), 3).save(root / "SegmentationClass" / f"{key}.png")
    (root / "ImageSets/Segmentation/train_aug.txt").write_text("a\nu\n")
    (root / "ImageSets/Segmentation/val.txt").write_text("v\n")


def test_files_are_named(tmp_path: Path) -> None:
    tree(tmp_path)
    data = VOC(tmp_path)
    check(data, ("a",), deep=True)
    with pytest.raises(ValueError, match="image u, labeled or for validation, has no mask"):
        check(data, ("u",))
    truncated = tmp_path / "JPEGImages" / "u.jpg"
    truncated.write_bytes(truncated.read_bytes()[:-200])
    check(data, ("a",))  # the header is whole
    with pytest.raises(ValueError, match=r"image .*u.jpg is corrupt"):
        check(data, ("a",), deep=True)
    truncated.write_bytes(b"text")
    with pytest.raises(ValueError, match=r"image .*u.jpg is corrupt"):
        check(data, ("a",))


def test_size_is_compared_by_the_header(tmp_path: Path) -> None:
    tree(tmp_path)
    Image.new("L", (48, 64), 3).save(tmp_path / "SegmentationClass" / "v.png")
    with pytest.raises(ValueError, match="image v is 48 x 64 but its mask 64 x 48"):
        check(VOC(tmp_path), ("a",))
