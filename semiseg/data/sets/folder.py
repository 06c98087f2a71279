"""Your own images: some with masks, any number without."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor

from semiseg.data.classes import ClassMap, infer_classes, named, read_classes
from semiseg.data.files import ImageFiles, found, listed
from semiseg.data.splits import first

CLASS_FILES = ("classes.toml", "classes.json")
VAL_LIST = "val.txt"


class Folder(ImageFiles):
    """Images and masks of the same name up to suffix and `mask_ending`, in two folders, nested or not.

    root/images/a/1.jpg      root/masks/a/1.png       labeled, or for validation
    root/images/a/2.jpg                               unlabeled: it has no mask
    root/unlabeled/3.jpg                              unlabeled too (optional)
    root/val/images/4.jpg    root/val/masks/4.png     validation (optional)
    root/classes.toml                                 names, values and colors of the classes (optional)

    Ids are paths below images without suffix, as in a/1; those of the other folders begin with unlabeled/ or val/.

    Validation images are those of the folder val, or else of the list val.txt (a path per line), or else a share
    `val_share` of the images with masks, drawn by `val_seed`; they are never trained on.

    Args:
        root: the folder.
        classes: a file (see `classes.read_classes`), or names in the order of the ids; None: classes.toml or
            classes.json in root, and without these the values in the masks.
        images, masks, unlabeled, val: names of the folders.
        mask_ending: end of the masks' names, as in 1_mask.png; None: the one that all have where none has the name of
            an image, else none.
        train_list: name of a list in root that training images are restricted to; unlabeled/ is added to it.
        val_share, val_seed: which images are held out where nothing says so.
        mirror: whether a left-right mirrored image is a valid one (writing: no).

    Raises FileNotFoundError or ValueError naming the folder, list, file or image at fault.
    """

    def __init__(
        self,
        root: str | Path,
        *,
        classes: str | Path | Sequence[str] | None = None,
        images: str = "images",
        masks: str = "masks",
        unlabeled: str = "unlabeled",
        val: str = "val",
        mask_ending: str | None = None,
        train_list: str | None = None,
        val_share: float = 0.2,
        val_seed: int = 0,
        mirror: bool = True,
    ) -> None:
        root = Path(root)
        if not root.is_dir():
            raise FileNotFoundError(f"root {root} does not exist; expected a folder with {images} and {masks}")
        pairs = _pairs(root, images, masks, mask_ending)
        more = _prefixed(unlabeled, found(root / unlabeled)) if (root / unlabeled).is_dir() else {}
        held, held_masks = _held(root, val, images, masks, mask_ending)
        _disjoint(root, pairs[0], more, held)
        ids = tuple(held) or _validation(root, *pairs, val_share, val_seed)
        known = listed(root / train_list, pairs[0], root / images) if train_list else tuple(pairs[0])
        train = [key for key in known if key not in set(ids)]
        all_masks = pairs[1] | held_masks
        if bare := [key for key in ids if key not in all_masks]:
            raise FileNotFoundError(
                f"{root}: {len(bare)} validation images have no mask of the same name, first: {bare[0]}"
                + _example(held or pairs[0], held_masks if held else pairs[1])
            )
        self.mirror = mirror
        self.class_map = _classes(root, classes, [all_masks[key] for key in (*train, *ids) if key in all_masks])
        super().__init__(
            "folder", root, self.class_map.names, self.class_map.colors, (*train, *more), ids,
            pairs[0] | more | held, all_masks, self.class_map.table,
        )  # fmt: skip

    def mask(self, key: str) -> Tensor | None:
        """(H, W) uint8, None without a file.  Raises ValueError naming it where it holds anything but classes."""
        path = self._masks.get(key)
        return None if path is None else torch.from_numpy(self.class_map.read(path))

    def _hash(self) -> str:
        content = json.dumps([super()._hash(), self.class_map.colors, self.class_map.ignore])
        return hashlib.sha256(content.encode()).hexdigest()


def _prefixed(prefix: str, files: Mapping[str, Path]) -> dict[str, Path]:
    return {f"{prefix}/{key}": path for key, path in files.items()}


def _pairs(root: Path, images: str, masks: str, ending: str | None) -> tuple[dict[str, Path], dict[str, Path]]:
    """Images and masks below root, by names that agree."""
    pictures, labels = found(root / images), found(root / masks, ending or "")
    if ending is None and (common := _common_ending(pictures, labels)):
        labels = {key.removesuffix(common): path for key, path in labels.items()}
    return pictures, labels


def _common_ending(images: Mapping[str, Path], masks: Mapping[str, Path]) -> str:
    """What the name of every mask has beyond that of an image; nothing where one has the name of an image."""
    if not masks or masks.keys() & images.keys():
        return ""
    mask = next(iter(masks))
    ending = mask.removeprefix(max((key for key in images if mask.startswith(key)), key=len, default=mask))
    fits = all(key.endswith(ending) and key.removesuffix(ending) in images for key in masks)
    return ending if fits else ""


def _held(root: Path, val: str, images: str, masks: str, ending: str | None) -> tuple[dict[str, Path], dict[str, Path]]:
    """Images and masks of the folder of validation images, if there is one."""
    if not (root / val).is_dir():
        return {}, {}
    pictures, labels = _pairs(root / val, images, masks, ending)
    return _prefixed(val, pictures), _prefixed(val, labels)


def _disjoint(root: Path, *parts: Mapping[str, Path]) -> None:
    seen: dict[str, Path] = {}
    for part in parts:
        for key in part.keys() & seen.keys():
            raise ValueError(f"{root}: {part[key]} and {seen[key]} would both be called {key}; rename one of them")
        seen |= part


def _validation(
    root: Path, images: Mapping[str, Path], masks: Mapping[str, Path], share: float, seed: int
) -> tuple[str, ...]:
    """Those of the list, or a share of the images that have masks."""
    if (root / VAL_LIST).is_file():
        return listed(root / VAL_LIST, images, root)
    if not 0 < share < 1:
        raise ValueError(f"val_share must lie between 0 and 1, got {share}")
    pairs = [key for key in images if key in masks]
    if len(pairs) < 2:
        raise ValueError(
            f"{root}: {len(pairs)} image{'s' * (len(pairs) != 1)} with a mask of the same name; at least one is needed "
            f"to train and one to validate{_example(images, masks)}"
        )
    chosen = set(first(pairs, min(len(pairs) - 1, max(1, round(share * len(pairs)))), seed).labeled)
    return tuple(key for key in pairs if key in chosen)


def _example(images: Mapping[str, Path], masks: Mapping[str, Path]) -> str:
    return f"; the first image is {next(iter(images))}, the first mask {next(iter(masks))}" if images and masks else ""


def _classes(root: Path, given: str | Path | Sequence[str] | None, masks: Sequence[Path]) -> ClassMap:
    if given is not None and not isinstance(given, (str, Path)):
        return named(given)
    if given is not None:
        return read_classes(root / given)
    there = [root / name for name in CLASS_FILES if (root / name).is_file()]
    if len(there) > 1:
        raise ValueError(f"{root} holds both {' and '.join(CLASS_FILES)}; keep one of them")
    return read_classes(there[0]) if there else infer_classes(masks)
