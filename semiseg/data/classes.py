"""What the values or colors of masks mean: from a small TOML or JSON file, or found out from the masks."""

from __future__ import annotations

import json
import os
import tomllib
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from semiseg.data.files import FOREIGN, Bytes, decode, table_of, translate
from semiseg.data.sets.voc import voc_palette
from semiseg.types import IGNORE

Color = tuple[int, int, int]
MOST = 64  # more different values than this are no inferred classes
_KEYS = ("names", "colors", "values", "ignore")


@dataclass(frozen=True)
class ClassMap:
    """Class k is called names[k], drawn in colors[k], and marked by values[k] in gray and palette masks.

    ignore: values (integers) and colors (triples) that no loss looks at.  color_masks: whether colors were given, so
    that masks may be RGB pictures, in which colors[k] marks class k.
    """

    names: tuple[str, ...]
    colors: tuple[Color, ...]
    values: tuple[int, ...]
    ignore: tuple[int | Color, ...] = (IGNORE,)
    color_masks: bool = False

    @property
    def table(self) -> Bytes:
        """(256,) class id by value."""
        return table_of(self.values, [i for i in self.ignore if isinstance(i, int)])

    def read(self, path: Path) -> Bytes:
        """(H, W) class ids of a mask file.  Raises ValueError naming it where it holds anything else."""
        mode, pixels = decode(path, "mask")
        if mode == "1":
            pixels = self.table.take(pixels.astype(np.uint8))
            return pixels
        if mode not in ("RGB", "RGBA"):
            return translate(path, self.table)
        if not self.color_masks:
            raise ValueError(
                f"mask {path} has mode {mode}; list the colors of the classes in classes.toml, or save class ids as "
                f"8-bit gray or palette PNG; its colors: {_some(_colors(_codes(pixels)))}"
            )
        return self._of_colors(path, _codes(pixels))

    def _of_colors(self, path: Path, codes: NDArray[np.int32]) -> Bytes:
        colors = [*self.colors, *(c for c in self.ignore if not isinstance(c, int))]
        ids = [*range(len(self.colors)), *[IGNORE] * (len(colors) - len(self.colors))]
        known = _codes(np.array(colors, np.uint8).reshape(-1, 1, 3)).ravel()
        order = np.argsort(known)
        place = np.searchsorted(known[order], codes).clip(max=len(known) - 1)
        strange = known[order][place] != codes
        if strange.any():
            raise ValueError(
                f"mask {path} holds colors of no class: {_some(_colors(codes[strange]))}; "
                "list them among colors or ignore, and save masks without loss (PNG, never JPEG)"
            )
        found: Bytes = np.array(ids, np.uint8)[order][place]
        return found


def named(names: Sequence[str]) -> ClassMap:
    """Ids 0, 1, ... in the order of the names.  Raises ValueError for none, too many, or one twice."""
    return _checked({"names": list(names)}, "classes")


def read_classes(path: Path) -> ClassMap:
    """A TOML or JSON file with `names`, and if need be `colors` (RGB), `values` in the masks, and `ignore`.

    names = ["background", "leaf"]
    values = [0, 255]                # black and white masks; without it 0, 1, 2, ...
    colors = [[0, 0, 0], [0, 160, 0]]  # needed where masks are RGB pictures
    ignore = []                      # values and colors to ignore; without it 255

    Raises FileNotFoundError or ValueError naming the file and the entry at fault.
    """
    if not path.is_file():
        raise FileNotFoundError(f"file of classes {path} does not exist")
    try:
        text = path.read_text(encoding="utf-8-sig")
        found = json.loads(text) if path.suffix == ".json" else tomllib.loads(text)
    except (ValueError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} is not valid {path.suffix.lstrip('.').upper() or 'TOML'}: {error}") from error
    if not isinstance(found, dict):
        raise ValueError(f"{path} must hold a table with the keys {', '.join(_KEYS)}")
    return _checked(found, str(path))


def _checked(found: dict[str, Any], where: str) -> ClassMap:
    if unknown := found.keys() - set(_KEYS):
        raise ValueError(f"{where}: unknown key {min(unknown)!r}; valid are {', '.join(_KEYS)}")
    names = found.get("names")
    if not isinstance(names, list) or not all(isinstance(n, str) and n for n in names) or not 2 <= len(names) <= 254:
        raise ValueError(f"{where}: names must be a list of 2 to 254 names of classes")
    if len(set(names)) < len(names):
        raise ValueError(f"{where}: the name {next(n for n in names if names.count(n) > 1)!r} stands for two classes")
    values, colors = found.get("values", list(range(len(names)))), found.get("colors")
    for key, entries, valid in (("values", values, _is_value), ("colors", colors, _is_color)):
        if entries is not None and (not isinstance(entries, list) or len(entries) != len(names)):
            raise ValueError(f"{where}: {key} must have one entry for each of the {len(names)} names")
        if bad := [e for e in entries or () if not valid(e)]:
            kind = "an integer from 0 to 255" if key == "values" else "three integers from 0 to 255"
            raise ValueError(f"{where}: {bad[0]!r} in {key} is not {kind}")
    ignore = found.get("ignore", [IGNORE] * (IGNORE not in values))
    ignore = ignore if isinstance(ignore, list) and not _is_color(ignore) else [ignore]
    if bad := [e for e in ignore if not _is_value(e) and not _is_color(e)]:
        raise ValueError(f"{where}: {bad[0]!r} in ignore is neither a value from 0 to 255 nor a color of three")
    marks = (
        [*values, *(i for i in ignore if isinstance(i, int))],
        [*(colors or ()), *(i for i in ignore if _is_color(i))],
    )
    for mark in marks:
        if double := [m for m in mark if mark.count(m) > 1]:
            raise ValueError(f"{where}: {double[0]!r} means two things")
    return ClassMap(
        tuple(names), tuple(map(tuple, colors or voc_palette(len(names)))), tuple(values),
        tuple(tuple(i) if isinstance(i, list) else i for i in ignore), colors is not None,
    )  # fmt: skip


def _is_value(entry: object) -> bool:
    return isinstance(entry, int) and not isinstance(entry, bool) and 0 <= entry <= 255


def _is_color(entry: object) -> bool:
    return isinstance(entry, list) and len(entry) == 3 and all(map(_is_value, entry))


def infer_classes(paths: Iterable[Path]) -> ClassMap:
    """One class for each value but 255 in gray or palette masks, called by the value; reads all of them.

    Raises ValueError for RGB masks, for more than MOST values, and where there is only one beside 255: black and white
    masks, in which 255 may well mean the object, need a file that says so.
    """
    paths = list(paths)
    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
        present = np.zeros(256, bool)
        for path, there in zip(paths, pool.map(_values, paths), strict=True):
            present |= there
            if present[:IGNORE].sum() > MOST:
                raise ValueError(f"mask {path}: more than {MOST} different values so far; masks hold class ids, as PNG")
    values = np.flatnonzero(present[:IGNORE]).tolist()
    if len(values) < 2:
        raise ValueError(
            f"the masks hold no values but {', '.join(map(str, np.flatnonzero(present)))}; where 255 is the object, "
            'write into classes.toml: names = ["background", "object"] and values = [0, 255]'
        )
    return ClassMap(tuple(map(str, values)), voc_palette(len(values)), tuple(values))


def _values(path: Path) -> NDArray[np.bool_]:
    """(256,): which values a mask holds."""
    mode, pixels = decode(path, "mask")
    if mode in ("RGB", "RGBA"):
        ClassMap((), (), ()).read(path)  # says so
    if mode not in ("1", "L", "P"):
        translate(path, np.full(256, FOREIGN, np.uint8))  # says so
    return np.bincount(pixels.astype(np.uint8).ravel(), minlength=256) > 0


def _codes(pixels: Bytes) -> NDArray[np.int32]:
    """(H, W) one number per color; an alpha channel is left out."""
    r, g, b = np.moveaxis(pixels[..., :3], -1, 0).astype(np.int32)
    codes: NDArray[np.int32] = (r << 16) | (g << 8) | b
    return codes


def _colors(codes: NDArray[np.int32]) -> list[Color]:
    return [(int(c) >> 16, int(c) >> 8 & 255, int(c) & 255) for c in np.unique(codes)]


def _some(colors: Sequence[Color]) -> str:
    shown = ", ".join(map(str, colors[:6]))
    return f"{shown} and {len(colors) - 6} more" if len(colors) > 6 else shown
