"""The numbers of a recipe by topic: frozen dataclasses, checked when they are built.

A default is what the field uses, or the better founded reading of a paper; where paper and released code disagree the
field says so, and `recipes.paper` and `recipes.official` choose one side of all of them.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal, get_args

from .models.names import BACKBONES, PREFIX


def one_of(name: str, value: object, valid: tuple[object, ...]) -> None:
    """Raise ValueError with the valid values when `value` is none of them."""
    if value not in valid:
        raise ValueError(f"unknown {name} {value!r}; expected one of {', '.join(map(str, valid))}")


def positive(**numbers: float) -> None:
    """Raise ValueError for the first number that is not > 0."""
    for name, value in numbers.items():
        if not value > 0:
            raise ValueError(f"{name} must be > 0, got {value!r}")


def later(default: Any) -> Any:
    """A field added after records were written: `as_dict` leaves it out while it has its default."""
    return field(default=default, metadata={"later": True})


Divisor = Literal["kept", "valid", "kept_scaled"]  # of `losses.pixel_cross_entropy`


@dataclass(frozen=True)
class Network:
    """DeepLabV3+ and its encoder."""

    backbone: str = "resnet101"  # one of BACKBONES, or "timm:NAME"
    output_stride: int = 16
    weights: str | None = "imagenet"  # "imagenet", a file, or None
    width: int = 256
    low_width: int = 48
    rates: tuple[int, ...] = (6, 12, 18)
    dropout: float = 0.1

    def __post_init__(self) -> None:
        if self.backbone.startswith(PREFIX):
            from .models.timm_encoders import check_name  # torch and timm: only for this

            check_name(self.backbone)
        else:
            one_of("backbone", self.backbone, (*BACKBONES, f"{PREFIX}NAME"))
        one_of("output stride", self.output_stride, (8, 16))
        positive(width=self.width, low_width=self.low_width)


@dataclass(frozen=True)
class Optimization:
    """Data order, augmentation, optimizer and schedule; the rate decays as (1 - t)^power."""

    crop: int = 513
    resize: tuple[float, float] = (0.5, 2.0)
    batch: int = 16  # labeled, and as many unlabeled
    epochs: int = 80
    epoch_steps: int | None = None  # None: one pass over the unlabeled images
    optimizer: Literal["sgd", "adamw"] = "sgd"
    lr: float = 1e-3
    head_lr_factor: float = 10.0
    momentum: float = 0.9
    weight_decay: float = 1e-4
    power: float = 0.9
    ohem: bool = False
    strong_labels: bool = False  # colors of the strong view on labeled images too: the control for augmentation alone
    clip_norm: float | None = later(None)  # longest gradient of all parameters together

    def __post_init__(self) -> None:
        one_of("optimizer", self.optimizer, ("sgd", "adamw"))
        positive(crop=self.crop, batch=self.batch, epochs=self.epochs, lr=self.lr, head_lr_factor=self.head_lr_factor)
        if self.epoch_steps is not None:
            positive(epoch_steps=self.epoch_steps)
        if self.clip_norm is not None:
            positive(clip_norm=self.clip_norm)
        if not 0 < self.resize[0] <= self.resize[1]:
            raise ValueError(f"resize must be 0 < low <= high, got {self.resize}")


@dataclass(frozen=True)
class Consistency:
    """The mean-teacher host.  Epochs are counted from 0."""

    tau: float = 0.95
    decay: float = 0.999
    cutmix_p: float = 0.5
    cutmix_area: float = 0.5
    divisor: Divisor = "kept"  # DDFP's released code; "valid": the papers; "kept_scaled": DGCL's released code
    # "ema": the papers; "self": what DDFP's released code effectively does; "ema_train": DGCL's, parameters only and
    # training mode, so that the batch normalizes itself
    teacher: Literal["ema", "self", "ema_train"] = "ema"
    unlabeled_from_epoch: int = 1
    unlabeled_weight: float = later(1.0)

    def __post_init__(self) -> None:
        one_of("divisor", self.divisor, get_args(Divisor))
        one_of("teacher", self.teacher, ("ema", "self", "ema_train"))


@dataclass(frozen=True)
class DDFP:
    """The feature perturbation.  Each default is the better founded reading; see `paper` and `official`."""

    eps: float = 4.0
    tap: Literal["decoder_input", "features"] = "decoder_input"
    learn_means: bool = True
    second_bn: bool = True
    weights: tuple[float, float] = (0.5, 0.5)
    sampling: Literal["uniform", "equal"] = "uniform"
    noise: float = 0.05
    perturb_from_epoch: int = 2
    flow_hidden: int = 256
    step: Literal["density", "normal", "uniform", "dropout", "vat", "vat_published"] = later("density")  # Tables 4, 7

    def __post_init__(self) -> None:
        one_of("step", self.step, ("density", "normal", "uniform", "dropout", "vat", "vat_published"))
        one_of("tap", self.tap, ("decoder_input", "features"))
        one_of("sampling", self.sampling, ("uniform", "equal"))


@dataclass(frozen=True)
class DGCL:
    """The density-guided contrast and its pseudo-labels.  Numbers of pixels are for 8 maps of 129 x 129 features.

    Each default is the better founded reading; see `paper` and `official`.  weight=0 leaves out the contrast and its
    head (Table 5, II); sampling="random" with memory=False is plain contrast (III), memory=False alone is (IV).
    """

    embedding: int = 256
    weight: float = 0.5
    unlabeled_weight: float = 0.5
    color: bool = False  # CutMix alone, in paper and released code; True: on the color-jittered view
    drop: float = 0.2  # share of uncertain pixels that get no pseudo-label at first
    contrast_drop: tuple[float, float] | None = (0.8, 0.1)  # released code: first and least; None: as the pseudo-labels
    drop_falls: Literal["steps", "epochs", "steps_after_warm_up"] = "steps_after_warm_up"  # paper; released code; ours
    bank: int = 10_000
    quota: int = 1_000
    pixels: int = 10_000
    scales: tuple[int, ...] = (8, 16, 32)
    anchors: int = 200
    keys: int = 50
    negatives: int = 512
    tau: float = 0.5
    sampling: Literal["density", "confidence", "random"] = "density"
    memory: bool = True
    exclude: tuple[int, ...] = (0,)
    ready: Literal["class", "all"] = "class"
    center: Literal["projections", "fresh_projections", "features"] = "projections"
    negatives_of: Literal["class", "anchor"] = "class"
    cosine: bool = True
    positive_in_denominator: bool = True
    reduction: Literal["mean", "sum"] = "mean"
    own_neighbor: bool = False
    equal_when_few: bool = False

    def __post_init__(self) -> None:
        one_of("drop_falls", self.drop_falls, ("steps", "epochs", "steps_after_warm_up"))
        one_of("sampling", self.sampling, ("density", "confidence", "random"))
        one_of("ready", self.ready, ("class", "all"))
        one_of("center", self.center, ("projections", "fresh_projections", "features"))
        one_of("negatives_of", self.negatives_of, ("class", "anchor"))
        one_of("reduction", self.reduction, ("mean", "sum"))
        positive(embedding=self.embedding, bank=self.bank, quota=self.quota, pixels=self.pixels, tau=self.tau)
        positive(anchors=self.anchors, keys=self.keys, negatives=self.negatives, scales=min(self.scales, default=0))
        if self.weight < 0 or self.unlabeled_weight < 0:
            raise ValueError(f"weights must be >= 0, got {self.weight} and {self.unlabeled_weight}")
        if self.sampling == "random" and self.memory:
            raise ValueError("sampling='random' takes its center from the batch alone; it needs memory=False")


@dataclass(frozen=True)
class ESL:
    """The dynamic soft label and the pixel-to-part contrast; Tables 2 to 4 vary `label`, `eta` and `parts`.

    Shares, probabilities, temperatures and momenta are the paper's at every scale.  The number of steps that gather
    features for K-means is one pass over the labeled images of the full partition, and the projection is twice as
    wide as the decoder's features, as the paper's 512 to 256.
    """

    label: Literal["dynamic", "top", "hard"] = "dynamic"  # "top" keeps 5
    eta: float = 0.95
    parts: int = 5  # K of the paper; 0: no contrast
    embedding: int = 512
    queue: int = 128  # not in the paper
    negatives: int = 255
    draw: Literal["entries", "classes"] = "entries"  # "classes": parts with few vectors count as much
    temperature: float = 0.5
    share: float = 0.1
    max_anchors: int | None = 1024  # of a class; None: the paper
    sure: float = 0.95
    momentum: float = 0.99
    divisor: Literal["classes", "present"] = "classes"
    color: bool = False  # CutMix alone is the strong view (paper); True: on the color-jittered image
    unlabeled_weight: float = 0.2
    contrast_weight: float = 0.1
    collect_steps: int = 183

    def __post_init__(self) -> None:
        one_of("label", self.label, ("dynamic", "top", "hard"))
        one_of("draw", self.draw, ("entries", "classes"))
        one_of("divisor", self.divisor, ("classes", "present"))
        if not 0 < self.eta <= 1 or not 0 < self.share <= 1 or self.parts < 0:
            given = f"eta={self.eta}, share={self.share}, parts={self.parts}"
            raise ValueError(f"ESL needs 0 < eta <= 1, 0 < share <= 1 and parts >= 0, got {given}")
        positive(
            embedding=self.embedding, queue=self.queue, negatives=self.negatives, temperature=self.temperature,
            collect_steps=self.collect_steps,
        )  # fmt: skip


@dataclass(frozen=True)
class UPC:
    """What replaces doubtful regions of unlabeled images; Tables 5 to 8 vary `replace`, `rows`, `select`, `k` and `n`.

    The controls, `replace` other than "patches", read `rows` and the number of k; "erase_pixels" also n and k, for the
    area k / n^2 that it erases.
    """

    n: int = 4  # patches per side
    k: tuple[int, ...] = (2, 3, 5)  # patches replaced; more than one number: RAS
    rows: Literal["all", "sample"] = "sample"  # "all": a row per k (paper, Eq. 7); "sample": one row, k drawn from them
    select: Literal["uncertainty", "random", "oracle", "oracle_area"] = "uncertainty"
    divide: Literal["sum", "mean"] = "sum"  # of the entropy in a patch; "mean": no advantage for the larger last one
    known: float = 0.0  # least share of a donor's pixels that have a label; 0: any labeled crop
    replace: Literal["patches", "box", "copy_paste", "erase", "erase_pixels"] = "patches"

    def __post_init__(self) -> None:
        one_of("rows", self.rows, ("all", "sample"))
        one_of("select", self.select, ("uncertainty", "random", "oracle", "oracle_area"))
        one_of("divide", self.divide, ("sum", "mean"))
        one_of("replace", self.replace, ("patches", "box", "copy_paste", "erase", "erase_pixels"))
        if self.n < 1 or not self.k or min(self.k) < 0 or max(self.k) > self.n**2:
            raise ValueError(f"UPC needs n >= 1 and each k in 0..n*n, got n={self.n}, k={self.k}")
        if not 0 <= self.known <= 1:
            raise ValueError(f"known is a share of pixels in [0, 1], got {self.known}")


@dataclass(frozen=True)
class WPL:
    """The weights of pseudo-labels by rank statistics; Table 3 varies `reliable`, Fig. 6 and 7 `similarity` and `k`."""

    k: int = 5
    offset: float = 1.0  # released code; 0: Eq. 6
    similarity: Literal["rank", "cosine", "euclidean"] = "rank"
    reliable: Literal["detector", "confidence", "none"] = "detector"
    sure: float = 0.95
    memory: int = 256
    quota: int = 1  # vectors a class stores per image
    resolution: Literal["features", "full"] = "features"  # "full": released code
    unknown: float | None = None  # weight of a class without prototype; None: s = 0
    in_divisor: bool = True  # released code; False: Eq. 5
    box_score: float = 0.85  # of detections that confirm pixels; 0.95 on Cityscapes

    def __post_init__(self) -> None:
        one_of("similarity", self.similarity, ("rank", "cosine", "euclidean"))
        one_of("reliable", self.reliable, ("detector", "confidence", "none"))
        one_of("resolution", self.resolution, ("features", "full"))
        positive(k=self.k, memory=self.memory, quota=self.quota)
        if not 0 <= self.sure <= 1 or not 0 <= self.box_score <= 1 or min(self.offset, self.unknown or 0) < 0:
            raise ValueError("WPL needs sure and box_score in [0, 1], offset and unknown >= 0")

    @staticmethod
    def paper() -> WPL:
        """Eq. 5 and 6 to the letter: weights from 0 on, every pixel in the divisor."""
        return WPL(offset=0.0, in_divisor=False)

    @staticmethod
    def official() -> WPL:
        """cvlab-stonybrook/Weighting-Pseudo-Labels @ b0492232."""
        return WPL(resolution="full", box_score=0.95)


@dataclass(frozen=True)
class Detector:
    """WPL's Faster R-CNN and its training on the labeled images."""

    backbone: str = "resnet50"
    weights: str | None = "imagenet"  # of the encoder, never of a detector
    size: int = 513  # short side of the images, pixels
    batch: int = 8
    epochs: int = 200
    patience: int = 20  # epochs without a better F1 on held-out labeled images
    held_out: float = 0.2
    lr: float = 1e-4
    weight_decay: float = 5e-4
    min_pixels: int = 90  # of a component that gets a box
    most: int = 50  # boxes of an image
    things: tuple[str, ...] | None = later(None)  # classes with boxes; None: all but what is usually stuff

    def __post_init__(self) -> None:
        one_of("backbone", self.backbone, BACKBONES)
        positive(size=self.size, batch=self.batch, epochs=self.epochs, patience=self.patience, lr=self.lr)
        if not 0 < self.held_out < 1:
            raise ValueError(f"held_out must be in (0, 1), got {self.held_out}")


@dataclass(frozen=True)
class Evaluation:
    """How the validation set is scored, and how often."""

    protocol: Literal["whole", "center_crop", "sliding"] = "center_crop"
    size: int = 513
    step: int = 0  # of the sliding window
    every: int = 1  # epochs; the last one is always scored
    held_out: float = later(0.0)  # share of the labeled images, not learned from, that chooses the epoch to export

    def __post_init__(self) -> None:
        one_of("evaluation protocol", self.protocol, ("whole", "center_crop", "sliding"))
        positive(every=self.every, size=self.size)
        if not 0 <= self.held_out < 1:
            raise ValueError(f"held_out is a share of the labeled images in [0, 1), got {self.held_out}")
        if self.protocol == "sliding" and not 0 < self.step <= self.size:
            raise ValueError(f"sliding evaluation needs 0 < step <= size, got step={self.step}, size={self.size}")
