"""Recipes: every number of a training run as one frozen value, made by a function, checked when it is built.

A variant is `dataclasses.replace(recipe(...), ...)`; `semiseg.build` turns a recipe into a host.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, get_args

from .losses import Divisor
from .models.backbones import BACKBONES

Method = Literal["supervised", "mean_teacher", "ddfp", "dgcl"]
Scale = Literal["smoke", "tiny", "paper"]
DATA = ("digits", "voc", "cityscapes")
METHODS, SCALES = get_args(Method), get_args(Scale)


def one_of(name: str, value: object, valid: tuple[object, ...]) -> None:
    """Raise ValueError with the valid values when `value` is none of them."""
    if value not in valid:
        raise ValueError(f"unknown {name} {value!r}; expected one of {', '.join(map(str, valid))}")


def positive(**numbers: float) -> None:
    """Raise ValueError for the first number that is not > 0."""
    for name, value in numbers.items():
        if not value > 0:
            raise ValueError(f"{name} must be > 0, got {value!r}")


@dataclass(frozen=True)
class Network:
    """DeepLabV3+ and its encoder."""

    backbone: str = "resnet101"
    output_stride: int = 16
    weights: str | None = "imagenet"  # "imagenet", a file, or None
    width: int = 256
    low_width: int = 48
    rates: tuple[int, ...] = (6, 12, 18)
    dropout: float = 0.1

    def __post_init__(self) -> None:
        one_of("backbone", self.backbone, BACKBONES)
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

    def __post_init__(self) -> None:
        one_of("optimizer", self.optimizer, ("sgd", "adamw"))
        positive(crop=self.crop, batch=self.batch, epochs=self.epochs, lr=self.lr, head_lr_factor=self.head_lr_factor)
        if self.epoch_steps is not None:
            positive(epoch_steps=self.epoch_steps)
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

    def __post_init__(self) -> None:
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
class Evaluation:
    """How the validation set is scored, and how often."""

    protocol: Literal["whole", "center_crop", "sliding"] = "center_crop"
    size: int = 513
    step: int = 0  # of the sliding window
    every: int = 1  # epochs; the last one is always scored

    def __post_init__(self) -> None:
        one_of("evaluation protocol", self.protocol, ("whole", "center_crop", "sliding"))
        positive(every=self.every, size=self.size)
        if self.protocol == "sliding" and not 0 < self.step <= self.size:
            raise ValueError(f"sliding evaluation needs 0 < step <= size, got step={self.step}, size={self.size}")


@dataclass(frozen=True)
class Recipe:
    """A training run but for the data itself."""

    method: Method
    data: str
    split: str
    scale: Scale
    seed: int = 0
    network: Network = field(default_factory=Network)
    optimization: Optimization = field(default_factory=Optimization)
    consistency: Consistency = field(default_factory=Consistency)
    ddfp: DDFP = field(default_factory=DDFP)
    dgcl: DGCL = field(default_factory=DGCL)
    evaluation: Evaluation = field(default_factory=Evaluation)

    def __post_init__(self) -> None:
        one_of("method", self.method, METHODS)
        one_of("data", self.data, DATA)
        one_of("scale", self.scale, SCALES)
        if not isinstance(self.seed, int) or self.seed < 0:
            raise ValueError(f"seed must be an integer >= 0, got {self.seed!r}")

    @property
    def name(self) -> str:
        return f"{self.data}-{self.scale}/{self.method}-{self.split}-seed{self.seed}"

    def as_dict(self) -> dict[str, Any]:
        """Plain values; parts that the method does not use are left out."""
        used = asdict(self)
        if self.method != "ddfp":
            del used["ddfp"]
        if self.method != "dgcl":
            del used["dgcl"]
        else:
            del used["consistency"]["tau"]
        if self.method == "supervised":
            used["consistency"] = {"decay": self.consistency.decay}
        if self.network.weights is not None:
            used["network"]["weights"] = Path(self.network.weights).name  # where the file lies is not the recipe
        return json.loads(json.dumps(used))

    @staticmethod
    def from_dict(values: Mapping[str, Any]) -> Recipe:
        """The recipe that `as_dict` wrote.  Raises ValueError for keys or values it cannot have."""
        parts = {
            "network": Network,
            "optimization": Optimization,
            "consistency": Consistency,
            "ddfp": DDFP,
            "dgcl": DGCL,
        }
        parts["evaluation"] = Evaluation
        given = dict(values)
        try:
            for key in given.keys() & parts.keys():
                given[key] = parts[key](**{k: tuple(v) if isinstance(v, list) else v for k, v in given[key].items()})
            return Recipe(**given)
        except TypeError as error:
            raise ValueError(f"not a recipe: {error}") from error

    @property
    def sha256(self) -> str:
        return hashlib.sha256(json.dumps(self.as_dict(), sort_keys=True).encode()).hexdigest()


def differences(ours: Mapping[str, Any], theirs: Mapping[str, Any], prefix: str = "") -> list[str]:
    """What two recipes (`as_dict`) disagree in, as 'key: ours != theirs'."""
    found = []
    for key in sorted(ours.keys() | theirs.keys()):
        a, b = ours.get(key), theirs.get(key)
        if isinstance(a, Mapping) and isinstance(b, Mapping):
            found += differences(a, b, f"{prefix}{key}.")
        elif a != b:
            found.append(f"{prefix}{key}: {a!r} != {b!r}")
    return found


# --- recipes ------------------------------------------------------------------------------


def recipe(method: Method, data: str = "digits", split: str = "1_8", scale: Scale = "tiny", seed: int = 0) -> Recipe:
    """The recipe of a method on a data set at a scale.

    Args:
        method: one of METHODS.
        data: "digits" (embedded), "voc", "cityscapes".
        split: one of SPLITS, or the name of list files.
        scale: "smoke" (seconds, for tests), "tiny" (minutes on two cores), "paper" (the paper's own numbers).
        seed: of everything random in the run.

    Raises:
        ValueError: an unknown name, or a scale the data set does not have.
    """
    one_of("data", data, DATA)
    one_of("scale", scale, SCALES)
    makers = {
        "digits": {"smoke": _smoke, "tiny": _digits},
        "voc": {"smoke": _smoke, "tiny": _voc_tiny, "paper": _voc_paper},
        "cityscapes": {"paper": _cityscapes_paper},
    }[data]
    one_of(f"scale for data={data}", scale, tuple(makers))
    return makers[scale](Recipe(method, data, split, scale, seed))


def _same_step(channels: int) -> float:
    """The paper's epsilon = 4 at 304 channels, as the same root-mean-square change per channel at fewer."""
    return round(4 * (channels / 304) ** 0.5, 2)


def _fewer_pixels(pixels: int, embedding: int) -> DGCL:
    """DGCL's numbers of pixels for a step that shows fewer than the 8 x 129 x 129 of the released code on one GPU.

    Each shrinks as the side of a square of that area: at 32 maps of 8 x 8 to an eighth.  The scales of the neighbor
    graphs stay, so that Table 7 can be repeated with its own numbers.
    """
    side = (pixels / (8 * 129**2)) ** 0.5
    counts = {"bank": 10_000, "quota": 1_000, "pixels": 10_000, "anchors": 200, "keys": 50, "negatives": 512}
    return DGCL(embedding=embedding, **{name: round(number * side) for name, number in counts.items()})


def _digits(base: Recipe) -> Recipe:
    """The embedded set; calibrated with supervised and mean_teacher only."""
    return replace(
        base,
        network=Network("tiny", 8, None, width=64, low_width=16, rates=(1, 2)),
        optimization=Optimization(
            crop=32,
            resize=(0.8, 1.25),
            epochs=10,
            epoch_steps=160,
            optimizer="adamw",
            lr=3e-3,
            head_lr_factor=1.0,
            weight_decay=1e-2,
        ),
        consistency=Consistency(tau=0.8, decay=0.99),
        ddfp=DDFP(eps=_same_step(64 + 16), flow_hidden=64),
        dgcl=_fewer_pixels(2 * 16 * 8 * 8, embedding=64),
        evaluation=Evaluation("whole", 32),
    )


def _smoke(base: Recipe) -> Recipe:
    """Every phase of training in a few seconds, whatever the data."""
    tiny = _digits(base)
    return replace(
        tiny,
        network=replace(tiny.network, width=16, low_width=8),
        optimization=replace(tiny.optimization, crop=32, batch=4, epochs=4, epoch_steps=2),
        consistency=replace(tiny.consistency, tau=0.0),  # an untrained network is sure of nothing
        ddfp=replace(tiny.ddfp, flow_hidden=16),
        dgcl=DGCL(embedding=16, bank=32, quota=8, pixels=64, scales=(2, 4), anchors=8, keys=4, negatives=16),
        evaluation=Evaluation("whole", 32, every=2),
    )


def _voc_tiny(base: Recipe) -> Recipe:
    """Small VOC images on a laptop: MobileNetV2, crop 128."""
    return replace(
        base,
        network=Network("mobilenet_v2", 16, "imagenet", width=96, low_width=24, rates=(2, 4, 6)),
        optimization=Optimization(128, (0.5, 2.0), 8, epochs=10, epoch_steps=30, lr=5e-3, head_lr_factor=10.0),
        consistency=Consistency(tau=0.95, decay=0.99),
        ddfp=DDFP(eps=_same_step(96 + 24), flow_hidden=128),
        dgcl=_fewer_pixels(2 * 8 * 32 * 32, embedding=96),
        evaluation=Evaluation("whole", 224, every=5),
    )


def _voc_paper(base: Recipe) -> Recipe:
    """Sec. 4.1 of DDFP for PASCAL VOC, and of DGCL, which agrees; classic and blended differ in lists alone."""
    return base


def _cityscapes_paper(base: Recipe) -> Recipe:
    """DDFP Sec. 4.1 for Cityscapes; OHEM is not in the paper, the released class has 0.7 and 100,000.

    DGCL: OHEM (Sec. 4.1); output stride, rates, ten epochs of labels alone and the window are the released code's.
    """
    city = replace(
        base,
        optimization=Optimization(769, batch=16, epochs=200, lr=1e-2, head_lr_factor=1.0),
        consistency=Consistency(tau=0.7),
        evaluation=Evaluation("sliding", 801, 534),
    )
    if base.method != "dgcl":
        return city
    return replace(
        city,
        network=Network("resnet101", 8, rates=(12, 24, 36)),
        optimization=replace(city.optimization, ohem=True),
        consistency=Consistency(unlabeled_from_epoch=10),
        dgcl=DGCL(exclude=()),
        evaluation=Evaluation("sliding", 800, 533),
    )


def paper(base: Recipe) -> Recipe:
    """DDFP or DGCL read from the paper alone: every option where the text speaks."""
    if base.method == "dgcl":
        return _dgcl_paper(base)
    options = replace(
        base.ddfp, tap="features", learn_means=False, second_bn=False, weights=(1.0, 0.5), sampling="equal", noise=0.0
    )
    return replace(base, ddfp=options, consistency=replace(base.consistency, divisor="valid", teacher="ema"))


def official(base: Recipe) -> Recipe:
    """As the released code runs, its accidents included: DDFP (Gavinwxy/DDFP @ 7956c72) or DGCL."""
    if base.method == "dgcl":
        return _dgcl_official(base)
    options = DDFP(eps=base.ddfp.eps, flow_hidden=base.ddfp.flow_hidden)
    return replace(base, ddfp=options, consistency=replace(base.consistency, divisor="kept", teacher="self"))


def _dgcl_paper(base: Recipe) -> Recipe:
    """256 anchors and 256 + 256 keys at 129 x 129, Eq. 13 as printed, one filter for pseudo-labels and contrast."""
    usual = DGCL()
    options = replace(
        base.dgcl, weight=1.0, unlabeled_weight=1.0, contrast_drop=None, drop_falls="steps",
        anchors=round(base.dgcl.anchors * 256 / usual.anchors), keys=round(base.dgcl.keys * 256 / usual.keys),
        exclude=(), center="features", negatives_of="anchor", cosine=False, positive_in_denominator=False,
        reduction="sum", own_neighbor=True,
    )  # fmt: skip
    return replace(base, dgcl=options, consistency=replace(base.consistency, divisor="valid"))


def _dgcl_official(base: Recipe) -> Recipe:
    """Gavinwxy/DGCL @ 5f41130: no contrast until every bank is full, and its weight once more over the processes.

    The contrast is averaged over the processes twice, so its 0.5 acts as 0.125 on the 4 GPUs of PASCAL VOC and as
    0.0625 on the 8 of Cityscapes.
    """
    gpus = 8 if base.data == "cityscapes" else 4
    options = replace(base.dgcl, weight=0.5 / gpus, drop_falls="epochs", ready="all", equal_when_few=True)
    return replace(
        base, dgcl=options, consistency=replace(base.consistency, divisor="kept_scaled", teacher="ema_train")
    )
