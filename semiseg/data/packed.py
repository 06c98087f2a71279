"""A data set in one file: decoded images and masks, in the safetensors format, mapped into memory when they are read.

    pixels   (N,) uint8: of each image its rows of RGB pixels, then its mask's rows where it has one
    sizes    (n, 2) int32: height and width
    masked   (n,) uint8: whether there is a mask
    digests  (n, 32) uint8: SHA256 of the pixels of each image and its mask

The metadata hold names, classes, colors, lists and the identity of the source, and a SHA256 of all but the pixels.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor
from tqdm import tqdm

from semiseg.data.dataset import SegmentationData, ids_of
from semiseg.data.resident import Loaded, load, read_all
from semiseg.data.shrunk import Shrunk

FORMAT = "semiseg pack 1"
_ABOUT = ("name", "classes", "palette", "mirror", "sha256")
_PARTS = ("train", "val", "tune", "test")
_DIGEST = 32
_LONGEST = 10**18  # digits that are kept free for the number of pixels


class Pack:
    """A data set read from a file that `pack` wrote; it is what its source was, `sha256` included.

    Opening reads lists and sizes alone; an image is compared with its digest when it is first asked for.

    Attributes beyond `SegmentationData`: `tune` and `test`, ids where the source has such parts; `longest`, side to
    which images were shrunk, 0: none; `content`, SHA256 of everything in it.
    Raises FileNotFoundError where there is no file, ValueError for one that is no pack, or is truncated or altered.
    """

    name: str
    mirror: bool
    sha256: str

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        if not self.path.is_file():
            raise FileNotFoundError(f"no pack at {self.path}; make one with semiseg data pack")
        about, tables = self._read()
        for name in ("name", "mirror", "sha256"):
            setattr(self, name, about[name])
        self.classes, *parts = (tuple(about[name]) for name in ("classes", *_PARTS))
        self.train, self.val, self.tune, self.test = parts
        self.palette, self.longest = tuple((r, g, b) for r, g, b in about["palette"]), about["longest"]
        self.folders = (self.path,)
        sizes, masked, self._digests = tables
        keys = list(dict.fromkeys(chain(*parts)))
        lengths = sizes.prod(1, dtype=np.int64) * (3 + masked)
        self._ends = np.cumsum(lengths)
        self._row = {key: row for row, key in enumerate(keys)}
        self._sizes, self._masked, self._whole = sizes.tolist(), masked.tolist(), set[str]()
        if len(keys) != len(sizes) or int(lengths.sum()) != len(self._pixels):
            raise ValueError(_broken(self.path, "its lists and sizes do not agree"))

    def _read(self) -> tuple[dict[str, Any], list[np.ndarray]]:
        """Metadata and tables; the pixels are mapped."""
        try:
            with safe_open(self.path, "np") as file:
                metadata = file.metadata() or {}
                if metadata.get("format") != FORMAT:
                    raise ValueError(f"{self.path} is no pack of images; make one with semiseg data pack")
                tables = [file.get_tensor(name) for name in ("sizes", "masked", "digests")]
                length = file.get_slice("pixels").get_shape()[0]
        except (SafetensorError, OSError) as error:
            raise ValueError(_broken(self.path, str(error))) from error
        self.content = metadata.get("content", "")
        if _content(metadata["about"], tables) != self.content:
            raise ValueError(_broken(self.path, "its lists are not what was written"))
        with self.path.open("rb") as raw:
            start = 8 + int.from_bytes(raw.read(8), "little")
        # Private pages: PyTorch wants memory that could be written to.
        self._pixels = np.memmap(self.path, np.uint8, "c", start, (length,))
        return json.loads(metadata["about"]), tables

    def __reduce__(self) -> tuple[Any, ...]:
        return Pack, (self.path,)

    @property
    def masked(self) -> tuple[str, ...]:
        """Training ids with a mask."""
        return tuple(key for key in self.train if self._masked[self._row[key]])

    def image(self, key: str) -> Tensor:
        """(3, H, W) uint8, shared: do not write to it.  Raises ValueError where the pixels are not what was packed."""
        height, width = self.size(key)
        return self._bytes(key)[: 3 * height * width].view(height, width, 3).permute(2, 0, 1)

    def mask(self, key: str) -> Tensor | None:
        """(H, W) uint8, shared: do not write to it; None where there is none."""
        height, width = self.size(key)
        rest = self._bytes(key)[3 * height * width :]
        return rest.view(height, width) if self._masked[self._row[key]] else None

    def size(self, key: str) -> tuple[int, int]:
        """Height and width.  Raises KeyError for an unknown id."""
        if key not in self._row:
            raise KeyError(f"no image {key!r} in {self.path}")
        height, width = self._sizes[self._row[key]]
        return height, width

    def _bytes(self, key: str) -> Tensor:
        row = self._row[key]
        here = self._pixels[self._ends[row - 1] if row else 0 : self._ends[row]]
        if key not in self._whole:
            if hashlib.sha256(here.data).digest() != self._digests[row].tobytes():
                raise ValueError(_broken(self.path, f"image {key} is not what was written"))
            self._whole.add(key)
        return torch.from_numpy(here)


def pack(
    data: SegmentationData, path: str | Path, *, longest: int = 0, overwrite: bool = False, progress: bool = False
) -> Pack:
    """Decode every image and mask of a data set into one file.

    The pack has the identity of its source, and so have the records of runs on it; shrunk it has that of
    `Shrunk(data, longest)`.

    Args:
        data: any data set.
        path: of the file; it appears when it is whole.
        longest: side in pixels to which images are shrunk; 0: they stay as they are.
        overwrite: replace an earlier pack.
        progress: show a bar.

    Raises:
        ValueError: a file is there already, or is no pack; an image that cannot be decoded, or differs in size from its
            mask.
    """
    path = Path(path)
    if path.exists():
        if not overwrite:
            raise ValueError(f"{path} is there already; choose another file, or ask to overwrite it")
        if not is_pack(path):
            raise ValueError(f"{path} is no pack of images, so it is not overwritten")
    data = Shrunk(data, longest) if longest else data
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        with part.open("wb") as file:
            _write(file, data, longest, progress)
        os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)
    return Pack(path)


def is_pack(path: Path) -> bool:
    """Whether a file is a pack, by its header."""
    try:
        with safe_open(path, "np") as file:
            return (file.metadata() or {}).get("format") == FORMAT
    except (SafetensorError, OSError):
        return False


def _write(file: BinaryIO, data: SegmentationData, longest: int, progress: bool) -> None:
    """Room for the header, pixels, tables; then the header, of which only then all numbers are known."""
    parts = {part: _ids(data, part) for part in _PARTS}
    keys = list(dict.fromkeys(chain(*parts.values())))
    about = json.dumps({**{name: getattr(data, name) for name in _ABOUT}, **parts, "longest": longest})
    room = -(-len(_header(about, "0" * 64, len(keys), _LONGEST, _LONGEST)) // 8) * 8
    file.write(bytes(8 + room))
    sizes, masked, digests, pixels = [], [], [], 0
    everything: Iterator[Loaded] = read_all(partial(load, data, labeled=False), keys)
    for loaded in tqdm(everything, total=len(keys), disable=not progress, mininterval=1):
        content = loaded.image.permute(1, 2, 0).contiguous().numpy().tobytes()
        content += b"" if loaded.mask is None else loaded.mask.contiguous().numpy().tobytes()
        file.write(content)
        pixels += len(content)
        sizes.append(loaded.size)
        masked.append(loaded.mask is not None)
        digests.append(np.frombuffer(hashlib.sha256(content).digest(), np.uint8))
    gap = -pixels % 4  # the numbers that follow start at a multiple of their size
    file.write(bytes(gap))
    tables: list[np.ndarray] = [np.array(sizes, np.int32), np.array(masked, np.uint8), np.array(digests)]
    for table in tables:
        file.write(table.tobytes())
    header = _header(about, _content(about, tables), len(keys), pixels, gap)
    file.seek(0)
    file.write(room.to_bytes(8, "little") + header.ljust(room))


def _ids(data: SegmentationData, part: str) -> tuple[str, ...]:
    try:
        return ids_of(data, part)
    except ValueError:
        return ()


def _header(about: str, content: str, images: int, pixels: int, gap: int) -> bytes:
    """What safetensors starts with: each tensor's type, shape, and place among the bytes that follow."""
    shapes = {
        "pixels": ("U8", [pixels], pixels), "gap": ("U8", [gap], gap), "sizes": ("I32", [images, 2], 8 * images),
        "masked": ("U8", [images], images), "digests": ("U8", [images, _DIGEST], _DIGEST * images),
    }  # fmt: skip
    found: dict[str, Any] = {"__metadata__": {"format": FORMAT, "about": about, "content": content}}
    start = 0
    for name, (kind, shape, length) in shapes.items():
        found[name] = {"dtype": kind, "shape": shape, "data_offsets": [start, start + length]}
        start += length
    return json.dumps(found).encode()


def _content(about: str, tables: list[np.ndarray]) -> str:
    digest = hashlib.sha256(about.encode())
    for table in tables:
        digest.update(np.ascontiguousarray(table).tobytes())
    return digest.hexdigest()


def _broken(path: Path, why: str) -> str:
    return f"{path} is truncated or altered ({why}); pack it again"
