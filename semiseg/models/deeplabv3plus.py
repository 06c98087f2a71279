"""DeepLabV3+ (Chen et al., ECCV 2018), cut at the places where the papers reach into it.

    image --trunk--> z (decoder input, stride 4), deep --refine--> features --head--> logits

DDFP perturbs z or the features; the contrastive papers read the embedding, of the features or of z; UniMatch drops
channels before `fuse`.  The auxiliary head reads the encoder's map before the last stage.
"""

from __future__ import annotations

from typing import Any, Literal

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


def auxiliary_head(channels: int, classes: int) -> nn.Sequential:
    """Classifier of the encoder's map before the last stage, as in U2PL, AEL and DGCL.

    Raises ValueError for an encoder that gives no such map, channels 0.
    """
    if not channels:
        raise ValueError("an auxiliary head needs a map before the encoder's last stage; only ResNets give one")
    return nn.Sequential(*_block(channels, 256, 3), nn.Dropout2d(0.1), nn.Conv2d(256, classes, 1))


class DeepLabV3Plus(nn.Module):
    """Atrous spatial pyramid pooling on deep features, fused with low-level ones at stride 4.

    Args:
        backbone: gives low-level and deep features.
        classes: K.
        width: channels of the pyramid and of the features D (256 in the papers).
        low_width: channels the low-level features are reduced to (48).
        rates: dilations of the pyramid (6, 12, 18 at output stride 16).
        projection: kernel of the convolution after the pyramid, 3 or 1.
        embedding: E, channels of a projection head; 0: none.
        projector: what that head reads: "features", by two 1x1 convolutions, or "decoder", z, by two 3x3 convolutions
            with dropout and a 1x1 one, beside refinement and classifier (U2PL's released code).
        dropout: of whole channels, in the refinement and in a projector of z.
        pyramid_dropout: of whole channels, after the pyramid; None: as dropout.
        auxiliary: weight of the labeled loss of a head on the encoder's map before the last stage; 0: no head.
        second_bn: give the refinement a second set of BatchNorm statistics for perturbed features (DDFP).

    Raises:
        ValueError: an auxiliary head on an encoder without such a map.
    """

    def __init__(
        self,
        backbone: Encoder,
        classes: int,
        *,
        width: int = 256,
        low_width: int = 48,
        rates: tuple[int, ...] = (6, 12, 18),
        projection: int = 3,
        embedding: int = 0,
        projector: Literal["features", "decoder"] = "features",
        dropout: float = 0.1,
        pyramid_dropout: float | None = None,
        auxiliary: float = 0.0,
        second_bn: bool = False,
    ) -> None:
        super().__init__()
        self.backbone = backbone
        self.aspp = ASPP(backbone.deep_channels, rates, width)
        pyramid = (len(rates) + 2) * width
        after_pyramid = nn.Dropout2d(dropout if pyramid_dropout is None else pyramid_dropout)
        self.aspp.project = nn.Sequential(*_block(pyramid, width, projection), after_pyramid)
        self.reduce = nn.Sequential(*_block(backbone.low_channels, low_width, 1))
        norm = DualBatchNorm2d if second_bn else nn.BatchNorm2d
        self.refine = nn.Sequential(
            *_block(low_width + width, width, 3, norm), nn.Dropout2d(dropout),
            *_block(width, width, 3, norm), nn.Dropout2d(dropout),
        )  # fmt: skip
        self.classify = nn.Conv2d(width, classes, 1)
        self.width, self.decoder_width, self.embedding = width, low_width + width, embedding
        self.projector, self.auxiliary_weight = projector, auxiliary
        self.project = nn.Sequential(*self._projector(dropout), nn.Conv2d(width, embedding, 1)) if embedding else None
        self.auxiliary = auxiliary_head(getattr(backbone, "middle_channels", 0), classes) if auxiliary else None

    def _projector(self, dropout: float) -> list[nn.Module]:
        """The projection head before its last convolution."""
        if self.projector == "features":
            return _block(self.width, self.width, 1)
        first, second = _block(self.decoder_width, self.width, 3), _block(self.width, self.width, 3)
        return [*first, nn.Dropout2d(dropout), *second, nn.Dropout2d(dropout)]

    def inference_state(self) -> dict[str, Any]:
        """Its tensors by name, without those of the auxiliary head, which is there for training alone."""
        return {k: v for k, v in self.state_dict().items() if not k.startswith("auxiliary.")}

    def fuse(self, low: Tensor, deep: Tensor) -> Tensor:
        """Both maps of the backbone -> z (B, C, h, w) at stride 4."""
        return torch.cat((self.reduce(low), _resize(self.aspp(deep), low.shape[-2:])), 1)

    def encode(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor | None]:
        """x (B, 3, H, W) -> low-level and deep features, and what an auxiliary head reads, for `read`."""
        if self.auxiliary is None:
            return *self.backbone(x), None
        low, middle, deep = self.backbone.maps(x)  # type: ignore[attr-defined]
        return low, deep, middle

    def trunk(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """x (B, 3, H, W) -> z (B, C, h, w) at stride 4 and deep features (B, L, h', w')."""
        low, deep = self.backbone(x)
        return self.fuse(low, deep), deep

    def head(self, features: Tensor, deep: Tensor, size: tuple[int, int] | torch.Size) -> Output:
        """features (B, D, h, w) -> Output with logits at `size`."""
        logits = _resize(self.classify(features), size)
        reads = self.project is not None and self.projector == "features"
        embedding = self.project(features) if reads else features[:, :0]  # type: ignore[misc]
        return Output(logits, features, embedding, deep)

    @torch.no_grad()
    def embed(self, vectors: Tensor) -> Tensor:
        """Features (n, D) -> their projections (n, E) by running statistics, without gradient."""
        if self.project is None or self.projector != "features":
            raise ValueError("this network has no projection head on its features; make it with embedding > 0")
        was_training = self.project.training
        embedding = self.project.eval()(vectors[:, :, None, None])[:, :, 0, 0]
        self.project.train(was_training)
        return embedding

    def read(self, z: Tensor, deep: Tensor, size: tuple[int, int] | torch.Size, middle: Tensor | None = None) -> Output:
        """Decoder input z (B, C, h, w) -> Output; with `middle` of `encode` also that of the auxiliary head.

        The auxiliary head is asked where it can learn alone: in training mode, with gradient.
        """
        undropped = self.refine[:-1](z)
        output = self.head(self.refine[-1](undropped), deep, size)._replace(undropped=undropped)
        if self.project is not None and self.projector == "decoder":
            output = output._replace(embedding=self.project(z))
        if self.auxiliary is not None and middle is not None and self.training and torch.is_grad_enabled():
            output = output._replace(auxiliary=self.auxiliary(middle))
        return output

    def forward(self, x: Tensor) -> Output:
        """x (B, 3, H, W), normalized -> Output."""
        low, deep, middle = self.encode(x)
        return self.read(self.fuse(low, deep), deep, x.shape[-2:], middle)
