"""Crops of many images of different sizes at once, gathered from one tensor that holds all their pixels.

What torch computes for one image of bytes on the CPU (bilinear with antialiasing, nearest-exact) is computed for a
batch on any device: weights in float64, rounded to integers, and sums of integers, so that every bit is the same.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from semiseg.data.transforms import Place
from semiseg.types import IGNORE

_AT_ONCE = 1 << 25  # places of an index, which takes eight times as many bytes


@dataclass(frozen=True)
class Sources:
    """Where B crops come from.  Axis 0 of the numbers: rows, columns."""

    start: Tensor  # (B,) of the image's first pixel
    length: Tensor  # (2, B) of the image, pixels
    resized: Tensor  # (2, B)
    at: Tensor  # (2, B, crop) pixel of the resized image, outside of it on padding
    color: tuple[int, int, int]  # of padding
    most: int  # pixels of the longest resized side
    taps: int  # pixels that one is interpolated from, at most
    band: int  # rows of an image that its crop is interpolated from, at most

    @staticmethod
    def of(
        places: Sequence[Place], sizes: Sequence[tuple[int, int]], starts: Sequence[int], device: torch.device
    ) -> Sources:
        """Places in images of those sizes (height, width), which start at those pixels."""
        crop = places[0].crop
        table = [
            (start, *size, p.height, p.width, p.top, p.left + (crop - 1 if p.mirrored else 0), -1 if p.mirrored else 1)
            for p, size, start in zip(places, sizes, starts, strict=True)
        ]
        numbers = torch.tensor(table).t().to(device, non_blocking=True)
        steps = torch.arange(crop, device=device)
        rows, columns = numbers[5, :, None] + steps, numbers[6, :, None] + steps * numbers[7, :, None]
        factors = [(h / p.height, w / p.width) for p, (h, w) in zip(places, sizes, strict=True)]
        return Sources(
            numbers[0], numbers[1:3], numbers[3:5], torch.stack((rows, columns)), places[0].color,
            most=max(max(p.height, p.width) for p in places),
            taps=max(_reach(max(pair)) for pair in factors),
            band=max(min(h, math.ceil(min(crop, p.height) * f) + _reach(f))
                     for p, (h, _), (f, _) in zip(places, sizes, factors, strict=True)),
        )  # fmt: skip

    def rows(self, start: int, stop: int | None = None) -> Sources:
        """Those of some of the crops."""
        here = slice(start, stop)
        return replace(
            self, start=self.start[here], length=self.length[:, here], resized=self.resized[:, here],
            at=self.at[:, here],
        )  # fmt: skip

    @property
    def valid(self) -> Tensor:
        """(B, crop, crop) bool, False on padding."""
        rows, columns = (self.at >= 0) & (self.at < self.resized[..., None])
        return rows[:, :, None] & columns[:, None]


def _reach(factor: float) -> int:
    return 2 * math.ceil(max(1.0, factor)) + 1


def nearest(pixels: Tensor, sources: Sources) -> Tensor:
    """(N, 1) uint8 -> (B, crop, crop), IGNORE on padding: `Place.nearest` of each image."""
    factor = sources.length.float() / sources.resized
    source = ((sources.at.clamp(min=0) + 0.5) * factor[..., None]).long().minimum(sources.length[..., None] - 1)
    rows, columns = source
    index = (sources.start[:, None] + rows * sources.length[1, :, None])[:, :, None] + columns[:, None]
    return pixels[:, 0][index].where(sources.valid, IGNORE)


def bilinear(pixels: Tensor, sources: Sources) -> Tensor:
    """(N, C) uint8 -> (B, C, crop, crop): `Place.image` of each image."""
    some = max(1, _AT_ONCE // (sources.band * sources.at.shape[-1]))
    parts = range(0, len(sources.start), some)
    return torch.cat([_bilinear(pixels, sources.rows(start, start + some)) for start in parts])


def _bilinear(pixels: Tensor, s: Sources) -> Tensor:
    first, weights, bits = _weights(s)
    half = (1 << (bits - 1)).int()
    steps = torch.arange(s.band, device=pixels.device)
    top = first[0].amin(1, keepdim=True)
    row = (top + steps).minimum(s.length[0, :, None] - 1) * s.length[1, :, None] + s.start[:, None]
    total = half[1].view(-1, 1, 1, 1)
    for tap in range(s.taps):  # along rows
        column = (first[1] + tap).minimum(s.length[1, :, None] - 1)
        total = total + pixels[row[:, :, None] + column[:, None]] * weights[1, :, None, :, tap, None]
    narrow = (total >> bits[1].view(-1, 1, 1, 1)).clamp_(0, 255)
    total = half[0].view(-1, 1, 1, 1)
    image = torch.arange(len(row), device=pixels.device)[:, None]
    for tap in range(s.taps):  # along columns
        inside = (first[0] + tap).minimum(s.length[0, :, None] - 1) - top
        total = total + narrow[image, inside.clamp_(max=s.band - 1)] * weights[0, :, :, None, tap, None]
    out = (total >> bits[0].view(-1, 1, 1, 1)).clamp_(0, 255).to(torch.uint8)
    out *= s.valid[..., None]
    if any(s.color) and out.shape[-1] == 3:
        out += ~s.valid[..., None] * torch.tensor(s.color, dtype=torch.uint8).to(out.device, non_blocking=True)
    return out.permute(0, 3, 1, 2).contiguous()


def _weights(s: Sources) -> tuple[Tensor, Tensor, Tensor]:
    """First pixel (2, B, crop), integer weight of it and the next ones (2, B, crop, taps), their bits (2, B).

    The weights of a whole side share the number of bits: as many as the largest weight leaves of 15.
    """
    factor = (s.length.double() / s.resized)[..., None]
    support = factor.clamp(min=1.0)
    place = torch.arange(s.most, device=factor.device)
    center = factor * (place + 0.5)
    first = (center - support + 0.5).long().clamp_(min=0)
    count = (center + support + 0.5).long().minimum(s.length[..., None]) - first
    taps = torch.arange(s.taps, device=factor.device)
    away = (taps + first[..., None] - center[..., None] + 0.5) * (1.0 / support)[..., None]
    weight = (1.0 - away.abs()).clamp_(min=0.0) * (taps < count[..., None])
    total = weight[..., 0].clone()
    for tap in range(1, s.taps):
        total += weight[..., tap]
    weight /= total[..., None]
    largest = weight.amax(-1).where(place < s.resized[..., None], 0.0).amax(-1)
    powers = torch.arange(1, 23, device=factor.device)
    bits = ((largest[..., None] * (1 << powers) + 0.5).long() < 1 << 15).sum(-1)
    at = s.at.clamp(0, s.most - 1)
    seen = weight.gather(2, at[..., None].expand(*at.shape, s.taps))
    return first.gather(2, at), (seen * (1 << bits)[..., None, None] + 0.5).int(), bits
