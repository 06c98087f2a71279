"""UniMatch (Yang et al., CVPR 2023): two strong views and a feature dropout, all taught by the weak view.

student(x, u_weak, u_weak with dropped channels) -> pseudo-label -> mix twice -> student(both strong views) -> losses
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor

from ..build import criterion, make_student, mixer, weigher
from ..components import ConfidentLabels, NoMix, UniformWeight, entropy, labeled_terms, random_box
from ..losses import labeled_cross_entropy, pixel_cross_entropy
from ..models.deeplabv3plus import DeepLabV3Plus
from ..models.teacher import Teacher
from ..options import Divisor, Evaluation, Optimization, Options, option, options
from ..registry import Method
from ..statistics import logged, pseudo_label_statistics
from ..types import Batch, Host, Mixer, Output, Paste, PixelWeighter, PseudoLabeler, Step, Target, View

if TYPE_CHECKING:
    from ..recipe import Recipe


@options
class UniMatchOptions(Options):
    """UniMatch; tau, decay of the watching average and divisor are in `Consistency`."""

    part = "unimatch"
    weights: tuple[float, float, float] = option(
        "of both strong views and of the dropped channels, before all are halved",
        default=(0.25, 0.25, 0.5),
        symbol="μ_1, μ_2, μ_fp",
    )
    drop: float = option("share of channels set to zero, of low-level and deep features", default=0.5, ge=0, lt=1)
    box_p: float = option("probability that an image gets a box of another one", default=0.5, ge=0, le=1)
    box_area: tuple[float, float] = option("bounds of the box's share of the image", default=(0.02, 0.4))

    def __post_init__(self) -> None:
        if min(self.weights) < 0:
            raise ValueError(f"unimatch.weights must be >= 0, got {self.weights}")


class RandomBox:
    """Mixer: in half of the images one box of the next image of the batch (released code).

    Its area is U(area) of the image, height / width U(ratio); shape and place are drawn again until the box fits.
    The released loader pairs every image with itself by accident (issue 51); the partner here is another image.

    Args:
        p: probability that an image gets a box.
        area: bounds of the share of the image.
        ratio: bounds of height / width, uniform and so more often tall than wide.
    """

    def __init__(
        self, p: float = 0.5, area: tuple[float, float] = (0.02, 0.4), ratio: tuple[float, float] = (0.3, 1 / 0.3)
    ) -> None:
        if not 0 <= p <= 1 or not 0 < area[0] <= area[1] <= 1 or not 0 < ratio[0] <= 1 <= ratio[1]:
            raise ValueError(
                f"RandomBox needs p in [0, 1], area in (0, 1] and a ratio around 1, got {p=} {area=} {ratio=}"
            )
        self.p, self.area, self.ratio = p, area, ratio

    def __call__(self, own: View, donors: View) -> Paste:
        source = NoMix()(own, donors).source
        b, h, w = source.shape
        for i in range(b):
            if torch.rand(()) < self.p:
                source[i, *random_box(h, w, self.area, self.ratio)] = (i + 1) % b
        return Paste(source)


class UniMatch(Host):
    """L = (L_sup + mu_1 L_s1 + mu_2 L_s2 + mu_fp L_fp) / 2.

    The network teaches itself: pseudo-labels come from its training-mode pass over the weak view, without gradient.  An
    average of its weights only watches, as in `Supervised`.
    Components: label, weigh, mix (called once per strong view).

    Args:
        student: a segmentation network with backbone, fuse and read.
        options: the numbers.
        divisor: "valid": every pixel that is not padding (released code).
        criterion: of the labeled term; OHEM on Cityscapes.
        decay: of the watching average.
    """

    student: DeepLabV3Plus

    def __init__(
        self,
        student: DeepLabV3Plus,
        options: UniMatchOptions,
        *,
        label: PseudoLabeler | None = None,
        weigh: PixelWeighter | None = None,
        mix: Mixer | None = None,
        divisor: Divisor = "valid",
        criterion: Callable[[Output, Target], Tensor] = labeled_cross_entropy,
        decay: float = 0.999,
    ) -> None:
        super().__init__()
        self.student, self.teacher = student, Teacher(student, decay)
        self.label, self.mix, self.weigh = label or ConfidentLabels(), mix or RandomBox(), weigh or UniformWeight()
        self.options, self.divisor, self.criterion = options, divisor, criterion

    def losses(self, batch: Batch, t: float) -> Step:
        if len(batch.u_strong) != 2:
            raise ValueError(f"UniMatch needs 2 strong views, the loader gives {len(batch.u_strong)}")
        n, m, size = len(batch.x), len(batch.u_weak), batch.x.shape[-2:]

        # 1. labeled and weak images, and the weak ones again with dropped channels, through one decoder pass
        low, deep, middle = self.student.encode(torch.cat((batch.x, batch.u_weak)))
        low, deep = (torch.cat((v, F.dropout2d(v[n:], self.options.drop))) for v in (low, deep))
        output = self.student.read(self.student.fuse(low, deep), deep, size, middle)
        on_u = output.rows(n, n + m).detach()
        y = Target.from_labels(batch.y)
        labeled = View(batch.x, y, output.rows(0, n).detach(), output.rows(0, n))
        label, uncertainty = self.label(on_u, batch.u_valid, t), entropy(on_u.logits)
        weak = View(batch.u_weak, label, on_u, entropy=uncertainty, boxes=batch.u_boxes, hidden=batch.u_hidden)

        # 2. each strong view with a paste of its own; both through the student together
        strong = [replace(weak, image=image) for image in batch.u_strong]
        pastes = [self.mix(view, labeled) for view in strong]
        mixed = [paste.view(view, labeled) for paste, view in zip(pastes, strong, strict=True)]
        on_mixed = self.student(torch.cat([view.image for view in mixed]))

        # 3. weigh
        self.weigh.observe(labeled, View.joined(mixed).seen_by(on_mixed))
        factor, ones = self.weigh(weak), torch.ones_like(y.weight)
        targets = [self._weighed(view.target, paste(factor, ones)) for view, paste in zip(mixed, pastes, strict=True)]

        # 4. half of the labeled and of the three unlabeled terms
        first = len(mixed[0].image)
        logits = (on_mixed.logits[:first], on_mixed.logits[first:], output.logits[n + m :])
        targets.append(self._weighed(weak.target, factor))
        on_l = labeled_terms(self.student, self.criterion, output.rows(0, n), y)
        losses = {name: term / 2 for name, term in on_l.items()}
        terms = zip(("strong_1", "strong_2", "dropped"), self.options.weights, logits, targets, strict=True)
        for name, weight, on, target in terms:
            losses[name] = weight * pixel_cross_entropy(on, target, self.divisor) / 2
        return Step(losses, pseudo_label_statistics(label, batch.u_hidden) | logged(self.weigh, self.mix))

    def _weighed(self, target: Target, factor: Tensor) -> Target:
        return target.times(factor) if self.weigh.in_divisor else target.only(factor)


def build(recipe: Recipe, classes: int) -> UniMatch:
    o, c = recipe[UniMatchOptions], recipe.consistency
    return UniMatch(
        make_student(recipe, classes), o, label=ConfidentLabels(c.tau), weigh=weigher(recipe, classes),
        mix=mixer(recipe, RandomBox(o.box_p, o.box_area), classes), divisor=c.divisor, criterion=criterion(recipe),
        decay=c.decay,
    )  # fmt: skip


def settings(base: Recipe) -> Recipe:
    """UniMatch's released numbers at paper scale; its divisor counts every pixel that is not padding."""
    base = base.having(replace(base.consistency, divisor="valid"))
    if base.scale != "paper":
        return base
    if base.data != "cityscapes":
        return base.having(Optimization(321, batch=8), Evaluation("whole", 321))
    optimization = Optimization(801, batch=8, epochs=240, lr=5e-3, head_lr_factor=1.0, ohem=True)
    return base.having(optimization, replace(base.consistency, tau=0.0))


METHOD = Method(
    "unimatch", title="UniMatch", color="#da8bc3", options=UniMatchOptions, build=build,
    reads=("tau", "decay", "divisor"), settings=settings, loading=lambda recipe: {"views": 2},
    unlabeled_weights=("unimatch.weights",), paper="Yang et al., CVPR 2023", cite="yang2023unimatch", year=2023,
    chapter="notebooks/hosts",
)  # fmt: skip
