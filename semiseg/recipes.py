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

from .options import DDFP, DGCL, ESL, Consistency, Evaluation, Network, Optimization, one_of

Method = Literal["supervised", "mean_teacher", "ddfp", "dgcl", "esl"]
Scale = Literal["smoke", "tiny", "paper"]
DATA = ("digits", "voc", "cityscapes")
METHODS, SCALES = get_args(Method), get_args(Scale)


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
        for name in ("dgcl", "esl"):
            if self.method != name:
                del used[name]
        if self.method in ("dgcl", "esl"):
            del used["consistency"]["tau"]  # their pseudo-labels have no threshold
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
            "esl": ESL,
            "evaluation": Evaluation,
        }
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
    made = makers[scale](Recipe(method, data, split, scale, seed))
    return _esl(made) if method == "esl" else made


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
        dgcl=DGCL(embedding=16, bank=32, quota=8, pixels=64, scales=(2, 4), anchors=8, keys=4, negatives=16),
        esl=replace(tiny.esl, embedding=2 * 16, sure=0.0, collect_steps=1),
        evaluation=Evaluation("whole", 32, every=2),
    )


def _voc_tiny(base: Recipe) -> Recipe:
    """Small VOC images on a laptop: MobileNetV2, crop 128, AdamW because there is no time for SGD to converge."""
    return replace(
        base,
        network=Network("mobilenet_v2", 16, "imagenet", width=96, low_width=24, rates=(2, 4, 6)),
        optimization=Optimization(
            crop=128,
            batch=8,
            epochs=10,
            epoch_steps=30,
            optimizer="adamw",
            lr=5e-4,
            head_lr_factor=4.0,
            weight_decay=1e-2,
        ),
        consistency=Consistency(tau=0.95, decay=0.99),
        ddfp=DDFP(eps=_same_step(96 + 24), flow_hidden=128),
        dgcl=_fewer_pixels(2 * 8 * 32 * 32, embedding=96),
        esl=ESL(embedding=2 * 96, collect_steps=60),
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
