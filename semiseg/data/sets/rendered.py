"""What the embedded sets share: scenes rendered from a seed and kept in memory, the same bytes on any machine."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

Floats = NDArray[np.float64]
Bytes = NDArray[np.uint8]
Generator = np.random.Generator


class Rendered:
    """Scenes by id, as "train-0007"; `ids` by part.

    `sha256` is that of all images, all masks and all ids, in the order of the parts.

    Args: images (N, 3, H, W) and masks (N, H, W) of each part.
    """

    name: str

    def __init__(self, parts: Mapping[str, tuple[Bytes, Bytes]]) -> None:
        self.ids = {part: tuple(f"{part}-{i:04d}" for i in range(len(masks))) for part, (_, masks) in parts.items()}
        images, masks = (np.concatenate(both) for both in zip(*parts.values(), strict=True))
        keys = sum(self.ids.values(), ())
        self.sha256 = hashlib.sha256(images.tobytes() + masks.tobytes() + "\n".join(keys).encode()).hexdigest()
        self._row = {key: row for row, key in enumerate(keys)}
        self._images, self._masks = torch.from_numpy(images), torch.from_numpy(masks)

    def image(self, key: str) -> Tensor:
        """(3, H, W) uint8.  Raises KeyError for an unknown id."""
        return self._images[self._index(key)].clone()

    def mask(self, key: str) -> Tensor:
        """(H, W) uint8.  Raises KeyError for an unknown id."""
        return self._masks[self._index(key)].clone()

    def _index(self, key: str) -> int:
        if key not in self._row:
            known = " and ".join(f"{ids[0]} to {ids[-1]}" for ids in self.ids.values())
            raise KeyError(f"no scene {key!r} in the {self.name}; ids go from {known}")
        return self._row[key]


def check_numbers(name: str, **numbers: tuple[int, int]) -> None:
    """Raise ValueError for a value, first of its pair, that is no integer of at least the second."""
    for what, (value, least) in numbers.items():
        if isinstance(value, bool) or not isinstance(value, int) or value < least:
            raise ValueError(f"{name}: {what} must be an integer of at least {least}, got {value!r}")


def generator(seed: int, stream: int) -> Generator:
    return np.random.Generator(np.random.PCG64(np.random.SeedSequence([seed, stream])))


def uniform(rng: Generator, bounds: tuple[float, float], *shape: int) -> Floats:
    """From `random` alone: the other distributions may change with numpy's version."""
    return bounds[0] + (bounds[1] - bounds[0]) * rng.random(shape)


def noise(rng: Generator, scenes: int, cells: int, size: int) -> Floats:
    """(N, size, size) in [0, 1]: smooth value noise, random on a grid of `cells` x `cells` squares."""
    grid = rng.random((scenes, cells + 1, cells + 1))
    place = (np.arange(size) + 0.5) / size * cells
    cell = np.floor(place).astype(np.int64)
    t = place - cell
    t = t * t * (3 - 2 * t)
    rows = grid[:, cell] * (1 - t)[:, None] + grid[:, cell + 1] * t[:, None]
    return rows[:, :, cell] * (1 - t) + rows[:, :, cell + 1] * t


def colors(rng: Generator, luminance: Floats, saturation: float = 1.0) -> Floats:
    """(...) luminance -> (3, ...) RGB of any hue, gray to saturated, whose luminance is (before clipping) that."""
    hue = rng.random(luminance.shape) * 6
    wheel = np.stack([hue, hue + 4, hue + 2]) % 6
    rgb = np.clip(np.minimum(wheel, 4 - wheel), -1, 1) / 2
    gray = rgb[0] * 0.299 + rgb[1] * 0.587 + rgb[2] * 0.114
    return luminance + (rgb - gray) * (saturation * rng.random(luminance.shape))


def as_bytes(image: Floats) -> Bytes:
    """0..1 -> 0..255, rounded."""
    return np.floor(np.clip(image, 0, 1) * 255 + 0.5).astype(np.uint8)
