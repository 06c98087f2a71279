"""Names of encoders, known without importing torch."""

from __future__ import annotations

from typing import Literal

Stem = Literal["resnet", "deep"]
RESNETS = ("resnet18", "resnet34", "resnet50", "resnet101")
BACKBONES = ("tiny", "mobilenet_v2", *RESNETS)
PREFIX = "timm:"  # of any encoder of timm


def check_encoder(backbone: str, stem: Stem, multi_grid: tuple[int, ...], auxiliary: float = 0.0) -> None:
    """Raise ValueError for options of the network that an encoder does not have."""
    plain = set(multi_grid) == {1}
    asked = {"stem": stem != "resnet", "multi_grid": not plain, "auxiliary": auxiliary > 0}
    if backbone not in RESNETS and any(asked.values()):
        name = next(name for name, there in asked.items() if there)
        raise ValueError(f"network.{name} needs one of {', '.join(RESNETS)}; {backbone} does not have it")
    blocks = 2 if backbone == "resnet18" else 3
    if not plain and (len(multi_grid) != blocks or min(multi_grid) < 1):
        raise ValueError(f"network.multi_grid of {backbone} is {blocks} factors >= 1, got {multi_grid}")
