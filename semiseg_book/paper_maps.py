"""Which recipe each row of the papers' tables is: the map from published cells to what would reproduce them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from semiseg.recipe import Recipe

from .experiments import Change, Experiment, Setting, split_of
from .published import PublishedTable

_HOSTS = {
    "Supervised": "supervised",
    "MT": "mean_teacher_mse",  # the reruns that these tables quote have soft targets
    "CutMix-Seg": "cutmix_seg",
    "CPS": "cps",
    "ST++": "stpp",
    "U2PL": "u2pl",
    "UniMatch": "unimatch",
    "AugSeg": "augseg",
    "AEL": "ael",
    "Mask2Former": "mask2former",
    "DDFP": "ddfp",
    "DGCL": "dgcl",
    "ESL": "esl",
}
SUPERVISED = Experiment("supervised")
MAIN: dict[str, Experiment] = {name: Experiment(method) for name, method in _HOSTS.items()}
MAIN |= {
    f"{n} + {p}": Experiment(m, (p.lower(),)) for n, m in _HOSTS.items() for p in ("UPC", "WPL") if m != "supervised"
}


@dataclass(frozen=True)
class Ablation:
    """A table that varies something: a recipe for each `variable_value`, or for each pair of method and value."""

    reference: Experiment  # differences over seeds are to this one
    called: str  # in words
    rows: Mapping[Any, Experiment]


def _ddfp(**changes: Change) -> Experiment:
    return Experiment("ddfp", (), {f"ddfp.{name}": value for name, value in changes.items()})


def _dgcl(**changes: Change) -> Experiment:
    return Experiment("dgcl", (), {f"dgcl.{name}": value for name, value in changes.items()})


def _esl(**changes: Change) -> Experiment:
    return Experiment("esl", (), {f"esl.{name}": value for name, value in changes.items()})


def _upc(**changes: Change) -> Experiment:
    return Experiment("stpp", ("upc",), {f"upc.{name}": value for name, value in changes.items()})


def _wpl(method: str = "unimatch", **changes: Change) -> Experiment:
    return Experiment(method, ("wpl",), {f"wpl.{name}": value for name, value in changes.items()})


def _epsilon(value: float) -> Experiment:
    """The paper's default is 4; at other widths the same change per channel, see `scales`."""

    def at_scale(base: Recipe) -> float:
        return round(base.value("ddfp.eps") * value / 4, 2)

    return _ddfp(eps=at_scale)


def _lambda(value: float) -> Experiment:
    return _ddfp(weights=lambda base: (base.value("ddfp.weights")[0], value))


def _alpha(value: float) -> Experiment:
    return replace(
        _wpl(), changes={"unimatch.weights": lambda b: tuple(value * w for w in b.value("unimatch.weights"))}
    )


_NONE = "the first row"
_PLAIN_CONTRAST = _dgcl(sampling="random", memory=False)
_STPP = Experiment("stpp")
ABLATIONS: dict[tuple[str, str], Ablation] = {
    ("ddfp", "4"): Ablation(SUPERVISED, _NONE, {
        "I: supervised": SUPERVISED,
        "II: + image consistency": Experiment("mean_teacher"),
        "III: II + feature consistency, random normal noise": _ddfp(step="normal"),
        "IV: II + feature consistency, density-descending": _ddfp(),
    }),
    ("ddfp", "5"): Ablation(_ddfp(), "ε = 4", {v: _epsilon(float(v)) for v in ("1", "2", "4", "6", "8")}),
    ("ddfp", "6"): Ablation(_ddfp(), "λ = 0.5", {v: _lambda(float(v)) for v in ("0.2", "0.5", "1", "1.5", "2")}),
    ("ddfp", "7"): Ablation(Experiment("mean_teacher"), "no perturbation of features", {
        "Uniform noise (CCT)": _ddfp(step="uniform"),
        "Channel dropout (UniMatch)": _ddfp(step="dropout"),
        "VAT (PS-MT)": _ddfp(step="vat"),
        "Density-descending": _ddfp(),
    }),
    ("dgcl", "5"): Ablation(SUPERVISED, _NONE, {
        "I: supervised": SUPERVISED,
        "II: + L_unsup": _dgcl(weight=0.0),
        "III: II + plain contrast": _PLAIN_CONTRAST,
        "IV: III + density": _dgcl(memory=False),
        "V: IV + memory": _dgcl(),
    }),
    ("dgcl", "6"): Ablation(_dgcl(weight=0.0), "no contrast", {
        "Random / Average": _PLAIN_CONTRAST,
        "Low confidence / High confidence": _dgcl(sampling="confidence"),
        "Low density / High density": _dgcl(),
    }),
    ("dgcl", "7"): Ablation(_dgcl(), "several scales", {
        **{str(k): _dgcl(scales=(k,)) for k in (8, 16, 32, 64)},
        "multi-scale 8,16,32": _dgcl(scales=(8, 16, 32)),
    }),
    ("esl", "2"): Ablation(SUPERVISED, _NONE, {
        "L_CE": SUPERVISED,
        "L_CE + L_SCE(hard)": _esl(label="hard", parts=0),
        "L_CE + L_SCE(hard) + L_CTR": _esl(label="hard"),
        "L_CE + L_SCE(DSL)": _esl(parts=0),
        "L_CE + L_SCE(DSL) + L_CTR": _esl(),
    }),
    ("esl", "3"): Ablation(_esl(parts=0), "η = 0.95", {
        **{v: _esl(eta=float(v), parts=0) for v in ("0.80", "0.90", "0.95", "0.99")},
        "Top-5": _esl(label="top", parts=0),
    }),
    ("esl", "4"): Ablation(_esl(), "K = 5", {v: _esl(parts=int(v)) for v in ("0", "1", "3", "5", "7", "10")}),
    ("esl", "F7a"): Ablation(_esl(label="hard", parts=0), "hard labels", {"": _esl(parts=0)}),
    ("upc", "5"): Ablation(_STPP, _NONE, {
        "w/o": _STPP,
        "w/ Random Erasing": _upc(replace="erase"),
        "w/ Copy-Paste": _upc(replace="copy_paste"),
        "w/ CutMix": _upc(replace="box"),
        "w/ UPC": _upc(),
    }),
    ("upc", "6"): Ablation(_STPP, _NONE, {
        "ST++ (none)": _STPP,
        "+ CutMix": _upc(replace="box"),
        "+ Patch CutMix": _upc(k=(5,)),
        "+ Patch CutMix + RAS": _upc(),
    }),
    ("upc", "7"): Ablation(_STPP, "ST++", {
        (method, str(k)): _upc(k=(k,), select=select)
        for method, select in
        (("Random", "random"), ("UPC (uncertainty)", "uncertainty"), ("Oracle", "oracle"))
        for k in (1, 2, 3, 5)
    }),
    ("upc", "8"): Ablation(_STPP, "ST++", {
        f"{n};{k}": _upc(n=n, k=(k,)) for n in (3, 4, 5) for k in (1, 2, 3, 5, 7, 9, 11) if k <= n * n
    }),
    ("wpl", "3"): Ablation(Experiment("mean_teacher"), _NONE, {
        "Baseline (teacher-student of Sec. 3.1)": Experiment("mean_teacher"),
        "+ PPW": _wpl("mean_teacher", reliable="none"),
        "+ PPW + RPPI": _wpl("mean_teacher"),
    }),
    ("wpl", "S2"): Ablation(Experiment("unimatch"), "UniMatch", {
        v: _alpha(float(v)) for v in ("0", "0.2", "0.4", "0.6", "0.8")
    }),
    ("wpl", "S3"): Ablation(Experiment("unimatch"), "UniMatch", {
        v: _wpl(box_score=float(v)) for v in ("0.80", "0.85", "0.90", "0.95")
    }),
    ("wpl", "S4"): Ablation(Experiment("unimatch"), "UniMatch", {
        v: _wpl(memory=int(v)) for v in ("32", "64", "128", "256", "512")
    }),
}  # fmt: skip
# Tables no run record can fill, and why.
ELSEWHERE = {
    ("dgcl", "4"): "These scores are of features, not of predictions; the chapter of DGCL computes them from its runs.",
    ("upc", "4"): (
        "Records are of one data set each. Its middle value: semiseg train --method stpp --plug-ins upc "
        "--data voc --root VOC --split full --scale paper --unlabeled COCO/train2017. "
        "Image-level labels are not used here."
    ),
    ("wpl", "S1"): "Accuracy of boxes and pseudo-labels is measured in the chapter of WPL, on the data of its run.",
    ("wpl", "S5"): "SemiVL and its vision transformer are not among the training schemes here.",
    ("wpl", "S6"): "Xception-65 is not among the encoders here.",
}


def experiment_of(table: PublishedTable, row: Any) -> Experiment | None:
    """The experiment behind a row of a published table; None where this package has no counterpart."""
    key = (table.paper, table.number)
    if key in ELSEWHERE:
        return None
    if key not in ABLATIONS:
        return MAIN.get(row.method)
    rows = ABLATIONS[key].rows
    return rows.get(row.variable_value, rows.get((row.method, row.variable_value)))


def reference_of(table: PublishedTable, experiment: Experiment) -> tuple[Experiment, str] | None:
    """What a row is compared with, seed by seed, and what that is called: its host, the table's reference, or none."""
    ablation = ABLATIONS.get((table.paper, table.number))
    if ablation is not None:
        return None if ablation.reference == experiment else (ablation.reference, ablation.called)
    if experiment.plug_ins:
        return experiment.host, "its host"
    return None if experiment == SUPERVISED else (SUPERVISED, "supervised")


def paper_setting(row: Any) -> Setting | None:
    """Data, scale and number of labeled images of a published row."""
    data = {"pascal_voc2012": "voc", "cityscapes": "cityscapes"}.get(row.dataset)
    split = split_of(row.partition)
    return None if data is None or split is None else Setting(data, "paper", split, int(row.n_labeled))


def at_paper_scale(experiment: Experiment, row: Any) -> Experiment:
    """With the backbone of the row, and with what WPL sets for Cityscapes."""
    more: dict[str, Change] = {}
    if row.backbone == "R50":
        more["network.backbone"] = "resnet50"
    if row.dataset == "cityscapes" and "wpl" in experiment.plug_ins:
        more["wpl.box_score"] = 0.95
    return replace(experiment, changes={**more, **experiment.changes})


def miniatures(table: PublishedTable, row: Any) -> list[Setting]:
    """Where a row has a counterpart on the embedded set: its partition; ablations at 1_8, whatever theirs is."""
    if (table.paper, table.number) in ABLATIONS:
        return [Setting("digits", "tiny", "1_8")]
    split = split_of(row.partition)
    return [] if split is None or row.variable_value not in ("", "mean") else [Setting("digits", "tiny", split)]
