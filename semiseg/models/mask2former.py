"""Mask2Former (Cheng et al., CVPR 2022) on a ResNet: transformers' modules, read as a per-pixel classifier.

    image --backbone--> 4 maps --pixel decoder--> features, 3 maps --transformer--> Q classes and Q masks per layer

Weights come from torchvision or are random; nothing is fetched from a model hub.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import NamedTuple

import torch
import torch.nn as nn
import torch.nn.functional as F
import torchvision.models as tv
from torch import Tensor

from ..types import Output
from .backbones import load_backbone
from .names import RESNETS

ENCODERS = ("tiny", *RESNETS)
_FLOOR = 1e-8  # of a class score; a pixel that no query claims is equally likely of every class
_DEPTHS = {"resnet18": (2, 2, 2, 2), "resnet34": (3, 4, 6, 3), "resnet50": (3, 4, 6, 3), "resnet101": (3, 4, 23, 3)}


def transformers() -> ModuleType:
    """The optional library.  Raises ImportError that says how to install it."""
    try:
        import transformers
    except ImportError as error:
        message = "method 'mask2former' needs the package transformers: pip install 'semiseg[mask2former]'"
        raise ImportError(message) from error
    return transformers


class MaskQueries(NamedTuple):
    """What Q queries say of B images: first as learned, then after each layer of the decoder; the last is used."""

    classes: tuple[Tensor, ...]  # (B, Q, K + 1) each, logits; the last class is "no object"
    masks: tuple[Tensor, ...]  # (B, Q, h, w) each, logits
    features: Tensor  # (B, D, h, w), the map the masks are read from
    deep: Tensor  # (B, L, h', w')

    def scores(self, size: tuple[int, int] | torch.Size) -> Tensor:
        """Class scores (B, K, H, W), >= 0; they need not sum to 1."""
        return class_scores(self.classes[-1], self.masks[-1], size)

    def output(self, size: tuple[int, int] | torch.Size) -> Output:
        """The same as every other network's output, logits (B, K, H, W) at `size`."""
        return Output(log_probabilities(self.scores(size)), self.features, self.features[:, :0], self.deep)


def class_scores(classes: Tensor, masks: Tensor, size: tuple[int, int] | torch.Size) -> Tensor:
    """Semantic inference: the sum over queries of class probability times mask probability.

    Args:
        classes: (B, Q, K + 1) logits.
        masks: (B, Q, h, w) logits, resized bilinearly before the sigmoid.
        size: H, W.

    Returns:
        (B, K, H, W): "no object" takes its share with it, and queries overlap, so the sum over classes may be any
        number in [0, Q].
    """
    with torch.autocast(masks.device.type, enabled=False):
        p = classes.float().softmax(-1)[..., :-1]
        m = F.interpolate(masks.float(), size=tuple(size), mode="bilinear", align_corners=False).sigmoid()
        return torch.einsum("bqk,bqhw->bkhw", p, m)


def log_probabilities(scores: Tensor) -> Tensor:
    """Scores (B, K, H, W) -> logits whose softmax is scores / sum; uniform where all scores are 0."""
    return scores.clamp(min=_FLOOR).log().log_softmax(1)


class Mask2Former(nn.Module):
    """A set of masks per image; called as a network it gives an `Output`, `queries` gives what the set loss reads.

    `Output.features` are the pixel decoder's map at the stride of the masks (4; "tiny": 2), `deep` is the last map of
    the backbone.

    Args:
        backbone: one of ENCODERS.
        classes: K.
        weights: of the backbone: "imagenet" (torchvision's), a file in torchvision's naming, or None (random).
        width: D of all maps and queries, a multiple of 32 and of `heads`.
        queries: Q, an upper bound of the classes found in one image.
        encoder_layers: of deformable attention in the pixel decoder.
        decoder_layers: of masked attention.
        heads: of every attention.
        feedforward: channels between the two linear maps of a layer, in pixel decoder and decoder.

    Raises:
        ImportError: transformers is not installed.
        ValueError: an unknown backbone, a width that cannot be divided, weights that do not fit.
        FileNotFoundError: no such file of weights.
    """

    def __init__(
        self,
        backbone: str,
        classes: int,
        *,
        weights: str | Path | None = None,
        width: int = 256,
        queries: int = 100,
        encoder_layers: int = 6,
        decoder_layers: int = 9,
        heads: int = 8,
        feedforward: tuple[int, int] = (1024, 2048),
    ) -> None:
        super().__init__()
        if width % 32 or width % heads:
            raise ValueError(f"Mask2Former needs a width that is a multiple of 32 and of heads={heads}, got {width}")
        hf = transformers()
        with _silent(hf):
            config = hf.Mask2FormerConfig(
                backbone_config=_encoder_config(hf, backbone), num_labels=classes, num_queries=queries,
                hidden_dim=width, feature_size=width, mask_feature_size=width, num_attention_heads=heads,
                encoder_layers=encoder_layers, decoder_layers=decoder_layers + 1,  # the learned queries are one there
                encoder_feedforward_dim=feedforward[0], dim_feedforward=feedforward[1],
            )  # fmt: skip
            made = hf.Mask2FormerForUniversalSegmentation(config)
        self.backbone = made.model.pixel_level_module.encoder
        self.decode = made.model.pixel_level_module.decoder
        self.attend, self.classify = made.model.transformer_module, made.class_predictor
        self.width, self.embedding = width, 0
        if backbone == "tiny":
            self.backbone.embedder.pooler = nn.Identity()  # stride 2: a scene has 32 pixels
        load_encoder(self.backbone, backbone, weights)

    def queries(self, x: Tensor) -> MaskQueries:
        """x (B, 3, H, W), normalized -> classes and masks after each layer."""
        maps = self.backbone(x).feature_maps
        decoded = self.decode(maps)
        attended = self.attend(decoded.multi_scale_features, decoded.mask_features, output_hidden_states=True)
        classes = tuple(self.classify(state.transpose(0, 1)) for state in attended.intermediate_hidden_states)
        return MaskQueries(classes, tuple(attended.masks_queries_logits), decoded.mask_features, maps[-1])

    def forward(self, x: Tensor) -> Output:
        """x (B, 3, H, W), normalized -> Output."""
        return self.queries(x).output(x.shape[-2:])


def _encoder_config(hf: ModuleType, name: str) -> object:
    stages = ["stage1", "stage2", "stage3", "stage4"]
    if name == "tiny":
        return hf.ResNetConfig(
            embedding_size=24, hidden_sizes=[32, 64, 96, 128], depths=[1] * 4, layer_type="basic", out_features=stages
        )
    if name not in ENCODERS:
        raise ValueError(f"Mask2Former has no backbone {name!r}; expected one of {', '.join(ENCODERS)}")
    basic = name in ("resnet18", "resnet34")
    return hf.ResNetConfig(
        depths=list(_DEPTHS[name]), layer_type="basic" if basic else "bottleneck", out_features=stages,
        hidden_sizes=[64, 128, 256, 512] if basic else [256, 512, 1024, 2048],
    )  # fmt: skip


def load_encoder(encoder: nn.Module, name: str, weights: str | Path | None) -> None:
    """Put torchvision's weights into transformers' ResNet, every tensor by name.

    Args:
        encoder: transformers' backbone of that name.
        weights: "imagenet", a file, or None, which changes nothing.

    Raises ValueError or FileNotFoundError as `backbones.load_backbone`, and for tensors without counterpart.
    """
    if weights is None:
        return
    if name not in RESNETS:
        raise ValueError(f"backbone {name!r} has no pretrained weights, got weights={str(weights)!r}; pass None")
    net = tv.get_model(name)
    load_backbone(net, name, weights)
    named = renamed(net.state_dict())
    wanted = encoder.state_dict()
    missing = [k for k in wanted if k not in named or named[k].shape != wanted[k].shape]
    unknown = [k for k in named if k not in wanted]
    if missing or unknown:
        raise ValueError(
            f"torchvision's {name} does not fit: {len(missing)} missing or of another shape (first: {missing[:3]}), "
            f"{len(unknown)} unknown (first: {unknown[:3]})"
        )
    encoder.load_state_dict(named)


_NAMES = (
    (r"^conv1\.", "embedder.embedder.convolution."),
    (r"^bn1\.", "embedder.embedder.normalization."),
    (r"^layer(\d)\.(\d+)\.", lambda m: f"encoder.stages.{int(m[1]) - 1}.layers.{m[2]}."),
    (r"\.conv(\d)\.", lambda m: f".layer.{int(m[1]) - 1}.convolution."),
    (r"\.bn(\d)\.", lambda m: f".layer.{int(m[1]) - 1}.normalization."),
    (r"\.downsample\.0\.", ".shortcut.convolution."),
    (r"\.downsample\.1\.", ".shortcut.normalization."),
)


def renamed(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A torchvision ResNet's tensors under transformers' names, without the classifier."""
    found = {}
    for key, value in state.items():
        if key.startswith("fc."):
            continue
        for pattern, name in _NAMES:
            key = re.sub(pattern, name, key)
        found[key] = value
    return found


@contextmanager
def _silent(hf: ModuleType) -> Iterator[None]:
    """Inside it the library logs errors alone: it has advice for kernels and backbones that are not used here."""
    log = hf.utils.logging
    before = log.get_verbosity()
    log.set_verbosity_error()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)
            yield
    finally:
        log.set_verbosity(before)
