"""Encoders of timm as `backbone="timm:NAME"`; needs `pip install 'semiseg[timm]'`, imported where it is asked for.

Convolutional encoders are dilated to the output stride by timm itself.  Plain vision transformers (ViT, DINOv2) have
one grid of patches: a map after a quarter of the blocks stands in for low-level features, the last one is deep; both
are resized to the strides that the decoder expects, and position embeddings are interpolated to the image's size.
"""

from __future__ import annotations

import difflib
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
import torch.nn as nn
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import Tensor

from ..data.transforms import MEAN, STD
from .names import PREFIX

LOW_STRIDE = 4


def check_name(backbone: str) -> None:
    """Raise ValueError, with names that look alike, where timm has no such encoder; without timm nothing is checked."""
    try:
        timm = _timm()
    except ModuleNotFoundError:
        return  # the record of a run can be read without it
    name = backbone.removeprefix(PREFIX)
    if timm.is_model(name):
        return
    near = difflib.get_close_matches(name, timm.list_models(), n=5, cutoff=0.5)
    alike = ", ".join(PREFIX + each for each in near) or "none; timm.list_models() has all names"
    raise ValueError(f"unknown backbone {backbone!r}; timm's names that look alike: {alike}")


def make_timm(backbone: str, output_stride: int, weights: str | Path | None) -> TimmPyramid | TimmTransformer:
    """An encoder of timm.

    Args:
        backbone: "timm:NAME", with or without the tag of its weights ("timm:resnet50.a1_in1k").
        output_stride: 8 or 16.
        weights: "imagenet": timm's own for that name, from its hub, whatever they were trained on; a file in timm's
            naming; None: random.

    Raises:
        ModuleNotFoundError: timm is not installed.
        ValueError: an unknown name, an encoder that takes images of one size alone, weights that do not fit or
            cannot be downloaded.
    """
    check_name(backbone)
    name, timm = backbone.removeprefix(PREFIX), _timm()
    plain = timm.create_model(name, pretrained=False)
    vit = hasattr(plain, "blocks") and hasattr(plain, "patch_embed") and hasattr(plain, "forward_intermediates")
    chosen = _weights(backbone, plain, weights)
    del plain
    try:
        made = _transformer(name, chosen, output_stride) if vit else _pyramid(name, chosen, output_stride)
    except (OSError, RuntimeError) as error:
        if weights != "imagenet":
            raise ValueError(f"{backbone} cannot be made: {error}") from error
        raise ValueError(
            f"no pretrained weights for {backbone} ({error}); download them and pass the file as weights, or none"
        ) from error
    _takes_any_size(made.eval(), backbone)
    return made.train()


class _Encoder(nn.Module):
    """Takes images normalized as everywhere in the package and normalizes them as the encoder's weights expect."""

    low_channels: int
    deep_channels: int
    scale: Tensor
    shift: Tensor

    def __init__(self, net: nn.Module, output_stride: int) -> None:
        super().__init__()
        self.net, self.output_stride = net, output_stride
        config: dict[str, Any] = getattr(net, "pretrained_cfg", None) or {}
        ours, theirs = ((MEAN, STD), (config.get("mean", MEAN), config.get("std", STD)))
        (mean, std), (their_mean, their_std) = (torch.tensor(pair, dtype=torch.float64) for pair in (ours, theirs))
        self.same = bool(torch.equal(mean, their_mean) and torch.equal(std, their_std))
        shape = (1, 3, 1, 1)
        self.register_buffer("scale", (std / their_std).float().view(shape), persistent=False)
        self.register_buffer("shift", ((mean - their_mean) / their_std).float().view(shape), persistent=False)

    def normalized(self, x: Tensor) -> Tensor:
        return x if self.same else x * self.scale + self.shift

    def at_stride(self, features: Tensor, x: Tensor, stride: int) -> Tensor:
        """A map on the grid that an encoder of that stride has for images x."""
        size = [-(-side // stride) for side in x.shape[-2:]]
        if list(features.shape[-2:]) == size:
            return features
        return F.interpolate(features, size=size, mode="bilinear", align_corners=False)


class TimmPyramid(_Encoder):
    """A hierarchical encoder: forward(x (B, 3, H, W)) -> its map of stride 4 and its last one at `output_stride`.

    One that cannot be dilated (Swin, PVT) has its last map, of stride 32, resized.
    """

    def __init__(self, net: nn.Module, output_stride: int) -> None:
        super().__init__(net, output_stride)
        info: Any = net.feature_info
        strides, channels = info.reduction(), info.channels()
        if LOW_STRIDE not in strides:
            raise ValueError(f"the maps of this encoder have strides {strides}; one of {LOW_STRIDE} is needed")
        self.index = strides.index(LOW_STRIDE)
        self.low_channels, self.deep_channels = channels[self.index], channels[-1]
        self.channels_last = str(getattr(net, "output_fmt", "NCHW")).endswith("NHWC")

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        maps = self.net(self.normalized(x))
        low, deep = maps[self.index], maps[-1]
        if self.channels_last:
            low, deep = (m.permute(0, 3, 1, 2).contiguous() for m in (low, deep))
        return self.at_stride(low, x, LOW_STRIDE), self.at_stride(deep, x, self.output_stride)


class TimmTransformer(_Encoder):
    """A plain vision transformer: forward(x (B, 3, H, W)) -> early map at stride 4, last map at `output_stride`.

    An image whose sides are no multiples of the patch is resized to the nearest ones.
    """

    def __init__(self, net: nn.Module, output_stride: int) -> None:
        super().__init__(net, output_stride)
        depth: int = len(net.blocks)  # type: ignore[arg-type]
        self.indices = [max(0, depth // 4 - 1), depth - 1]
        self.patch: tuple[int, int] = tuple(net.patch_embed.patch_size)  # type: ignore[union-attr, arg-type]
        self.low_channels = self.deep_channels = int(net.embed_dim)  # type: ignore[arg-type]

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        low, deep = self.net.forward_intermediates(  # type: ignore[operator]
            self._whole_patches(self.normalized(x)), indices=self.indices, norm=True, output_fmt="NCHW",
            intermediates_only=True,
        )  # fmt: skip
        return self.at_stride(low, x, LOW_STRIDE), self.at_stride(deep, x, self.output_stride)

    def _whole_patches(self, x: Tensor) -> Tensor:
        size = [p * max(1, round(side / p)) for side, p in zip(x.shape[-2:], self.patch, strict=True)]
        if list(x.shape[-2:]) == size:
            return x
        return F.interpolate(x, size=size, mode="bilinear", align_corners=False, antialias=True)


def _transformer(name: str, weights: dict[str, Any], output_stride: int) -> TimmTransformer:
    timm = _timm()
    try:
        net = timm.create_model(name, num_classes=0, dynamic_img_size=True, **weights)
    except TypeError as error:
        raise ValueError(f"timm:{name} takes images of one size alone; choose another encoder") from error
    return TimmTransformer(net, output_stride)


def _pyramid(name: str, weights: dict[str, Any], output_stride: int) -> TimmPyramid:
    """The first way to make it that timm accepts: dilated, else for images of any size, else as it is."""
    for options in ({"output_stride": output_stride}, {"strict_img_size": False}, {}):
        try:
            return TimmPyramid(_timm().create_model(name, features_only=True, **options, **weights), output_stride)
        except (TypeError, AssertionError):  # an option it does not have
            if not options:
                raise
    raise AssertionError


def _weights(backbone: str, plain: nn.Module, weights: str | Path | None) -> dict[str, Any]:
    """Arguments of timm.create_model; a file is held against the names of the whole network first."""
    if weights is None:
        return {"pretrained": False}
    if weights == "imagenet":
        return {"pretrained": True}
    path = Path(weights)
    if not path.is_file():
        raise FileNotFoundError(f"no weights at {path}; expected a file, or 'imagenet', or none")
    try:
        safe = path.suffix == ".safetensors"
        state = load_file(path) if safe else torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        raise ValueError(f"{path} cannot be read as weights: {error}") from error
    head = tuple(f"{name}." for name in ("head", "fc", "classifier", "head_dist", "fc_norm"))
    wanted = {k: v for k, v in plain.state_dict().items() if not k.startswith(head) and "num_batches" not in k}
    resized = ("pos_embed", "relative_position")  # timm fits these to the network
    wrong = [
        k for k, v in wanted.items()
        if k not in state or (state[k].shape != v.shape and not any(part in k for part in resized))
    ]  # fmt: skip
    if wrong:
        raise ValueError(
            f"{path} does not fit {backbone}: {len(wrong)} missing or of another shape (first: {wrong[:3]}); "
            "timm's names are expected"
        )
    return {"pretrained": True, "pretrained_cfg_overlay": {"state_dict": state}}


@torch.no_grad()
def _takes_any_size(encoder: nn.Module, backbone: str) -> None:
    for size in ((64, 96), (96, 64)):
        try:
            encoder(torch.zeros(1, 3, *size))
        except (RuntimeError, AssertionError) as error:
            raise ValueError(f"{backbone} takes images of one size alone ({error}); choose another encoder") from error


def _timm() -> ModuleType:
    try:
        import timm
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            "backbones named 'timm:...' need the package timm: pip install 'semiseg[timm]'"
        ) from error
    return timm
