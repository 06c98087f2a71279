"""DDFP: density-descending feature perturbation (Wang et al., "Towards the Uncharted", CVPR 2024).

Decision boundaries should lie where features are rare.  A normalizing flow learns the density p(v) of the teacher's
features; each confident unlabeled feature of the student then takes one step of length epsilon towards lower density
and must still get the same pseudo-label, so the classifier is made to explore the sparse regions:

    delta* = epsilon * g / |g|_2,   g = grad_v ( -log p(v) )        (Eq. 10, 11)

    seam: perturb      host: MeanTeacher      state: the flow and its Adam      chapter: notebooks/ddfp
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

import torch
import torch.distributed as dist
import torch.nn as nn
import torch.nn.functional as F
from torch import Tensor

from ..banks import as_pixels
from ..components import ConfidentLabels
from ..hosts.mean_teacher import MeanTeacher
from ..models.deeplabv3plus import DeepLabV3Plus
from ..types import IGNORE, Target, View
from .flow import UNLABELED, MixtureFlow


class DensityDescent(nn.Module):
    """Feature perturber: one step down the density learned by a flow (Sec. 3.3).

    Args:
        width: D, channels of the features the flow models.
        classes: K, Gaussians of its base distribution.
        eps: epsilon, length of the step at every pixel (Eq. 11).
        tap: where the step is taken.  "decoder_input" (released code): at the fused 304-channel map, through the
            two 3x3 convolutions that lead to the flow's features; "features" (paper, read literally): at the flow's
            own features.
        learn_means: train the means mu_k (released code) or leave them as drawn (paper).
        sampling: "uniform" over labeled and unlabeled pixels together (released code), or "equal" halves (paper).
        noise: standard deviation of Gaussian noise on the flow's training features (released code only; 0: none).
        samples: features per flow step ("20k").
        lr, final: Adam's rate, and the factor it decays to over training: lr * final^t.
        clip: L2 bound of the flow's gradient.
        hidden: width of the coupling networks.
    """

    def __init__(
        self,
        width: int,
        classes: int,
        *,
        eps: float = 4.0,
        tap: Literal["decoder_input", "features"] = "decoder_input",
        learn_means: bool = True,
        sampling: Literal["uniform", "equal"] = "uniform",
        noise: float = 0.05,
        samples: int = 20 * 1024,
        lr: float = 1e-3,
        final: float = 0.01,
        clip: float = 50.0,
        hidden: int = 256,
    ) -> None:
        super().__init__()
        self.flow = MixtureFlow(width, classes, hidden=hidden, learn_means=learn_means)
        trained = [p for p in self.flow.parameters() if p.requires_grad]
        self.optimizer = torch.optim.Adam(trained, lr, betas=(0.5, 0.9))
        self.eps, self.tap, self.sampling, self.noise = eps, tap, sampling, noise
        self.samples, self.lr, self.final, self.clip = samples, lr, final, clip

    def forward(self, start: Tensor, onward: Callable[[Tensor], Tensor], target: Target) -> Tensor:
        """delta* for every feature (Eq. 11).

        Args:
            start: (B, C, h, w), the features that move.
            onward: start -> the flow's features (B, D, h, w).
            target: pseudo-labels; only pixels of weight > 0 enter the objective -log p.

        Returns:
            (B, C, h, w) without gradient, of length eps at every pixel the objective depends on and 0 elsewhere;
            all 0 when no pixel is supervised.
        """
        start = start.detach().requires_grad_()
        with torch.enable_grad():
            features = onward(start)
            known = target.at(features.shape[-2:]).flatten() != IGNORE
            if not known.any():
                return torch.zeros_like(start)
            descent = -self.flow.log_prob(as_pixels(features)[known]).mean()
            (g,) = torch.autograd.grad(descent, start)
        return self.eps * F.normalize(g.float(), dim=1, eps=1e-30).to(start.dtype)

    def observe(self, labeled: View, weak: View, t: float) -> dict[str, Tensor]:
        """One step of the flow on the teacher's features (Eq. 9): own component where labeled, mixture elsewhere.

        Unlabeled pixels are not filtered by confidence; padding and ignored labels are left out.
        """
        v, y = self._features(labeled, weak)
        if not len(v):
            return {}
        if self.noise:
            v = v + self.noise * torch.randn_like(v)
        self.optimizer.param_groups[0]["lr"] = self.lr * self.final**t
        self.optimizer.zero_grad(set_to_none=True)
        with torch.enable_grad():
            nll = -self.flow.log_prob(v, y).mean()
            nll.backward()
        self._average_over_processes()
        nn.utils.clip_grad_norm_(self.optimizer.param_groups[0]["params"], self.clip)
        self.optimizer.step()
        return {"flow_nll": torch.stack((nll.detach(), torch.ones_like(nll)))}

    def _features(self, labeled: View, weak: View) -> tuple[Tensor, Tensor]:
        """A sample of the teacher's features (n, D) and their labels (n,), UNLABELED for unlabeled images."""
        assert labeled.teacher is not None and weak.teacher is not None
        size = weak.teacher.features.shape[-2:]
        y = labeled.target.at(size).flatten()
        valid = F.interpolate(weak.target.denominator[:, None], size=tuple(size), mode="nearest").flatten() > 0
        v_l, v_u = as_pixels(labeled.teacher.features)[y != IGNORE], as_pixels(weak.teacher.features)[valid]
        y = y[y != IGNORE]
        if self.sampling == "equal":
            n = min(self.samples // 2, len(v_l), len(v_u))
            keep = torch.randperm(len(v_l), device=y.device)[:n]
            v_l, y, v_u = v_l[keep], y[keep], v_u[torch.randperm(len(v_u), device=y.device)[:n]]
        v, y = torch.cat((v_l, v_u)), torch.cat((y, y.new_full((len(v_u),), UNLABELED)))
        keep = torch.randperm(len(v), device=y.device)[: self.samples]
        return v[keep].to(self.flow.means.dtype), y[keep]

    def _average_over_processes(self) -> None:
        if dist.is_available() and dist.is_initialized():
            for parameter in self.optimizer.param_groups[0]["params"]:
                dist.all_reduce(parameter.grad)
                parameter.grad /= dist.get_world_size()

    def get_extra_state(self) -> dict[str, Any]:
        return self.optimizer.state_dict()

    def set_extra_state(self, state: dict[str, Any]) -> None:
        self.optimizer.load_state_dict(state)


def ddfp(student: DeepLabV3Plus, classes: int, *, perturb: DensityDescent | None = None, **seams: Any) -> MeanTeacher:
    """DDFP on its own host; every argument of MeanTeacher can be given, `perturb` replaces the default step."""
    seams.setdefault("label", ConfidentLabels(0.95))
    return MeanTeacher(student, perturb=perturb or DensityDescent(student.width, classes), **seams)
