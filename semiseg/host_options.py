"""The numbers of the training schemes, as `options` has those of the papers: frozen, checked when they are built."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

from .options import one_of, positive

SCALES = (0.5, 0.75, 1.0, 1.5, 2.0)


@dataclass(frozen=True)
class MeanTeacherMSE:
    """Mean teacher with soft targets.  `recipes.official` chooses TorchSemiSeg's reading, the rerun papers quote."""

    weight: float = 100.0  # of a mean over classes; of a sum over K classes it would be weight / K
    ramp_up: float = 0.1  # share of training in which the weight rises; 0: constant (TorchSemiSeg)
    color: bool = True  # the student's view has other colors; False: both networks see the same image (TorchSemiSeg)
    on_labeled: bool = False  # consistency on labeled images too (TorchSemiSeg)

    def __post_init__(self) -> None:
        positive(weight=self.weight)
        if not 0 <= self.ramp_up <= 1:
            raise ValueError(f"ramp_up is a share of training in [0, 1], got {self.ramp_up}")


@dataclass(frozen=True)
class CutMixSeg:
    """French et al.; decay of the teacher and area of the box are in `Consistency`."""

    tau: float = 0.97
    confidence: Literal["batch", "pixel"] = "batch"  # one factor for the whole batch, or a mask
    weight: float = 1.0
    color: bool = False  # True: the mixed images have other colors too

    def __post_init__(self) -> None:
        one_of("confidence", self.confidence, ("batch", "pixel"))
        positive(weight=self.weight)
        if not 0 <= self.tau <= 1:
            raise ValueError(f"tau is a probability in [0, 1], got {self.tau}")


@dataclass(frozen=True)
class CPS:
    """Cross pseudo supervision; the weight is PASCAL VOC's with mixing."""

    weight: float = 1.0  # Cityscapes 5; without mixing 1.5 and 6
    mixed: bool = True  # False: no mixing, and labeled images take part in the cross supervision
    boxes: int = 3
    area: tuple[float, float] = (0.25, 0.5)  # share of the image that all boxes together would cover without overlap
    shared_mask: bool | None = None  # one paste for both networks; None: but with UPC each pseudo-label has its own
    label_mode: Literal["eval", "train"] = "eval"  # "train": batch statistics and dropout (released code)
    padding: bool = False  # True: padding is supervised too (released code)
    color: bool = False

    def __post_init__(self) -> None:
        one_of("label_mode", self.label_mode, ("eval", "train"))
        positive(weight=self.weight, boxes=self.boxes)
        if not 0 < self.area[0] <= self.area[1] <= 1:
            raise ValueError(f"area must be 0 < low <= high <= 1, got {self.area}")

    @staticmethod
    def plain(cityscapes: bool = False) -> CPS:
        """Without mixing, at the weight of the paper's tables."""
        return CPS(mixed=False, weight=6.0 if cityscapes else 1.5)


@dataclass(frozen=True)
class UniMatch:
    """UniMatch; tau, decay of the watching average and divisor are in `Consistency`."""

    weights: tuple[float, float, float] = (0.25, 0.25, 0.5)  # of both strong views and of the dropped channels
    drop: float = 0.5
    box_p: float = 0.5
    box_area: tuple[float, float] = (0.02, 0.4)

    def __post_init__(self) -> None:
        if not 0 <= self.drop < 1 or min(self.weights) < 0:
            raise ValueError(f"UniMatch needs drop in [0, 1) and weights >= 0, got {self.drop} and {self.weights}")


@dataclass(frozen=True)
class AugSeg:
    """AugSeg; tau and decay are in `Consistency`."""

    changes: int = 3  # most changes of intensity of the strong view
    inject: tuple[float, float] = (8.0, 2.0)  # Beta of the labeled boxes
    cut: tuple[float, float] = (4.0, 4.0)  # Beta of the mixed boxes
    adaptive: bool = True  # inject more where the teacher is unsure
    unlabeled_weight: float = 1.0
    copy_epochs: int = 1  # the teacher is the student for so long

    def __post_init__(self) -> None:
        positive(changes=self.changes)


@dataclass(frozen=True)
class AEL:
    """AEL; tau and decay are in `Consistency`.  Defaults are for PASCAL VOC."""

    momentum: float = 0.999
    absent_decays: bool = False  # True: released code
    random_start: bool = False  # True: released code
    least_area: float = 0.03  # of a component that is cut out; Cityscapes 0.005
    paste_p: float = 0.5
    paste_classes: int = 1  # Cityscapes 3
    paste_among: tuple[int, ...] | None = None  # None: all but class 0
    on_labeled: bool = True
    gamma: float = 1.0
    unlabeled_weight: float = 1.0

    def __post_init__(self) -> None:
        positive(paste_classes=self.paste_classes, least_area=self.least_area)
        if not 0 <= self.momentum < 1 or not 0 <= self.paste_p <= 1:
            raise ValueError(f"AEL needs momentum in [0, 1) and paste_p in [0, 1], got {self.momentum}, {self.paste_p}")


@dataclass(frozen=True)
class STPP:
    """ST++: three trainings; the last has the epochs of `Optimization`.

    Labels are made by the student, as in the released code, though the teacher is what is judged: averaging weights
    is no part of ST++, and at the end of a stage, when the rate has fallen to 0, the two hardly differ.
    """

    epochs: tuple[int, int] = (80, 80)  # of the first training, on labels alone, and of that on the reliable half
    select: bool = True  # False: ST, one retraining on all images
    labeled_by: Literal["student", "teacher"] = "student"
    teacher: Literal["last", "best_val"] = "last"  # "best_val": the best on the validation set labels (released code)
    scales: tuple[float, ...] = SCALES  # at which unlabeled images are labeled
    color: bool = True  # color jitter, grayscale and blur on unlabeled images
    cutout: float = 0.5  # probability of a rectangle of noise in an unlabeled image

    def __post_init__(self) -> None:
        one_of("labeled_by", self.labeled_by, ("student", "teacher"))
        one_of("teacher", self.teacher, ("last", "best_val"))
        if len(self.epochs) != 2 or self.epochs[0] < 3 or self.epochs[1] < 1:
            raise ValueError(f"ST++ compares three epochs of its first training; got epochs={self.epochs}")
        if not self.scales or min(self.scales) <= 0:
            raise ValueError(f"scales must be positive factors, got {self.scales}")
        if not 0 <= self.cutout <= 1 or (self.cutout and not self.color):
            raise ValueError(
                f"cutout is a probability, and 0 where color is off, got cutout={self.cutout}, color={self.color}"
            )


@dataclass(frozen=True)
class Mask2Former:
    """Mask2Former and its two trainings; the last has the epochs of `Optimization`.

    Width and backbone are in `Network`, whose other fields say nothing here.  Labels are made by the student, as in
    ST++.
    """

    epochs: int = 30  # of the first training, on labels alone
    labeled_by: Literal["student", "teacher"] = "student"
    doubt: Literal["normalized", "missing"] = "normalized"  # entropy of scores / sum; "missing": 1 - sum as a class
    color: bool = True  # color jitter, grayscale and blur on unlabeled images
    queries: int = 100
    encoder_layers: int = 6
    decoder_layers: int = 9
    heads: int = 8
    feedforward: tuple[int, int] = (1024, 2048)
    points: int = 12_544
    no_object: float = 0.1  # weight of the class "no object"

    def __post_init__(self) -> None:
        one_of("labeled_by", self.labeled_by, ("student", "teacher"))
        one_of("doubt", self.doubt, ("normalized", "missing"))
        positive(epochs=self.epochs, queries=self.queries, heads=self.heads, points=self.points)
        positive(encoder_layers=self.encoder_layers, decoder_layers=self.decoder_layers, no_object=self.no_object)


@dataclass(frozen=True)
class U2PL:
    """U2PL; decay, teacher, divisor and the share of mixed batches are in `Consistency`.

    Numbers of pixels are for 32 maps of 129 x 129 features, a step of the released code on PASCAL VOC.  Classes are
    ranked from 0, the likeliest; with two or three of them low_rank must be lowered, which building the host checks.
    """

    embedding: int = 256
    unlabeled_weight: float = 1.0
    weight: float = 0.1  # of the contrast; 0: none
    drop: float = 0.2  # share of uncertain pixels at first; it falls to 0 epoch by epoch
    mixer: Literal["cutmix", "classmix"] = "cutmix"
    color: bool = False  # pasting alone is the strong view; True: on the color-jittered image
    queue: int = 30_000
    first_queue: int = 50_000  # of class 0
    quota: int | None = 3_000  # most new negatives of a class in one step; None: all
    anchors: int = 256
    negatives: int = 50
    temperature: float = 0.5
    sure: float = 0.3
    low_rank: int = 3
    high_rank: int = 20
    reliable: Literal["kept", "surest"] = "kept"  # "surest": anchors among the most certain share alone (released code)
    keys: Literal["others", "own"] = "others"  # "own": of pixels pseudo-labeled as the class itself (released code)
    pairs: Literal["class", "position"] = "class"  # "position": classes confused with their place (released code)
    copy_epochs: int = 0  # after the warm-up the teacher stays a copy for so long (released code: 1)

    def __post_init__(self) -> None:
        one_of("mixer", self.mixer, ("cutmix", "classmix"))
        one_of("reliable", self.reliable, ("kept", "surest"))
        one_of("keys", self.keys, ("others", "own"))
        one_of("pairs", self.pairs, ("class", "position"))
        positive(embedding=self.embedding, queue=self.queue, first_queue=self.first_queue, anchors=self.anchors)
        positive(negatives=self.negatives, temperature=self.temperature)
        if self.quota is not None:
            positive(quota=self.quota)
        if self.weight < 0 or self.unlabeled_weight < 0 or not 0 <= self.drop < 1 or not 0 <= self.sure < 1:
            given = f"{self.weight}, {self.unlabeled_weight}, {self.drop} and {self.sure}"
            raise ValueError(f"U2PL needs weights >= 0, drop and sure in [0, 1), got {given}")
        if not 1 <= self.low_rank < self.high_rank:
            raise ValueError(f"U2PL needs 1 <= low_rank < high_rank, got {self.low_rank} and {self.high_rank}")

    def paper(self) -> U2PL:
        """256 negatives, and queues that take in all new ones."""
        return replace(self, negatives=256, quota=None)

    def official(self, processes: int) -> U2PL:
        """Haochen-Wang409/U2PL @ ab3d2be; its contrast of weight 1 is averaged over the processes twice."""
        return replace(
            self, weight=1 / processes, quota=None, reliable="surest", keys="own", pairs="position", copy_epochs=1
        )
