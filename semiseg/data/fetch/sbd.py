"""The blended training set of PASCAL VOC: 10,582 images, with masks from VOC and from SBD (Hariharan et al., 2011)."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from scipy.io import loadmat
from tqdm import tqdm

from semiseg.data.files import listing, opened, save_png, save_text
from semiseg.data.sets.voc import CLASSES, voc_palette
from semiseg.data.splits import read_list

MASKS = "SegmentationClassAug"
LIST = "train_aug"
_COLORS = [channel for color in voc_palette(256) for channel in color]


def blended_masks(sbd: str | Path, voc: str | Path, *, progress: bool = False) -> int:
    """Writes SegmentationClassAug and ImageSets/Segmentation/train_aug.txt into VOC's folder.

    A mask of VOC's own is copied as it is, with its ignored outlines; the others are converted from SBD, which has
    none.  The list holds VOC's and SBD's images but for VOC's validation images.  Masks that are there already are
    kept, so an interrupted call is continued by the next; the list is written last.

    Args:
        sbd: folder with cls/*.mat, train.txt and val.txt (benchmark_RELEASE/dataset of the archive), or one above it.
        voc: folder with JPEGImages, SegmentationClass and ImageSets (VOCdevkit/VOC2012).
        progress: show a bar on stdout.

    Returns the number of training images: 10,582 for the complete data sets.
    Raises FileNotFoundError naming what is missing, before anything is written; ValueError naming a file that cannot
    be read, or is not as large as its image.
    """
    sbd, voc = _sbd_folder(Path(sbd)), Path(voc)
    images, own = listing(voc / "JPEGImages", ".jpg"), listing(voc / "SegmentationClass", ".png")
    lists = voc / "ImageSets" / "Segmentation"
    train, val = (read_list(lists / f"{name}.txt") for name in ("train", "val"))
    theirs = {*read_list(sbd / "train.txt"), *read_list(sbd / "val.txt")}
    ids = sorted({*train, *theirs} - set(val))
    _complete(images, [*ids, *val], "image", voc / "JPEGImages")
    _complete(own, [*train, *val], "mask", voc / "SegmentationClass")
    converted = [key for key in ids if key not in own]
    _complete(listing(sbd / "cls", ".mat"), converted, "SBD mask", sbd / "cls")
    there = listing(voc / MASKS, ".png") if (voc / MASKS).is_dir() else {}
    missing = [key for key in (*ids, *val) if key not in there]
    for key in tqdm(missing, disable=not progress, file=sys.stdout, unit="mask"):
        target = voc / MASKS / f"{key}.png"
        if key in own:
            _copy(voc / "SegmentationClass" / f"{key}.png", target)
        else:
            _convert(sbd / "cls" / f"{key}.mat", voc / "JPEGImages" / f"{key}.jpg", target)
    save_text(lists / f"{LIST}.txt", "".join(f"{key}\n" for key in ids))
    return len(ids)


def read_sbd(path: Path) -> NDArray[np.uint8]:
    """(H, W) VOC class ids of one of SBD's cls/*.mat.  Raises ValueError naming a file that holds something else."""
    try:
        ids = loadmat(path, variable_names=["GTcls"])["GTcls"]["Segmentation"][0, 0]
        ids = np.asarray(ids)
    except Exception as error:  # loadmat has a dozen of them
        raise ValueError(f"{path} does not hold GTcls.Segmentation of SBD: {error}") from error
    if ids.ndim != 2 or ids.min() < 0 or ids.max() >= len(CLASSES):
        raise ValueError(f"{path} holds values from {ids.min()} to {ids.max()}; valid are 0 to {len(CLASSES) - 1}")
    return ids.astype(np.uint8)


def _sbd_folder(folder: Path) -> Path:
    for inner in ("", "dataset", "benchmark_RELEASE/dataset"):
        if (folder / inner / "cls").is_dir():
            return folder / inner
    raise FileNotFoundError(
        f"no folder cls with SBD's .mat files in {folder}, its dataset or benchmark_RELEASE/dataset"
    )


def _complete(there: dict[str, int], ids: Sequence[str], kind: str, folder: Path) -> None:
    if absent := [key for key in ids if key not in there]:
        raise FileNotFoundError(f"{folder}: {len(absent)} of {len(ids)} {kind}s are missing, the first: {absent[0]}")


def _copy(source: Path, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    part = target.with_name(target.name + ".part")
    shutil.copyfile(source, part)
    part.replace(target)


def _convert(mat: Path, image: Path, target: Path) -> None:
    ids = read_sbd(mat)
    with opened(image, "image") as file:
        size = file.height, file.width
    if ids.shape != size:
        raise ValueError(f"{mat} is {ids.shape[0]} x {ids.shape[1]} but {image} {size[0]} x {size[1]} (height x width)")
    picture = Image.fromarray(ids)
    picture.putpalette(_COLORS)
    save_png(target, picture)
