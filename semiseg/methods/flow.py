"""The density model of DDFP: a small normalizing flow with a Gaussian mixture as base distribution."""

from __future__ import annotations

import math

import FrEIA.framework as Ff
import FrEIA.modules as Fm
import numpy as np
import torch
import torch.nn as nn
from torch import Tensor

UNLABELED = -1


def _subnet(hidden: int) -> type[nn.Sequential]:
    class Subnet(nn.Sequential):
        """The NN of Fig. 3: two hidden layers, every weight and bias drawn from 0.05 N(0, 1)."""

        def __init__(self, width_in: int, width_out: int) -> None:
            super().__init__(
                nn.Linear(width_in, hidden), nn.ReLU(True),
                nn.Linear(hidden, hidden), nn.ReLU(True),
                nn.Linear(hidden, width_out),
            )  # fmt: skip
            for parameter in self.parameters():
                nn.init.normal_(parameter, std=0.05)

    return Subnet


class MixtureFlow(nn.Module):
    """log p(v) of features v (DDFP, Eq. 5 to 8): z = phi(v), base distribution sum_k pi_k N(z | mu_k, I), pi_k = 1/K.

    phi is a FrEIA sequence of GLOW coupling blocks (both halves change in each block), each followed by a fixed
    random permutation of the channels; the scale is softly clamped to exp(+-clamp).

    Args:
        width: D, channels of a feature; at least 2.
        classes: K, one Gaussian per class.
        blocks, hidden, clamp: coupling blocks, width of their hidden layers, soft clamp of log scale.
        learn_means: train mu_k with the flow (released code) or keep them as drawn from N(0, I) (paper).

    The flow computes in the precision of its parameters whatever the autocast around it.
    """

    def __init__(
        self,
        width: int,
        classes: int,
        *,
        blocks: int = 2,
        hidden: int = 256,
        clamp: float = 2.0,
        learn_means: bool = True,
    ) -> None:
        super().__init__()
        if width < 2 or classes < 1:
            raise ValueError(f"MixtureFlow needs width >= 2 and classes >= 1, got width={width}, classes={classes}")
        self.means = nn.Parameter(torch.randn(classes, width), requires_grad=learn_means)
        self.inn = Ff.SequenceINN(width)
        numpy_state = np.random.get_state()  # PermuteRandom seeds numpy's global generator
        for block in range(blocks):
            self.inn.append(Fm.GLOWCouplingBlock, subnet_constructor=_subnet(hidden), clamp=clamp)
            self.inn.append(Fm.PermuteRandom, seed=block)
        np.random.set_state(numpy_state)

    def encode(self, v: Tensor) -> tuple[Tensor, Tensor]:
        """v (N, D) -> z = phi(v) (N, D) and log |det dphi/dv| (N,)."""
        with torch.autocast(v.device.type, enabled=False):
            return self.inn(v.to(self.means.dtype))

    def decode(self, z: Tensor) -> Tensor:
        """The inverse of phi: z (N, D) -> v (N, D)."""
        return self.inn(z, rev=True)[0]

    def component_log_prob(self, v: Tensor) -> Tensor:
        """log p(v | k) for every class (Eq. 7): v (N, D) -> (N, K).

        |z - mu|^2 is expanded into |z|^2 - 2 z.mu + |mu|^2, so nothing of size N x K x D is made.
        """
        z, log_det = self.encode(v)
        with torch.autocast(v.device.type, enabled=False):
            square = z.square().sum(1, keepdim=True) - 2 * z @ self.means.T + self.means.square().sum(1)
            return -0.5 * (square + z.shape[1] * math.log(2 * math.pi)) + log_det[:, None]

    def log_prob(self, v: Tensor, labels: Tensor | None = None) -> Tensor:
        """log p(v) (Eq. 8), or log p(v | y) where a label is known (Eq. 7).

        Args:
            v: (N, D).
            labels: (N,) long, the class or UNLABELED; None: no feature is labeled.

        Returns:
            (N,) in nats.

        Raises:
            ValueError: a label outside UNLABELED, 0..K-1.
        """
        component = self.component_log_prob(v)
        mixture = component.logsumexp(1) - math.log(component.shape[1])
        if labels is None:
            return mixture
        if len(labels) and not UNLABELED <= int(labels.min()) <= int(labels.max()) < component.shape[1]:
            last = component.shape[1] - 1
            raise ValueError(f"flow labels must be {UNLABELED} or 0..{last}, got {sorted(set(labels.tolist()))[:9]}")
        own = component.gather(1, labels.clamp(min=0)[:, None])[:, 0]
        return torch.where(labels == UNLABELED, mixture, own)
