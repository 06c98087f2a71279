"""ST++ (Yang et al., CVPR 2022): self-training in stages, reliable images first, strong augmentation on unlabeled ones.

supervised -> three checkpoints agree on an image? -> label the reliable half -> retrain -> label the rest -> retrain
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any, Literal

import torch
import torch.nn as nn
import torch.nn.functional as F
from lightning_fabric import Fabric
from torch import Tensor

from ..build import criterion, make_student, mixer, weigher
from ..components import WHOLE, NoMix, UniformWeight, given, labeled_terms, pasted, weigh_and_mix
from ..data.transforms import Cutout
from ..losses import pixel_cross_entropy
from ..models.teacher import Teacher
from ..options import Evaluation, Options, option, options
from ..registry import Method
from ..statistics import logged, pseudo_label_statistics, share
from ..training.checkpoint import Keep
from ..training.folder import LABELS
from ..training.labeling import score_images, write_summary
from ..training.loop import Fit
from ..training.stages import SELECTION, Stage, every_image, kept_network, on_labels, unlabeled_images
from ..types import Batch, Host, Mixer, Output, PixelWeighter, Step, Target
from . import supervised

if TYPE_CHECKING:
    from ..recipe import Recipe

SCALES = (0.5, 0.75, 1.0, 1.5, 2.0)


@options
class STPPOptions(Options):
    """ST++: three trainings; the last has the epochs of `Optimization`.

    Labels are made by the student, as in the released code, though the teacher is what is judged: averaging weights
    is no part of ST++, and at the end of a stage, when the rate has fallen to 0, the two hardly differ.
    """

    part = "stpp"
    epochs: tuple[int, int] = option(
        "of the first training, on labels alone, and of that on the reliable half", default=(80, 80)
    )
    select: bool = option("False: ST, one retraining on all images", default=True)
    labeled_by: Literal["student", "teacher"] = option("which network labels", default="student")
    teacher: Literal["last", "best_val"] = option(
        "best_val: the epoch best on the validation set labels (released code)", default="last"
    )
    scales: tuple[float, ...] = option("at which unlabeled images are labeled", default=SCALES, min_length=1)
    color: bool = option("color jitter, grayscale and blur on unlabeled images; False: geometry alone", default=True)
    cutout: float = option("probability of a rectangle of noise in an unlabeled image", default=0.5, ge=0, le=1)

    def __post_init__(self) -> None:
        if self.epochs[0] < 3 or self.epochs[1] < 1:
            raise ValueError(f"ST++ compares three epochs of its first training; got epochs={self.epochs}")
        if min(self.scales) <= 0:
            raise ValueError(f"stpp.scales must be positive factors, got {self.scales}")
        if self.cutout and not self.color:
            raise ValueError(f"stpp.cutout must be 0 where color is off, got {self.cutout}")


def reliability(predictions: Tensor, classes: int) -> float:
    """How stable the prediction of an image was over training: what ST++ selects images by.

    Args:
        predictions: (M, H, W) long, of M >= 2 checkpoints; the last one is taken for the truth.
        classes: K.

    Returns:
        Mean over the other checkpoints of their mIoU with the last, in [0, 1]; classes that neither predicts do not
        enter.  1 where all agree.
    """
    *others, truth = predictions.flatten(1)
    pairs = torch.stack([truth * classes + other for other in others])
    pairs = pairs + torch.arange(len(others), device=pairs.device)[:, None] * classes**2
    confusion = torch.bincount(pairs.flatten(), minlength=len(others) * classes**2).view(-1, classes, classes)
    confusion = confusion.cpu().double()
    hits = confusion.diagonal(dim1=1, dim2=2)
    union = confusion.sum(1) + confusion.sum(2) - hits
    return float((hits / union).nanmean(1).mean())


def split_half(ids: Sequence[str], scores: Sequence[float]) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """The floor(U / 2) most reliable images, and the others, each by falling score; ties keep the order of `ids`."""
    ranked = sorted(zip(ids, scores, strict=True), key=lambda pair: -pair[1])
    order, half = tuple(key for key, _ in ranked), len(ids) // 2
    return order[:half], order[half:]


@torch.no_grad()
def pseudo_label(
    network: nn.Module, images: Tensor, *, scales: Sequence[float] = SCALES, flip: bool = True
) -> tuple[Tensor, Tensor]:
    """Label and entropy from the mean probability over scales and mirror images.

    Args:
        network: in evaluation mode, images -> Output.
        images: (B, 3, H, W), normalized.
        scales: factors of height and width; probabilities are resized back, bilinearly.
        flip: also the mirror image at each scale.  False for sets in which a mirrored image is no valid image.

    Returns:
        Labels (B, H, W) long and entropies (B, H, W) in nats, of probabilities that sum to 1.
    """
    b, size = len(images), images.shape[-2:]
    total: Tensor | None = None
    for scale in scales:
        scaled = _resize(images, (max(1, int(size[0] * scale)), max(1, int(size[1] * scale))))
        p = network(torch.cat((scaled, scaled.flip(-1))) if flip else scaled).logits.float().softmax(1)
        p = _resize(p[:b] + p[b:].flip(-1) if flip else p, size)
        total = p if total is None else total.add_(p)
    assert total is not None, "at least one scale"
    total = total / total.sum(1, keepdim=True)
    return total.max(1).indices, torch.special.entr(total).sum(1)


def _resize(x: Tensor, size: tuple[int, int] | torch.Size) -> Tensor:
    if x.shape[-2:] == size:
        return x
    return F.interpolate(x, size=tuple(size), mode="bilinear", align_corners=True)


def mean_cross_entropy(output: Output, target: Target) -> Tensor:
    """Over all supervised pixels; a weighter's factors enter the divisor where it says so."""
    return pixel_cross_entropy(output.logits, target, "valid")


class SelfTraining(Host):
    """A retraining stage: cross-entropy on labeled images, and on unlabeled ones with labels from disk.

    One mean over all supervised pixels of both, so that the unlabeled weight is implicit, as in ST++.  Its batches are
    drawn from a shuffled list in which the labeled images repeat until they are as many as the unlabeled ones; here
    every batch holds exactly as many of one as of the other.  Each row counts that a mixer makes of an image (UPC).

    The teacher only watches, as in `Supervised`; but where pixels are weighted, its features are what they are
    weighted by, since there are none on disk.

    Args:
        student: a segmentation network with its initial weights.
        mix: pastes on the strongly augmented images; UPC reads the entropy that was written beside the labels.
        weigh: factors of the pixels of unlabeled images.
        color: color jitter, grayscale, blur and cutout on unlabeled images, as the loader made them; False: geometry
            alone.
        criterion: (Output, Target) -> scalar, a mean over supervised pixels.
        decay: of the teacher.
    """

    def __init__(
        self,
        student: nn.Module,
        *,
        mix: Mixer | None = None,
        weigh: PixelWeighter | None = None,
        color: bool = True,
        criterion: Callable[[Output, Target], Tensor] = mean_cross_entropy,
        decay: float = 0.999,
    ) -> None:
        super().__init__()
        self.student, self.teacher = student, Teacher(student, decay)
        self.mix, self.weigh = mix or NoMix(), weigh or UniformWeight()
        self.color, self.criterion, self.teacher_reads = color, criterion, weigh is not None

    def losses(self, batch: Batch, t: float) -> Step:
        n = len(batch.x)

        # 1. the label on disk is the target
        labeled, weak = given(self.teacher if self.teacher_reads else None, batch)

        # 2. one paste moves the strong image and all that is known about its pixels
        paste, mixed = pasted(self.mix, weak, labeled, batch.u_strong[0] if self.color else None)

        # 3. the student reads labeled and mixed images together
        output = self.student(torch.cat((batch.x, mixed.image)))
        labeled, mixed = labeled.seen_by(output.rows(0, n)), mixed.seen_by(output.rows(n))
        target = weigh_and_mix(self.weigh, paste, weak, labeled, mixed)

        # 4. the mean over all supervised pixels, in its two parts
        on_labeled, on_mixed = labeled.target.denominator.sum(), target.denominator.sum()
        every = (on_labeled + on_mixed).clamp(min=torch.finfo(torch.float).tiny)
        on_l = labeled_terms(self.student, self.criterion, output.rows(0, n), labeled.target)
        losses = {name: on_labeled / every * term for name, term in on_l.items()}
        losses["unlabeled"] = on_mixed / every * self.criterion(output.rows(n), target)
        statistics = pseudo_label_statistics(weak.target, batch.u_hidden) | logged(self.weigh, self.mix)
        statistics["pasted"] = share(paste.source >= len(batch.u_weak), paste.source >= 0)
        return Step(losses, statistics)


def build(recipe: Recipe, classes: int) -> SelfTraining:
    return SelfTraining(
        make_student(recipe, classes), mix=mixer(recipe, None, classes), weigh=weigher(recipe, classes),
        color=recipe[STPPOptions].color, criterion=criterion(recipe, mean_cross_entropy),
        decay=recipe.consistency.decay,
    )  # fmt: skip


# --- its stages ---------------------------------------------------------------------------


def stages(task: Fit) -> tuple[Stage, ...]:
    """Labels alone; the reliable half; all.  Without selection (ST): labels alone; all.

    Raises ValueError for fewer than two unlabeled images.
    """
    if len(unlabeled_images(task)) < 2:
        raise ValueError(f"ST++ needs two unlabeled images to choose from; split {task.split.name} has fewer")
    recipe, s = task.recipe, task.recipe[STPPOptions]
    o, (first, second) = recipe.optimization, s.epochs
    keep = partial(Keep, s.labeled_by, best=s.teacher == "best_val")
    retraining = partial(Stage, label=partial(pseudo_label, scales=s.scales, flip=task.data.mirror))
    half = replace(recipe, optimization=replace(o, epochs=second))
    kept = keep((first // 3, 2 * first // 3, first))
    made = [Stage("stage1", on_labels(task, first), kept, host=supervised.build)]
    if s.select:
        made.append(retraining("stage2", half, keep((second,)), reliable_half))
    return (*made, retraining(f"stage{len(made) + 1}", recipe, keep((o.epochs,)), every_image))


def reliable_half(fabric: Fabric, task: Fit, first: Stage) -> tuple[str, ...]:
    """The reliable half, chosen once, by the checkpoints of the first stage; the score of each image is written."""
    path = task.folder / LABELS / SELECTION
    if not path.is_file():
        began, ids = time.perf_counter(), unlabeled_images(task)
        networks = [kept_network(fabric, task, first, epoch) for epoch in first.keep.epochs]
        scores, pure = score_images(fabric, task, networks, ids, reliability)
        found = {
            "images": len(ids), "pure_background": pure, "reliable": split_half(ids, scores)[0],
            "scores": dict(zip(ids, scores, strict=True)),
        }  # fmt: skip
        if fabric.global_rank == 0:
            write_summary(path, found, began)
        fabric.barrier()
    return tuple(json.loads(path.read_text())["reliable"])


def settings(base: Recipe) -> Recipe:
    """At paper scale ST++'s own numbers, 16 images per step: 8 labeled and 8 unlabeled, or 16 labeled ones.

    Off paper scale the last training has the steps of the other methods and the first two have half of them; labels
    are made at the scales that training shows.
    """
    o = base.optimization
    if base.scale != "paper":
        half = max(1, o.epochs // 2)
        own = STPPOptions(epochs=(max(3, half), half))
        return base.having(replace(own, scales=(o.resize[0], 1.0, o.resize[1])) if base.data == "digits" else own)
    network = replace(base.network, output_stride=8, rates=(12, 24, 36))
    optimization = replace(o, batch=8, crop=321, epochs=80, lr=1e-3, head_lr_factor=10.0)
    if base.data == "cityscapes":
        optimization = replace(optimization, crop=721, epochs=240, lr=4e-3)
        return base.having(network, optimization, STPPOptions(epochs=(240, 240)))
    return base.having(network, optimization, Evaluation("whole", every=1))


def official(base: Recipe) -> Recipe:
    """LiheYoung/ST-PlusPlus @ f4e7a57: the epoch best on the validation set labels, and nothing is averaged."""
    own = replace(base[STPPOptions], labeled_by="student", teacher="best_val")
    base = base.having(own, replace(base.consistency, decay=0.0, box_sides="int"))
    if base.scale != "paper" or base.data not in ("voc", "cityscapes"):
        return base
    network = replace(base.network, weights="imagenet_v1", projection=1, pyramid_dropout=0.5)
    optimization = replace(base.optimization, resize_base=400 if base.data == "voc" else None)
    return base.having(network, optimization, replace(base.evaluation, protocol="whole", every=1))


def loading(recipe: Recipe) -> dict[str, Any]:
    return {"cutout": Cutout(recipe[STPPOptions].cutout, whole=WHOLE[recipe.consistency.box_sides])}


METHOD = Method(
    "stpp", title="ST++", color="#a6b727", options=STPPOptions, build=build, settings=settings, stages=stages,
    reads=("decay", "box_sides"), readings={"official": official}, loading=loading, paper="Yang et al., CVPR 2022",
    cite="yang2022stpp", year=2022, chapter="notebooks/hosts",
)  # fmt: skip
