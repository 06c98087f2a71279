"""The strong view's colors and blur as torchvision computes them, to the last bit, in a fraction of the time."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

Bytes = NDArray[np.uint8]
Floats = NDArray[np.float32]

_F = np.float32
_BACK = _F(255.999)  # torchvision's factor from 0..1 to 0..255, rounding down
_NOT_ZERO = _F(1e-9)  # a divisor where the dividend is 0 (gray pixels)
_STRIP = 1 << 16  # pixels at a time, so that the planes of the hue stay in the cache
# Per channel of the result: the sectors of the color circle in which it is the brightest, in which the darkest one.
_BRIGHTEST = ((5, 0), (1, 2), (3, 4))
_DARKEST = ((2, 3), (4, 5), (0, 1))


def jitter(image: Tensor, order: Iterable[int], factors: tuple[float, float, float, float]) -> Tensor:
    """Brightness, contrast, saturation and hue of (3, H, W) uint8, changed in the given order of their numbers 0 to 3.

    Factors of the first three are at least 0 and leave the image as it is at 1; that of the hue is in [-0.5, 0.5],
    turns of the color circle.  The same as torchvision's `adjust_...` one after the other.
    """
    planes = image.float()
    for number in order:
        factor = factors[number]
        if number == 0:
            planes.mul_(factor).clamp_(0, 255).floor_()
        elif number == 1:
            _blend_(planes, gray(planes).mean((-3, -2, -1), keepdim=True), factor)
        elif number == 2:
            _blend_(planes, gray(planes), factor)
        else:
            planes = shift_hue(as_bytes(planes), factor).float()
    return as_bytes(planes)


def gray(planes: Tensor) -> Tensor:
    """(3, H, W) float in 0..255 -> (1, H, W), whole numbers."""
    r, g, b = planes.split(1)
    return r.mul(0.2989).add_(g, alpha=0.587).add_(b, alpha=0.114).floor_()


def as_bytes(planes: Tensor) -> Tensor:
    """float in 0..255, rounded down, as uint8: by NumPy, whose conversion is vectorized."""
    return torch.from_numpy(planes.numpy().astype(np.uint8))


def _blend_(planes: Tensor, other: Tensor, share: float) -> None:
    planes.mul_(share).add_(other, alpha=1.0 - share).clamp_(0, 255).floor_()


def shift_hue(image: Tensor, shift: float) -> Tensor:
    """(3, H, W) uint8 with all hues turned by `shift` of the color circle: torchvision's `adjust_hue`.

    The brightest and the darkest channel of a pixel keep their values, in other places; only the value between them is
    computed, with the same float32 operations in the same order.
    """
    rgb = image.numpy().reshape(3, -1)
    out = np.empty_like(rgb)
    for start in range(0, rgb.shape[1], _STRIP):
        strip = slice(start, start + _STRIP)
        _turn(rgb[:, strip], _F(shift), out[:, strip])
    return torch.from_numpy(out.reshape(image.shape))


def _turn(rgb: Bytes, shift: np.float32, out: Bytes) -> None:
    """Writes the turned colors of (3, N) pixels to `out`."""
    highest = np.maximum(np.maximum(rgb[0], rgb[1]), rgb[2])
    lowest = np.minimum(np.minimum(rgb[0], rgb[1]), rgb[2])
    high = _unit(highest)
    span = high - _unit(lowest)
    saturation = span / np.maximum(high, _NOT_ZERO)
    hue = _hue(rgb, highest, high, span)
    hue += shift
    hue -= np.floor(hue)
    hue *= _F(6)
    whole = np.floor(hue)
    hue -= whole
    hue *= saturation
    rising = ((_F(1) - saturation) + hue) * high * _BACK
    falling = (_F(1) - hue) * high * _BACK
    sector = whole.astype(np.uint8)
    sector[sector == 6] = 0  # a hue that was rounded up to a whole turn
    at = [np.negative((sector == k).view(np.uint8)) for k in range(6)]  # 255 in that sector, 0 elsewhere
    odd = at[1] | at[3] | at[5]
    between = (rising.astype(np.uint8) & ~odd) | (falling.astype(np.uint8) & odd)
    for plane, (a, b), (c, d) in zip(out, _BRIGHTEST, _DARKEST, strict=True):
        np.bitwise_or(at[a], at[b], out=plane)
        plane |= between
        plane &= ~(at[c] | at[d])
        np.minimum(np.maximum(plane, lowest), highest, out=plane)


def _hue(rgb: Bytes, highest: Bytes, high: Floats, span: Floats) -> Floats:
    """(N,) in [0, 1).  Sums of products with 0 and 1: NumPy selects by a mask ten times as slowly as it multiplies."""
    away = high - _unit(rgb)
    away /= np.maximum(span, _NOT_ZERO)
    r, g, b = away
    red = rgb[0] == highest
    green = (rgb[1] == highest) & ~red
    hue = (b - g) * red
    hue += ((r + _F(2)) - b) * green
    hue += ((g + _F(4)) - r) * ~(red | green)
    hue *= _F(1 / 6)
    hue += _F(1)
    hue -= np.floor(hue)
    return hue


def _unit(values: Bytes) -> Floats:
    scaled = values.astype(_F)
    scaled *= _F(1 / 255)
    return scaled


def gaussian_blur(image: Tensor, size: int, sigma: float) -> Tensor:
    """(3, H, W) uint8 blurred along rows, then columns, by `size` (odd) taps, reflected at the border.

    Each pass adds shifted copies of the whole image, weighted, in the order in which a convolution adds its taps.
    """
    weights = _taps(size, sigma)
    _, height, width = image.shape
    half, pitch = size // 2, width + size - 1
    padded = torch.nn.functional.pad(image.float(), [half, half, 0, 0], mode="reflect")
    rows = _weighted(padded.view(-1), weights, 1).view(3, height, pitch)
    above, below = rows[:, 1 : half + 1].flip(1), rows[:, -half - 1 : -1].flip(1)
    columns = _weighted(torch.cat((above, rows, below), 1).view(-1), weights, pitch)
    return as_bytes(columns.view(3, -1, pitch)[:, :height, :width].round())


def _taps(size: int, sigma: float) -> list[float]:
    """torchvision's kernel."""
    reach = (size - 1) / (2 * 2**0.5)
    taps: list[float] = torch.softmax(-(torch.linspace(-reach, reach, size) / sigma).square(), 0).tolist()
    return taps


def _weighted(flat: Tensor, weights: list[float], step: int) -> Tensor:
    """out[i] = sum of weights[k] * flat[i + k * step]; the last (taps - 1) * step places have no meaning."""
    total = torch.zeros_like(flat)
    valid = len(flat) - (len(weights) - 1) * step
    for k, weight in enumerate(weights):
        if weight:
            total[:valid].add_(flat[k * step : k * step + valid], alpha=weight)
    return total
