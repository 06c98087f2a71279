"""AugSeg's strong view: one to three random changes of intensity, whatever their strength (Zhao et al., CVPR 2023)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import torch
import torchvision.transforms.v2.functional as F
from torch import Tensor

from .color import shift_hue
from .transforms import uniform


@dataclass(frozen=True)
class Change:
    """A change of intensity: (3, H, W) uint8 and its drawn strength -> the same."""

    apply: Callable[[Tensor, float], Tensor]
    draw: Callable[[], float] = lambda: 0.0

    def __call__(self, x: Tensor) -> Tensor:
        return self.apply(x, self.draw())


_WEAKER = partial(uniform, 0.05, 0.95)
# Factors below 1 only ever weaken contrast, brightness, color and sharpness, as in the released code.
CHANGES = {
    "identity": Change(lambda x, _: x),
    "autocontrast": Change(lambda x, _: F.autocontrast(x)),
    "equalize": Change(lambda x, _: F.equalize(x)),
    "blur": Change(lambda x, sigma: F.gaussian_blur(x, [9, 9], [sigma]), partial(uniform, 0.1, 2.0)),
    "contrast": Change(F.adjust_contrast, _WEAKER),
    "brightness": Change(F.adjust_brightness, _WEAKER),
    "color": Change(F.adjust_saturation, _WEAKER),
    "sharpness": Change(F.adjust_sharpness, _WEAKER),
    "posterize": Change(lambda x, bits: F.posterize(x, int(bits)), lambda: int(torch.randint(4, 8, ()))),
    "solarize": Change(F.solarize, lambda: int(torch.randint(1, 256, ()))),
    "hue": Change(lambda x, shift: shift_hue(x[None], [shift])[0], partial(uniform, -0.5, 0.5)),
}


class RandomIntensity:
    """Draws 1 to `most` of CHANGES with replacement, each applied with a random strength.

    The released hue overflows under NumPy 2; here it is a plain rotation of the hue.
    """

    def __init__(self, most: int = 3) -> None:
        if most < 1:
            raise ValueError(f"RandomIntensity needs at least one change, got most={most}")
        self.most = most

    def draw(self) -> list[tuple[str, float]]:
        names = list(CHANGES)
        drawn = []
        for _ in range(int(torch.randint(1, self.most + 1, ()))):
            name = names[int(torch.randint(len(names), ()))]
            drawn.append((name, CHANGES[name].draw()))
        return drawn

    def paint(self, images: Tensor, drawn: Sequence[list[tuple[str, float]]]) -> Tensor:
        """(n, 3, H, W) uint8 -> the same, image by image."""
        out = images.clone()
        for image, changes in zip(out, drawn, strict=True):
            x = image
            for name, strength in changes:
                x = CHANGES[name].apply(x, strength)
            image.copy_(x)
        return out
