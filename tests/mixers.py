"""Mixers whose pastes a test can predict."""

import torch

from semiseg.components import NoMix
from semiseg.types import Paste, View


class LeftHalf:
    """The left half comes from the labeled image of the same row; remembers what it was asked."""

    def __init__(self) -> None:
        self.asked: list[View] = []

    def __call__(self, own: View, donors: View) -> Paste:
        self.asked.append(own)
        source = NoMix()(own, donors).source.clone()
        source[:, :, : source.shape[2] // 2] += len(own.image)
        return Paste(source)


class Thrice:
    """Three rows per image, as UPC's RAS: the image itself, its mosaic with the next one, and with a labeled one."""

    def __call__(self, own: View, donors: View) -> Paste:
        plain = NoMix()(own, donors).source
        half = plain.shape[1] // 2
        neighbor, labeled = plain.clone(), plain.clone()
        neighbor[:, :half] = (plain[:, :half] + 1) % len(plain)
        labeled[:, half:] += len(plain)
        return Paste(torch.cat((plain, neighbor, labeled)))


class Copies:
    """Every image twice, as it is."""

    def __call__(self, own: View, donors: View) -> Paste:
        return Paste(NoMix()(own, donors).source.repeat(2, 1, 1))


class Uncertain:
    """Above the median of the batch's entropy the labeled image of the same row: another paste for other labels."""

    def __call__(self, own: View, donors: View) -> Paste:
        source = NoMix()(own, donors).source
        return Paste(torch.where(own.entropy > own.entropy.median(), source + len(own.image), source))
