"""CPS (Chen et al., CVPR 2021): two networks of one kind, started apart, learn each other's hard labels.

f1(u) -> label -> mix -> f2(mixed) -> cross-entropy        f2(u) -> label -> mix -> f1(mixed) -> cross-entropy
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import replace
from typing import Literal

import torch
import torch.nn as nn
from torch import Tensor

from ..components import NoMix, UniformWeight, entropy, weighed
from ..losses import pixel_cross_entropy
from ..models.teacher import Teacher
from ..statistics import logged, pseudo_label_statistics, share
from ..types import Batch, Mixer, Output, Paste, PixelWeighter, Step, Target, View
from .supervised import labeled_cross_entropy


class ToggledBoxes:
    """Mixer: boxes of the next image in the batch; where an even number of them overlap, the image stays its own.

    The generator of French et al. (BMVC 2020) as CPS sets it: for each box a share a of the image is drawn from
    `area`, the height is a^U(0, 1) and the width what then gives a; both are divided by the square root of the number
    of boxes.  Places are uniform inside the image.

    Args:
        boxes: per image.
        area: bounds of a.

    Raises:
        ValueError: no box, or bounds outside (0, 1].
    """

    def __init__(self, boxes: int = 3, area: tuple[float, float] = (0.25, 0.5)) -> None:
        if boxes < 1 or not 0 < area[0] <= area[1] <= 1:
            raise ValueError(f"ToggledBoxes needs boxes >= 1 and 0 < low <= high <= 1, got {boxes=}, {area=}")
        self.boxes, self.area = boxes, area

    def __call__(self, own: View, donors: View) -> Paste:
        source = NoMix()(own, donors).source
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
        return Paste(torch.where(foreign.to(source.device), (source + 1) % b, source))


TOGGLED_BOXES = ToggledBoxes()


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


class CrossPseudoSupervision(nn.Module):
    """L = CE(f1(x), y) + CE(f2(x), y) + w [ CE(f1(u), argmax f2(u)) + CE(f2(u), argmax f1(u)) ].

    No threshold: every pixel of an unlabeled image is supervised, and no gradient passes through a label.  With a
    mixer the labels are made on clean images in a pass without gradient and learned on mixed ones; without one (mix =
    None) both happen in one pass, and labeled images take part in the cross supervision too.

    `student` is f1, `other` f2, and `teacher`, the average of f1, only watches.

    Seams: weigh (each network weighs its own labels with a copy, which sees its features alone), mix.

    Args:
        student: a segmentation network.
        other: the second one; None: the same backbone, another random head.
        weigh: factor per pixel; plain: 1.
        mix: what is pasted into unlabeled images; None: the variant without mixing.
        shared_mask: one paste for both networks, planned from the first one's labels and the mean of both entropies;
            False: each pseudo-label has a paste of its own (UPC).
        label_mode: of the network that labels clean images: "eval", or "train" (released code): statistics of the
            batch, and dropout.
        padding: supervise padding and ignored pixels as well (released code).
        color: mix the color-jittered view; False: the weak one.
        unlabeled_weight: w.
        criterion: of the labeled terms.
        decay: of the teacher.

    Raises:
        ValueError: an unknown label_mode, or color without a mixer.
    """

    def __init__(
        self,
        student: nn.Module,
        other: nn.Module | None = None,
        *,
        weigh: PixelWeighter | None = None,
        mix: Mixer | None = TOGGLED_BOXES,
        shared_mask: bool = True,
        label_mode: Literal["eval", "train"] = "eval",
        padding: bool = False,
        color: bool = False,
        unlabeled_weight: float = 1.0,
        criterion: Callable[[Output, Target], Tensor] = labeled_cross_entropy,
        decay: float = 0.99,
    ) -> None:
        super().__init__()
        if label_mode not in ("eval", "train"):
            raise ValueError(f"label_mode must be 'eval' or 'train', got {label_mode!r}")
        if color and mix is None:
            raise ValueError("color=True needs a mixer: without one, labels are made and learned in one pass")
        self.student, self.other = student, same_backbone_other_head(student) if other is None else other
        self.teacher = Teacher(student, decay)
        self.weigh = weigh or UniformWeight()
        self.weigh_other = copy.deepcopy(self.weigh)
        self.mix, self.shared_mask, self.label_mode, self.padding = mix, shared_mask, label_mode, padding
        self.color, self.unlabeled_weight, self.criterion = color, unlabeled_weight, criterion

    def losses(self, batch: Batch, t: float) -> Step:
        f1, f2, truth = self.student, self.other, Target.from_labels(batch.y)

        # 1. both networks label the unlabeled images, and read the labeled ones
        if self.mix is None:
            u1, u2 = f1(batch.u_weak), f2(batch.u_weak)
            said1, said2 = self._view(u1.detach(), batch), self._view(u2.detach(), batch)
        else:
            said1, said2 = self._view(self._clean(f1, batch), batch), self._view(self._clean(f2, batch), batch)
        x1, x2 = f1(batch.x), f2(batch.x)

        # 2. images and labels are mixed; each network reads what the other one labeled
        donors1, donors2 = View(batch.x, truth, x1.detach()), View(batch.x, truth, x2.detach())
        paste1, paste2 = self._pastes(said1, said2, donors1, donors2)
        mixed1, mixed2 = (
            paste.view(replace(said, image=batch.u_strong[0]) if self.color else said, donors)
            for paste, said, donors in ((paste1, said1, donors1), (paste2, said2, donors2))
        )
        if self.mix is not None:
            u1, u2 = f1(mixed2.image), f2(mixed1.image)

        # 3. each learns the other's labels, at the weight their maker gives them
        self.weigh.observe(donors2.seen_by(x1), mixed2.seen_by(u1))
        self.weigh_other.observe(donors1.seen_by(x2), mixed1.seen_by(u2))
        lesson1 = weighed(self.weigh_other, paste2, said2, donors2, mixed2)
        lesson2 = weighed(self.weigh, paste1, said1, donors1, mixed1)
        logits1, logits2 = u1.logits, u2.logits
        if self.mix is None:
            known = torch.ones_like(truth.weight) if self.padding else truth.weight
            lesson1, lesson2 = _hard(x2, known).cat(lesson1), _hard(x1, known).cat(lesson2)
            logits1, logits2 = torch.cat((x1.logits, logits1)), torch.cat((x2.logits, logits2))
        losses = {
            "labeled": self.criterion(x1, truth),
            "labeled_other": self.criterion(x2, truth),
            "unlabeled": self.unlabeled_weight * pixel_cross_entropy(logits1, lesson1, "valid"),
            "unlabeled_other": self.unlabeled_weight * pixel_cross_entropy(logits2, lesson2, "valid"),
        }
        agreement = share(said1.target.hard == said2.target.hard, batch.u_valid)
        statistics = pseudo_label_statistics(said2.target, batch.u_hidden) | {"agreement": agreement}
        return Step(losses, statistics | logged(self.weigh_other, self.mix))

    @torch.no_grad()
    def _clean(self, network: nn.Module, batch: Batch) -> Output:
        """What a network says about the clean unlabeled images."""
        was_training = network.training
        network.train(was_training and self.label_mode == "train")
        output = network(batch.u_weak)
        network.train(was_training)
        return output

    def _view(self, output: Output, batch: Batch) -> View:
        """The unlabeled images with a network's labels."""
        known = torch.ones_like(batch.u_valid) if self.padding else batch.u_valid
        return View(
            batch.u_weak, _hard(output, known.float()), output,
            entropy=entropy(output.logits) * batch.u_valid, boxes=batch.u_boxes, hidden=batch.u_hidden,
        )  # fmt: skip

    def _pastes(self, said1: View, said2: View, donors1: View, donors2: View) -> tuple[Paste, Paste]:
        """For the images that the first and the second network labeled."""
        mix = NoMix() if self.mix is None else self.mix
        if not self.shared_mask:
            return mix(said1, donors1), mix(said2, donors2)
        assert said1.entropy is not None and said2.entropy is not None
        paste = mix(replace(said1, entropy=(said1.entropy + said2.entropy) / 2), donors1)
        return paste, paste

    def after_step(self) -> None:
        self.teacher.follow(self.student)


def _hard(output: Output, known: Tensor) -> Target:
    """The most likely class of every known pixel (B, H, W) float in {0, 1}."""
    return Target(output.logits.max(1).indices, known, known)
