"""UniMatch (Yang et al., CVPR 2023): two strong views and a feature dropout, all taught by the weak view.

student(x, u_weak, u_weak with dropped channels) -> pseudo-label -> mix twice -> student(both strong views) -> losses
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from ..build import criterion, make_student, mixer, mixes, weigher
from ..components import WHOLE, ConfidentLabels, NoMix, UniformWeight, entropy, labeled_terms, random_box, read_as
from ..losses import labeled_cross_entropy, pixel_cross_entropy
from ..models.deeplabv3plus import DeepLabV3Plus
from ..models.teacher import Teacher
from ..options import Divisor, Evaluation, Optimization, Options, option, options
from ..registry import Method
from ..statistics import logged, pseudo_label_statistics
from ..types import Batch, Host, Mixer, Output, Paste, PixelWeighter, PseudoLabeler, Step, Target, View
from .supervised import of_unimatch

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
    donor: Literal["next", "same"] = option(
        "what a box shows: the next image of the batch, or another crop of the same image (released code, by "
        "accident); a plug-in that mixes has donors of its own", default="next", later=True,
    )  # fmt: skip
    donor_mode: Literal["train", "eval"] = option(
        "mode of the network when it labels what boxes show; eval: before the step (released code)",
        default="train", later=True,
    )  # fmt: skip
    drop_labeled: bool = option(
        "labeled images are read with dropped channels too, and enter the decoder's statistics (released code)",
        default=False, later=True,
    )  # fmt: skip

    def __post_init__(self) -> None:
        if min(self.weights) < 0:
            raise ValueError(f"unimatch.weights must be >= 0, got {self.weights}")


class RandomBox:
    """Mixer: in half of the images one box of the next image of the batch (released code).

    Its area is U(area) of the image, height / width U(ratio); shape and place are drawn again until the box fits.
    The released loader pairs every image with itself by accident (issue 51); the partner here is another image, or
    what it is given.

    Args:
        p: probability that an image gets a box.
        area: bounds of the share of the image.
        ratio: bounds of height / width, uniform and so more often tall than wide.
        whole: makes pixels of a side: round, or int (released code).
        apart: the images it is given are followed by as many donors, one for each, and only they are mixed.
    """

    def __init__(
        self, p: float = 0.5, area: tuple[float, float] = (0.02, 0.4), ratio: tuple[float, float] = (0.3, 1 / 0.3),
        whole: Callable[[float], int] = round, apart: bool = False,
    ) -> None:  # fmt: skip
        if not 0 <= p <= 1 or not 0 < area[0] <= area[1] <= 1 or not 0 < ratio[0] <= 1 <= ratio[1]:
            raise ValueError(
                f"RandomBox needs p in [0, 1], area in (0, 1] and a ratio around 1, got {p=} {area=} {ratio=}"
            )
        self.p, self.area, self.ratio, self.whole, self.apart = p, area, ratio, whole, apart

    def __call__(self, own: View, donors: View) -> Paste:
        source = NoMix()(own, donors).source
        b, h, w = source.shape
        b = b // 2 if self.apart else b
        for i in range(b):
            if torch.rand(()) < self.p:
                box = random_box(h, w, self.area, self.ratio, self.whole)
                source[i, *box] = b + i if self.apart else (i + 1) % b
        return Paste(source[:b])


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
        self.apart = isinstance(self.mix, RandomBox) and self.mix.apart

    def losses(self, batch: Batch, t: float) -> Step:
        if len(batch.u_strong) != 2:
            raise ValueError(f"UniMatch needs 2 strong views, the loader gives {len(batch.u_strong)}")
        same = self.apart and self.options.donor == "same"
        n, m, size = len(batch.x), len(batch.u_weak) // (2 if same else 1), batch.x.shape[-2:]
        donors = self._donors(batch, slice(m, None) if same else slice(m), t) if self.apart else None

        # 1. labeled and weak images, and the weak ones again with dropped channels, through one decoder pass
        low, deep, middle = self.student.encode(torch.cat((batch.x, batch.u_weak[:m])))
        dropped = 0 if self.options.drop_labeled else n
        low, deep = (torch.cat((v, F.dropout2d(v[dropped:], self.options.drop))) for v in (low, deep))
        output = self.student.read(self.student.fuse(low, deep), deep, size, middle)
        on_u = output.rows(n, n + m).detach()
        y = Target.from_labels(batch.y)
        labeled = View(batch.x, y, output.rows(0, n).detach(), output.rows(0, n))
        weak = self._view(batch, slice(m), on_u, t)
        pool = weak if donors is None else View.joined([weak, donors])

        # 2. each strong view with a paste of its own; both through the student together
        images = batch.u_strong
        if donors is not None and not same:
            images = torch.cat((images, images.roll(-1, 1)), 1)
        strong = [replace(pool, image=image) for image in images]
        pastes = [self.mix(view, labeled) for view in strong]
        mixed = [paste.view(view, labeled) for paste, view in zip(pastes, strong, strict=True)]
        on_mixed = self.student(torch.cat([view.image for view in mixed]))

        # 3. weigh
        self.weigh.observe(labeled, View.joined(mixed).seen_by(on_mixed))
        factor, ones = self.weigh(pool), torch.ones_like(y.weight)
        targets = [self._weighed(view.target, paste(factor, ones)) for view, paste in zip(mixed, pastes, strict=True)]

        # 4. half of the labeled and of the three unlabeled terms
        first = len(mixed[0].image)
        logits = (on_mixed.logits[:first], on_mixed.logits[first:], output.logits[-m:])
        targets.append(self._weighed(weak.target, factor[:m]))
        on_l = labeled_terms(self.student, self.criterion, output.rows(0, n), y)
        losses = {name: term / 2 for name, term in on_l.items()}
        terms = zip(("strong_1", "strong_2", "dropped"), self.options.weights, logits, targets, strict=True)
        for name, weight, on, target in terms:
            losses[name] = weight * pixel_cross_entropy(on, target, self.divisor) / 2
        return Step(losses, pseudo_label_statistics(weak.target, batch.u_hidden[:m]) | logged(self.weigh, self.mix))

    def _view(self, batch: Batch, rows: slice, output: Output, t: float) -> View:
        """Some of the unlabeled images with the labels of an output."""
        boxes = None if batch.u_boxes is None else batch.u_boxes[rows]
        label, hidden = self.label(output, batch.u_valid[rows], t), batch.u_hidden[rows]
        return View(batch.u_weak[rows], label, output, entropy=entropy(output.logits), boxes=boxes, hidden=hidden)

    def _donors(self, batch: Batch, rows: slice, t: float) -> View:
        """For each image what a box in it shows: another crop of it, or the next image."""
        view = self._view(batch, rows, read_as(self.student, batch.u_weak[rows], self.options.donor_mode), t)
        if self.options.donor == "same":
            return view
        return Paste((NoMix()(view, view).source + 1) % len(view.image)).view(view, view)

    def _weighed(self, target: Target, factor: Tensor) -> Target:
        return target.times(factor) if self.weigh.in_divisor else target.only(factor)


def build(recipe: Recipe, classes: int) -> UniMatch:
    o, c = recipe[UniMatchOptions], recipe.consistency
    apart = o.donor == "same" or o.donor_mode == "eval"
    return UniMatch(
        make_student(recipe, classes), o, label=ConfidentLabels(c.tau), weigh=weigher(recipe, classes),
        mix=mixer(recipe, RandomBox(o.box_p, o.box_area, whole=WHOLE[c.box_sides], apart=apart), classes),
        divisor=c.divisor, criterion=criterion(recipe), decay=c.decay,
    )  # fmt: skip


def loading(recipe: Recipe) -> dict[str, Any]:
    again = recipe[UniMatchOptions].donor == "same" and not mixes(recipe)
    return {"views": 2, "crops": 2 if again else 1}


def settings(base: Recipe) -> Recipe:
    """UniMatch's released numbers at paper scale; its divisor counts every pixel that is not padding."""
    base = base.having(replace(base.consistency, divisor="valid"))
    if base.scale != "paper":
        return base
    if base.data != "cityscapes":
        return base.having(Optimization(321, batch=8), Evaluation("whole", 321))
    optimization = Optimization(801, batch=8, epochs=240, lr=5e-3, head_lr_factor=1.0, ohem=True)
    return base.having(optimization, replace(base.consistency, tau=0.0))


def official(base: Recipe) -> Recipe:
    """LiheYoung/UniMatch @ 0324f3dd: boxes show the same image, as the network in evaluation mode labels it."""
    own = replace(base[UniMatchOptions], donor="same", donor_mode="eval", drop_labeled=True)
    return of_unimatch(base.having(own, replace(base.consistency, decay=0.0, box_sides="int")), 8, 0.15586)


METHOD = Method(
    "unimatch", title="UniMatch", color="#da8bc3", options=UniMatchOptions, build=build,
    reads=("tau", "decay", "divisor", "box_sides"), settings=settings, readings={"official": official}, loading=loading,
    unlabeled_weights=("unimatch.weights",), paper="Yang et al., CVPR 2023", cite="yang2023unimatch", year=2023,
    chapter="notebooks/hosts",
)  # fmt: skip
