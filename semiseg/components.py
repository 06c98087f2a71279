"""What a host does when no paper says otherwise: its plain parts, and the steps that hosts share."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Literal

import torch
import torch.nn as nn
import torch.nn.functional as F
from torch import Tensor

from .types import Batch, Mixer, Output, Paste, PixelWeighter, PseudoLabeler, Target, View


def entropy(logits: Tensor) -> Tensor:
    """Entropy of the prediction in nats: (B, K, H, W) -> (B, H, W)."""
    log_p = logits.float().log_softmax(1)
    return -(log_p.exp() * log_p).sum(1)


def quantile(values: Tensor, q: float) -> Tensor:
    """`torch.quantile` of (n,) values, n >= 1, also of more than the 16 million it can take; () of the same type."""
    place = q * (len(values) - 1)
    low = values.kthvalue(math.floor(place) + 1).values
    return low if place % 1 == 0 else low.lerp(values.kthvalue(math.floor(place) + 2).values, place % 1)


class ConfidentLabels:
    """Pseudo-labeler: the teacher's class where its probability exceeds tau (FixMatch; DDFP Eq. 4)."""

    def __init__(self, tau: float = 0.95) -> None:
        if not 0 <= tau < 1:
            raise ValueError(f"tau must be in [0, 1), got {tau}")
        self.tau = tau

    def __call__(self, output: Output, valid: Tensor, t: float) -> Target:
        probability, label = output.logits.float().softmax(1).max(1)
        return Target(label, ((probability > self.tau) & valid).float(), valid.float())


class SoftLabels:
    """Pseudo-labeler: the teacher's probabilities, nothing rejected (Tarvainen & Valpola, 2017).

    Args:
        padding: padding counts in the divisor, though it is never supervised (French et al., 2020).
    """

    def __init__(self, padding: bool = False) -> None:
        self.padding = padding

    def __call__(self, output: Output, valid: Tensor, t: float) -> Target:
        weight = valid.float()
        return Target(output.logits.float().softmax(1), weight, torch.ones_like(weight) if self.padding else weight)


class EntropyFilter:
    """Pseudo-labeler: the teacher's class, but for the most uncertain share of the batch (DGCL Eq. 4 to 6).

    The share falls linearly from `drop` at `start` to 0 at the end, never below `least`.

    Args:
        drop: beta_0, share of valid pixels in [0, 1).
        least: lower bound of the share.
        start: t from which it falls.
        stages: fall in that many equal stairs (released code: one per epoch); None: with every step.
    """

    def __init__(self, drop: float = 0.2, *, least: float = 0.0, start: float = 0.0, stages: int | None = None) -> None:
        if not 0 <= least <= drop < 1 or not 0 <= start < 1:
            raise ValueError(
                f"EntropyFilter needs 0 <= least <= drop < 1 and start in [0, 1), got {least=}, {drop=}, {start=}"
            )
        self.drop, self.least, self.start, self.stages = drop, least, start, stages

    def share(self, t: float) -> float:
        """The share of pixels left out at t."""
        progress = max(0.0, (t - self.start) / (1 - self.start))
        if self.stages:
            progress = math.floor(progress * self.stages + 1e-6) / self.stages
        return max(self.drop * (1 - progress), self.least)

    def __call__(self, output: Output, valid: Tensor, t: float) -> Target:
        # max, not argmax: over channels it is four times as fast on a CPU
        uncertainty, label = entropy(output.logits), output.logits.max(1).indices
        if not valid.any():
            return Target(label, torch.zeros_like(uncertainty), valid.float())
        limit = quantile(uncertainty[valid], 1 - self.share(t))
        return Target(label, ((uncertainty < limit) & valid).float(), valid.float())


class UniformWeight(nn.Module):
    """Pixel weighter: every pixel counts the same."""

    in_divisor = True

    def observe(self, labeled: View, mixed: View) -> None:
        pass

    def forward(self, view: View) -> Tensor:
        return torch.ones_like(view.target.weight)


class NoMix:
    """Mixer: every pixel stays where it is."""

    def __call__(self, own: View, donors: View) -> Paste:
        b, h, w = own.target.weight.shape
        rows = torch.arange(b, device=own.image.device)
        return Paste(rows[:, None, None].expand(b, h, w).contiguous())


class CutMix:
    """Mixer: one rectangle of the next image in the batch (French et al., BMVC 2020).

    Its area is exactly `area` of the image up to rounding; the share of the height is area^U(0, 1), so both sides
    range over [area, 1] and small and large ones are equally likely on a log scale; its place is uniform.

    Args:
        p: probability that a batch is mixed (one coin for the whole batch, as DDFP's released code tosses it).
        area: share of the image, in (0, 1].
        sides: "log", as above; "width": the width is a uniform integer from `area` of the side to one pixel less than
            the side, which makes wide and narrow boxes more likely than tall ones (released code of DDFP and U2PL).
    """

    def __init__(self, p: float = 0.5, area: float = 0.5, sides: Literal["log", "width"] = "log") -> None:
        if not 0 <= p <= 1 or not 0 < area <= 1:
            raise ValueError(f"CutMix needs p in [0, 1] and area in (0, 1], got p={p}, area={area}")
        self.p, self.area, self.sides = p, area, sides

    def __call__(self, own: View, donors: View) -> Paste:
        source = NoMix()(own, donors).source
        b, h, w = source.shape
        if b == 1 or torch.rand(()) >= self.p:
            return Paste(source)
        for i in range(b):
            box_h, box_w = self._box(h, w)
            y, x = (int(torch.randint(side - box + 1, ())) for side, box in ((h, box_h), (w, box_w)))
            source[i, y : y + box_h, x : x + box_w] = (i + 1) % b
        return Paste(source)

    def _box(self, h: int, w: int) -> tuple[int, int]:
        if self.sides == "width":
            width = min(int(torch.randint(int(w * self.area) + 1, max(w, int(w * self.area) + 2), ())), w)
            return min(h, max(1, round(h * w * self.area / width))), width
        share = self.area ** torch.rand(()).item()
        return max(1, round(h * share)), max(1, round(w * self.area / share))


WHOLE: Mapping[str, Callable[[float], int]] = {"round": round, "int": int}  # pixels of a side


def random_box(
    height: int, width: int, area: tuple[float, float] = (0.02, 0.4), ratio: tuple[float, float] = (0.3, 1 / 0.3),
    whole: Callable[[float], int] = round,
) -> tuple[slice, slice]:  # fmt: skip
    """Rows and columns of a box inside an image: its share of the area and height / width are uniform in their bounds.

    Shape and place are drawn again until the box fits, as in CutOut of ST++ and CutMix of UniMatch.

    whole: makes pixels of a side: round, or int (released code).
    """
    pixels = torch.empty(()).uniform_(*area).item() * height * width
    while True:
        shape = torch.empty(()).uniform_(*ratio).item()
        h, w = max(1, whole((pixels * shape) ** 0.5)), max(1, whole((pixels / shape) ** 0.5))
        y, x = int(torch.randint(height, ())), int(torch.randint(width, ()))
        if y + h <= height and x + w <= width:
            return slice(y, y + h), slice(x, x + w)


@torch.no_grad()
def read_as(network: nn.Module, images: Tensor, mode: Literal["eval", "train"]) -> Output:
    """What a network says about images in a mode, which it then leaves; one in evaluation mode stays there."""
    was_training = network.training
    network.train(was_training and mode == "train")
    output = network(images)
    network.train(was_training)
    return output


def taught(teacher: nn.Module, label: PseudoLabeler, batch: Batch, t: float) -> tuple[View, View]:
    """The labeled images with their truth and the unlabeled ones, weakly augmented, with the teacher's labels."""
    n = len(batch.x)
    predicted: Output = teacher(torch.cat((batch.x, batch.u_weak)))
    on_u = predicted.rows(n)
    labeled = View(batch.x, Target.from_labels(batch.y), predicted.rows(0, n))
    target = label(on_u, batch.u_valid, t)
    uncertainty = entropy(on_u.logits)
    return labeled, View(
        batch.u_weak, target, on_u, entropy=uncertainty, boxes=batch.u_boxes, hidden=batch.u_hidden
    )  # fmt: skip


def given(teacher: nn.Module | None, batch: Batch) -> tuple[View, View]:
    """The same where the labels of unlabeled images, and their entropy, come from disk (`data.pseudo_labels`).

    teacher: its features go along where somebody weighs pixels by them; None: nobody does.
    Raises ValueError for batches without such labels.
    """
    if batch.u_given is None or batch.u_entropy is None:
        raise ValueError("retraining needs labels from disk; give it batches of a PseudoLabeled data set")
    n = len(batch.x)
    read: Output | None = None if teacher is None else teacher(torch.cat((batch.x, batch.u_weak)))
    labeled = View(batch.x, Target.from_labels(batch.y), read and read.rows(0, n))
    return labeled, View(
        batch.u_weak, Target.from_labels(batch.u_given), read and read.rows(n),
        entropy=batch.u_entropy, boxes=batch.u_boxes, hidden=batch.u_hidden,
    )  # fmt: skip


def labeled_terms(
    student: nn.Module, criterion: Callable[[Output, Target], Tensor], output: Output, target: Target
) -> dict[str, Tensor]:
    """ "labeled", and where the student has an auxiliary head, "auxiliary_head", its weight times the same criterion.

    output: of labeled images in training mode.  Logits of the head are brought to image size as the others are.
    """
    terms = {"labeled": criterion(output, target)}
    if weight := getattr(student, "auxiliary_weight", 0.0):
        assert output.auxiliary is not None
        size = output.logits.shape[-2:]
        logits = F.interpolate(output.auxiliary, size=size, mode="bilinear", align_corners=True)
        terms["auxiliary_head"] = weight * criterion(output._replace(logits=logits), target)
    return terms


def pasted(mix: Mixer, weak: View, labeled: View, strong: Tensor | None) -> tuple[Paste, View]:
    """One paste moves the strong image (None: the weak one) and all that is known about its pixels."""
    own = weak if strong is None else replace(weak, image=strong)
    paste = mix(own, labeled)
    return paste, paste.view(own, labeled)


def weigh_and_mix(weigh: PixelWeighter, paste: Paste, own: View, donors: View, mixed: View) -> Target:
    """The mixed target with the weighter's factors; pasted labels keep factor 1.

    Weigh-then-mix equals mix-then-weigh, so a weighter never knows the mixer.
    """
    weigh.observe(donors, mixed)
    return weighed(weigh, paste, own, donors, mixed)


def weighed(weigh: PixelWeighter, paste: Paste, own: View, donors: View, mixed: View) -> Target:
    """The same, and the weighter observes nothing."""
    factor = paste(weigh(own), torch.ones_like(donors.target.weight))
    return mixed.target.times(factor) if weigh.in_divisor else mixed.target.only(factor)
