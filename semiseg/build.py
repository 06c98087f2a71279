"""From a recipe to a network and a training scheme: the one place where names meet classes."""

from __future__ import annotations

from functools import partial

from torch import Tensor

from .hosts.mean_teacher import MeanTeacher
from .hosts.supervised import Supervised, labeled_cross_entropy
from .losses import ohem_cross_entropy
from .methods.ddfp import DensityDescent
from .methods.esl import DynamicLabels, PixelToPart
from .models.backbones import make_backbone
from .models.deeplabv3plus import DeepLabV3Plus
from .parts import Parts
from .recipes import ESL, Recipe
from .seams import ConfidentLabels, CutMix
from .types import Host, Output, Target


def build_network(recipe: Recipe, classes: int) -> DeepLabV3Plus:
    """The student, weights as the recipe says."""
    n = recipe.network
    backbone = make_backbone(n.backbone, n.output_stride, n.weights)
    second_bn = recipe.method == "ddfp" and recipe.ddfp.second_bn
    embedding = recipe.esl.embedding if recipe.method == "esl" and recipe.esl.parts else 0
    return DeepLabV3Plus(
        backbone, classes, width=n.width, low_width=n.low_width, rates=n.rates, dropout=n.dropout,
        second_bn=second_bn, embedding=embedding,
    )  # fmt: skip


def build(recipe: Recipe, classes: int) -> Host:
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
        case "esl":
            label = DynamicLabels(recipe.esl.eta, recipe.esl.label)
            contrast = _pixel_to_part(recipe.esl, student, classes)
            weight, color = recipe.esl.unlabeled_weight, recipe.esl.color
            return host(label=label, unlabeled_weight=weight, auxiliary=contrast, color=color)


def _pixel_to_part(e: ESL, student: DeepLabV3Plus, classes: int) -> PixelToPart | None:
    if e.parts == 0:
        return None
    deep = student.backbone.deep_channels
    return PixelToPart(
        classes, e.embedding, Parts(classes, e.parts, deep, momentum=e.momentum, collect_steps=e.collect_steps),
        queue=e.queue, temperature=e.temperature, negatives=e.negatives, draw=e.draw, share=e.share,
        max_anchors=e.max_anchors, sure=e.sure, divisor=e.divisor, weight=e.contrast_weight,
    )  # fmt: skip


def _ohem(output: Output, target: Target) -> Tensor:
    return ohem_cross_entropy(output.logits, target)
