"""The strong view's colors and blur as torchvision computes them, to the last bit, in a fraction of the time.

Images come as batches (n, 3, H, W), each with numbers of its own.  On the CPU what depends on such a number is done
image by image, so that its planes stay in the cache; the hue, whose cost lies in calls, for all of them together.
Elsewhere all images that undergo the same change share its kernels.  There the mean of an image is added up in another
order, so that a value at the edge of being rounded down may come out one lower or higher.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

_BACK = 255.999  # torchvision's factor from 0..1 to 0..255, rounding down
_NOT_ZERO = 1e-9  # a divisor where the dividend is 0 (gray pixels)
_STRIP = 1 << 16  # pixels at a time, so that the planes of the hue stay in the cache
_SMALL = 3 << 12  # values of an image below which a call takes longer than what it computes
_HUE = 3  # number of that change in an order; below it brightness, contrast, saturation
# Per channel of the result: the sectors of the color circle in which it is the brightest, in which the darkest one.
_BRIGHTEST = ((5, 0), (1, 2), (3, 4))
_DARKEST = ((2, 3), (4, 5), (0, 1))

Factors = tuple[float, float, float, float]
Factor = float | Tensor  # of one image, or of several: (n, 1, ...)


def jitter(images: Tensor, orders: Sequence[Sequence[int]], factors: Sequence[Factors]) -> Tensor:
    """Brightness, contrast, saturation and hue of (n, 3, H, W) uint8, changed in each image's order of the numbers 0..3.

    Factors of the first three are at least 0 and leave the image as it is at 1; that of the hue is in [-0.5, 0.5],
    turns of the color circle.  The same as torchvision's `adjust_...` one after the other.
    """
    planes, turns = images.float(), [order.index(_HUE) for order in orders]
    _change_(planes, [order[:turn] for order, turn in zip(orders, turns, strict=True)], factors)
    planes = shift_hue(as_bytes(planes), [each[_HUE] for each in factors]).float()
    _change_(planes, [order[turn + 1 :] for order, turn in zip(orders, turns, strict=True)], factors)
    return as_bytes(planes)


def _change_(planes: Tensor, orders: Sequence[Sequence[int]], factors: Sequence[Factors]) -> None:
    """Brightness, contrast and saturation: share * image + (1 - share) * (black, its mean gray, its gray)."""
    for place in range(max(map(len, orders), default=0)):
        for part, some in groups(planes, [i for i, order in enumerate(orders) if place < len(order)]):
            kinds = [orders[i][place] for i in some]
            share, rest = numbers(part, [_shares(kind, factors[i]) for kind, i in zip(kinds, some, strict=True)])
            other = _other(part, kinds)
            part.mul_(share)
            if other is not None:
                _add_(part, other, rest)
            part.clamp_(0, 255).floor_()


def _shares(kind: int, factors: Factors) -> tuple[float, float]:
    return factors[kind], 1.0 - factors[kind] if kind else 0.0


def _other(planes: Tensor, kinds: Sequence[int]) -> Tensor | None:
    """What the images are blended with: (n, 1, H, W), (n, 1, 1, 1), or nothing where all of it is black."""
    if not any(kinds):
        return None
    grays = gray(planes)
    if 1 not in kinds:
        return grays
    means = grays.mean((-3, -2, -1), keepdim=True)
    if len(set(kinds)) == 1:
        return means
    contrast = torch.tensor([kind == 1 for kind in kinds]).to(planes.device, non_blocking=True)
    return torch.where(contrast.view(-1, 1, 1, 1), means, grays)


def groups(images: Tensor, rows: Sequence[int]) -> Iterator[tuple[Tensor, Sequence[int]]]:
    """Parts (m, ...) of images (n, ...), to be written to, and which rows they are: one each, or all together."""
    if one_by_one(images):
        yield from ((images[i : i + 1], [i]) for i in rows)
    else:
        yield from together(images, rows)


def together(images: Tensor, rows: Sequence[int]) -> Iterator[tuple[Tensor, Sequence[int]]]:
    """Some rows of images (n, ...), ascending, as one part to be written to; no part where there are none."""
    if rows and len(rows) == len(images):
        yield images, rows
    elif rows:
        at = torch.tensor(rows).to(images.device, non_blocking=True)
        part = images.index_select(0, at)
        yield part, rows
        images.index_copy_(0, at, part)


def one_by_one(images: Tensor) -> bool:
    """Whether images are changed singly: large ones on the CPU, whose planes stay in the cache then."""
    return images.device.type == "cpu" and images.numel() > _SMALL * len(images)


def numbers(part: Tensor, rows: Sequence[Sequence[float]]) -> Sequence[Factor]:
    """The numbers of each image of a part (n, ...), by column."""
    if len(rows) == 1:
        return rows[0]
    table = torch.tensor(rows, dtype=torch.float64).float().to(part.device, non_blocking=True)
    return [column.view(-1, *[1] * (part.dim() - 1)) for column in table.unbind(1)]


def _add_(planes: Tensor, other: Tensor, factor: Factor) -> None:
    """planes += factor * other; of one image with the rounding that torchvision gets."""
    if isinstance(factor, Tensor):
        planes.addcmul_(other, factor)
    else:
        planes.add_(other, alpha=factor)


def gray(planes: Tensor) -> Tensor:
    """(..., 3, H, W) float in 0..255 -> (..., 1, H, W), whole numbers."""
    r, g, b = planes.split(1, -3)
    return r.mul(0.2989).add_(g, alpha=0.587).add_(b, alpha=0.114).floor_()


def as_bytes(planes: Tensor) -> Tensor:
    """float in 0..255, rounded down, as uint8: on the CPU by NumPy, whose conversion is vectorized."""
    if planes.device.type != "cpu":
        return planes.to(torch.uint8)
    return torch.from_numpy(planes.numpy().astype(np.uint8))


def shift_hue(images: Tensor, shifts: Sequence[float]) -> Tensor:
    """(n, 3, H, W) uint8 with all hues turned by shares of the color circle: torchvision's `adjust_hue`.

    The brightest and the darkest channel of a pixel keep their values, in other places; only the value between them is
    computed, with the same float32 operations in the same order.
    """
    rgb, turns = images.flatten(-2), torch.tensor(shifts, dtype=torch.float32)[:, None]
    out = torch.empty_like(rgb)
    if images.device.type != "cpu":
        _turn(torch, rgb, turns.to(images.device, non_blocking=True), out)
    else:
        length = max(1, _STRIP // max(1, len(images)))
        for start in range(0, rgb.shape[-1], length):
            strip = (..., slice(start, start + length))
            _turn(np, rgb.numpy()[strip], turns.numpy(), out.numpy()[strip])
    return out.view_as(images)


def _turn(xp: Any, rgb: Any, shift: Any, out: Any) -> None:
    """Writes the turned colors of (n, 3, N) pixels to `out`; xp: NumPy or torch, whose arrays they are."""
    highest = xp.maximum(xp.maximum(rgb[:, 0], rgb[:, 1]), rgb[:, 2])
    lowest = xp.minimum(xp.minimum(rgb[:, 0], rgb[:, 1]), rgb[:, 2])
    high = _unit(highest)
    span = high - _unit(lowest)
    tiny = 0 * shift + _NOT_ZERO
    saturation = span / xp.maximum(high, tiny)
    hue = _hue(xp, rgb, highest, high, xp.maximum(span, tiny))
    hue += shift
    hue -= xp.floor(hue)
    hue *= 6
    whole = xp.floor(hue)
    hue -= whole
    hue *= saturation
    rising = ((1 - saturation) + hue) * high * _BACK
    falling = (1 - hue) * high * _BACK
    sector = _cast(whole, "uint8")
    sector[sector == 6] = 0  # a hue that was rounded up to a whole turn
    at = [-_bits(sector == k) for k in range(6)]  # 255 in that sector, 0 elsewhere
    odd = at[1] | at[3] | at[5]
    between = (_cast(rising, "uint8") & ~odd) | (_cast(falling, "uint8") & odd)
    for channel, ((a, b), (c, d)) in enumerate(zip(_BRIGHTEST, _DARKEST, strict=True)):
        plane = out[:, channel]
        xp.bitwise_or(at[a], at[b], out=plane)
        plane |= between
        plane &= ~(at[c] | at[d])
        xp.minimum(xp.maximum(plane, lowest), highest, out=plane)


def _hue(xp: Any, rgb: Any, highest: Any, high: Any, divisor: Any) -> Any:
    """(n, N) in [0, 1).  Sums of products with 0 and 1: NumPy selects by a mask ten times as slowly as it multiplies."""
    away = high[:, None] - _unit(rgb)
    away /= divisor[:, None]
    r, g, b = away[:, 0], away[:, 1], away[:, 2]
    red = rgb[:, 0] == highest
    green = (rgb[:, 1] == highest) & ~red
    hue = (b - g) * red
    hue += ((r + 2) - b) * green
    hue += ((g + 4) - r) * ~(red | green)
    hue *= 1 / 6
    hue += 1
    hue -= xp.floor(hue)
    return hue


def _unit(values: Any) -> Any:
    scaled = _cast(values, "float32")
    scaled *= 1 / 255
    return scaled


def _cast(values: Any, kind: str) -> Any:
    return values.to(getattr(torch, kind)) if isinstance(values, Tensor) else values.astype(kind)


def _bits(mask: Any) -> Any:
    return mask.view(torch.uint8) if isinstance(mask, Tensor) else mask.view("uint8")


def gaussian_blur(images: Tensor, size: int, sigmas: Sequence[float]) -> Tensor:
    """(n, 3, H, W) uint8 blurred along rows, then columns, by `size` (odd) taps, reflected at the border.

    Each pass adds shifted copies of the whole image, weighted, in the order in which a convolution adds its taps.
    """
    out = images.clone()
    for part, some in groups(out, range(len(images))):
        part.copy_(_blurred(part, size, [_taps(size, sigmas[i]) for i in some]))
    return out


def _blurred(images: Tensor, size: int, taps: Sequence[Sequence[float]]) -> Tensor:
    n, channels, height, width = images.shape
    half, pitch = size // 2, width + size - 1
    padded = torch.nn.functional.pad(images.float(), [half, half, 0, 0], mode="reflect")
    weights = numbers(padded.flatten(1), taps)
    rows = _weighted(padded.flatten(1), weights, 1).view(n, channels, height, pitch)
    above, below = rows[:, :, 1 : half + 1].flip(2), rows[:, :, -half - 1 : -1].flip(2)
    columns = _weighted(torch.cat((above, rows, below), 2).flatten(1), weights, pitch)
    return as_bytes(columns.view(n, channels, -1, pitch)[:, :, :height, :width].round())


def _taps(size: int, sigma: float) -> list[float]:
    """torchvision's kernel."""
    reach = (size - 1) / (2 * 2**0.5)
    taps: list[float] = torch.softmax(-(torch.linspace(-reach, reach, size) / sigma).square(), 0).tolist()
    return taps


def _weighted(flat: Tensor, weights: Sequence[Factor], step: int) -> Tensor:
    """out[:, i] = sum of weights[k] * flat[:, i + k * step]; the last (taps - 1) * step places have no meaning."""
    total, length = torch.zeros_like(flat), flat.shape[1] - (len(weights) - 1) * step
    valid = total.narrow(1, 0, length)
    for k, weight in enumerate(weights):
        if isinstance(weight, Tensor) or weight:
            _add_(valid, flat.narrow(1, k * step, length), weight)
    return total
