"""CPS (Chen et al., CVPR 2021): two networks of one kind, started apart, learn each other's hard labels.

f1(u) -> label -> mix -> f2(mixed) -> cross-entropy        f2(u) -> label -> mix -> f1(mixed) -> cross-entropy
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Literal

import torch
import torch.nn as nn
from torch import Tensor

from ..build import criterion, make_student, mixer, mixes, weigher
from ..components import NoMix, UniformWeight, entropy, labeled_terms, read_as, weighed
from ..losses import labeled_cross_entropy, pixel_cross_entropy
from ..models.teacher import Teacher
from ..options import Evaluation, Optimization, Options, option, options
from ..registry import Method
from ..scales import labeled_share
from ..statistics import logged, pseudo_label_statistics, share
from ..types import Batch, Host, Mixer, Output, Paste, PixelWeighter, Step, Target, View

if TYPE_CHECKING:
    from ..recipe import Recipe


@options
class CPSOptions(Options):
    """Cross pseudo supervision; the weight is PASCAL VOC's with mixing."""

    part = "cps"
    weight: float = option(
        "of the cross supervision; Cityscapes 5; without mixing 1.5 and 6", default=1.0, symbol="λ", gt=0
    )
    mixed: bool = option("False: no mixing, and labeled images take part in the cross supervision", default=True)
    boxes: int = option("pasted into an image", default=3, gt=0)
    area: tuple[float, float] = option(
        "bounds of the share of the image that all boxes together would cover without overlap", default=(0.25, 0.5)
    )
    shared_mask: bool | None = option(
        "one paste for both networks; none: but with a plug-in that mixes each pseudo-label has its own", default=None
    )
    label_mode: Literal["eval", "train"] = option("train: batch statistics and dropout (released code)", default="eval")
    padding: bool = option("True: padding is supervised too (released code)", default=False)
    color: bool = option("True: the color-jittered view is mixed; False: the weak one", default=False)
    donor: Literal["next", "same"] = option(
        "what boxes show: the next image of the batch, or another crop of the same image (released code, by "
        "accident); a plug-in that mixes has donors of its own", default="next", later=True,
    )  # fmt: skip

    def __post_init__(self) -> None:
        if not 0 < self.area[0] <= self.area[1] <= 1:
            raise ValueError(f"cps.area must be 0 < low <= high <= 1, got {self.area}")

    @staticmethod
    def plain(cityscapes: bool = False) -> CPSOptions:
        """Without mixing, at the weight of the paper's tables."""
        return CPSOptions(mixed=False, weight=6.0 if cityscapes else 1.5)


class ToggledBoxes:
    """Mixer: boxes of the next image in the batch; where an even number of them overlap, the image stays its own.

    The generator of French et al. (BMVC 2020) as CPS sets it: for each box a share a of the image is drawn from
    `area`, the height is a^U(0, 1) and the width what then gives a; both are divided by the square root of the number
    of boxes.  Places are uniform inside the image.

    Args:
        boxes: per image.
        area: bounds of a.
        apart: the images it is given are followed by as many donors, one for each, and only they are mixed.

    Raises:
        ValueError: no box, or bounds outside (0, 1].
    """

    def __init__(self, boxes: int, area: tuple[float, float], apart: bool = False) -> None:
        if boxes < 1 or not 0 < area[0] <= area[1] <= 1:
            raise ValueError(f"ToggledBoxes needs boxes >= 1 and 0 < low <= high <= 1, got {boxes=}, {area=}")
        self.boxes, self.area, self.apart = boxes, area, apart

    def __call__(self, own: View, donors: View) -> Paste:
        source = NoMix()(own, donors).source
        partner = source.roll(-1, 0)
        if self.apart:
            source, partner = source.chunk(2)
        b, h, w = source.shape
        foreign = torch.zeros(source.shape, dtype=torch.bool)
        for i in range(b):
            for _ in range(self.boxes):
                share = self.area[0] + (self.area[1] - self.area[0]) * torch.rand(()).item()
                height = share ** torch.rand(()).item()
                sides = (height / self.boxes**0.5, share / height / self.boxes**0.5)
                box_h, box_w = (round(n * side) for n, side in zip((h, w), sides, strict=True))
                y, x = (int(torch.randint(n - box + 1, ())) for n, box in ((h, box_h), (w, box_w)))
                foreign[i, y : y + box_h, x : x + box_w].logical_not_()
        return Paste(torch.where(foreign.to(source.device), partner, source))


def same_backbone_other_head(network: nn.Module) -> nn.Module:
    """A copy of a network whose layers outside `backbone` are drawn anew.

    Raises ValueError for a network without `backbone`.
    """
    if not isinstance(getattr(network, "backbone", None), nn.Module):
        raise ValueError(f"{type(network).__name__} has no backbone to share; give CPS its second network as `other`")
    made = copy.deepcopy(network)
    for name, layer in made.named_modules():
        reset = getattr(layer, "reset_parameters", None)
        if reset is not None and not f"{name}.".startswith("backbone."):
            reset()
    return made


class CrossPseudoSupervision(Host):
    """L = CE(f1(x), y) + CE(f2(x), y) + w [ CE(f1(u), argmax f2(u)) + CE(f2(u), argmax f1(u)) ].

    No threshold: every pixel of an unlabeled image is supervised, and no gradient passes through a label.  With a
    mixer the labels are made on clean images in a pass without gradient and learned on mixed ones; without one (mix =
    None) both happen in one pass, and labeled images take part in the cross supervision too.

    `student` is f1, `other` f2, and `teacher`, the average of f1, only watches.

    Places: weigh (each network weighs its own labels with a copy, which sees its features alone), mix.

    Args:
        student: a segmentation network.
        options: the numbers.
        other: the second network; None: the same backbone, another random head.
        weigh: factor per pixel; plain: 1.
        mix: what is pasted into unlabeled images; None: the variant without mixing.
        shared_mask: one paste for both networks, planned from the first one's labels and the mean of both entropies;
            False: each pseudo-label has a paste of its own (UPC).
        criterion: of the labeled terms.
        decay: of the teacher.
    """

    def __init__(
        self,
        student: nn.Module,
        options: CPSOptions,
        other: nn.Module | None = None,
        *,
        weigh: PixelWeighter | None = None,
        mix: Mixer | None = None,
        shared_mask: bool = True,
        criterion: Callable[[Output, Target], Tensor] = labeled_cross_entropy,
        decay: float = 0.99,
    ) -> None:
        super().__init__()
        if options.color and mix is None:
            raise ValueError("cps.color needs a mixer: without one, labels are made and learned in one pass")
        self.student, self.other = student, same_backbone_other_head(student) if other is None else other
        self.teacher = Teacher(student, decay)
        self.weigh = weigh or UniformWeight()
        self.weigh_other = copy.deepcopy(self.weigh)
        self.mix, self.shared_mask, self.options, self.criterion = mix, shared_mask, options, criterion
        self.crops = 2 if isinstance(mix, ToggledBoxes) and mix.apart else 1

    def losses(self, batch: Batch, t: float) -> Step:
        f1, f2, truth = self.student, self.other, Target.from_labels(batch.y)

        # 1. both networks label the unlabeled images, and read the labeled ones
        if self.mix is None:
            u1, u2 = f1(batch.u_weak), f2(batch.u_weak)
            labels1, labels2 = self._view(u1.detach(), batch), self._view(u2.detach(), batch)
        else:
            labels1, labels2 = self._view(self._clean(f1, batch), batch), self._view(self._clean(f2, batch), batch)
        x1, x2 = f1(batch.x), f2(batch.x)

        # 2. images and labels are mixed; each network reads what the other one labeled
        donors1, donors2 = View(batch.x, truth, x1.detach()), View(batch.x, truth, x2.detach())
        paste1, paste2 = self._pastes(labels1, labels2, donors1, donors2)
        mixed1, mixed2 = (
            paste.view(replace(own, image=batch.u_strong[0]) if self.options.color else own, donors)
            for paste, own, donors in ((paste1, labels1, donors1), (paste2, labels2, donors2))
        )
        if self.mix is not None:
            u1, u2 = f1(mixed2.image), f2(mixed1.image)

        # 3. each learns the other's labels, at the weight their maker gives them
        self.weigh.observe(donors2.seen_by(x1), mixed2.seen_by(u1))
        self.weigh_other.observe(donors1.seen_by(x2), mixed1.seen_by(u2))
        target1 = weighed(self.weigh_other, paste2, labels2, donors2, mixed2)
        target2 = weighed(self.weigh, paste1, labels1, donors1, mixed1)
        logits1, logits2 = u1.logits, u2.logits
        if self.mix is None:
            known = torch.ones_like(truth.weight) if self.options.padding else truth.weight
            target1, target2 = _hard(x2, known).cat(target1), _hard(x1, known).cat(target2)
            logits1, logits2 = torch.cat((x1.logits, logits1)), torch.cat((x2.logits, logits2))
        losses = {
            **labeled_terms(f1, self.criterion, x1, truth),
            **{f"{name}_other": term for name, term in labeled_terms(f2, self.criterion, x2, truth).items()},
            "unlabeled": self.options.weight * pixel_cross_entropy(logits1, target1, "valid"),
            "unlabeled_other": self.options.weight * pixel_cross_entropy(logits2, target2, "valid"),
        }
        agreement = share(labels1.target.hard == labels2.target.hard, batch.u_valid)
        statistics = pseudo_label_statistics(labels2.target, batch.u_hidden) | {"agreement": agreement}
        return Step(losses, statistics | logged(self.weigh_other, self.mix))

    def _clean(self, network: nn.Module, batch: Batch) -> Output:
        """What a network says about the clean unlabeled images; donors of their own have a pass of their own."""
        each = [read_as(network, images, self.options.label_mode) for images in batch.u_weak.chunk(self.crops)]
        return Output.merged(lambda *maps: torch.cat(maps), *each)

    def _view(self, output: Output, batch: Batch) -> View:
        """The unlabeled images with a network's labels."""
        known = torch.ones_like(batch.u_valid) if self.options.padding else batch.u_valid
        return View(
            batch.u_weak, _hard(output, known.float()), output,
            entropy=entropy(output.logits) * batch.u_valid, boxes=batch.u_boxes, hidden=batch.u_hidden,
        )  # fmt: skip

    def _pastes(self, labels1: View, labels2: View, donors1: View, donors2: View) -> tuple[Paste, Paste]:
        """For the images that the first and the second network labeled."""
        mix = NoMix() if self.mix is None else self.mix
        if not self.shared_mask:
            return mix(labels1, donors1), mix(labels2, donors2)
        assert labels1.entropy is not None and labels2.entropy is not None
        paste = mix(replace(labels1, entropy=(labels1.entropy + labels2.entropy) / 2), donors1)
        return paste, paste


def _hard(output: Output, known: Tensor) -> Target:
    """The most likely class of every known pixel (B, H, W) float in {0, 1}."""
    return Target(output.logits.max(1).indices, known, known)


def build(recipe: Recipe, classes: int) -> CrossPseudoSupervision:
    o = recipe[CPSOptions]
    usual = ToggledBoxes(o.boxes, o.area, o.donor == "same") if o.mixed else None
    mix = mixer(recipe, usual, classes)
    return CrossPseudoSupervision(
        make_student(recipe, classes), o, weigh=weigher(recipe, classes), mix=mix,
        shared_mask=mix is usual if o.shared_mask is None else o.shared_mask, criterion=criterion(recipe),
        decay=recipe.consistency.decay,
    )  # fmt: skip


def loading(recipe: Recipe) -> dict[str, Any]:
    o = recipe[CPSOptions]
    return {"crops": 2 if o.donor == "same" and o.mixed and not mixes(recipe) else 1}


def passes(base: Recipe) -> tuple[int, int | None]:
    """Epochs over unlabeled images, and their steps where the size of the list is not known.

    TorchSemiSeg's rule: on every list as many steps as so many passes over all images in batches of 16.
    """
    city, share = base.data == "cityscapes", labeled_share(base.data, base.split)
    if share is None:
        return (137, 326) if city else (34, 1167)
    return round((120 if city else 30) / (1 - share % 1)), None


def settings(base: Recipe) -> Recipe:
    """At paper scale the stored configurations of charlesCXK/TorchSemiSeg @ 5e0c29c: CPS with CutMix, ResNet-101."""
    base = base.having(replace(base.consistency, decay=0.99))
    if base.scale != "paper":
        return base
    city = base.data == "cityscapes"
    epochs, steps = passes(base)
    optimization = Optimization(
        crop=800 if city else 512, batch=8, epochs=epochs, epoch_steps=steps, lr=2e-2 if city else 1e-2,
        head_lr_factor=1.0, ohem=city,
    )  # fmt: skip
    evaluation = Evaluation("sliding", 800, 533) if city else Evaluation("sliding", 512, 341)
    return base.having(optimization, evaluation, CPSOptions(weight=5.0 if city else 1.0))


def torchsemiseg(base: Recipe) -> Recipe:
    """What the experiments of charlesCXK/TorchSemiSeg @ 5e0c29c have in common at paper scale.

    Every loss is divided by the number of GPUs before gradients are averaged over them: the rate here is what is left,
    and the decay, which is not divided, so much larger.
    """
    city, (epochs, steps) = base.data == "cityscapes", passes(base)
    network = replace(
        base.network, stem="deep", multi_grid=(2, 2, 4), projection=1, pyramid_dropout=0.0, dropout=0.0
    )  # fmt: skip
    optimization = replace(
        base.optimization, crop=800 if city else 512, batch=8, epochs=epochs, epoch_steps=steps, lr=2.5e-3,
        head_lr_factor=1.0, decay_norms=False, weight_decay=8e-4 if city else 4e-4,
        scales=(0.5, 0.75, 1.0, 1.5, 1.75, 2.0), padding="center", padding_color="mean",
    )  # fmt: skip
    size, step = (800, 534) if city else (512, 342)
    return base.having(network, optimization, replace(base.evaluation, protocol="sliding", size=size, step=step))


def official(base: Recipe) -> Recipe:
    """charlesCXK/TorchSemiSeg @ 5e0c29c; at paper scale also its donors, network, rates and windows."""
    own = replace(base[CPSOptions], label_mode="train", padding=True)
    if base.scale != "paper":
        return base.having(own)
    base = base.having(replace(own, donor="same"))
    return torchsemiseg(base) if base.data in ("voc", "cityscapes") else base


METHOD = Method(
    "cps", title="CPS", color="#937860", options=CPSOptions, build=build, settings=settings, loading=loading,
    readings={"official": official}, paper="Chen et al., CVPR 2021", cite="chen2021cps", year=2021,
    chapter="notebooks/hosts",
)  # fmt: skip
