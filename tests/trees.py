"""Small data sets in the official layouts, made on the spot: colored blocks that tell the class."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image

SIDE = 40


def pixels(seed: int, height: int = SIDE, width: int = SIDE) -> np.ndarray:
    """A picture of noise, different for each seed."""
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def save(path: Path, array: np.ndarray) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(array).save(path)
    return path


def blocks(values: list[int], height: int = SIDE, width: int = SIDE) -> np.ndarray:
    """(H, W) uint8: vertical stripes of the values."""
    return np.array(values, np.uint8)[np.arange(width) * len(values) // width][None].repeat(height, 0)


def write(path: Path, lines: list[str]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(f"{line}\n" for line in lines))
    return path


def voc(root: Path, train: list[str], val: list[str], masks: str = "SegmentationClass") -> Path:
    """Images with masks of background, cat (8), ignored, dog (12)."""
    for seed, key in enumerate([*train, *val]):
        save(root / "JPEGImages" / f"{key}.jpg", pixels(seed))
        save(root / masks / f"{key}.png", blocks([0, 8, 255, 12]))
    write(root / "ImageSets/Segmentation/train.txt", train)
    write(root / "ImageSets/Segmentation/val.txt", val)
    return root


def camvid(root: Path, counts: tuple[int, int, int] = (6, 2, 2)) -> Path:
    """Images of 36 x 48 pixels with all eleven classes and void."""
    for part, count in zip(("train", "val", "test"), counts, strict=True):
        names = [f"{part}_{i:05d}.png" for i in range(count)]
        for i, name in enumerate(names):
            save(root / part / name, pixels(i + 10 * len(part), 36, 48))
            save(root / f"{part}annot" / name, blocks(list(range(12)), 36, 48))
        write(root / f"{part}.txt", [f"/SegNet/CamVid/{part}/{n} /SegNet/CamVid/{part}annot/{n}" for n in names])
    return root


def cityscapes(root: Path, kind: str = "labelIds") -> Path:
    """Two training cities with two frames each, one frame to validate; masks with every label id and 255."""
    values = list(range(34)) if kind == "labelIds" else list(range(19))
    frames = {"train": ["aachen_000000_000019", "aachen_000001_000019", "ulm_000000_000019", "ulm_000001_000019"],
              "val": ["lindau_000000_000019"]}  # fmt: skip
    for part, names in frames.items():
        for i, name in enumerate(names):
            city = name.split("_")[0]
            save(root / f"leftImg8bit/{part}/{city}/{name}_leftImg8bit.png", pixels(i + 10 * len(part), 32, 70))
            save(root / f"gtFine/{part}/{city}/{name}_gtFine_{kind}.png", blocks([*values, 255], 32, 70))
    return root


def folder(root: Path, pairs: int = 10, unlabeled: int = 4) -> Path:
    """Nested images with masks of the values 0, 1 and 2, and images without mask in two places."""
    for i in range(pairs):
        save(root / f"images/day {i % 2}/{i}.jpg", pixels(i))
        save(root / f"masks/day {i % 2}/{i}.png", blocks([0, 1, 2]))
    save(root / "images/bare.png", pixels(100))
    for i in range(unlabeled):
        save(root / f"unlabeled/{i}.jpg", pixels(200 + i))
    return root
