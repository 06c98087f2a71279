"""From a recipe to a network and a training scheme: the one place where names meet classes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch.nn as nn
from safetensors.torch import load_file
from torch import Tensor

from .components import ConfidentLabels, CutMix, EntropyFilter
from .data.intensity import RandomIntensity
from .data.transforms import StrongView
from .hosts.ael import AEL, AdaptiveCutMix, ConfidenceBank, CopyPaste
from .hosts.augseg import AdaptiveInjection
from .hosts.cps import CrossPseudoSupervision, ToggledBoxes
from .hosts.cutmix_seg import CutMixSegmentation
from .hosts.mask2former import MaskSelfTraining, SupervisedMasks
from .hosts.mean_teacher import MeanTeacher
from .hosts.mean_teacher_mse import SoftMeanTeacher
from .hosts.stpp import SelfTraining, mean_cross_entropy
from .hosts.supervised import Supervised, labeled_cross_entropy
from .hosts.u2pl import U2PL, ClassMix
from .hosts.u2pl_contrast import UnreliableContrast
from .hosts.unimatch import RandomBox, UniMatch
from .losses import ohem_cross_entropy
from .methods.ddfp import DensityDescent
from .methods.dgcl import DensityContrast
from .methods.esl import DynamicLabels, PixelToPart
from .methods.parts import Parts
from .methods.perturbations import VAT, ChannelDropout, RandomNormal, UniformNoise, decoder_of, published_vat
from .methods.upc_controls import mixer_of
from .methods.wpl import RankWeight
from .models.backbones import make_backbone
from .models.deeplabv3plus import DeepLabV3Plus
from .models.mask2former import Mask2Former
from .options import DDFP, ESL
from .recipes import Recipe
from .types import FeaturePerturber, Mixer, Output, Target

Built = (
    Supervised
    | MeanTeacher
    | SoftMeanTeacher
    | CutMixSegmentation
    | CrossPseudoSupervision
    | UniMatch
    | AEL
    | SelfTraining
    | MaskSelfTraining
    | U2PL
)


def _embedding(recipe: Recipe) -> int:
    """Channels of the projection head; 0 where no contrast asks for one."""
    if recipe.method == "dgcl" and recipe.dgcl.weight:
        return recipe.dgcl.embedding
    if recipe.method == "u2pl" and recipe.u2pl.weight:
        return recipe.u2pl.embedding
    return recipe.esl.embedding if recipe.method == "esl" and recipe.esl.parts else 0


def build_network(recipe: Recipe, classes: int) -> DeepLabV3Plus:
    """The student, weights as the recipe says."""
    n = recipe.network
    backbone = make_backbone(n.backbone, n.output_stride, n.weights)
    second_bn = recipe.method == "ddfp" and recipe.ddfp.second_bn
    return DeepLabV3Plus(
        backbone, classes, width=n.width, low_width=n.low_width, rates=n.rates, dropout=n.dropout,
        second_bn=second_bn, embedding=_embedding(recipe),
    )  # fmt: skip


def build(recipe: Recipe, classes: int) -> Built:
    """The training scheme of a recipe, in one place; of one in stages (`stages.plan`), that of the last."""
    if recipe.method == "mask2former":
        return _mask2former(recipe, classes)
    student, c = build_network(recipe, classes), recipe.consistency
    criterion = _ohem if recipe.optimization.ohem else labeled_cross_entropy
    if recipe.method == "supervised":
        return Supervised(student, criterion=criterion, decay=c.decay)
    if recipe.method == "stpp":
        return SelfTraining(
            student, mix=_mixer(recipe, None), weigh=_weigher(recipe, student.width, classes), color=recipe.stpp.color,
            criterion=_ohem if recipe.optimization.ohem else mean_cross_entropy, decay=c.decay,
        )  # fmt: skip
    epochs = recipe.optimization.epochs
    host = partial(
        MeanTeacher,
        student,
        label=ConfidentLabels(c.tau),
        mix=_mixer(recipe, CutMix(c.cutmix_p, c.cutmix_area)),
        weigh=_weigher(recipe, student.width, classes),
        divisor=c.divisor,
        criterion=criterion,
        decay=0.0 if c.teacher == "self" else c.decay,
        own_statistics=c.teacher != "ema",
        unlabeled_from=c.unlabeled_from_epoch / epochs,
    )
    match recipe.method:
        case "mean_teacher":
            return host(unlabeled_weight=c.unlabeled_weight)
        case "mean_teacher_mse" | "cutmix_seg" | "cps":
            return _classic(recipe, student, _weigher(recipe, student.width, classes), criterion)
        case "unimatch":
            u = recipe.unimatch
            return UniMatch(
                student, label=ConfidentLabels(c.tau), weigh=_weigher(recipe, student.width, classes),
                mix=_mixer(recipe, RandomBox(u.box_p, u.box_area)), weights=u.weights, drop=u.drop, divisor=c.divisor,
                criterion=criterion, decay=c.decay,
            )  # fmt: skip
        case "augseg":
            a = recipe.augseg
            mix = _mixer(recipe, AdaptiveInjection(a.inject, a.cut, a.adaptive))
            weight, copied = a.unlabeled_weight, a.copy_epochs / epochs
            return host(mix=mix, unlabeled_weight=weight, unlabeled_from=0.0, copy_until=copied)
        case "ael":
            return _ael(recipe, student, classes, criterion)
        case "u2pl":
            return _u2pl(recipe, student, classes, criterion)
        case "ddfp":
            d = recipe.ddfp
            made = host(perturbed_weights=d.weights, perturb_from=d.perturb_from_epoch / epochs)
            made.perturb = _step(d, student, made.teacher.model, classes)
            return made
        case "dgcl":
            g, falling = recipe.dgcl, _falling(recipe)
            auxiliary = _density_contrast(recipe, student, classes) if g.weight else None
            return host(
                label=falling(g.drop), auxiliary=auxiliary, unlabeled_weight=g.unlabeled_weight, color=g.color
            )  # fmt: skip
        case "esl":
            label = DynamicLabels(recipe.esl.eta, recipe.esl.label)
            contrast = _pixel_to_part(recipe.esl, student, classes)
            weight, color = recipe.esl.unlabeled_weight, recipe.esl.color
            return host(label=label, unlabeled_weight=weight, auxiliary=contrast, color=color)


def build_on_labels(recipe: Recipe, classes: int) -> SupervisedMasks:
    """The scheme of Mask2Former's first training."""
    from .hosts.mask2former_loss import MaskLoss  # needs transformers

    m = recipe.mask2former
    criterion = MaskLoss(classes, points=m.points, no_object=m.no_object)
    return SupervisedMasks(_masks(recipe, classes), criterion, decay=recipe.consistency.decay)


def _mask2former(recipe: Recipe, classes: int) -> MaskSelfTraining:
    first = build_on_labels(recipe, classes)
    return MaskSelfTraining(
        first.student, first.criterion, mix=_mixer(recipe, None), weigh=_weigher(recipe, recipe.network.width, classes),
        color=recipe.mask2former.color, decay=recipe.consistency.decay,
    )  # fmt: skip


def _masks(recipe: Recipe, classes: int) -> Mask2Former:
    n, m = recipe.network, recipe.mask2former
    return Mask2Former(
        n.backbone, classes, weights=n.weights, width=n.width, queries=m.queries, encoder_layers=m.encoder_layers,
        decoder_layers=m.decoder_layers, heads=m.heads, feedforward=m.feedforward,
    )  # fmt: skip


def loading(recipe: Recipe) -> dict[str, Any]:
    """What a method asks of the loader beyond the recipe's crops: its strong views, and cutout of them."""
    return {
        "views": 2 if recipe.method == "unimatch" else 1,
        "strong": RandomIntensity(recipe.augseg.changes) if recipe.method == "augseg" else StrongView(),
        "cutout": recipe.stpp.cutout if recipe.method == "stpp" else 0.0,
    }


def _step(d: DDFP, student: DeepLabV3Plus, teacher: nn.Module, classes: int) -> FeaturePerturber:
    """DDFP's step, or the rival of it that Tables 4 and 7 ask for."""
    match d.step:
        case "normal":
            return RandomNormal(d.eps)
        case "uniform":
            return UniformNoise()
        case "dropout":
            return ChannelDropout()
        case "vat":
            return VAT(decoder_of(teacher), eps=d.eps)
        case "vat_published":
            return published_vat(decoder_of(teacher))
    return DensityDescent(
        student.width, classes, eps=d.eps, tap=d.tap, learn_means=d.learn_means, sampling=d.sampling,
        noise=d.noise, hidden=d.flow_hidden,
    )  # fmt: skip


def _mixer(recipe: Recipe, usual: Mixer | None) -> Mixer | None:
    """UPC, or a control of it, where the recipe asks for it; else what the scheme usually pastes."""
    if recipe.upc is None:
        return usual
    return mixer_of(recipe.upc, background=None if recipe.data in ("cityscapes", "camvid") else 0)


def _weigher(recipe: Recipe, width: int, classes: int) -> RankWeight | None:
    """WPL where the recipe asks for it; None: every pixel counts the same."""
    w = recipe.wpl
    if w is None:
        return None
    return RankWeight(
        classes, width, k=w.k, offset=w.offset, similarity=w.similarity, reliable=w.reliable, sure=w.sure,
        memory=w.memory, quota=w.quota, resolution=w.resolution, unknown=w.unknown, in_divisor=w.in_divisor,
    )  # fmt: skip


def _classic(
    recipe: Recipe, student: DeepLabV3Plus, weigh: RankWeight | None, criterion: Callable[[Output, Target], Tensor]
) -> SoftMeanTeacher | CutMixSegmentation | CrossPseudoSupervision:
    """The schemes without a plug-in of their own."""
    c, m, s, p = recipe.consistency, recipe.mean_teacher_mse, recipe.cutmix_seg, recipe.cps
    if recipe.method == "cps":
        return CrossPseudoSupervision(
            student, weigh=weigh, mix=_mixer(recipe, ToggledBoxes(p.boxes, p.area) if p.mixed else None),
            shared_mask=recipe.upc is None if p.shared_mask is None else p.shared_mask, label_mode=p.label_mode,
            padding=p.padding, color=p.color, unlabeled_weight=p.weight, criterion=criterion, decay=c.decay,
        )  # fmt: skip
    decay, own = 0.0 if c.teacher == "self" else c.decay, c.teacher != "ema"
    if recipe.method == "cutmix_seg":
        return CutMixSegmentation(
            student, weigh=weigh, mix=_mixer(recipe, CutMix(c.cutmix_p, c.cutmix_area)), tau=s.tau,
            confidence=s.confidence, color=s.color, unlabeled_weight=s.weight, criterion=criterion, decay=decay,
            own_statistics=own,
        )  # fmt: skip
    return SoftMeanTeacher(
        student, weigh=weigh, mix=_mixer(recipe, None), color=m.color, on_labeled=m.on_labeled,
        unlabeled_weight=m.weight, rise=m.ramp_up, criterion=criterion, decay=decay, own_statistics=own,
    )  # fmt: skip


def _ael(recipe: Recipe, student: DeepLabV3Plus, classes: int, criterion: Callable[[Output, Target], Tensor]) -> AEL:
    a, c = recipe.ael, recipe.consistency
    bank = ConfidenceBank(classes, a.momentum, a.absent_decays, a.random_start)
    return AEL(
        student, bank, label=ConfidentLabels(c.tau), weigh=_weigher(recipe, student.width, classes),
        mix=_mixer(recipe, AdaptiveCutMix(bank, a.least_area)), on_labeled=a.on_labeled, gamma=a.gamma,
        paste=CopyPaste(bank, a.paste_p, a.paste_classes, a.paste_among) if a.paste_p else None,
        unlabeled_weight=a.unlabeled_weight, criterion=criterion, decay=0.0 if c.teacher == "self" else c.decay,
        own_statistics=c.teacher != "ema",
    )  # fmt: skip


def _u2pl(recipe: Recipe, student: DeepLabV3Plus, classes: int, criterion: Callable[[Output, Target], Tensor]) -> U2PL:
    c, u, epochs = recipe.consistency, recipe.u2pl, recipe.optimization.epochs
    drop = EntropyFilter(u.drop, stages=epochs)
    auxiliary = None
    if u.weight:
        auxiliary = UnreliableContrast(
            classes, u.embedding, drop=drop, queue=u.queue, first_queue=u.first_queue, quota=u.quota, anchors=u.anchors,
            negatives=u.negatives, temperature=u.temperature, sure=u.sure, low_rank=u.low_rank, high_rank=u.high_rank,
            reliable=u.reliable, keys=u.keys, pairs=u.pairs, weight=u.weight,
        )  # fmt: skip
    return U2PL(
        student, drop=drop, weigh=_weigher(recipe, student.width, classes), auxiliary=auxiliary, color=u.color,
        mix=_mixer(recipe, CutMix(c.cutmix_p, c.cutmix_area) if u.mixer == "cutmix" else ClassMix(c.cutmix_p)),
        unlabeled_weight=u.unlabeled_weight, divisor=c.divisor, criterion=criterion,
        decay=0.0 if c.teacher == "self" else c.decay, own_statistics=c.teacher != "ema",
        unlabeled_from=c.unlabeled_from_epoch / epochs, copy_until=(c.unlabeled_from_epoch + u.copy_epochs) / epochs,
    )  # fmt: skip


def _falling(recipe: Recipe) -> Callable[..., EntropyFilter]:
    """DGCL's entropy filter but for its shares: how they fall over training."""
    falls, warm_up, epochs = recipe.dgcl.drop_falls, recipe.consistency.unlabeled_from_epoch, recipe.optimization.epochs
    start = 0.0 if falls == "steps" else warm_up / epochs
    return partial(EntropyFilter, start=start, stages=epochs - warm_up if falls == "epochs" else None)


def _density_contrast(recipe: Recipe, student: DeepLabV3Plus, classes: int) -> DensityContrast:
    g = recipe.dgcl
    labels = None if g.contrast_drop is None else _falling(recipe)(g.contrast_drop[0], least=g.contrast_drop[1])
    return DensityContrast(
        classes, student.width, student.embedding, bank=g.bank, quota=g.quota, pixels=g.pixels, scales=g.scales,
        anchors=g.anchors, keys=g.keys, negatives=g.negatives, tau=g.tau, weight=g.weight, sampling=g.sampling,
        memory=g.memory, exclude=g.exclude, labels=labels, ready=g.ready, center=g.center,
        negatives_of=g.negatives_of, cosine=g.cosine, positive_in_denominator=g.positive_in_denominator,
        reduction=g.reduction, own_neighbor=g.own_neighbor, equal_when_few=g.equal_when_few, project=student.embed,
    )  # fmt: skip


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


def load_exported(recipe: Recipe, classes: int, weights: Path) -> Built:
    """The host of a finished run in evaluation mode: its teacher, and its perturber where it has one.

    The export holds no student, so the student of this host is a copy of the teacher; CPS's second network is random.
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
