"""Batch normalization with a second set of statistics for perturbed features (released code of DDFP)."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
import torch.nn as nn
from torch import Tensor


class DualBatchNorm2d(nn.Module):
    """Two BatchNorm2d, statistics and affine parameters: `main` for clean features, `second` for perturbed ones.

    `first_main` is the number of leading images that belong to `main`: None all of them, 0 none.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.main, self.second = nn.BatchNorm2d(width), nn.BatchNorm2d(width)
        self.first_main: int | None = None

    def forward(self, x: Tensor) -> Tensor:
        if self.first_main is None:
            return self.main(x)
        if self.first_main == 0:
            return self.second(x)
        return torch.cat((self.main(x[: self.first_main]), self.second(x[self.first_main :])))


@contextmanager
def second_statistics(model: nn.Module, first_main: int = 0) -> Iterator[None]:
    """Inside, images from `first_main` on go through the second statistics; no effect on a model without them."""
    layers = [m for m in model.modules() if isinstance(m, DualBatchNorm2d)]
    for layer in layers:
        layer.first_main = first_main
    try:
        yield
    finally:
        for layer in layers:
            layer.first_main = None
