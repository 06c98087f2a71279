"""Recipes: every number of a training run as one frozen value, made by a function, checked when it is built.

A variant is `dataclasses.replace(recipe(...), ...)`; `semiseg.build` turns a recipe into a host.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields, is_dataclass, replace
from pathlib import Path
from typing import Any, Literal, get_args

from . import scales
from .host_options import AEL, CPS, STPP, U2PL, AugSeg, CutMixSeg, Mask2Former, MeanTeacherMSE, UniMatch
from .options import DDFP, DGCL, ESL, UPC, WPL, Consistency, Detector, Evaluation, Network, Optimization, one_of

Method = Literal[
    "supervised",
    "mean_teacher",
    "mean_teacher_mse",
    "cutmix_seg",
    "cps",
    "unimatch",
    "augseg",
    "ael",
    "u2pl",
    "stpp",
    "mask2former",
    "ddfp",
    "dgcl",
    "esl",
]
Scale = Literal["smoke", "tiny", "paper"]
DATA = ("digits", "voc", "cityscapes", "camvid", "coco", "folder")
METHODS, SCALES = get_args(Method), get_args(Scale)
_ALL = tuple(f.name for f in fields(Consistency))
_NO_TAU = tuple(name for name in _ALL if name != "tau")  # pseudo-labels without a threshold
# What a method reads besides network, optimization and evaluation: fields of `consistency`, and a part of its own.
_READS: dict[Method, tuple[tuple[str, ...], str | None]] = {
    "supervised": (("decay",), None),
    "mean_teacher": (_ALL, None),
    "mean_teacher_mse": (("decay", "teacher"), "mean_teacher_mse"),
    "cutmix_seg": (("decay", "teacher", "cutmix_p", "cutmix_area"), "cutmix_seg"),
    "cps": (("decay",), "cps"),
    "unimatch": (("tau", "decay", "divisor"), "unimatch"),
    "augseg": (("tau", "decay", "divisor", "teacher"), "augseg"),
    "ael": (("tau", "decay", "teacher"), "ael"),
    "stpp": (("decay",), "stpp"),
    "mask2former": (("decay",), "mask2former"),
    "u2pl": (_NO_TAU, "u2pl"),
    "ddfp": (_ALL, "ddfp"),
    "dgcl": (_NO_TAU, "dgcl"),
    "esl": (_NO_TAU, "esl"),
}
_OWN = tuple(own for _, own in _READS.values() if own)
_PLUG_INS = ("upc", "wpl")


@dataclass(frozen=True)
class Recipe:
    """A training run but for the data itself.

    A plug-in takes part where its options are given: `replace(recipe("cps"), upc=UPC())` is UPC on CPS.
    """

    method: Method
    data: str
    split: str
    scale: Scale
    seed: int = 0
    network: Network = field(default_factory=Network)
    optimization: Optimization = field(default_factory=Optimization)
    consistency: Consistency = field(default_factory=Consistency)
    mean_teacher_mse: MeanTeacherMSE = field(default_factory=MeanTeacherMSE)
    cutmix_seg: CutMixSeg = field(default_factory=CutMixSeg)
    cps: CPS = field(default_factory=CPS)
    unimatch: UniMatch = field(default_factory=UniMatch)
    augseg: AugSeg = field(default_factory=AugSeg)
    ael: AEL = field(default_factory=AEL)
    stpp: STPP = field(default_factory=STPP)
    mask2former: Mask2Former = field(default_factory=Mask2Former)
    u2pl: U2PL = field(default_factory=U2PL)
    ddfp: DDFP = field(default_factory=DDFP)
    dgcl: DGCL = field(default_factory=DGCL)
    esl: ESL = field(default_factory=ESL)
    upc: UPC | None = None
    wpl: WPL | None = None
    detector: Detector = field(default_factory=Detector)  # used by WPL where `wpl.reliable` is "detector"
    evaluation: Evaluation = field(default_factory=Evaluation)

    def __post_init__(self) -> None:
        one_of("method", self.method, METHODS)
        one_of("data", self.data, DATA)
        one_of("scale", self.scale, SCALES)
        if not isinstance(self.seed, int) or self.seed < 0:
            raise ValueError(f"seed must be an integer >= 0, got {self.seed!r}")
        if self.method == "supervised" and self.upc is not None:
            raise ValueError("UPC changes unlabeled images, and method 'supervised' has none; choose another method")
        if self.method == "mask2former" and self.optimization.ohem:
            raise ValueError("method 'mask2former' has no cross-entropy over pixels that OHEM could choose from")

    @property
    def label(self) -> str:
        """The method and its plug-ins, as in 'cps+upc'."""
        return "+".join([self.method, *(name for name in _PLUG_INS if getattr(self, name) is not None)])

    @property
    def name(self) -> str:
        return f"{self.data}-{self.scale}/{self.label}-{self.split}-seed{self.seed}"

    @property
    def asks_detector(self) -> bool:
        """Whether detected boxes take part."""
        return self.wpl is not None and self.wpl.reliable == "detector"

    def as_dict(self) -> dict[str, Any]:
        """Plain values; parts that the method does not use are left out."""
        used = asdict(self)
        read, own = _READS[self.method]
        used["consistency"] = {name: used["consistency"][name] for name in read}
        absent = [name for name in _PLUG_INS if used[name] is None]
        absent += [] if self.asks_detector else ["detector"]
        for name in {*_OWN, *absent} - {own}:
            del used[name]
        for name in used.keys() & {f.name for f in fields(self)}:
            _leave_out_later(getattr(self, name), used[name])
        for part in (used["network"], used.get("detector", {})):
            if part.get("weights") is not None:
                part["weights"] = Path(part["weights"]).name  # where the file lies is not the recipe
        return json.loads(json.dumps(used))

    @staticmethod
    def from_dict(values: Mapping[str, Any]) -> Recipe:
        """The recipe that `as_dict` wrote.  Raises ValueError for keys or values it cannot have."""
        parts = {
            "network": Network,
            "optimization": Optimization,
            "consistency": Consistency,
            "mean_teacher_mse": MeanTeacherMSE,
            "cutmix_seg": CutMixSeg,
            "cps": CPS,
            "unimatch": UniMatch,
            "augseg": AugSeg,
            "ael": AEL,
            "stpp": STPP,
            "mask2former": Mask2Former,
            "u2pl": U2PL,
            "ddfp": DDFP,
            "dgcl": DGCL,
            "esl": ESL,
            "upc": UPC,
            "wpl": WPL,
            "detector": Detector,
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


def _leave_out_later(part: Any, used: dict[str, Any]) -> None:
    """Drop the fields of a part that were added later and have their default."""
    for f in fields(part) if is_dataclass(part) else ():
        if f.metadata.get("later") and f.name in used and getattr(part, f.name) == f.default:
            del used[f.name]


def label_of(values: Mapping[str, Any]) -> str:
    """`Recipe.label` of the dictionary that `as_dict` wrote."""
    return "+".join([values["method"], *(name for name in _PLUG_INS if name in values)])


def usual(values: Mapping[str, Any]) -> Recipe:
    """The recipe of the same method, plug-ins, data, split, scale and seed with nothing replaced."""
    made = recipe(values["method"], values["data"], values["split"], values["scale"], values["seed"])
    return replace(made, upc=UPC() if "upc" in values else None, wpl=WPL() if "wpl" in values else None)


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
        data: one of DATA: "digits" (embedded), a benchmark, or "folder" (your own images).
        split: one of SPLITS, or the name of list files.
        scale: "smoke" (seconds, for tests), "tiny" (minutes on two cores), "paper" (the paper's own numbers).
        seed: of everything random in the run.

    Raises:
        ValueError: an unknown name, or a scale the data set does not have.
    """
    one_of("data", data, DATA)
    one_of("scale", scale, SCALES)
    makers = scales.MAKERS[data]
    one_of(f"scale for data={data}", scale, tuple(makers))
    return scales.as_its_paper(makers[scale](Recipe(method, data, split, scale, seed)))


def with_alpha(base: Recipe, alpha: float) -> Recipe:
    """The recipe with its unlabeled terms times alpha, for the hosts that WPL plugs into (WPL Eq. 7)."""
    one_of("host with a factor alpha", base.method, ("mean_teacher", "unimatch", "augseg", "ael", "u2pl"))
    if base.method == "unimatch":
        a, b, c = base.unimatch.weights
        return replace(base, unimatch=replace(base.unimatch, weights=(alpha * a, alpha * b, alpha * c)))
    if base.method == "augseg":
        return replace(base, augseg=replace(base.augseg, unlabeled_weight=alpha * base.augseg.unlabeled_weight))
    if base.method == "ael":
        return replace(base, ael=replace(base.ael, unlabeled_weight=alpha * base.ael.unlabeled_weight))
    if base.method == "u2pl":  # its contrast is no pseudo-label term and keeps its weight
        return replace(base, u2pl=replace(base.u2pl, unlabeled_weight=alpha * base.u2pl.unlabeled_weight))
    return replace(base, consistency=replace(base.consistency, unlabeled_weight=alpha))


def paper(base: Recipe) -> Recipe:
    """DDFP, DGCL or U2PL read from the paper alone: every option where the text speaks."""
    if base.method == "u2pl":
        return replace(base, u2pl=base.u2pl.paper())
    if base.method == "dgcl":
        return _dgcl_paper(base)
    options = replace(
        base.ddfp, tap="features", learn_means=False, second_bn=False, weights=(1.0, 0.5), sampling="equal", noise=0.0
    )
    return replace(base, ddfp=options, consistency=replace(base.consistency, divisor="valid", teacher="ema"))


def official(base: Recipe) -> Recipe:
    """As the released code runs, its accidents included: DDFP (Gavinwxy/DDFP @ 7956c72) or DGCL.

    CPS and mean teacher with MSE: charlesCXK/TorchSemiSeg @ 5e0c29c.  U2PL: Haochen-Wang409/U2PL @ ab3d2be.
    """
    if base.method == "u2pl":
        return replace(base, u2pl=base.u2pl.official(processes=8 if base.data == "cityscapes" else 4))
    if base.method == "dgcl":
        return _dgcl_official(base)
    if base.method == "mean_teacher_mse":
        return _mean_teacher_official(base)
    if base.method == "cps":
        return replace(base, cps=replace(base.cps, label_mode="train", padding=True))
    options = DDFP(eps=base.ddfp.eps, flow_hidden=base.ddfp.flow_hidden)
    return replace(base, ddfp=options, consistency=replace(base.consistency, divisor="kept", teacher="self"))


def _mean_teacher_official(base: Recipe) -> Recipe:
    """The rerun that papers quote: one image for both networks, labeled ones too, a teacher with own statistics."""
    options = replace(base.mean_teacher_mse, ramp_up=0.0, color=False, on_labeled=True)
    return replace(
        base, mean_teacher_mse=options, consistency=replace(base.consistency, teacher="ema_train", decay=0.99)
    )


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
