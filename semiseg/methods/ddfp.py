"""DDFP: density-descending feature perturbation (Wang et al., "Towards the Uncharted", CVPR 2024).

Decision boundaries should lie where features are rare.  A normalizing flow learns the density p(v) of the teacher's
features; each confident unlabeled feature of the student then takes one step of length epsilon towards lower density
and must still get the same pseudo-label, so the classifier is made to explore the sparse regions:

    delta* = epsilon * g / |g|_2,   g = grad_v ( -log p(v) )        (Eq. 10, 11)

    component: perturb      host: MeanTeacher      state: the flow and its Adam      chapter: notebooks/ddfp
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Literal

import torch
import torch.distributed as dist
import torch.nn as nn
import torch.nn.functional as F
from torch import Tensor

from ..banks import as_pixels
from ..build import make_student
from ..hosts.mean_teacher import ALL, MeanTeacher, mean_teacher
from ..models.deeplabv3plus import DeepLabV3Plus
from ..options import Options, option, options
from ..registry import Method
from ..scales import EMBEDDED
from ..types import IGNORE, FeaturePerturber, Target, View
from .flow import UNLABELED, MixtureFlow
from .perturbations import VAT, ChannelDropout, RandomNormal, UniformNoise, decoder_of, published_vat

if TYPE_CHECKING:
    from ..recipe import Recipe


@options
class DDFPOptions(Options):
    """The feature perturbation and its flow; each default is the better founded reading of text and code."""

    part = "ddfp"
    eps: float = option(
        "length of the step at every pixel; smaller scales lower it to 4 (C / 304)^0.5, the same change per channel",
        default=4.0,
        symbol="ε",
        equation="Eq. 11",
        ge=0,
    )
    tap: Literal["decoder_input", "features"] = option(
        "where the step is taken: at z, before the two 3x3 convolutions (released code); features: after them, at the "
        "flow's own features (paper, read literally)",
        default="decoder_input",
    )
    learn_means: bool = option(
        "train the means (released code), or leave them as drawn (paper)", default=True, symbol="μ_k"
    )
    second_bn: bool = option(
        "a second set of BatchNorm statistics for perturbed features (released code)", default=True
    )
    weights: tuple[float, float] = option(
        "of the image and the feature term: released code; (1, 0.5): paper",
        default=(0.5, 0.5),
        symbol="1, λ_ft",
        equation="Eq. 16",
    )
    sampling: Literal["uniform", "equal"] = option(
        "of the flow's pixels: over labeled and unlabeled together (released code), or equal halves (paper)",
        default="uniform",
    )
    noise: float = option(
        "standard deviation on the flow's training features (released code); 0: none", default=0.05, ge=0
    )
    perturb_from_epoch: int = option("first epoch with perturbed features", default=2, unit="epochs", ge=0)
    flow_hidden: int = option("width of the coupling networks", default=256, gt=0)
    step: Literal["density", "normal", "uniform", "dropout", "vat", "vat_published"] = option(
        "the step in feature space, or a rival of it (Tables 4 and 7)", default="density", later=True
    )
    samples: int = option("features per step of the flow", default=20 * 1024, unit="pixels", later=True, gt=0)
    flow_lr: float = option("Adam's rate for the flow", default=1e-3, later=True, gt=0)
    flow_lr_final: float = option(
        "factor the rate decays to over training, as rate * factor^t", default=0.01, later=True, gt=0
    )
    flow_clip: float = option("L2 bound of the flow's gradient", default=50.0, later=True, gt=0)


class DensityDescent(nn.Module):
    """Feature perturber: one step down the density learned by a flow (Sec. 3.3).

    Args:
        width: D, channels of the features the flow models.
        classes: K, Gaussians of its base distribution.
        options: what `recipe[DDFPOptions]` gives.
    """

    tap: Literal["decoder_input", "features"]

    def __init__(self, width: int, classes: int, options: DDFPOptions) -> None:
        super().__init__()
        self.options, self.tap = options, options.tap
        self.flow = MixtureFlow(width, classes, hidden=options.flow_hidden, learn_means=options.learn_means)
        self.optimizer = torch.optim.Adam(self.own_parameters(), options.flow_lr, betas=(0.5, 0.9))

    def own_parameters(self) -> list[nn.Parameter]:
        """The flow's, which `observe` trains (`types.SelfOptimizing`)."""
        return [p for p in self.flow.parameters() if p.requires_grad]

    def exported_state(self) -> dict[str, Any]:
        """The flow without its optimizer (`types.Exporting`)."""
        return {name: value for name, value in self.state_dict().items() if isinstance(value, Tensor)}

    def forward(self, start: Tensor, onward: Callable[[Tensor], Tensor], target: Target) -> Tensor:
        """delta* for every feature (Eq. 11).

        Args:
            start: (B, C, h, w), the features that move.
            onward: start -> the flow's features (B, D, h, w).
            target: pseudo-labels; only pixels of weight > 0 enter the objective -log p.

        Returns:
            (B, C, h, w) without gradient, of length eps at every pixel the objective depends on and 0 elsewhere;
            all 0 when no pixel is supervised.  With the tap "features" these are the supervised pixels, with
            "decoder_input" nearly all of the batch, which its statistics couple; the loss counts supervised ones alone.
        """
        start = start.detach().requires_grad_()
        with torch.enable_grad():
            features = onward(start)
            known = target.at(features.shape[-2:]).flatten() != IGNORE
            if not known.any():
                return torch.zeros_like(start)
            descent = -self.flow.log_prob(as_pixels(features)[known]).mean()
            (g,) = torch.autograd.grad(descent, start)
        return self.options.eps * F.normalize(g.float(), dim=1, eps=1e-30).to(start.dtype)

    def observe(self, labeled: View, weak: View, t: float) -> dict[str, Tensor]:
        """One step of the flow on the teacher's features (Eq. 9): labeled pixels by the Gaussian of their
        class, unlabeled ones by the mixture.

        Unlabeled pixels are not filtered by confidence; padding and ignored labels are left out.
        """
        v, y = self._features(labeled, weak)
        if not len(v):
            return {}
        o = self.options
        if o.noise:
            v = v + o.noise * torch.randn_like(v)
        self.optimizer.param_groups[0]["lr"] = o.flow_lr * o.flow_lr_final**t
        self.optimizer.zero_grad(set_to_none=True)
        with torch.enable_grad():
            nll = -self.flow.log_prob(v, y).mean()
            nll.backward()
        self._average_over_processes()
        nn.utils.clip_grad_norm_(self.optimizer.param_groups[0]["params"], o.flow_clip)
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
        o = self.options
        if o.sampling == "equal":
            n = min(o.samples // 2, len(v_l), len(v_u))
            keep = torch.randperm(len(v_l), device=y.device)[:n]
            v_l, y, v_u = v_l[keep], y[keep], v_u[torch.randperm(len(v_u), device=y.device)[:n]]
        v, y = torch.cat((v_l, v_u)), torch.cat((y, y.new_full((len(v_u),), UNLABELED)))
        keep = torch.randperm(len(v), device=y.device)[: o.samples]
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


def perturber(recipe: Recipe, student: DeepLabV3Plus, teacher: nn.Module, classes: int) -> FeaturePerturber:
    """DDFP's step, or the rival of it that Tables 4 and 7 ask for."""
    o = recipe[DDFPOptions]
    match o.step:
        case "normal":
            return RandomNormal(o.eps)
        case "uniform":
            return UniformNoise()
        case "dropout":
            return ChannelDropout()
        case "vat":
            return VAT(decoder_of(teacher), eps=o.eps)
        case "vat_published":
            return published_vat(decoder_of(teacher))
    return DensityDescent(student.width, classes, o)


def build(recipe: Recipe, classes: int) -> MeanTeacher:
    o = recipe[DDFPOptions]
    student = make_student(recipe, classes, second_bn=o.second_bn)
    host = mean_teacher(
        recipe, classes, student, perturbed_weights=o.weights,
        perturb_from=o.perturb_from_epoch / recipe.optimization.epochs,
    )  # fmt: skip
    # after the host, since VAT asks its teacher
    host.perturb = perturber(recipe, student, host.networks()["teacher"], classes)
    return host


def settings(base: Recipe) -> Recipe:
    """The paper's epsilon = 4 at 304 channels, as the same root-mean-square change per channel at fewer; the flow's
    width by scale."""
    n = base.network
    hidden = {"smoke": 16, "tiny": 64 if base.data in EMBEDDED else 128}.get(base.scale, 256)
    eps = round(4 * ((n.width + n.low_width) / 304) ** 0.5, 2)
    return base.having(DDFPOptions(eps=eps, flow_hidden=hidden))


def paper(base: Recipe) -> Recipe:
    """Every option where the text speaks."""
    own = replace(
        base[DDFPOptions], tap="features", learn_means=False, second_bn=False, weights=(1.0, 0.5), sampling="equal",
        noise=0.0,
    )  # fmt: skip
    return base.having(own, replace(base.consistency, divisor="valid", teacher="ema"))


def official(base: Recipe) -> Recipe:
    """Gavinwxy/DDFP @ 7956c72 as it runs: the defaults, and its accidents, the student as teacher and the divisor."""
    o = base[DDFPOptions]
    own = DDFPOptions(eps=o.eps, flow_hidden=o.flow_hidden)
    return base.having(own, replace(base.consistency, divisor="kept", teacher="self"))


METHOD = Method(
    "ddfp", title="DDFP", color="#c44e52", options=DDFPOptions, build=build, reads=ALL, settings=settings,
    readings={"paper": paper, "official": official}, plain="mean_teacher", paper="Wang et al., CVPR 2024",
    cite="wang2024ddfp", year=2024, chapter="notebooks/ddfp",
)  # fmt: skip
