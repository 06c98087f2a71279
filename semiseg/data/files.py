"""Images and masks as files: finding them, reading them, and one clear error where that fails."""

from __future__ import annotations

import hashlib
import json
import os
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import ExifTags, Image, ImageOps
from torch import Tensor

from semiseg.data.splits import IMAGE_SUFFIXES, read_list
from semiseg.types import IGNORE

MOST_SHOWN = 8  # wrong values that a message lists
FOREIGN = 254  # marks a value that is no class id while a mask is translated
Bytes = NDArray[np.uint8]


class ImageFiles:
    """What data sets of files share: `SegmentationData` from paths, with what `inspect` looks at.

    Args:
        name, classes, palette: as of `SegmentationData`.
        root: folder that the paths lie in.
        train, val: ids.
        images: file of each id.
        masks: file of each id that has one; validation images need one.
        table: (256,) class id by value in the file, IGNORE where no loss looks, FOREIGN where the value is an error.

    Raises ValueError for an id twice or without mask in `val`, and FileNotFoundError where there are no images.
    """

    mirror = True

    def __init__(
        self,
        name: str,
        root: Path,
        classes: Sequence[str],
        palette: Sequence[tuple[int, int, int]],
        train: Iterable[str],
        val: Iterable[str],
        images: Mapping[str, Path],
        masks: Mapping[str, Path],
        table: Bytes,
    ) -> None:
        self.name, self.root, self.folders = name, root, (root,)
        self.classes, self.palette = tuple(classes), tuple(palette)
        self.train, self.val = tuple(train), tuple(val)
        self._images, self._masks, self.table = dict(images), dict(masks), table
        if not self.train or not self.val:
            raise FileNotFoundError(f"{name}: no {'validation' if self.train else 'training'} images in {root}")
        if bare := [key for key in self.val if key not in self._masks]:
            raise FileNotFoundError(f"{name}: {len(bare)} validation images in {root} have no mask, first: {bare[0]}")
        self.sha256 = self._hash()

    @property
    def masked(self) -> tuple[str, ...]:
        """Training ids with a mask."""
        return tuple(key for key in self.train if key in self._masks)

    def image(self, key: str) -> Tensor:
        """(3, H, W) uint8.  Raises ValueError naming the file where it cannot be decoded."""
        return torch.from_numpy(read_rgb(self._images[key])).permute(2, 0, 1)  # channels last: cheaper to resize

    def mask(self, key: str) -> Tensor | None:
        """(H, W) uint8, None without a file.  Raises ValueError naming it where it holds anything but class ids."""
        path = self._masks.get(key)
        return None if path is None else torch.from_numpy(translate(path, self.table))

    def size(self, key: str) -> tuple[int, int]:
        """Height and width of the image from its header, without decoding it."""
        return size_of(self._images[key])

    def files(self, key: str) -> tuple[Path, Path | None]:
        """Image and mask file."""
        return self._images[key], self._masks.get(key)

    def stray_masks(self) -> tuple[Path, ...]:
        """Mask files without image."""
        return tuple(self._masks[key] for key in sorted(self._masks.keys() - self._images.keys()))

    def _hash(self) -> str:
        """Of names, lists, and the sizes of the files."""
        used = dict.fromkeys(self.train + self.val)
        paths = [there[key] for there in (self._images, self._masks) for key in used if key in there]
        files = [(path.relative_to(self.root).as_posix(), path.stat().st_size) for path in paths]
        content = json.dumps([self.classes, self.train, self.val, files, self.table.tolist()])
        return hashlib.sha256(content.encode()).hexdigest()


def found(folder: Path, ending: str = "", suffixes: Sequence[str] = IMAGE_SUFFIXES) -> dict[str, Path]:
    """All images below a folder, by path without suffix and `ending`, sorted; hidden files are passed over.

    Raises FileNotFoundError where there is no such folder, ValueError for two files that differ in suffix alone.
    """
    if not folder.is_dir():
        raise FileNotFoundError(f"folder {folder} does not exist")
    there: dict[str, Path] = {}
    for path in sorted(folder.rglob("*")):
        if path.suffix.lower() not in suffixes or not path.stem.endswith(ending) or path.name.startswith("."):
            continue
        key = path.relative_to(folder).with_suffix("").as_posix().removesuffix(ending)
        if key in there:
            raise ValueError(f"{folder} holds both {there[key].name} and {path.name}; keep one of them")
        there[key] = path
    return there


def listed(path: Path, known: Mapping[str, Path], folder: Path) -> tuple[str, ...]:
    """Ids of a list file.  Raises FileNotFoundError for the first that is no image of the folder."""
    ids = read_list(path, known)
    if absent := [key for key in ids if key not in known]:
        raise FileNotFoundError(f"{path} names {len(absent)} ids without image in {folder}, the first: {absent[0]}")
    return ids


def translate(path: Path, table: Bytes) -> Bytes:
    """Class ids of a gray or palette mask by a table of 256.  Raises ValueError for colors and for foreign values."""
    mode, raw = decode(path, "mask")
    if mode not in ("L", "P"):
        raise ValueError(f"mask {path} has mode {mode}; a mask holds class ids as 8-bit gray or palette indices")
    ids: Bytes = table.take(raw)
    if (ids == FOREIGN).any():
        valid = _ranges(np.flatnonzero(table[:IGNORE] != FOREIGN).tolist())
        last = {FOREIGN: "", IGNORE: f" and {IGNORE} (ignore)"}.get(int(table[IGNORE]), f" and {IGNORE}")
        strangers = np.unique(raw[ids == FOREIGN]).tolist()
        more = f" and {len(strangers) - MOST_SHOWN} more" if len(strangers) > MOST_SHOWN else ""
        raise ValueError(f"mask {path} holds the values {strangers[:MOST_SHOWN]}{more}; valid are {valid}{last}")
    return ids


def table_of(values: Sequence[int], ignored: Iterable[int] = (IGNORE,)) -> Bytes:
    """(256,): class k for `values[k]`, IGNORE for the ignored values, FOREIGN for the rest."""
    table = np.full(256, FOREIGN, dtype=np.uint8)
    table[list(ignored)] = IGNORE
    table[list(values)] = np.arange(len(values), dtype=np.uint8)
    return table


def _ranges(numbers: Sequence[int]) -> str:
    """'0 to 20' for what has no gaps, else the numbers."""
    if len(numbers) > 2 and numbers[-1] - numbers[0] == len(numbers) - 1:
        return f"{numbers[0]} to {numbers[-1]}"
    return ", ".join(map(str, numbers))


def listing(folder: Path, suffix: str) -> dict[str, int]:
    """Size in bytes by stem, of the files right in a folder."""
    if not folder.is_dir():
        raise FileNotFoundError(f"folder {folder} does not exist")
    with os.scandir(folder) as entries:
        return {e.name[: -len(suffix)]: e.stat().st_size for e in entries if e.name.endswith(suffix)}


@contextmanager
def opened(path: Path, kind: str) -> Iterator[Image.Image]:
    """PIL's several errors become one that names the file."""
    try:
        with Image.open(path) as file:
            yield file
    except FileNotFoundError as error:
        raise FileNotFoundError(f"{kind} {path} does not exist") from error
    except (OSError, SyntaxError, EOFError, ValueError, zlib.error, Image.DecompressionBombError) as error:
        raise ValueError(f"{kind} {path} is corrupt, truncated or not an image file") from error


def upright(file: Image.Image) -> None:
    """Load an image and turn it as its EXIF orientation says; of a PNG a tag counts that comes before the pixels."""
    tagged = _orientation(file) != 1
    file.load()
    if tagged or file.format == "TIFF":
        ImageOps.exif_transpose(file, in_place=True)


def _orientation(file: Image.Image) -> int:
    """The tag of a file that is not loaded yet; 1 where PIL follows it by itself, or where there is none."""
    if file.format == "TIFF" or (file.format == "PNG" and "exif" not in file.info):
        return 1
    return int(file.getexif().get(ExifTags.Base.Orientation, 1))


def to_rgb(image: Image.Image) -> Bytes:
    """(H, W, 3): gray and palettes become RGB, transparency is dropped, of 16 bits the upper 8 are kept."""
    if image.mode.startswith("I"):
        return np.repeat((np.array(image).astype(np.uint32) >> 8).astype(np.uint8)[..., None], 3, 2)
    return np.array(image if image.mode == "RGB" else image.convert("RGB"))


def read_rgb(path: Path) -> Bytes:
    """(H, W, 3) of an image file, upright.  Raises ValueError naming it where it cannot be decoded."""
    with opened(path, "image") as file:
        upright(file)
        if file.mode != "F":
            return to_rgb(file)
    raise ValueError(f"image {path} holds floating-point numbers; save it with 8 or 16 bits")


def size_of(path: Path) -> tuple[int, int]:
    """Height and width of an image, upright, from the header of its file."""
    with opened(path, "image") as file:
        lying = _orientation(file) in (5, 6, 7, 8)
        return (file.width, file.height) if lying else (file.height, file.width)


def decode(path: Path, kind: str, mode: str | None = None) -> tuple[str, np.ndarray]:
    """The mode of the file and its pixels, converted to `mode` if given."""
    with opened(path, kind) as file:
        return file.mode, np.array(file if mode in (None, file.mode) else file.convert(mode))


def save_png(path: Path, image: Image.Image) -> None:
    """Old or new, never half."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(path.name + ".part")
    image.save(part, "PNG")
    os.replace(part, path)


def save_text(path: Path, text: str) -> None:
    """Old or new, never half."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(path.name + ".part")
    part.write_text(text, encoding="utf-8", newline="\n")
    os.replace(part, path)
