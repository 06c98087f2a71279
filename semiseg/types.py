"""The nouns and protocols of the package: the first file to read.

Sizes, used in every shape comment:

    B images   K classes   H, W image   h, w feature map   C decoder-input width   D feature width
    E embedding width   L backbone width   V strong views   N pixels once flattened
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, Protocol, runtime_checkable

import torch
import torch.nn as nn
import torch.nn.functional as F
from torch import Tensor

if TYPE_CHECKING:
    from .models.teacher import Teacher

IGNORE = (
    255  # the label of a pixel nobody knows; in batches and in `Target.at`; in `Target.label` such a pixel has weight 0
)


class Batch(NamedTuple):
    """What a loader hands over.  Everything named `u_*` shows the same crops, pixel by pixel.

    Where a method asks for several crops of each unlabeled image, B of `u_*` is so many times as large: all first
    crops, then all second ones.
    """

    x: Tensor  # (B, 3, H, W)       labeled images, weakly augmented, normalized
    y: Tensor  # (B, H, W) long     their labels, IGNORE where there is none
    u_weak: Tensor  # (B, 3, H, W)       unlabeled images, weak view
    u_strong: Tensor  # (V, B, 3, H, W)  the same crops, strong views
    u_valid: Tensor  # (B, H, W) bool    False on padding
    u_hidden: Tensor  # (B, H, W) long   masks of unlabeled images, IGNORE where unknown; for statistics, not for a loss
    u_given: Tensor | None = None  # (B, H, W) long    pseudo-labels from disk (ST++), IGNORE on padding
    u_entropy: Tensor | None = None  # (B, H, W)       their entropy in nats, 0 on padding
    u_boxes: Tensor | None = None  # (B, K, H, W) bool inside a detected box of that class (WPL)


class Output(NamedTuple):
    """What a segmentation network says about a batch of images."""

    logits: Tensor  # (B, K, H, W)      at image size
    features: Tensor  # (B, D, h, w)    the map the classifier reads
    embedding: Tensor  # (B, E, h, w)   projection head, for contrastive losses; width 0 where there is no head
    deep: Tensor  # (B, L, h', w')      last stage of the backbone
    undropped: Tensor | None = None  # (B, D, h, w)  the features before the last dropout: none of their channels is 0
    auxiliary: Tensor | None = None  # (B, K, h', w')  logits of the auxiliary head, where there is one that learns

    def rows(self, start: int, stop: int | None = None) -> Output:
        """The outputs of images start..stop of the batch."""
        return Output.merged(lambda v: v[start:stop], self)

    def detach(self) -> Output:
        return Output.merged(Tensor.detach, self)

    @staticmethod
    def merged(merge: Callable[..., Tensor], *outputs: Output) -> Output:
        """merge(map of the first, map of the second, ...) for each map that all of them have."""
        made = (None if any(v is None for v in maps) else merge(*maps) for maps in zip(*outputs, strict=True))
        return Output(*made)  # type: ignore[arg-type]


@dataclass(frozen=True)
class Target:
    """Supervision per pixel: three planes that always travel together.

    A loss is sum(weight * loss) / divisor; the divisor is made of weights ("kept") or of denominators ("valid"), as
    `losses.pixel_cross_entropy` says.  A pixel that a threshold rejects has weight 0 and denominator 1.
    """

    label: Tensor  # (B, H, W) long in 0..K-1, or (B, K, H, W) float summing to 1
    weight: Tensor  # (B, H, W) float >= 0, factor of the pixel's loss; 0: not supervised
    denominator: Tensor  # (B, H, W) float >= 0, what it adds to the divisor "valid"; 0: padding or IGNORE

    @staticmethod
    def from_labels(y: Tensor) -> Target:
        """Ground truth (B, H, W) long with IGNORE -> target; ignored pixels get weight and denominator 0."""
        known = (y != IGNORE).float()
        return Target(torch.where(y != IGNORE, y, 0), known, known)

    def times(self, factor: Tensor) -> Target:
        """Importance (B, H, W): scales weight and denominator, and so the pixel in any divisor (WPL, AEL)."""
        return replace(self, weight=self.weight * factor, denominator=self.denominator * factor)

    def only(self, keep: Tensor) -> Target:
        """Filter or factor (B, H, W) of the weight alone; the denominator stays, for the divisor "valid"."""
        return replace(self, weight=self.weight * keep)

    def like(self, other: Target) -> Target:
        """Hard labels as one-hot where the other target is soft."""
        if self.label.dim() == other.label.dim():
            return self
        return replace(self, label=F.one_hot(self.label, other.label.shape[1]).movedim(-1, 1).float())

    def cat(self, other: Target) -> Target:
        """The images of both, labels in one form, hard or soft."""
        pairs = ((self.label, other.label), (self.weight, other.weight), (self.denominator, other.denominator))
        return Target(*(torch.cat(pair) for pair in pairs))

    @property
    def hard(self) -> Tensor:
        """The most likely class, (B, H, W) long, whichever form the label has."""
        return self.label if self.label.dim() == 3 else self.label.max(1).indices

    def at(self, size: tuple[int, int] | torch.Size) -> Tensor:
        """Hard labels on a coarser grid by nearest neighbour, IGNORE where weight is 0: (B, h, w) long."""
        label, weight = (
            F.interpolate(v if v.dim() == 4 else v[:, None].float(), size=tuple(size), mode="nearest")
            for v in (self.label, self.weight)
        )
        hard = label[:, 0].long() if self.label.dim() == 3 else label.max(1).indices
        return torch.where(weight[:, 0] > 0, hard, IGNORE)


@dataclass(frozen=True)
class View:
    """One batch of pixels and all that is known about them.  Every plug-in reads views."""

    image: Tensor  # (B, 3, H, W)
    target: Target
    teacher: Output | None = None  # EMA teacher, the network itself (detached), or the other network
    student: Output | None = None
    entropy: Tensor | None = None  # (B, H, W) of the teacher's prediction, in nats
    boxes: Tensor | None = None  # (B, K, H, W) bool, inside a detected box of that class (WPL)
    hidden: Tensor | None = None  # (B, H, W) long, the true mask of an unlabeled image; for statistics and UPC's oracle

    @staticmethod
    def joined(views: Sequence[View]) -> View:
        """The images of several views as one batch.  What one of them lacks, the whole lacks."""

        def cat(planes: list[Tensor | None]) -> Tensor | None:
            known = [p for p in planes if p is not None]
            return torch.cat(known) if len(known) == len(planes) else None

        def outputs(each: list[Output | None]) -> Output | None:
            known = [o for o in each if o is not None]
            return Output.merged(lambda *maps: torch.cat(maps), *known) if len(known) == len(each) else None

        targets = [view.target for view in views]
        planes = (torch.cat(v) for v in zip(*((t.label, t.weight, t.denominator) for t in targets), strict=True))
        return View(
            torch.cat([view.image for view in views]), Target(*planes),
            outputs([view.teacher for view in views]), outputs([view.student for view in views]),
            *(cat([getattr(view, name) for view in views]) for name in ("entropy", "boxes", "hidden")),
        )  # fmt: skip

    def seen_by(self, student: Output) -> View:
        return replace(self, student=student)


@dataclass(frozen=True)
class Paste:
    """From which image of the pool each output pixel is copied; pixels keep their place.

    The pool is cat(own batch, donors).  There may be more output rows than input rows (UPC's RAS).
    """

    source: Tensor  # (B', H, W) long
    erased: Tensor | None = None  # (B', H, W) bool: noise instead, without a label

    def __call__(self, own: Tensor, donors: Tensor | None = None) -> Tensor:
        """(B, H, W) or (B, *, H, W), at image size or coarser -> the same with B' rows."""
        pool = own if donors is None else torch.cat((own, donors))
        index = self.source
        if index.shape[-2:] != pool.shape[-2:]:
            index = F.interpolate(index[:, None].float(), size=pool.shape[-2:], mode="nearest")[:, 0].long()
        return pool.gather(0, index if pool.dim() == 3 else index[:, None].expand(-1, pool.shape[1], -1, -1))

    def target(self, own: Target, donors: Target) -> Target:
        d = donors.like(own)
        planes = ((own.label, d.label), (own.weight, d.weight), (own.denominator, d.denominator))
        label, weight, denominator = (self(o, p) for o, p in planes)
        if self.erased is not None:
            weight, denominator = weight * ~self.erased, denominator * ~self.erased
        return Target(label, weight, denominator)

    def view(self, own: View, donors: View) -> View:
        """What is known of pixels moves with them; those of donors get entropy 0, lie in every box, hide no label."""
        n = len(donors.image)

        def moved(plane: Tensor | None, fill: float) -> Tensor | None:
            return None if plane is None else self(plane, plane.new_full((n, *plane.shape[1:]), fill))

        teacher = None
        if own.teacher is not None and donors.teacher is not None:
            maps = zip(own.teacher[:4], donors.teacher[:4], strict=True)  # what nobody reads after a paste stays behind
            teacher = Output(*(self(o, d) for o, d in maps))
        image = self(own.image, donors.image)
        if self.erased is not None:  # a normalized image has mean 0 and deviation 1
            image = torch.where(self.erased[:, None], torch.randn_like(image), image)
        return View(
            image,
            self.target(own.target, donors.target),
            teacher,
            entropy=moved(own.entropy, 0),
            boxes=moved(own.boxes, 1),
            hidden=moved(own.hidden, IGNORE),
        )


class Step(NamedTuple):
    """What a host returns for one batch."""

    losses: dict[str, Tensor]  # scalars, already weighted; their sum is minimized
    statistics: dict[str, Tensor]  # (2,) each: a sum and a count, pooled over an epoch before they are divided


# --- the places of a training step that a paper fills ---------------------------------------------------------


class PseudoLabeler(Protocol):
    """The teacher's output of B unlabeled images -> target.

    valid (B, H, W) bool is False on padding, whose weight and denominator are 0; t in [0, 1) is the share of training
    done.
    """

    def __call__(self, output: Output, valid: Tensor, t: float) -> Target: ...


class Mixer(Protocol):
    """A plan for pasting, from the evidence of the own images and of labeled donors."""

    def __call__(self, own: View, donors: View) -> Paste: ...


class PixelWeighter(Protocol):
    """A factor for each pixel of a view, (B, H, W); `observe` learns, without gradient, from what was seen.

    What it wants logged it leaves in an attribute `statistics`, as an AuxiliaryLoss.
    """

    in_divisor: bool  # the factors scale denominators too (`Target.times`), not only weights (`Target.only`)

    def observe(self, labeled: View, mixed: View) -> None: ...
    def __call__(self, view: View) -> Tensor: ...


class FeaturePerturber(Protocol):
    """A step delta in feature space, taken where `tap` says.

    tap="decoder_input": at z (B, C, h, w); `onward` is the student's `refine`, two blocks of convolution, BatchNorm and
    dropout in their present mode.  tap="features": at what the classifier reads (B, D, h, w); `onward` is the identity.

    `observe` learns, without gradient for the student, at every step with unlabeled images, also before features are
    perturbed; it returns statistics as in `Step`.
    """

    tap: Literal["decoder_input", "features"]

    def __call__(self, start: Tensor, onward: Callable[[Tensor], Tensor], target: Target) -> Tensor: ...
    def observe(self, labeled: View, weak: View, t: float) -> dict[str, Tensor]: ...


class AuxiliaryLoss(Protocol):
    """A scalar loss on the labeled view and, as `on` says, on the weak or the mixed one.

    What it wants logged it leaves in an attribute `statistics`, as in `Step`, of its last call.
    """

    on: Literal["weak", "mixed"]

    def __call__(self, labeled: View, unlabeled: View, t: float) -> Tensor: ...


@runtime_checkable
class Exporting(Protocol):
    """A part of a host with state that belongs to the trained model, as DDFP's flow."""

    def exported_state(self) -> Mapping[str, Tensor]:
        """Tensors by their name inside the part."""
        ...


@runtime_checkable
class SelfOptimizing(Protocol):
    """A part of a host that trains parameters itself, inside the step, with an optimizer of its own."""

    def own_parameters(self) -> Iterable[nn.Parameter]: ...


class Host(nn.Module, ABC):
    """A training scheme: what `training.loop.fit` calls, and nothing else.

    `losses` reads a batch and returns what is minimized; `after_step` follows the optimizer's step.  A subclass sets
    `student`, which is trained and judged, and `teacher`, `models.teacher.Teacher` of it, which is judged and exported.
    Parts that a host is given are children: what one of them exports or optimizes itself, it says (`Exporting`,
    `SelfOptimizing`); no name decides.
    """

    student: nn.Module
    teacher: Teacher

    @abstractmethod
    def losses(self, batch: Batch, t: float) -> Step:
        """One step without its optimizer; t in [0, 1) is the share of training done."""

    def after_step(self) -> None:
        """The teacher follows the student."""
        self.teacher.follow(self.student)

    def networks(self) -> dict[str, nn.Module]:
        """What is scored after an epoch: the bare network behind each name, image (B, 3, H, W) -> Output."""
        return {"student": self.student, "teacher": self.teacher.model}

    def exported_state(self) -> dict[str, Tensor]:
        """What a finished run keeps, by the names of `state_dict`: the teacher's network, and what parts export.

        `training.loop` writes it after the last epoch, or `training.selection` after the one held-out images choose.
        """
        network = self.networks()["teacher"]
        state = getattr(network, "inference_state", network.state_dict)()
        parts: dict[str, Mapping[str, Any]] = {"teacher.model": state}
        parts |= {name: part.exported_state() for name, part in self.named_children() if isinstance(part, Exporting)}
        named = ((f"{name}.{key}", value) for name, state in parts.items() for key, value in state.items())
        return {key: value for key, value in named if isinstance(value, Tensor)}

    def own_parameters(self) -> list[nn.Parameter]:
        """Parameters that the common optimizer leaves alone, since a part trains them itself."""
        return [p for part in self.children() if isinstance(part, SelfOptimizing) for p in part.own_parameters()]
