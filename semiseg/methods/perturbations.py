"""DDFP's rivals: other steps delta in feature space (DDFP Tables 4 and 7; CCT, UniMatch, VAT as in PS-MT).

DDFP's public code holds only its own step, so how it set its rivals is unknown.  Each here is its origin's, at the
decoder input; VAT also in a setting matched to DDFP's, because the published one moves features by next to nothing.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import torch
import torch.nn as nn
import torch.nn.functional as F
from torch import Tensor

from ..models.deeplabv3plus import DeepLabV3Plus
from ..types import Target, View

Decoder = Callable[[Tensor], Tensor]


class _Step(nn.Module):
    """A perturber that learns nothing."""

    tap: Literal["decoder_input", "features"] = "decoder_input"

    def observe(self, labeled: View, weak: View, t: float) -> dict[str, Tensor]:
        return {}


class UniformNoise(_Step):
    """delta = x n, n ~ U(-r, r), one draw for every image of the batch (CCT, r = 0.3)."""

    def __init__(self, r: float = 0.3) -> None:
        super().__init__()
        self.r = r

    def forward(self, start: Tensor, onward: Callable[[Tensor], Tensor], target: Target) -> Tensor:
        """(B, C, h, w) -> the same without gradient, |delta| <= r |x|; a channel at 0 stays there."""
        noise = torch.empty_like(start[0], dtype=torch.float32).uniform_(-self.r, self.r)
        return (start.detach() * noise).to(start.dtype)


class ChannelDropout(_Step):
    """Each channel of each image set to 0 with probability p, the others scaled by 1 / (1 - p) (UniMatch, p = 0.5)."""

    def __init__(self, p: float = 0.5) -> None:
        super().__init__()
        self.p = p

    def forward(self, start: Tensor, onward: Callable[[Tensor], Tensor], target: Target) -> Tensor:
        """(B, C, h, w) -> the same; the gradient through x + delta is that of dropout."""
        return F.dropout2d(start, self.p) - start


class RandomNormal(_Step):
    """A direction drawn from N(0, I) at every pixel, of DDFP's length eps (Table 4, III)."""

    def __init__(self, eps: float = 4.0) -> None:
        super().__init__()
        self.eps = eps

    def forward(self, start: Tensor, onward: Callable[[Tensor], Tensor], target: Target) -> Tensor:
        """(B, C, h, w) -> the same without gradient, of length eps at every pixel."""
        return self.eps * F.normalize(torch.randn_like(start, dtype=torch.float32), dim=1).to(start.dtype)


class VAT(_Step):
    """Virtual adversarial step: against the prediction, one power iteration (Miyato et al., 2018; CCT; PS-MT).

        g = grad_d KL(p(x) || p(x + xi d)),   delta = eps g / |g|

    Args:
        decode: start (B, C, h, w) -> logits of the network that judges: the EMA teacher's decoder.
        eps, xi: lengths of the step and of the probe.
        per: length of a "pixel"'s C channels (matched to DDFP's Eq. 11), or of the whole map of an "image" (published).
        floor: added to |g| before dividing; the published 1e-8 exceeds |g| itself, so that delta is far below eps.
    """

    def __init__(
        self,
        decode: Decoder,
        *,
        eps: float = 4.0,
        xi: float = 0.1,
        per: Literal["pixel", "image"] = "pixel",
        floor: float = 1e-30,
    ) -> None:
        super().__init__()
        self.decode, self.eps, self.xi, self.floor = decode, eps, xi, floor
        self.over = (1,) if per == "pixel" else (1, 2, 3)

    def forward(self, start: Tensor, onward: Callable[[Tensor], Tensor], target: Target) -> Tensor:
        """(B, C, h, w) -> the same without gradient, of length eps up to the floor."""
        with torch.enable_grad(), torch.autocast(start.device.type, enabled=False):
            x = start.detach().float()
            clean = self.decode(x).detach().log_softmax(1)
            d = self._unit(torch.rand_like(x) - 0.5).requires_grad_()
            moved = self.decode(x + self.xi * d).log_softmax(1)
            (g,) = torch.autograd.grad(F.kl_div(moved, clean, reduction="sum", log_target=True), d)
        return (self.eps * self._unit(g)).to(start.dtype)

    def _unit(self, d: Tensor) -> Tensor:
        return d / (d.square().sum(self.over, keepdim=True).sqrt() + self.floor)


def published_vat(decode: Decoder) -> VAT:
    """CCT's and PS-MT's numbers: eps 2 for a whole image, xi 1e-6, 1e-8 in the denominator; close to no step at all."""
    return VAT(decode, eps=2.0, xi=1e-6, per="image", floor=1e-8)


def decoder_of(network: nn.Module) -> Decoder:
    """Decoder input (B, C, h, w) -> logits (B, K, h, w) in evaluation mode; the network's own mode is restored."""

    assert isinstance(network, DeepLabV3Plus)

    def decode(z: Tensor) -> Tensor:
        modes = {m: m.training for m in network.refine.modules()}
        network.refine.eval()
        logits = network.classify(network.refine(z))
        for module, mode in modes.items():
            module.training = mode
        return logits

    return decode
