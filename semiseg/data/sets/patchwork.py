"""Embedded benchmark: scenes of cloth sewn from patches, in which a class is a direction of thread.

Every scene is a quilt of 4 x 4 patches of uneven size.  A patch shows threads of one direction; which of six
directions is its class, whatever their width, contrast, color, light, waviness and noise.  Across them run, weaker, the
threads of a second direction that means nothing.  Patches without threads, with soft stains, are the background.

This is procedural material, made to order, no photograph: a quarter of a scene's side shows the class of a place, so
that what is cut out and pasted keeps it; directions between two classes do not occur, so that the cluster assumption,
on which all semi-supervised methods rest, holds by construction; and every scene shows every class.  What it takes to
see the direction through all else is learned from many patches, and few are labeled.  How a method does here says
whether its idea works where its premises hold, and nothing about photographs.

It is a candidate: no record of this book is of it yet, and its numbers may still change.

Scenes are rendered once, all together, from uniform random numbers by additions, multiplications, divisions and square
roots alone, whose last bit does not differ between machines.  Hence one seed gives the same bytes everywhere, and
`Patchwork.sha256` says so.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from .rendered import Bytes, Floats, Generator, Rendered, as_bytes, check_numbers, colors, generator, noise, uniform

Numbers = NDArray[np.int64]

CHUNK = 32  # scenes drawn together; part of what a seed means
MIN_SIZE = 32  # pixels; below, a patch shows less than a thread
SIDE = 4  # patches along each side
EDGE = (-0.07, 0.07)  # by how much a seam is off its place, share of the scene
WAVE = 3.0  # seams wander by up to half of it, pixels
SPREAD = (-0.0655, 0.0655)  # tangent of half the deviation from the class's direction: 7.5 degrees either way
BETWEEN = (-0.1317, 0.1317)  # the same of the second direction, which may be any: 15 degrees
PERIOD = (3.2, 5.5)  # pixels from thread to thread
SECOND = (0.0, 0.8)  # strength of the second threads
WAVINESS = 0.5  # of the threads, periods
SHARPNESS = (0.6, 1.5)  # soft to hard threads
MIDDLE = (0.3, 0.7)  # luminance half way between threads and gaps
CONTRAST = (0.15, 0.6)  # luminance of threads minus luminance of gaps
SATURATION = 0.3
LIGHT = 0.3  # range of the light over a scene
SENSOR_NOISE = (0.02, 0.09)  # deviation, of each patch

_A, _B = np.sqrt(0.75), 0.5  # cosine and sine of 30 degrees
COSINE = np.array([1, _A, _B, 0, -_B, -_A])  # of the six directions
SINE = np.array([0, _B, _A, 1, _A, _B])
CLASSES = ("background", "0°", "30°", "60°", "90°", "120°", "150°")  # counterclockwise from a horizontal thread


class Patchwork(Rendered):
    """Scenes of cloth; class 0 is the background, the others are the directions of threads.

    Args: number of scenes of each part, side of a scene in pixels, seed of everything random.
    Parts are independent draws: `train`; `tune`, for choices; `val`; `test`, for final results alone.
    Raises ValueError for a count below 1, a size below 32 or a negative seed.
    """

    name = "patchwork"
    classes: tuple[str, ...] = CLASSES
    palette: tuple[tuple[int, int, int], ...] = (
        (0, 0, 0), (230, 25, 75), (245, 130, 48), (255, 225, 25), (60, 180, 75), (0, 110, 220), (240, 50, 230),
    )  # fmt: skip
    mirror = False  # mirrored threads have another direction

    def __init__(
        self,
        train_scenes: int = 160,
        tune_scenes: int = 256,
        val_scenes: int = 256,
        test_scenes: int = 512,
        size: int = 64,
        seed: int = 0,
    ) -> None:
        counts = {"train": train_scenes, "tune": tune_scenes, "val": val_scenes, "test": test_scenes}
        limits = {f"{part}_scenes": (count, 1) for part, count in counts.items()}
        check_numbers("patchwork", **limits, size=(size, MIN_SIZE), seed=(seed, 0))
        parts = enumerate(counts.items(), start=1)
        super().__init__({part: _scenes(generator(seed, stream), count, size) for stream, (part, count) in parts})
        self.train, self.tune, self.val, self.test = self.ids.values()


def _seams(rng: Generator, shape: tuple[int, ...], size: int) -> Floats:
    """(..., SIDE - 1): where one row or column of patches ends and the next begins, pixels."""
    return (np.arange(1, SIDE) / SIDE + uniform(rng, EDGE, *shape, SIDE - 1)) * size


def _layout(rng: Generator, n: int, size: int) -> Numbers:
    """(n, size, size): the patch 0..15 of each pixel; seams wander, and each row has columns of its own."""
    center = np.arange(size) + 0.5
    y = center[:, None] + WAVE * (noise(rng, n, 4, size) - 0.5)
    x = center[None, :] + WAVE * (noise(rng, n, 4, size) - 0.5)
    row = (y[..., None] > _seams(rng, (n,), size)[:, None, None]).sum(-1)
    columns = _seams(rng, (n, SIDE), size)[np.arange(n)[:, None, None], row]
    return row * SIDE + (x[..., None] > columns).sum(-1)


def _shuffled(rng: Generator, n: int, count: int) -> Numbers:
    """(n, count): 0..count - 1 in n random orders."""
    return np.argsort(rng.random((n, count)), axis=1, kind="stable")


def _deal(rng: Generator, n: int) -> Numbers:
    """(n, 16): the class of each patch; every class twice, and two of them once more."""
    patches = SIDE * SIDE
    rounds = -(-patches // len(CLASSES))
    classes = np.concatenate([_shuffled(rng, n, len(CLASSES)) for _ in range(rounds)], 1)[:, :patches]
    return np.take_along_axis(classes, _shuffled(rng, n, patches), 1)


def _directions(rng: Generator, number: Numbers, deviation: tuple[float, float]) -> tuple[Floats, Floats]:
    """Cosine and sine of directions near the six, which `number` counts from 0."""
    t = uniform(rng, deviation, *number.shape)
    turn_x, turn_y = (1 - t * t) / (1 + t * t), 2 * t / (1 + t * t)
    cosine, sine = COSINE[number], SINE[number]
    return cosine * turn_x - sine * turn_y, sine * turn_x + cosine * turn_y


def _triangle(x: Floats) -> Floats:
    """A wave of period 1 between -1 and 1."""
    return np.abs(x - np.floor(x) - 0.5) * 4 - 1


def _scenes(rng: Generator, count: int, size: int) -> tuple[Bytes, Bytes]:
    """Rendered a few at a time, which fits into a processor's cache."""
    some = [_render(rng, min(CHUNK, count - start), size) for start in range(0, count, CHUNK)]
    images, masks = (np.concatenate(both) for both in zip(*some, strict=True))
    return images, masks


def _render(rng: Generator, n: int, size: int) -> tuple[Bytes, Bytes]:
    """Images (n, 3, size, size) and masks (n, size, size)."""
    patch, classes = _layout(rng, n, size), _deal(rng, n)
    shape, scene = classes.shape, np.arange(n)[:, None, None]

    def at(values: NDArray) -> NDArray:  # type: ignore[type-arg]
        """(n, 16), a number of each patch -> (n, size, size)."""
        return values[scene, patch]

    wavy = WAVINESS * (noise(rng, n, 6, size) - 0.5)
    center = np.arange(size) + 0.5

    def threads(cosine: Floats, sine: Floats) -> Floats:
        period, phase = at(uniform(rng, PERIOD, *shape)), at(rng.random(shape))
        across = at(sine) * center[None, None, :] + at(cosine) * center[None, :, None]
        return _triangle(across / period + phase + wavy)

    mask = at(classes)
    first = threads(*_directions(rng, np.maximum(classes - 1, 0), SPREAD))
    any_direction = np.floor(rng.random(shape) * len(COSINE)).astype(np.int64)
    second = at(uniform(rng, SECOND, *shape)) * threads(*_directions(rng, any_direction, BETWEEN))
    cloth = np.clip(first * at(uniform(rng, SHARPNESS, *shape)), -1, 1) * at(np.where(rng.random(shape) < 0.5, -1, 1))
    cloth = np.where(mask > 0, cloth + second, 1.6 * (noise(rng, n, 7, size) - 0.5))

    middle, contrast = uniform(rng, MIDDLE, *shape), uniform(rng, CONTRAST, *shape)
    gap, thread = (colors(rng, middle + sign * contrast / 2, SATURATION) for sign in (-1, 1))
    light = LIGHT * (noise(rng, n, 2, size) - 0.5)
    grain = np.sqrt(6) * at(uniform(rng, SENSOR_NOISE, *shape))
    image = np.empty((n, 3, size, size))
    for channel in range(3):
        low, high = at(gap[channel]), at(thread[channel])
        triangular = rng.random(mask.shape) + rng.random(mask.shape) - 1  # of deviation 1 / sqrt(6)
        image[:, channel] = low + (high - low) * (cloth + 1) / 2 + light + grain * triangular
    return as_bytes(image), mask.astype(np.uint8)
