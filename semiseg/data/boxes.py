"""Boxes: around the components of a mask, found by a detector, and as planes beside an image."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Collection, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from scipy import ndimage
from torch import Tensor

from semiseg.types import IGNORE


class Boxes(NamedTuple):
    """n boxes of one image: edges in pixels, so that a box of one pixel at the origin is (0, 0, 1, 1)."""

    edges: Tensor  # (n, 4) float: left, top, right, bottom
    labels: Tensor  # (n,) long, class ids
    scores: Tensor  # (n,) float in [0, 1]; 1 for boxes made from masks

    def above(self, score: float) -> Boxes:
        """Those the detector is at least so sure of."""
        return Boxes(*(v[self.scores >= score] for v in self))


def component_boxes(mask: Tensor, things: Collection[int], min_pixels: int = 1) -> Boxes:
    """The smallest box around each connected component of each class (WPL Sec. 3.3, supplement Sec. 1).

    A component may hold several objects that touch, and an object cut in two gives two boxes.

    Args:
        mask: (H, W) class ids, 255 where unknown.
        things: classes that get boxes; background and stuff are left out.
        min_pixels: smaller components are passed over.  Neighbors touch by edge or corner.
    """
    found = []
    for label in sorted(set(np.unique(mask.numpy()).tolist()) & set(things) - {IGNORE}):
        parts, _ = ndimage.label(mask.numpy() == label, structure=np.ones((3, 3)))
        sizes = np.bincount(parts.ravel())
        for number, (rows, columns) in enumerate(ndimage.find_objects(parts), 1):
            if sizes[number] >= min_pixels:
                found.append([columns.start, rows.start, columns.stop, rows.stop, label])
    table = torch.tensor(found, dtype=torch.float32).view(-1, 5)
    return Boxes(table[:, :4], table[:, 4].long(), torch.ones(len(table)))


def planes(boxes: Boxes, classes: int, size: tuple[int, int], device: torch.device | str = "cpu") -> Tensor:
    """(K, H, W) bool: whether a pixel's center lies in a box of a class.  The boxes are on the CPU."""
    inside = torch.zeros(classes, *size, dtype=torch.bool, device=device)
    ends = boxes.edges.round().long()  # a center x + 0.5 is at or right of an edge e where x >= round(e)
    for (left, top, right, bottom), label in zip(ends.clamp(min=0).tolist(), boxes.labels.tolist(), strict=True):
        inside[label, top:bottom, left:right] = True
    return inside


@dataclass(frozen=True)
class Detections:
    """What a detector found in each of many images."""

    found: dict[str, Boxes]

    def __getitem__(self, key: str) -> Boxes:
        return self.found[key]

    def missing(self, ids: Iterable[str]) -> list[str]:
        """Images it was never shown."""
        return [key for key in ids if key not in self.found]

    def above(self, score: float) -> Detections:
        return Detections({key: boxes.above(score) for key, boxes in self.found.items()})

    @property
    def sha256(self) -> str:
        digest = hashlib.sha256()
        for key in sorted(self.found):
            digest.update(key.encode())
            for part in self.found[key]:
                digest.update(part.numpy().tobytes())
        return digest.hexdigest()

    def save(self, path: Path) -> None:
        """One file, old or new but never half."""
        keys = list(self.found)
        empty = Boxes(torch.zeros(0, 4), torch.zeros(0, dtype=torch.long), torch.zeros(0))
        parts = [torch.cat(column) for column in zip(empty, *self.found.values(), strict=True)]
        tensors = dict(zip(Boxes._fields, parts, strict=True))
        tensors["counts"] = torch.tensor([len(self.found[key].scores) for key in keys], dtype=torch.long)
        part = path.with_name(path.name + ".part")
        save_file(tensors, part, metadata={"ids": json.dumps(keys)})
        os.replace(part, path)

    @staticmethod
    def read(path: Path | str) -> Detections:
        """Raises FileNotFoundError, or ValueError for a file that is something else."""
        path = Path(path)
        if not path.is_file():
            raise FileNotFoundError(f"no detections at {path}; train a detector first")
        try:
            with safe_open(path, "pt") as file:
                keys = json.loads(file.metadata()["ids"])
                counts = file.get_tensor("counts").tolist()
                columns = [file.get_tensor(name).split(counts) for name in Boxes._fields]
        except Exception as error:
            raise ValueError(f"{path} does not hold detections: {error}") from error
        return Detections({key: Boxes(*row) for key, *row in zip(keys, *columns, strict=True)})
