"""DeepLabV3+ (Chen et al., ECCV 2018), cut at the places where the papers reach into it.

    image --trunk--> z (decoder input, stride 4), deep --refine--> features --head--> logits

DDFP perturbs z or the features; the contrastive papers read the embedding; UniMatch drops channels before `fuse`.
"""

from __future__ import annotations

import torch
import torch.nn as nn
import torch.nn.functional as F
from torch import Tensor
from torchvision.models.segmentation.deeplabv3 import ASPP

from ..types import Output
from .backbones import Encoder
from .normalization import DualBatchNorm2d


def _block(width_in: int, width_out: int, kernel: int, norm: type[nn.Module] = nn.BatchNorm2d) -> list[nn.Module]:
    return [nn.Conv2d(width_in, width_out, kernel, padding=kernel // 2, bias=False), norm(width_out), nn.ReLU(True)]


def _resize(x: Tensor, size: tuple[int, int] | torch.Size) -> Tensor:
    return F.interpolate(x, size=tuple(size), mode="bilinear", align_corners=True)


class DeepLabV3Plus(nn.Module):
    """Atrous spatial pyramid pooling on deep features, fused with low-level ones at stride 4.

    Args:
        backbone: gives low-level and deep features.
        classes: K.
        width: channels of the pyramid and of the features D (256 in the papers).
        low_width: channels the low-level features are reduced to (48).
        rates: dilations of the pyramid (6, 12, 18 at output stride 16).
        embedding: E, channels of a projection head (two 1x1 convolutions) on the features; 0: none.
        dropout: of whole channels, after the pyramid and in the refinement.
        second_bn: give the refinement a second set of BatchNorm statistics for perturbed features (DDFP).
    """

    def __init__(
        self,
        backbone: Encoder,
        classes: int,
        *,
        width: int = 256,
        low_width: int = 48,
        rates: tuple[int, ...] = (6, 12, 18),
        embedding: int = 0,
        dropout: float = 0.1,
        second_bn: bool = False,
    ) -> None:
        super().__init__()
        self.backbone = backbone
        self.aspp = ASPP(backbone.deep_channels, rates, width)
        pyramid = (len(rates) + 2) * width
        self.aspp.project = nn.Sequential(*_block(pyramid, width, 3), nn.Dropout2d(dropout))
        self.reduce = nn.Sequential(*_block(backbone.low_channels, low_width, 1))
        norm = DualBatchNorm2d if second_bn else nn.BatchNorm2d
        self.refine = nn.Sequential(
            *_block(low_width + width, width, 3, norm), nn.Dropout2d(dropout),
            *_block(width, width, 3, norm), nn.Dropout2d(dropout),
        )  # fmt: skip
        self.classify = nn.Conv2d(width, classes, 1)
        self.project = nn.Sequential(*_block(width, width, 1), nn.Conv2d(width, embedding, 1)) if embedding else None
        self.width, self.decoder_width, self.embedding = width, low_width + width, embedding

    def fuse(self, low: Tensor, deep: Tensor) -> Tensor:
        """Both maps of the backbone -> z (B, C, h, w) at stride 4."""
        return torch.cat((self.reduce(low), _resize(self.aspp(deep), low.shape[-2:])), 1)

    def trunk(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """x (B, 3, H, W) -> z (B, C, h, w) at stride 4 and deep features (B, L, h', w')."""
        low, deep = self.backbone(x)
        return self.fuse(low, deep), deep

    def head(self, features: Tensor, deep: Tensor, size: tuple[int, int] | torch.Size) -> Output:
        """features (B, D, h, w) -> Output with logits at `size`."""
        logits = _resize(self.classify(features), size)
        embedding = features[:, :0] if self.project is None else self.project(features)
        return Output(logits, features, embedding, deep)

    @torch.no_grad()
    def embed(self, vectors: Tensor) -> Tensor:
        """Features (n, D) -> their projections (n, E) by running statistics, without gradient."""
        if self.project is None:
            raise ValueError("this network has no projection head; make it with embedding > 0")
        was_training = self.project.training
        embedding = self.project.eval()(vectors[:, :, None, None])[:, :, 0, 0]
        self.project.train(was_training)
        return embedding

    def read(self, z: Tensor, deep: Tensor, size: tuple[int, int] | torch.Size) -> Output:
        """Decoder input z (B, C, h, w) -> Output."""
        return self.head(self.refine(z), deep, size)

    def forward(self, x: Tensor) -> Output:
        """x (B, 3, H, W), normalized -> Output."""
        return self.read(*self.trunk(x), x.shape[-2:])
