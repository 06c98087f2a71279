"""Encoders: torchvision's ResNets and MobileNetV2, cut into low-level and deep features at a chosen output stride."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

import torch
import torch.nn as nn
import torchvision.models as tv
from safetensors.torch import load_file
from torch import Tensor

from .names import BACKBONES, PREFIX, RESNETS, Stem, check_encoder
from .timm_encoders import make_timm

IMAGENET = {"imagenet": "DEFAULT", "imagenet_v1": "IMAGENET1K_V1"}  # torchvision's names


class Encoder(Protocol):
    """x (B, 3, H, W) -> low-level features at stride 4, deep features at the output stride; a torch module."""

    low_channels: int
    deep_channels: int

    def __call__(self, x: Tensor) -> tuple[Tensor, Tensor]: ...


class Backbone(nn.Module):
    """forward(x (B, 3, H, W)) -> low-level features at stride 4, deep features at stride `output_stride`.

    A ResNet's layer3 has `middle_channels`; of other encoders nothing is read between low and deep.
    """

    def __init__(
        self, low: nn.Module, deep: nn.Sequential, low_channels: int, deep_channels: int, middle_channels: int = 0
    ) -> None:
        super().__init__()
        self.low, self.deep = low, deep
        self.low_channels, self.deep_channels, self.middle_channels = low_channels, deep_channels, middle_channels

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        low = self.low(x)
        return low, self.deep(low)

    def maps(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The same, and between them what the last stage reads: a ResNet's layer3."""
        low = self.low(x)
        middle = self.deep[:-1](low)
        return low, middle, self.deep[-1](middle)


def _dilate(stage: nn.Module, rate: int) -> None:
    """Take the stride out of a stage and spread its later 3x3 convolutions to keep their field of view.

    The convolution that lost its stride keeps the rate of the stage before it, as torchvision does.
    """
    before = rate // 2
    seen_stride = False
    for conv in (m for m in stage.modules() if isinstance(m, nn.Conv2d)):
        strided = conv.stride == (2, 2)
        conv.stride = (1, 1)
        if conv.kernel_size == (3, 3):
            r = rate if seen_stride and not strided else before
            conv.dilation = conv.padding = (r, r)
            seen_stride = seen_stride or strided


def _rates(output_stride: int) -> tuple[int, int]:
    """Dilation of the stages that had stride 16 and 32; 1 keeps the stride."""
    if output_stride not in (8, 16):
        raise ValueError(f"output stride must be 8 or 16, got {output_stride}")
    return (1, 2) if output_stride == 16 else (2, 4)


def _deepen_stem(net: tv.ResNet) -> None:
    """Three 3x3 convolutions with 64, 64 and 128 channels in place of one 7x7, by the names of released weights."""
    first: Any = net.layer1[0]
    wide = net.layer2[0].conv1.in_channels
    shortcut = nn.Sequential(nn.Conv2d(128, wide, 1, bias=False), nn.BatchNorm2d(wide))
    layers: list[nn.Module] = []
    for width_in, width_out, stride in ((3, 64, 2), (64, 64, 1), (64, 128, 1)):
        convolution = nn.Conv2d(width_in, width_out, 3, stride, 1, bias=False)
        layers += [convolution, nn.BatchNorm2d(width_out), nn.ReLU(True)]
    net.conv1, net.bn1 = nn.Sequential(*layers[:-2]), nn.BatchNorm2d(128)
    net.layer1[0] = type(first)(128, 64, 1, shortcut)
    for part in (net.conv1, net.layer1[0]):
        for conv in (m for m in part.modules() if isinstance(m, nn.Conv2d)):
            nn.init.kaiming_normal_(conv.weight, mode="fan_out", nonlinearity="relu")


def _resnet(
    name: str, output_stride: int, weights: str | Path | None, stem: Stem, multi_grid: tuple[int, ...]
) -> Backbone:
    net = tv.get_model(name)
    if stem == "deep":
        if weights in IMAGENET:
            raise ValueError(f"torchvision has no weights of {name} with a deep stem; give a file as weights, or none")
        _deepen_stem(net)
    load_backbone(net, name, weights)
    for stage, rate in zip((net.layer3, net.layer4), _rates(output_stride), strict=True):
        if rate > 1:
            _dilate(stage, rate)
    for block, factor in zip(net.layer4, multi_grid, strict=False):  # factors of 1 may be more than blocks
        for conv in (m for m in block.modules() if isinstance(m, nn.Conv2d) and m.kernel_size == (3, 3)):
            conv.dilation = conv.padding = (conv.dilation[0] * factor, conv.dilation[1] * factor)
    low = nn.Sequential(net.conv1, net.bn1, net.relu, net.maxpool, net.layer1)
    deep = nn.Sequential(net.layer2, net.layer3, net.layer4)
    expansion = 4 if name in ("resnet50", "resnet101") else 1
    return Backbone(low, deep, 64 * expansion, 512 * expansion, 256 * expansion)


def _mobilenet(output_stride: int, weights: str | Path | None) -> Backbone:
    net = tv.get_model("mobilenet_v2")
    load_backbone(net, "mobilenet_v2", weights)
    stages = net.features[7:14], net.features[14:18]
    for stage, rate in zip(stages, _rates(output_stride), strict=True):
        if rate > 1:
            _dilate(stage, rate)
    return Backbone(net.features[:4], net.features[4:18], 24, 320)


def make_backbone(
    name: str, output_stride: int = 16, weights: str | Path | None = None, *, stem: Stem = "resnet",
    multi_grid: tuple[int, ...] = (1, 1, 1),
) -> Encoder:  # fmt: skip
    """An encoder by name.

    Args:
        name: one of BACKBONES, or "timm:NAME" (`timm_encoders.make_timm`).
        output_stride: 8 or 16; "tiny" has 8.
        weights: "imagenet" (torchvision's newest, hashed download), "imagenet_v1" (its first ones), a file in
            torchvision's naming, or None (random).
        stem: of a ResNet; "deep" has three 3x3 convolutions, and weights only from a file.
        multi_grid: factors of the dilation that each block of a ResNet's layer4 has.  With (2, 2, 4) it is 2, 4, 8 at
            stride 16 and 4, 8, 16 at stride 8, since the first block has the dilation of the stage before.

    Raises:
        ValueError: unknown name, stride, weights that do not fit, or what the encoder does not have.
        FileNotFoundError: no such file of weights.
        ConnectionError: ImageNet weights that cannot be downloaded.
        ModuleNotFoundError: "timm:NAME" without timm.
    """
    check_encoder(name, stem, multi_grid)
    if name == "tiny":
        if weights is not None:
            raise ValueError(f"backbone 'tiny' has no pretrained weights, got weights={str(weights)!r}; pass None")
        return tiny()
    if name == "mobilenet_v2":
        return _mobilenet(output_stride, weights)
    if name in RESNETS:
        return _resnet(name, output_stride, weights, stem, multi_grid)
    if name.startswith(PREFIX):
        return make_timm(name, output_stride, weights)
    raise ValueError(f"unknown backbone {name!r}; expected one of {', '.join(BACKBONES)} or {PREFIX}NAME")


def load_backbone(net: nn.Module, name: str, weights: str | Path | None) -> None:
    """Load classification weights into a torchvision network; a classifier of another size is passed over."""
    if weights is None:
        return
    if weights in IMAGENET:
        net.load_state_dict(_imagenet(name, IMAGENET[str(weights)]))
        return
    path = Path(weights)
    if not path.is_file():
        raise FileNotFoundError(f"no weights at {path}; expected a file, or one of {', '.join(IMAGENET)}, or none")
    try:
        safe = path.suffix == ".safetensors"
        state = load_file(path) if safe else torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        raise ValueError(f"{path} cannot be read as weights: {error}") from error
    encoder = {k: v for k, v in state.items() if not k.startswith(("fc.", "classifier."))}
    wanted = {k: v for k, v in net.state_dict().items() if not k.startswith(("fc.", "classifier."))}
    counters = {k: v for k, v in wanted.items() if k.endswith(".num_batches_tracked")}  # absent in files of old
    encoder = counters | encoder
    wrong = [k for k in wanted if k not in encoder or encoder[k].shape != wanted[k].shape]
    extra = [k for k in encoder if k not in wanted]
    if wrong or extra:
        raise ValueError(
            f"{path} does not fit {name}: {len(wrong)} missing or of another shape (first: {wrong[:3]}), "
            f"{len(extra)} unknown (first: {extra[:3]}); torchvision's names are expected"
        )
    net.load_state_dict({**net.state_dict(), **encoder})


def _imagenet(name: str, version: str) -> Mapping[str, Any]:
    """torchvision's weights.  Raises ConnectionError, with what to do, where they are neither here nor to be had."""
    weights = tv.get_model_weights(name)[version]
    try:
        return weights.get_state_dict(progress=True, check_hash=True)
    except (OSError, RuntimeError) as error:
        place = Path(torch.hub.get_dir()) / "checkpoints"
        raise ConnectionError(
            f"the ImageNet weights of {name} cannot be downloaded ({error}). Fetch {weights.url} elsewhere and put it "
            f"into {place}, or pass the file as weights; weights none start from random ones"
        ) from error


class _Residual(nn.Module):
    def __init__(self, width_in: int, width_out: int, stride: int = 1, dilation: int = 1) -> None:
        super().__init__()
        first, second = (
            nn.Conv2d(w, width_out, 3, s, dilation, dilation, bias=False)
            for w, s in ((width_in, stride), (width_out, 1))
        )
        self.body = nn.Sequential(first, nn.BatchNorm2d(width_out), nn.ReLU(True), second, nn.BatchNorm2d(width_out))
        self.skip: nn.Module = nn.Identity()
        if width_in != width_out or stride > 1:
            shortcut = nn.Conv2d(width_in, width_out, 1, stride, bias=False)
            self.skip = nn.Sequential(shortcut, nn.BatchNorm2d(width_out))

    def forward(self, x: Tensor) -> Tensor:
        return (self.body(x) + self.skip(x)).relu()


def tiny() -> Backbone:
    """A residual encoder for 32-pixel scenes, output stride 8, 0.2 M parameters."""
    stem = nn.Sequential(nn.Conv2d(3, 24, 3, 2, 1, bias=False), nn.BatchNorm2d(24), nn.ReLU(True))
    low = nn.Sequential(stem, _Residual(24, 32, 2))
    return Backbone(low, nn.Sequential(_Residual(32, 64, 2), _Residual(64, 96)), 32, 96)
