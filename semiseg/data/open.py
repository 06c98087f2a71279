"""The images and the partition that a few words name, as notebooks and the command line hand them over."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from pathlib import Path

from ..options import one_of, unknown
from ..scales import DATA
from .dataset import SegmentationData, with_mask
from .families import partitions, published_split
from .packed import Pack
from .sets.camvid import CamVid
from .sets.cityscapes import Cityscapes
from .sets.coco import COCO
from .sets.digits import Digits
from .sets.folder import Folder
from .sets.patchwork import Patchwork
from .sets.voc import VOC
from .shrunk import Shrunk
from .splits import SPLITS, Split, seeded_split, split_from_files
from .unlabeled import WithUnlabeled


def parse_split(value: object, family: str = "") -> str:
    """The name of a partition from any spelling of it: 1_8, "1_8", "1/8" and the integer 18 are the same.

    Args:
        value: the name.
        family: of published lists, as "cps" (`data.families.FAMILIES`); empty: the seeded partitions.

    Raises ValueError, with the valid names, for anything else.
    """
    names = partitions(family) if family else SPLITS
    # `papermill -p split 1_8` injects the integer 18, since Python and YAML 1.1 allow underscores in numbers.
    integers = {int(name): name for name in names if name != "full"}
    name = value
    if isinstance(value, str):
        name = value.strip().replace("/", "_")
    elif isinstance(value, int):
        name = integers.get(value)
    if isinstance(name, str) and name in names:
        return name
    raise ValueError(unknown("split", value, names))


def whole_number(parameter: str, value: object, minimum: int, maximum: float = math.inf) -> int:
    """The value if it is an integer in the range, otherwise a ValueError that states the range."""
    if isinstance(value, int) and not isinstance(value, bool) and minimum <= value <= maximum:
        return value
    valid = f"{minimum} or more" if maximum == math.inf else f"{minimum} to {maximum}"
    raise ValueError(f"{parameter}: {value!r} is not a whole number in the valid range, {valid}")


def seed_number(value: object) -> int:
    """A seed that torch, NumPy and Python all accept: 0 to 2**32 - 1."""
    return whole_number("seed", value, 0, 2**32 - 1)


def open_data(
    data: str,
    root: str = "",
    classes: str = "",
    train_list: str = "train_aug",
    *,
    unlabeled: str = "",
    longest: int = 0,
) -> SegmentationData:
    """The data set a notebook's parameters name.

    Args:
        data: "digits" or "patchwork" (embedded), "voc", "cityscapes", "camvid", "coco" (folders in their official
            layouts), or "folder": your own images and masks (see `data.sets.folder.Folder`).
        root: folder of the images, for all but the embedded sets; or a file that `semiseg data pack` made of such a
            data set, in which classes and lists are as they were then.
        classes: comma-separated names; empty: all.  For "voc" the classes to keep, the others are ignored.  For
            "folder" the names in the order of their ids, or a TOML or JSON file that says what masks hold.
        train_list: list of training images: for "voc" its name below ImageSets/Segmentation, else a file below root;
            the default, or empty, stands for all training images of the others.
        unlabeled: folder of further unlabeled images, added to any data set of files.
        longest: images are made so small that their longer side has at most so many pixels; 0: they stay as they are.
    """
    one_of("data", data, DATA)
    if root and (path := Path(root).expanduser()).is_file():
        return _open_pack(data, path, classes, train_list, unlabeled, longest)
    if data in _EMBEDDED:
        if root:
            raise ValueError(f"data={data!r} is embedded and has no root, got root={root!r}; did you mean data='voc'?")
        return _EMBEDDED[data]()
    if not root:
        raise ValueError(f"data={data!r} needs root: {_ROOTS[data]}")
    opened = _OPEN[data](Path(root).expanduser(), classes, train_list)
    if unlabeled:
        opened = WithUnlabeled(opened, Path(unlabeled).expanduser())
    return Shrunk(opened, whole_number("longest", longest, 16)) if longest else opened


def _open_pack(data: str, path: Path, classes: str, train_list: str, unlabeled: str, longest: int) -> SegmentationData:
    pack = Pack(path)
    if pack.name != data:
        raise ValueError(f"{path} is a pack of data={pack.name!r}, not of {data!r}")
    asked = {"train_list": _list_of(train_list) or "", "unlabeled": unlabeled}
    if classes and set(_names(classes) or ()) | {pack.classes[0]} != set(pack.classes):
        asked["classes"] = classes
    for name, value in asked.items():
        if value:
            raise ValueError(f"{name}={value!r} cannot be asked of a pack; {path} has what it was made with")
    if pack.longest and longest not in (0, pack.longest):
        raise ValueError(f"{path} holds images shrunk to {pack.longest} pixels; longest={longest} needs another pack")
    return Shrunk(pack, whole_number("longest", longest, 16)) if longest and not pack.longest else pack


def _open_voc(root: Path, classes: str, train_list: str) -> SegmentationData:
    if (root / "images").is_dir() and not (root / "JPEGImages").is_dir():
        raise FileNotFoundError(
            f"{root} holds images but no JPEGImages; data='voc' is PASCAL VOC, your own images are data='folder'"
        )
    return VOC(root, classes=_names(classes), train_list=train_list or _VOC_LIST)


def _open_folder(root: Path, classes: str, train_list: str) -> SegmentationData:
    file = classes.endswith((".toml", ".json"))
    return Folder(root, classes=classes if file else _names(classes), train_list=_list_of(train_list))


def _open_benchmark(
    make: Callable[..., SegmentationData], root: Path, classes: str, train_list: str
) -> SegmentationData:
    if classes:
        raise ValueError(f"classes can be chosen for data='voc' and named for data='folder' only, got {classes!r}")
    return make(root, train_list=_list_of(train_list))


def _names(classes: str) -> list[str] | None:
    return [name.strip() for name in classes.split(",")] if classes else None


def _list_of(train_list: str) -> str | None:
    """None for the default, which is the name of VOC's list."""
    return train_list if train_list not in ("", _VOC_LIST) else None


_VOC_LIST = "train_aug"
_EMBEDDED: dict[str, Callable[[], SegmentationData]] = {"digits": Digits, "patchwork": Patchwork}
_OPEN: dict[str, Callable[[Path, str, str], SegmentationData]] = {
    "voc": _open_voc,
    "cityscapes": partial(_open_benchmark, Cityscapes),
    "camvid": partial(_open_benchmark, CamVid),
    "coco": partial(_open_benchmark, COCO),
    "folder": _open_folder,
}
_ROOTS = {
    "voc": "the folder with JPEGImages, SegmentationClass(Aug) and ImageSets",
    "cityscapes": "the folder with leftImg8bit and gtFine",
    "camvid": "the folder with train, trainannot, val and valannot",
    "coco": "the folder with train2017, val2017 and masks",
    "folder": "the folder with images and masks",
}


def open_split(
    data: SegmentationData, split: str, seed: int, labeled_list: str = "", family: str = "", lists: str = "data/splits"
) -> Split:
    """The seeded partition of a name, or a published one, or the one a list file of labeled images gives.

    Args:
        data: its training images are divided.
        split: name of the partition.
        seed: of the seeded partition.
        labeled_list: file of labeled images; all others are unlabeled.
        family: of published lists, as "cps" (`data.families.FAMILIES`).
        lists: folder of published lists, filled by `semiseg data fetch splits`.

    Images without mask are never labeled: where there are some, "full" labels all the others.

    Raises ValueError where both a family and a list file are given, and what their readers raise.
    """
    if family and labeled_list:
        raise ValueError(f"family={family!r} and labeled_list={labeled_list!r} are two splits; give one of them")
    if family:
        return published_split(family, split, Path(lists).expanduser(), data.train)
    if labeled_list:
        return split_from_files(labeled_list, None, data.train)
    return seeded_split(data.train, split, seed, with_mask(data))
