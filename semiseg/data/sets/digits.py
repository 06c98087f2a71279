"""Embedded benchmark: scenes composed from scikit-learn's 1,797 real handwritten digits; nothing to download.

One digit, drawn in dark ink of any hue on a lighter, textured and cluttered ground, fills most of a scene; the mask is
its stroke.  What varies from scene to scene, besides the handwriting, is color, contrast, texture, size, position, tilt
and slant.  A few labeled scenes show few of these looks; many unlabeled ones show most of them.

Scenes are rendered once, all together, from uniform random numbers by additions, multiplications, divisions and square
roots alone: no sine, exponential or matrix product, whose last bit may differ between machines.  Hence one seed gives
the same bytes everywhere, and `Digits.sha256` says so.
"""

from __future__ import annotations

import hashlib

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.datasets import load_digits
from torch import Tensor

Floats = NDArray[np.float64]
Bytes = NDArray[np.uint8]

MIN_SIZE = 16  # pixels; below, the eight cells of a digit no longer show
TRAIN_SHARE = 0.75  # of the digits; the others appear in validation scenes alone
BOX = (0.69, 0.94)  # side of the digit's box, share of the scene
HALF_TILT = (-0.12, 0.12)  # tangent of half the rotation: 14 degrees either way
SLANT = (-0.2, 0.2)  # horizontal shear
STRETCH = (0.85, 1.1)  # width over height of the box
THRESHOLD = (7.0, 9.0)  # ink level of 0..16 where the stroke ends: thick to thin pens
CONTRAST = (0.24, 0.72)  # luminance of the ground minus luminance of the ink
MIDDLE = (0.4, 0.6)  # luminance half way between the two
CLUTTER = 5  # line segments behind the digit
SENSOR_NOISE = 0.03

Generator = np.random.Generator


class Digits:
    """Scenes of one handwritten digit each; class 0 is the background, class d + 1 the digit d.

    Args: number of training and of validation scenes, side of a scene in pixels, seed of everything random.
    Attributes beyond `SegmentationData`: `source`, id -> index of the scene's digit in `load_digits()`.
    Raises ValueError for a count below 1, a size below 16 or a negative seed.
    """

    name = "digits"
    classes: tuple[str, ...] = ("background", *"0123456789")
    palette: tuple[tuple[int, int, int], ...] = (
        (0, 0, 0), (230, 25, 75), (245, 130, 48), (255, 225, 25), (150, 220, 50), (60, 180, 75),
        (70, 210, 225), (0, 110, 220), (120, 60, 200), (240, 50, 230), (170, 110, 40),
    )  # fmt: skip
    mirror = False

    def __init__(self, train_scenes: int = 1024, val_scenes: int = 256, size: int = 32, seed: int = 0) -> None:
        _check(train_scenes, val_scenes, size, seed)
        digits = load_digits()
        pools = _pools(len(digits.target), seed)
        counts = {"train": train_scenes, "val": val_scenes}
        parts = []
        for stream, (part, count) in enumerate(counts.items(), start=1):
            rng = _generator(seed, stream)
            source = _draw(rng, pools[part], count)
            parts.append((source, *_render(rng, digits.images[source], digits.target[source], size)))
        source, images, masks = (np.concatenate(both) for both in zip(*parts, strict=True))
        self.train, self.val = (tuple(f"{part}-{i:04d}" for i in range(n)) for part, n in counts.items())
        keys = self.train + self.val
        self.source: dict[str, int] = dict(zip(keys, source.tolist(), strict=True))
        self.sha256 = hashlib.sha256(images.tobytes() + masks.tobytes() + "\n".join(keys).encode()).hexdigest()
        self._row = {key: row for row, key in enumerate(keys)}
        self._images, self._masks = torch.from_numpy(images), torch.from_numpy(masks)

    def image(self, key: str) -> Tensor:
        """(3, H, W) uint8.  Raises KeyError for an unknown id."""
        return self._images[self._index(key)].clone()

    def mask(self, key: str) -> Tensor:
        """(H, W) uint8 in 0..10.  Raises KeyError for an unknown id."""
        return self._masks[self._index(key)].clone()

    def _index(self, key: str) -> int:
        if key not in self._row:
            known = f"{self.train[0]} to {self.train[-1]} and {self.val[0]} to {self.val[-1]}"
            raise KeyError(f"no scene {key!r} in the digits; ids go from {known}")
        return self._row[key]


def _check(train_scenes: int, val_scenes: int, size: int, seed: int) -> None:
    for what, value, least in (
        ("train_scenes", train_scenes, 1),
        ("val_scenes", val_scenes, 1),
        ("size", size, MIN_SIZE),
        ("seed", seed, 0),
    ):
        if isinstance(value, bool) or not isinstance(value, int) or value < least:
            raise ValueError(f"digits: {what} must be an integer of at least {least}, got {value!r}")


def _generator(seed: int, stream: int) -> Generator:
    return np.random.Generator(np.random.PCG64(np.random.SeedSequence([seed, stream])))


def _uniform(rng: Generator, bounds: tuple[float, float], *shape: int) -> Floats:
    """From `random` alone: the other distributions may change with numpy's version."""
    return bounds[0] + (bounds[1] - bounds[0]) * rng.random(shape)


def _shuffle(rng: Generator, items: NDArray[np.int64]) -> NDArray[np.int64]:
    return items[np.argsort(rng.random(len(items)), kind="stable")]


def _pools(total: int, seed: int) -> dict[str, NDArray[np.int64]]:
    """Disjoint digits for training and for validation scenes."""
    order = _shuffle(_generator(seed, 0), np.arange(total))
    cut = int(total * TRAIN_SHARE)
    return {"train": order[:cut], "val": order[cut:]}


def _draw(rng: Generator, pool: NDArray[np.int64], count: int) -> NDArray[np.int64]:
    """`count` digits of the pool; none comes back before all were used."""
    rounds = -(-count // len(pool))
    return np.concatenate([_shuffle(rng, pool) for _ in range(rounds)])[:count]


def _each(values: Floats) -> Floats:
    """(N,) -> (N, 1, 1): one number per scene."""
    return values[:, None, None]


def _noise(rng: Generator, scenes: int, cells: int, size: int) -> Floats:
    """(N, size, size) in [0, 1]: smooth value noise, random on a grid of `cells` x `cells` squares."""
    grid = rng.random((scenes, cells + 1, cells + 1))
    place = (np.arange(size) + 0.5) / size * cells
    cell = np.floor(place).astype(np.int64)
    t = place - cell
    t = t * t * (3 - 2 * t)
    rows = grid[:, cell] * (1 - t)[:, None] + grid[:, cell + 1] * t[:, None]
    return rows[:, :, cell] * (1 - t) + rows[:, :, cell + 1] * t


def _colors(rng: Generator, luminance: Floats) -> Floats:
    """(N,) luminance -> (N, 3, 1, 1) RGB of any hue, gray to saturated, whose luminance is (before clipping) that."""
    hue = rng.random(len(luminance)) * 6
    wheel = np.stack([hue, hue + 4, hue + 2], axis=1) % 6
    rgb = np.clip(np.minimum(wheel, 4 - wheel), -1, 1) / 2
    gray = rgb[:, 0] * 0.299 + rgb[:, 1] * 0.587 + rgb[:, 2] * 0.114
    saturation = rng.random(len(luminance))
    colors = luminance[:, None] + (rgb - gray[:, None]) * saturation[:, None]
    return colors[:, :, None, None]


def _grain(rng: Generator, scenes: int, size: int) -> Floats:
    """(N, 1, size, size): small changes of brightness that ground and ink have alike."""
    return 0.21 * (_noise(rng, scenes, 8, size) - 0.5)[:, None]


def _ground(rng: Generator, luminance: Floats, size: int) -> Floats:
    """(N, 3, size, size): two colors of similar luminance, mixed by noise of two scales."""
    n = len(luminance)
    first, second = _colors(rng, luminance), _colors(rng, luminance + _uniform(rng, (-0.1, 0.1), n))
    mix = 0.6 * _noise(rng, n, 3, size) + 0.4 * _noise(rng, n, 10, size)
    share = np.clip(2 * mix - 0.5, 0, 1)[:, None]
    return first + (second - first) * share + _grain(rng, n, size)


def _pixels(size: int) -> tuple[Floats, Floats]:
    """Row and column of the pixel centers, (size, 1) and (1, size)."""
    center = np.arange(size, dtype=np.float64) + 0.5
    return center[:, None], center[None, :]


def _add_clutter(rng: Generator, image: Floats) -> Floats:
    """One half-transparent line segment of any color over each scene (N, 3, H, W)."""
    n, size = len(image), image.shape[-1]
    rows, columns = _pixels(size)
    start = _uniform(rng, (0.0, float(size)), 2, n)
    step = _uniform(rng, (-size / 4, size / 4), 2, n)
    dy, dx = _each(step[0]), _each(step[1])
    y, x = rows - _each(start[0]), columns - _each(start[1])
    along = np.clip((y * dy + x * dx) / (dy * dy + dx * dx + 1e-6), 0, 1)
    y, x = y - along * dy, x - along * dx
    thickness = _each(_uniform(rng, (1.0, 2.0), n))
    cover = np.clip(thickness - np.sqrt(y * y + x * x), 0, 1) * _each(_uniform(rng, (0.2, 0.7), n))
    return image + cover[:, None] * (_colors(rng, _uniform(rng, (0.2, 0.8), n)) - image)


def _spline(t: Floats) -> tuple[Floats, ...]:
    """Weights of the four neighbors at fraction t: 70 % Catmull-Rom (sharp), 30 % cubic B-spline (smooth)."""
    t2, t3 = t * t, t * t * t
    sharp = ((2 * t2 - t - t3) / 2, (2 - 5 * t2 + 3 * t3) / 2, (t + 4 * t2 - 3 * t3) / 2, (t3 - t2) / 2)
    smooth = ((1 - 3 * t + 3 * t2 - t3) / 6, (4 - 6 * t2 + 3 * t3) / 6, (1 + 3 * t + 3 * t2 - 3 * t3) / 6, t3 / 6)
    return tuple(0.7 * a + 0.3 * b for a, b in zip(sharp, smooth, strict=True))


def _sample(cells: Floats, row: Floats, column: Floats) -> Floats:
    """Digits (N, 8, 8) at fractional cells (N, H, W); outside there is no ink."""
    padded = np.pad(cells, ((0, 0), (4, 4), (4, 4)))
    row, column = np.clip(row + 4, 1, 13), np.clip(column + 4, 1, 13)
    top, left = np.floor(row).astype(np.int64), np.floor(column).astype(np.int64)
    scene = np.arange(len(cells))[:, None, None]
    value = np.zeros(row.shape)
    for i, weight_row in enumerate(_spline(row - top), start=-1):
        for j, weight_column in enumerate(_spline(column - left), start=-1):
            value += weight_row * weight_column * padded[scene, top + i, left + j]
    return value


def _strokes(rng: Generator, cells: Floats, size: int) -> Floats:
    """(N, size, size) in [0, 1]: share of ink per pixel, each digit placed, turned, slanted and stretched."""
    n = len(cells)
    box = _uniform(rng, BOX, n) * size
    margin = 0.475 * box
    center = margin + rng.random((2, n)) * (size - 2 * margin)
    rows, columns = _pixels(size)
    y, x = rows - _each(center[0]), columns - _each(center[1])
    t = _each(_uniform(rng, HALF_TILT, n))
    cosine, sine = (1 - t * t) / (1 + t * t), 2 * t / (1 + t * t)
    y, x = cosine * y - sine * x, cosine * x + sine * y
    x = (x + _each(_uniform(rng, SLANT, n)) * y) / _each(_uniform(rng, STRETCH, n))
    scale = _each(8 / box)
    level = _sample(cells, y * scale + 3.5, x * scale + 3.5)
    return np.clip((level - _each(_uniform(rng, THRESHOLD, n))) / 2 + 0.5, 0, 1)


def _render(rng: Generator, cells: Floats, target: NDArray[np.int64], size: int) -> tuple[Bytes, Bytes]:
    """Digits (N, 8, 8) with values 0..16 and their numbers (N,) -> images (N, 3, size, size), masks (N, size, size)."""
    n = len(cells)
    middle, contrast = _uniform(rng, MIDDLE, n), _uniform(rng, CONTRAST, n)
    image = _ground(rng, middle + contrast / 2, size)
    for _ in range(CLUTTER):
        image = _add_clutter(rng, image)
    ink = _strokes(rng, cells, size)
    color = _colors(rng, middle - contrast / 2) + _grain(rng, n, size)
    image = image + ink[:, None] * (color - image)
    image = image + _uniform(rng, (-SENSOR_NOISE, SENSOR_NOISE), n, 3, size, size)
    masks = np.where(ink >= 0.5, target[:, None, None] + 1, 0)
    return np.floor(np.clip(image, 0, 1) * 255 + 0.5).astype(np.uint8), masks.astype(np.uint8)
