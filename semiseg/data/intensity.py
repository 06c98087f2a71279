"""AugSeg's strong view: one to three random changes of intensity, whatever their strength (Zhao et al., CVPR 2023)."""

from __future__ import annotations

import torch
import torch.nn as nn
import torchvision.transforms.v2.functional as F
from torch import Tensor

from .color import shift_hue


def _between(low: float, high: float) -> float:
    return torch.empty(()).uniform_(low, high).item()


def _blur(x: Tensor) -> Tensor:
    return F.gaussian_blur(x, [9, 9], [_between(0.1, 2.0)])


# Factors below 1 only ever weaken contrast, brightness, color and sharpness, as in the released code.
CHANGES = {
    "identity": lambda x: x,
    "autocontrast": F.autocontrast,
    "equalize": F.equalize,
    "blur": _blur,
    "contrast": lambda x: F.adjust_contrast(x, _between(0.05, 0.95)),
    "brightness": lambda x: F.adjust_brightness(x, _between(0.05, 0.95)),
    "color": lambda x: F.adjust_saturation(x, _between(0.05, 0.95)),
    "sharpness": lambda x: F.adjust_sharpness(x, _between(0.05, 0.95)),
    "posterize": lambda x: F.posterize(x, int(torch.randint(4, 8, ()))),
    "solarize": lambda x: F.solarize(x, float(torch.randint(1, 256, ()))),
    "hue": lambda x: shift_hue(x, _between(-0.5, 0.5)),
}


class RandomIntensity(nn.Module):
    """Draws 1 to `most` of CHANGES with replacement, each applied with a random strength.

    (3, H, W) uint8 -> the same.  The released hue overflows under NumPy 2; here it is a plain rotation of the hue.
    """

    def __init__(self, most: int = 3) -> None:
        super().__init__()
        if most < 1:
            raise ValueError(f"RandomIntensity needs at least one change, got most={most}")
        self.most = most

    def forward(self, x: Tensor) -> Tensor:
        names = list(CHANGES)
        for _ in range(int(torch.randint(1, self.most + 1, ()))):
            x = CHANGES[names[int(torch.randint(len(names), ()))]](x)
        return x
