"""From a recipe to a network and a training scheme: the one place where names meet classes."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from pathlib import Path

from safetensors.torch import load_file
from torch import Tensor

from .hosts.mean_teacher import MeanTeacher
from .hosts.supervised import Supervised, labeled_cross_entropy
from .losses import ohem_cross_entropy
from .methods.ddfp import DensityDescent
from .models.backbones import make_backbone
from .models.deeplabv3plus import DeepLabV3Plus
from .recipes import Recipe
from .seams import ConfidentLabels, CutMix
from .types import Output, Target


def build_network(recipe: Recipe, classes: int) -> DeepLabV3Plus:
    """The student, weights as the recipe says."""
    n = recipe.network
    backbone = make_backbone(n.backbone, n.output_stride, n.weights)
    second_bn = recipe.method == "ddfp" and recipe.ddfp.second_bn
    return DeepLabV3Plus(
        backbone, classes, width=n.width, low_width=n.low_width, rates=n.rates, dropout=n.dropout, second_bn=second_bn
    )


def build(recipe: Recipe, classes: int) -> Supervised | MeanTeacher:
    """The training scheme of a recipe, in one place."""
    student, c = build_network(recipe, classes), recipe.consistency
    criterion = _ohem if recipe.optimization.ohem else labeled_cross_entropy
    if recipe.method == "supervised":
        return Supervised(student, criterion=criterion, decay=c.decay)
    epochs = recipe.optimization.epochs
    host = partial(
        MeanTeacher,
        student,
        label=ConfidentLabels(c.tau),
        mix=CutMix(c.cutmix_p, c.cutmix_area),
        divisor=c.divisor,
        criterion=criterion,
        decay=0.0 if c.teacher == "self" else c.decay,
        own_statistics=c.teacher == "self",
        unlabeled_from=c.unlabeled_from_epoch / epochs,
    )
    match recipe.method:
        case "mean_teacher":
            return host()
        case "ddfp":
            d = recipe.ddfp
            step = DensityDescent(
                student.width, classes, eps=d.eps, tap=d.tap, learn_means=d.learn_means, sampling=d.sampling,
                noise=d.noise, hidden=d.flow_hidden,
            )  # fmt: skip
            return host(perturb=step, perturbed_weights=d.weights, perturb_from=d.perturb_from_epoch / epochs)


def _ohem(output: Output, target: Target) -> Tensor:
    return ohem_cross_entropy(output.logits, target)


def load_exported(recipe: Recipe, classes: int, weights: Path) -> Supervised | MeanTeacher:
    """The host of a finished run in evaluation mode: its teacher, and its perturber where it has one.

    The export holds no student, so the student of this host is a copy of the teacher.
    Raises FileNotFoundError for a missing file, ValueError for weights of another recipe.
    """
    if not weights.is_file():
        raise FileNotFoundError(f"no weights at {weights}; runs keep them as model.safetensors")
    host = build(replace(recipe, network=replace(recipe.network, weights=None)), classes)
    missing, unexpected = host.load_state_dict(load_file(weights), strict=False)
    lost = [k for k in missing if k.startswith(("teacher.model.", "perturb.")) and not k.endswith("_extra_state")]
    if lost or unexpected:
        raise ValueError(f"{weights} is not of this recipe: missing {lost[:3]}, unknown {unexpected[:3]}")
    host.student.load_state_dict(host.teacher.model.state_dict())
    host.eval()
    return host
