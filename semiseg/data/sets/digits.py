"""Embedded benchmark: scenes composed from scikit-learn's 1,797 real handwritten digits; nothing to download.

One digit, drawn in dark ink of any hue on a lighter, textured and cluttered ground, fills most of a scene; the mask is
its stroke.  What varies from scene to scene, besides the handwriting, is color, contrast, texture, size, position, tilt
and slant.  A few labeled scenes show few of these looks; many unlabeled ones show most of them.

Scenes are rendered once, all together, from uniform random numbers by additions, multiplications, divisions and square
roots alone: no sine, exponential or matrix product, whose last bit may differ between machines.  Hence one seed gives
the same bytes everywhere, and `Digits.sha256` says so.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from sklearn.datasets import load_digits

from .rendered import Bytes, Floats, Generator, Rendered, as_bytes, check_numbers, colors, generator, noise, uniform

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


class Digits(Rendered):
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
        check_numbers(
            "digits", train_scenes=(train_scenes, 1), val_scenes=(val_scenes, 1), size=(size, MIN_SIZE), seed=(seed, 0)
        )
        digits = load_digits()
        pools = _pools(len(digits.target), seed)
        sources, parts = [], {}
        for stream, (part, count) in enumerate({"train": train_scenes, "val": val_scenes}.items(), start=1):
            rng = generator(seed, stream)
            source = _draw(rng, pools[part], count)
            sources.append(source)
            parts[part] = _render(rng, digits.images[source], digits.target[source], size)
        super().__init__(parts)
        self.train, self.val = self.ids["train"], self.ids["val"]
        self.source: dict[str, int] = dict(zip(self.train + self.val, np.concatenate(sources).tolist(), strict=True))


def _shuffle(rng: Generator, items: NDArray[np.int64]) -> NDArray[np.int64]:
    return items[np.argsort(rng.random(len(items)), kind="stable")]


def _pools(total: int, seed: int) -> dict[str, NDArray[np.int64]]:
    """Disjoint digits for training and for validation scenes."""
    order = _shuffle(generator(seed, 0), np.arange(total))
    cut = int(total * TRAIN_SHARE)
    return {"train": order[:cut], "val": order[cut:]}


def _draw(rng: Generator, pool: NDArray[np.int64], count: int) -> NDArray[np.int64]:
    """`count` digits of the pool; none comes back before all were used."""
    rounds = -(-count // len(pool))
    return np.concatenate([_shuffle(rng, pool) for _ in range(rounds)])[:count]


def _each(values: Floats) -> Floats:
    """(N,) -> (N, 1, 1): one number per scene."""
    return values[:, None, None]


def _colors(rng: Generator, luminance: Floats) -> Floats:
    """(N,) luminance -> (N, 3, 1, 1) RGB."""
    return colors(rng, luminance).swapaxes(0, 1)[:, :, None, None]


def _grain(rng: Generator, scenes: int, size: int) -> Floats:
    """(N, 1, size, size): small changes of brightness that ground and ink have alike."""
    return 0.21 * (noise(rng, scenes, 8, size) - 0.5)[:, None]


def _ground(rng: Generator, luminance: Floats, size: int) -> Floats:
    """(N, 3, size, size): two colors of similar luminance, mixed by noise of two scales."""
    n = len(luminance)
    first, second = _colors(rng, luminance), _colors(rng, luminance + uniform(rng, (-0.1, 0.1), n))
    mix = 0.6 * noise(rng, n, 3, size) + 0.4 * noise(rng, n, 10, size)
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
    start = uniform(rng, (0.0, float(size)), 2, n)
    step = uniform(rng, (-size / 4, size / 4), 2, n)
    dy, dx = _each(step[0]), _each(step[1])
    y, x = rows - _each(start[0]), columns - _each(start[1])
    along = np.clip((y * dy + x * dx) / (dy * dy + dx * dx + 1e-6), 0, 1)
    y, x = y - along * dy, x - along * dx
    thickness = _each(uniform(rng, (1.0, 2.0), n))
    cover = np.clip(thickness - np.sqrt(y * y + x * x), 0, 1) * _each(uniform(rng, (0.2, 0.7), n))
    return image + cover[:, None] * (_colors(rng, uniform(rng, (0.2, 0.8), n)) - image)


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
    box = uniform(rng, BOX, n) * size
    margin = 0.475 * box
    center = margin + rng.random((2, n)) * (size - 2 * margin)
    rows, columns = _pixels(size)
    y, x = rows - _each(center[0]), columns - _each(center[1])
    t = _each(uniform(rng, HALF_TILT, n))
    cosine, sine = (1 - t * t) / (1 + t * t), 2 * t / (1 + t * t)
    y, x = cosine * y - sine * x, cosine * x + sine * y
    x = (x + _each(uniform(rng, SLANT, n)) * y) / _each(uniform(rng, STRETCH, n))
    scale = _each(8 / box)
    level = _sample(cells, y * scale + 3.5, x * scale + 3.5)
    return np.clip((level - _each(uniform(rng, THRESHOLD, n))) / 2 + 0.5, 0, 1)


def _render(rng: Generator, cells: Floats, target: NDArray[np.int64], size: int) -> tuple[Bytes, Bytes]:
    """Digits (N, 8, 8) with values 0..16 and their numbers (N,) -> images (N, 3, size, size), masks (N, size, size)."""
    n = len(cells)
    middle, contrast = uniform(rng, MIDDLE, n), uniform(rng, CONTRAST, n)
    image = _ground(rng, middle + contrast / 2, size)
    for _ in range(CLUTTER):
        image = _add_clutter(rng, image)
    ink = _strokes(rng, cells, size)
    color = _colors(rng, middle - contrast / 2) + _grain(rng, n, size)
    image = image + ink[:, None] * (color - image)
    image = image + uniform(rng, (-SENSOR_NOISE, SENSOR_NOISE), n, 3, size, size)
    masks = np.where(ink >= 0.5, target[:, None, None] + 1, 0)
    return as_bytes(image), masks.astype(np.uint8)
