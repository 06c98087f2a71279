"""Names of encoders, known without importing torch."""

from __future__ import annotations

RESNETS = ("resnet18", "resnet34", "resnet50", "resnet101")
BACKBONES = ("tiny", "mobilenet_v2", *RESNETS)
PREFIX = "timm:"  # of any encoder of timm
