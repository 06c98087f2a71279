"""Mask2Former (Cheng et al., CVPR 2022) in two trainings, the scheme of UPC (Fang et al., ICCV 2023, Table 1).

labels alone -> label every other image, once -> retrain from the initial weights on both, strong views of the latter
"""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Literal, Protocol

import torch
from torch import Tensor

from ..build import mixer, weigher
from ..components import NoMix, UniformWeight, given, pasted, weigh_and_mix
from ..models.mask2former import Mask2Former, MaskQueries, log_probabilities
from ..models.teacher import Teacher
from ..options import Evaluation, Network, Optimization, Options, option, options
from ..registry import Method
from ..statistics import logged, pseudo_label_statistics, share
from ..training.checkpoint import Keep
from ..training.loop import Fit
from ..training.stages import Stage, every_image, on_labels
from ..types import Batch, Host, Mixer, PixelWeighter, Step, Target

if TYPE_CHECKING:
    from ..recipe import Recipe

Missing = Literal["normalized", "missing"]


@options
class Mask2FormerOptions(Options):
    """Mask2Former and its two trainings; the last has the epochs of `Optimization`.

    Width and backbone are in `Network`, whose other fields say nothing here.  Labels are made by the student, as in
    ST++.
    """

    part = "mask2former"
    epochs: int = option("of the first training, on labels alone", default=30, gt=0)
    labeled_by: Literal["student", "teacher"] = option("which network labels", default="student")
    doubt: Missing = option(
        "entropy of a label: of scores / sum; missing: what the scores lack to 1 counts as a class",
        default="normalized",
    )
    color: bool = option("color jitter, grayscale and blur on unlabeled images; False: geometry alone", default=True)
    queries: int = option("of the decoder", default=100, symbol="N", gt=0)
    encoder_layers: int = option("of the pixel decoder", default=6, gt=0)
    decoder_layers: int = option("of the transformer decoder", default=9, gt=0)
    heads: int = option("of attention", default=8, gt=0)
    feedforward: tuple[int, int] = option("widths inside both kinds of layers", default=(1024, 2048))
    points: int = option("of a mask, where its loss is taken", default=12_544, symbol="K", gt=0)
    no_object: float = option('weight of the class "no object"', default=0.1, gt=0)


class SetLoss(Protocol):
    """Queries of a batch against its label maps: scalars by name, already weighted (`mask2former_loss.MaskLoss`)."""

    def losses(self, queries: MaskQueries, target: Target) -> dict[str, Tensor]: ...


def mask_set(target: Target, row: int) -> dict[int, Tensor]:
    """What the queries shall find in an image: for each class with a supervised pixel its binary mask (H, W) bool."""
    known = target.weight[row] > 0
    label = target.hard[row]
    return {int(c): (label == c) & known for c in label[known].unique()}


@torch.no_grad()
def label_by_masks(network: Mask2Former, images: Tensor, uncertainty: Missing = "normalized") -> tuple[Tensor, Tensor]:
    """Label and entropy of a single pass at the size of the images.

    Args:
        network: in evaluation mode.
        images: (B, 3, H, W), normalized.
        uncertainty: "normalized": entropy of scores / sum, as for every other network; "missing": what the scores lack
            to 1 counts as one more class, so that a pixel no query claims is uncertain.

    Returns:
        Labels (B, H, W) long and entropies (B, H, W) in nats.
    """
    scores = network.queries(images).scores(images.shape[-2:])
    p = log_probabilities(scores).exp()
    if uncertainty == "missing":
        p = torch.cat((scores, (1 - scores.sum(1, keepdim=True)).clamp(min=0)), 1)
        p = p / p.sum(1, keepdim=True)
    return scores.max(1).indices, torch.special.entr(p).sum(1)


class SupervisedMasks(Host):
    """The first training: the set loss on labeled images alone.  Its score is the supervised baseline.

    The teacher only watches, as in `Supervised`.

    Args:
        student: with its initial weights.
        criterion: the set loss.
        decay: of the teacher.
    """

    student: Mask2Former

    def __init__(self, student: Mask2Former, criterion: SetLoss, *, decay: float = 0.999) -> None:
        super().__init__()
        self.student, self.teacher, self.criterion = student, Teacher(student, decay), criterion

    def losses(self, batch: Batch, t: float) -> Step:
        return Step(self.criterion.losses(self.student.queries(batch.x), Target.from_labels(batch.y)), {})


class MaskSelfTraining(Host):
    """The retraining: labeled images, and unlabeled ones with labels from disk, as one batch of one set loss.

    The loss divides by the masks of the whole batch, so that the unlabeled weight is implicit.  A mixed label map
    needs nothing special: its set of masks is made after mixing.

    The teacher only watches; but where pixels are weighted, its features are what they are weighted by.

    Args:
        student: with its initial weights.
        criterion: the set loss; it reads weights and denominators of the target.
        mix: pastes on the strong views; UPC reads the entropy that was written beside the labels.
        weigh: factors of the pixels of unlabeled images in the mask terms and in the matching.
        color: strong colors on unlabeled images; False: geometry alone.
        decay: of the teacher.
    """

    student: Mask2Former

    def __init__(
        self,
        student: Mask2Former,
        criterion: SetLoss,
        *,
        mix: Mixer | None = None,
        weigh: PixelWeighter | None = None,
        color: bool = True,
        decay: float = 0.999,
    ) -> None:
        super().__init__()
        self.student, self.teacher, self.criterion = student, Teacher(student, decay), criterion
        self.mix, self.weigh = mix or NoMix(), weigh or UniformWeight()
        self.color, self.teacher_reads = color, weigh is not None

    def losses(self, batch: Batch, t: float) -> Step:
        n, size = len(batch.x), batch.x.shape[-2:]

        # 1. the label on disk is the target
        labeled, weak = given(self.teacher if self.teacher_reads else None, batch)

        # 2. one paste moves the strong image and all that is known about its pixels
        paste, mixed = pasted(self.mix, weak, labeled, batch.u_strong[0] if self.color else None)

        # 3. the student's queries answer for labeled and mixed images together
        queries = self.student.queries(torch.cat((batch.x, mixed.image)))
        with torch.no_grad():
            predicted = queries.output(size)
            claimed = queries.scores(queries.masks[-1].shape[-2:])[n:].sum(1)
        labeled, mixed = labeled.seen_by(predicted.rows(0, n)), mixed.seen_by(predicted.rows(n))
        target = weigh_and_mix(self.weigh, paste, weak, labeled, mixed)

        # 4. sets of masks, made of both label maps
        losses = self.criterion.losses(queries, labeled.target.cat(target))
        statistics = pseudo_label_statistics(weak.target, batch.u_hidden) | logged(self.weigh, self.mix)
        statistics["pasted"] = share(paste.source >= len(batch.u_weak), paste.source >= 0)
        statistics["score_sum"] = torch.stack((claimed.sum(), claimed.new_tensor(claimed.numel())))
        return Step(losses, statistics)


def build_on_labels(recipe: Recipe, classes: int) -> SupervisedMasks:
    """The scheme of the first training."""
    from ..models.mask2former_loss import MaskLoss  # needs transformers

    n, o = recipe.network, recipe[Mask2FormerOptions]
    network = Mask2Former(
        n.backbone, classes, weights=n.weights, width=n.width, queries=o.queries, encoder_layers=o.encoder_layers,
        decoder_layers=o.decoder_layers, heads=o.heads, feedforward=o.feedforward,
    )  # fmt: skip
    return SupervisedMasks(
        network, MaskLoss(classes, points=o.points, no_object=o.no_object), decay=recipe.consistency.decay
    )  # fmt: skip


def build(recipe: Recipe, classes: int) -> MaskSelfTraining:
    first = build_on_labels(recipe, classes)
    return MaskSelfTraining(
        first.student, first.criterion, mix=mixer(recipe, None, classes), weigh=weigher(recipe, classes),
        color=recipe[Mask2FormerOptions].color, decay=recipe.consistency.decay,
    )  # fmt: skip


def stages(task: Fit) -> tuple[Stage, ...]:
    """Labels alone; all."""
    recipe, o = task.recipe, task.recipe[Mask2FormerOptions]
    label = partial(label_by_masks, uncertainty=o.doubt)
    return (
        Stage("stage1", on_labels(task, o.epochs), Keep(o.labeled_by, (o.epochs,)), host=build_on_labels),
        Stage("stage2", recipe, Keep(o.labeled_by, (recipe.optimization.epochs,)), every_image, label),
    )


def settings(base: Recipe) -> Recipe:
    """UPC's numbers at paper scale: 16 images per step, 30k steps on labels, then 60k of 8 labeled and 8 unlabeled.

    What UPC does not state is the released configuration's: rate of the backbone, clipping, queries, points.  It gives
    Cityscapes 90k steps, divided here as those of PASCAL VOC.  Off paper scale a small network and fewer points; on
    digits half the images per step, because a step costs twice that of the other methods.
    """
    o = base.optimization
    if base.scale == "paper":
        city = base.data == "cityscapes"
        optimization = Optimization(
            crop=1024 if city else 512, batch=8, epochs=60, epoch_steps=1000, optimizer="adamw", lr=1e-5,
            head_lr_factor=10.0, weight_decay=5e-4 if city else 1e-4, clip_norm=0.01,
        )  # fmt: skip
        return base.having(optimization, Evaluation("whole", optimization.crop, every=5))
    small = Mask2FormerOptions(
        epochs=max(1, o.epochs // 2), queries=12, encoder_layers=1, decoder_layers=3, heads=4, feedforward=(128, 128),
        points=128,
    )  # fmt: skip
    if base.scale == "smoke":
        return base.having(
            replace(base.network, width=32), replace(small, decoder_layers=1, heads=2, feedforward=(32, 32))
        )
    if base.data == "voc":
        network = replace(base.network, backbone="resnet18", width=96)
        return base.having(network, replace(small, queries=30, heads=3, points=1024))
    return base.having(replace(o, batch=8, lr=1.5e-3, clip_norm=1.0), replace(small, epochs=o.epochs))


def check(recipe: Recipe) -> None:
    """Raise ValueError for OHEM, and for what DeepLabV3+ alone has."""
    strange = [o.name for o in Network.described() if o.later and o.name in recipe.network.as_dict()]
    if strange:
        raise ValueError(f"method 'mask2former' has a decoder of its own and does not read network.{strange[0]}")
    if recipe.optimization.ohem:
        raise ValueError("method 'mask2former' has no cross-entropy over pixels that OHEM could choose from")


METHOD = Method(
    "mask2former", title="Mask2Former", color="#2f6f4f", options=Mask2FormerOptions, build=build, settings=settings,
    stages=stages, check=check, paper="Cheng et al., CVPR 2022, as in UPC", cite="cheng2022mask2former", year=2022,
    chapter="notebooks/hosts",
)  # fmt: skip
