"""Recipes: every number of a training run as one frozen value, made by a function, checked when it is built.

A variant is `dataclasses.replace(recipe(...), ...)`; `semiseg.build` turns a recipe into a host.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any, Literal, get_args

from .losses import Divisor
from .models.backbones import BACKBONES

Method = Literal["supervised", "mean_teacher", "ddfp", "esl"]
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
    divisor: Divisor = "kept"  # released code; "valid": Eq. 4
    teacher: Literal["ema", "self"] = "ema"  # paper; "self": what the released code effectively does
    unlabeled_from_epoch: int = 1

    def __post_init__(self) -> None:
        one_of("divisor", self.divisor, get_args(Divisor))
        one_of("teacher", self.teacher, ("ema", "self"))


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
    esl: ESL = field(default_factory=ESL)
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
        if self.method == "esl":
            del used["consistency"]["tau"]
        else:
            del used["esl"]
        if self.method == "supervised":
            used["consistency"] = {"decay": self.consistency.decay}
        return json.loads(json.dumps(used))

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
    made = makers[scale](Recipe(method, data, split, scale, seed))
    return _esl(made) if method == "esl" else made


def _same_step(channels: int) -> float:
    """The paper's epsilon = 4 at 304 channels, as the same root-mean-square change per channel at fewer."""
    return round(4 * (channels / 304) ** 0.5, 2)


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
        esl=ESL(embedding=2 * 64, collect_steps=1024 // 16),
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
        esl=replace(tiny.esl, embedding=2 * 16, sure=0.0, collect_steps=1),
        evaluation=Evaluation("whole", 32, every=2),
    )


def _voc_tiny(base: Recipe) -> Recipe:
    """Small VOC images on a laptop: MobileNetV2, crop 128."""
    return replace(
        base,
        network=Network("mobilenet_v2", 16, "imagenet", width=96, low_width=24, rates=(2, 4, 6)),
        optimization=Optimization(128, (0.5, 2.0), 8, epochs=10, epoch_steps=60, lr=5e-3, head_lr_factor=10.0),
        consistency=Consistency(tau=0.95, decay=0.99),
        ddfp=DDFP(eps=_same_step(96 + 24), flow_hidden=128),
        esl=ESL(embedding=2 * 96, collect_steps=60),
        evaluation=Evaluation("whole", 224, every=5),
    )


def _voc_paper(base: Recipe) -> Recipe:
    """DDFP Sec. 4.1 for PASCAL VOC, classic and blended alike: they differ in the lists, not in the training."""
    return base


def _cityscapes_paper(base: Recipe) -> Recipe:
    """DDFP Sec. 4.1 for Cityscapes; OHEM is not in the paper, the released class has 0.7 and 100,000."""
    return replace(
        base,
        optimization=Optimization(769, batch=16, epochs=200, lr=1e-2, head_lr_factor=1.0),
        consistency=Consistency(tau=0.7),
        evaluation=Evaluation("sliding", 801, 534),
    )


def _esl(base: Recipe) -> Recipe:
    """Where ESL trains otherwise than DDFP: every batch is mixed, and at paper scale its Sec. 4.1.

    Output stride, decay and sliding step are not in the paper; they are those of U2PL, whose settings it shares.
    """
    consistency = replace(base.consistency, cutmix_p=1.0, decay=0.99)
    if base.scale != "paper":
        return replace(base, consistency=consistency)
    optimization = replace(base.optimization, batch=8, head_lr_factor=10.0)
    base = replace(base, network=replace(base.network, output_stride=8))
    if base.data != "cityscapes":
        return replace(base, optimization=optimization, consistency=consistency)
    return replace(
        base,
        optimization=replace(optimization, weight_decay=5e-4, ohem=True),
        consistency=replace(consistency, unlabeled_from_epoch=0),
        evaluation=Evaluation("sliding", 769, 513),
    )


def paper(base: Recipe) -> Recipe:
    """DDFP read from the paper alone: every option where the text speaks."""
    options = replace(
        base.ddfp, tap="features", learn_means=False, second_bn=False, weights=(1.0, 0.5), sampling="equal", noise=0.0
    )
    return replace(base, ddfp=options, consistency=replace(base.consistency, divisor="valid", teacher="ema"))


def official(base: Recipe) -> Recipe:
    """DDFP as the released code runs (Gavinwxy/DDFP @ 7956c72), its accidental `teacher="self"` included."""
    options = DDFP(eps=base.ddfp.eps, flow_hidden=base.ddfp.flow_hidden)
    return replace(base, ddfp=options, consistency=replace(base.consistency, divisor="kept", teacher="self"))
