"""The WPL chapter: what the weight sees, how steady ranks are, what the detector finds, runs with changed options."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import seaborn as sns
import torch
import torch.nn.functional as F
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from torch import Tensor

from semiseg.banks import as_pixels
from semiseg.data.boxes import Boxes, Detections, component_boxes, planes
from semiseg.data.dataset import SegmentationData
from semiseg.data.transforms import Normalize
from semiseg.inference.model import load_exported
from semiseg.methods.detector import DetectorOptions, hits, thing_classes
from semiseg.methods.wpl import RankWeight, WPLOptions, nearest, signatures
from semiseg.models.deeplabv3plus import DeepLabV3Plus
from semiseg.recipe import Recipe, usual
from semiseg.runs import DETECTIONS, WEIGHTS, Run, write_text
from semiseg.types import IGNORE, Output, Target, View

from ..pictures import colored, legend
from ..style import title


@torch.no_grad()
def look(network: DeepLabV3Plus, data: SegmentationData, key: str) -> View:
    """One whole image as a host sees it: prediction as pseudo-label, features, hidden mask.

    The network must be in evaluation mode.  Every pixel is kept.
    """
    image = Normalize()(data.image(key)[None])
    output = network(image)
    label = output.logits.argmax(1)
    ones = torch.ones(label.shape)
    mask = data.mask(key)
    hidden = torch.full(label.shape, IGNORE) if mask is None else mask[None].long()
    return View(image, Target(label, ones, ones), output, hidden=hidden)


def weights(
    network: DeepLabV3Plus, weigher: RankWeight, data: SegmentationData, ids: Sequence[str], sure: float = 0.95
) -> Figure:
    """Fig. 1: image, truth, pseudo-label, its errors among the confident pixels, and the weight W."""
    columns = ("image", "truth", "pseudo-label", f"confident errors (p ≥ {sure})", "weight W")
    figure, axes = plt.subplots(len(ids), 5, figsize=(9, 1.75 * len(ids) + 0.5), squeeze=False)
    for row, key in zip(axes, ids, strict=True):
        view = look(network, data, key)
        assert view.teacher is not None and view.hidden is not None
        confident = view.teacher.logits.softmax(1).amax(1)[0] >= sure
        wrong = confident & (view.target.hard[0] != view.hidden[0]) & (view.hidden[0] != IGNORE)
        error = np.where(wrong.numpy(), 1.0, np.where(confident.numpy(), 0.0, 0.5))
        row[0].imshow(data.image(key).movedim(0, -1).numpy())
        row[1].imshow(colored(view.hidden[0], data.palette))
        row[2].imshow(colored(view.target.hard[0], data.palette))
        row[3].imshow(error, cmap="coolwarm", vmin=-0.2, vmax=1.2)
        drawn = row[4].imshow(weigher(view)[0].numpy(), cmap="viridis", vmin=0, vmax=1 + weigher.options.offset)
        for ax, name in zip(row, columns, strict=True):
            ax.set_title(name if key == ids[0] else "", fontsize="small")
            ax.set(xticks=[], yticks=[])
            ax.grid(False)
    figure.colorbar(drawn, ax=axes[:, 4], shrink=0.8)
    legend(figure, data)
    return figure


def mean_weights(
    network: DeepLabV3Plus, weigher: RankWeight, data: SegmentationData, ids: Sequence[str], sure: float
) -> pd.DataFrame:
    """Fig. 1 in numbers: mean weight of confident pixels, right and wrong ones, by pseudo-label and of all.

    Returns:
        A row per class and one for all: pixels and mean W of the right and of the wrong ones; pixels whose truth is
        unknown are left out.
    """
    counts, sums = np.zeros((2, len(data.classes)), dtype=int), np.zeros((2, len(data.classes)))
    for key in ids:
        view = look(network, data, key)
        assert view.teacher is not None and view.hidden is not None
        known = (view.teacher.logits.softmax(1).amax(1) >= sure) & (view.hidden != IGNORE)
        right, w = view.target.hard == view.hidden, weigher(view).double()
        for i, chosen in enumerate((known & right, known & ~right)):
            label = view.target.hard[chosen]
            counts[i] += np.bincount(label, minlength=counts.shape[1])
            sums[i] += np.bincount(label, w[chosen], minlength=counts.shape[1])
    counts, sums = (np.concatenate((v, v.sum(1, keepdims=True)), 1) for v in (counts, sums))
    columns = {}
    for name, n, total in zip(("right", "wrong"), counts, sums, strict=True):
        columns[f"{name}: pixels"] = n
        columns[f"{name}: mean W"] = np.round(total / np.where(n > 0, n, np.nan), 2)
    return pd.DataFrame(columns, index=[*data.classes, "all"])


def correct_features(
    network: DeepLabV3Plus, data: SegmentationData, ids: Sequence[str], sure: float
) -> tuple[Tensor, Tensor]:
    """Features (N, D) and classes (N,) of confident, correct pixels on the feature grid."""
    vectors, labels = [], []
    for key in ids:
        view = look(network, data, key)
        assert view.teacher is not None and view.hidden is not None
        size = view.teacher.features.shape[-2:]
        p, label = nearest(view.teacher.logits, size).softmax(1).max(1)
        right = (p >= sure) & (label == nearest(view.hidden, size))
        vectors.append(as_pixels(view.teacher.features)[right.flatten()])
        labels.append(label[right])
    return torch.cat(vectors), torch.cat(labels)


def steadiness(features: Tensor, labels: Tensor, prototypes: Tensor, k: int, classes: Sequence[str]) -> pd.DataFrame:
    """Fig. 5 (b, c): how much features of a class vary, as values and as sets of the k strongest channels.

    Args:
        features, labels: (N, D) and (N,).
        prototypes: (K, D).

    Returns:
        A row per class with at least two features: pixels; "values": variance of the features over pixels, relative to
        their mean square; "indices": Hamming distance between a pixel's and the prototype's k strongest channels, as a
        share of the largest possible, 2 k.
    """
    marks = F.one_hot(signatures(features, k), features.shape[1]).sum(1)
    of_class = F.one_hot(signatures(prototypes, k), features.shape[1]).sum(1)
    rows = []
    for c in labels.unique().tolist():
        mine = labels == c
        if int(mine.sum()) < 2:
            continue
        v = features[mine]
        apart = (marks[mine] != of_class[c]).sum(1).float().mean() / (2 * k)
        spread = v.var(0).sum() / v.square().mean(0).sum()
        rows.append([classes[c], int(mine.sum()), spread.item(), apart.item()])
    return pd.DataFrame(rows, columns=["class", "pixels", "values", "indices"]).set_index("class")


def steadiness_figure(table: pd.DataFrame) -> Figure:
    """Both measures side by side."""
    figure, ax = plt.subplots(figsize=(7, 3.2))
    table[["values", "indices"]].plot.bar(ax=ax, color=["0.65", "tab:green"], width=0.75)
    ax.set(ylabel="share of the largest", xlabel="", ylim=(0, 1))
    ax.tick_params(axis="x", rotation=30)
    ax.legend(["variance of values / mean square", "Hamming distance of top channels / 2k"], frameon=False)
    return figure


def weight_curves(run: Run) -> Figure:
    """Left, Fig. 5 (a): share of kept pseudo-labels that are right and wrong.  Right: mean weight of either kind."""
    m = run.metrics.set_index("epoch")
    figure, (left, right) = plt.subplots(1, 2, figsize=(9, 3.2))
    shares = pd.DataFrame({"right": m.pseudo_label_accuracy, "wrong": 1 - m.pseudo_label_accuracy}).dropna()
    left.bar(shares.index, 100 * shares["right"], color="tab:green", label="right")
    left.bar(shares.index, 100 * shares["wrong"], bottom=100 * shares["right"], color="tab:red", label="wrong")
    left.set(title="kept pseudo-labels", xlabel="epoch", ylabel="%")
    left.legend(loc="lower right")
    names = {"weight_right": "right pseudo-labels", "weight_wrong": "wrong pseudo-labels", "weight": "all kept"}
    sns.lineplot(m[list(names)].rename(columns=names), dashes=False, markers=True, ax=right)
    right.set(title="mean weight W", xlabel="epoch", ylim=(0, None))
    return figure


def ablations(runs: Sequence[Run]) -> pd.DataFrame:
    """Runs with WPL, by what differs from the recipe of their host with WPL; percent, last epoch.

    Returns:
        mean, s.d., seeds of the teacher's mIoU, and means over seeds of the accuracy of pseudo-labels: "plain", and
        "weighted" as the weights count them (Fig. 6): a right and b wrong pixels with mean weights u and v count as
        a u / (a u + b v).
    """
    rows = []
    for run in runs:
        recipe, last = run.record["recipe"], run.metrics.iloc[-1]
        if "wpl" not in recipe:
            continue
        right = last.pseudo_label_accuracy * last.weight_right
        wrong = (1 - last.pseudo_label_accuracy) * last.weight_wrong
        rows.append(
            [title(run.label), recipe["split"], ", ".join(_changes(recipe)) or "default", 100 * run.miou,
             100 * last.pseudo_label_accuracy, 100 * right / (right + wrong)]
        )  # fmt: skip
    frame = pd.DataFrame(rows, columns=["method", "split", "changed", "mIoU", "plain", "weighted"])
    of = frame.groupby(["method", "split", "changed"], sort=False)
    made = of.mIoU.agg(["mean", "std", "count"]).rename(columns={"std": "s.d.", "count": "seeds"})
    return made.join(of[["plain", "weighted"]].mean()).round(2).reset_index()


def _changes(recipe: Mapping[str, Any]) -> list[str]:
    """What was replaced, as "k = 7"; a detector that nobody asks is no change of its own."""
    plain = usual(recipe).as_dict()
    pairs = ((part, key) for part, values in recipe.items() if isinstance(values, Mapping) for key in values)
    return [f"{key} = {recipe[part][key]}" for part, key in pairs if recipe[part][key] != plain[part].get(key)]


# --- the detector: what it finds, and what it adds to pseudo-labels (supplement Table 1) -----


RECORD = "detector.json"
GROUPS = ("confident", "confident, in a box", "confident, in no box")


def count_boxes(
    detections: Detections, data: SegmentationData, ids: Sequence[str], things: Sequence[int], *, score: float,
    iou: float = 0.8, min_pixels: int = 1,
) -> pd.DataFrame:  # fmt: skip
    """Detections at a score against the boxes of the masks: a row per class with boxes, and one for all.

    Returns:
        "boxes": found; "right": those that overlap a true box of their class by at least `iou`; "true": boxes of the
        masks; "found": true ones that a found box overlaps so.  Images without a mask are passed over.
    """
    counts = np.zeros((4, len(data.classes)), dtype=int)
    for key in ids:
        mask = data.mask(key)
        if mask is None:
            continue
        sure, truth = detections[key].above(score), component_boxes(mask, things, min_pixels)
        good, recalled = hits(sure, truth, iou), hits(truth, sure, iou)
        of_each = (sure.labels, sure.labels[good], truth.labels, truth.labels[recalled])
        counts += np.stack([np.bincount(labels, minlength=counts.shape[1]) for labels in of_each])
    names = [data.classes[k] for k in things]
    table = pd.DataFrame(counts[:, list(things)].T, columns=["boxes", "right", "true", "found"], index=names)
    table.loc["all"] = table.sum()
    return table


def box_accuracy(counts: pd.DataFrame) -> pd.DataFrame:
    """Supplement Table 1, first row: share of the found boxes that are right; beside it, of the true ones found."""
    accuracy, recall = (
        100 * counts[part] / counts[of].where(counts[of] > 0) for part, of in (("right", "boxes"), ("found", "true"))
    )
    shares = {"accuracy, %": accuracy.round(1), "true boxes": counts.true, "recall, %": recall.round(1)}
    return pd.DataFrame({"boxes": counts.boxes, **shares})


def count_groups(
    network: DeepLabV3Plus, detections: Detections, data: SegmentationData, ids: Sequence[str], *, score: float,
    sure: float,
) -> pd.DataFrame:  # fmt: skip
    """Confident pixels by predicted class, those inside a box of their class and those outside, and the right ones.

    Returns:
        A row per class and one for all that have a box; for each of GROUPS columns "<group>: pixels" and ": right".
    """
    classes = len(data.classes)
    counts = np.zeros((3, 2, classes), dtype=int)
    for key in ids:
        view = look(network, data, key)
        assert view.teacher is not None and view.hidden is not None
        for group, (pixels, right) in enumerate(_groups(view.teacher, view.hidden, detections[key].above(score), sure)):
            counts[group, 0] += np.bincount(pixels, minlength=classes)
            counts[group, 1] += np.bincount(right, minlength=classes)
    found = [detections[key].above(score) for key in ids]
    boxed = sorted({int(k) for boxes in found for k in boxes.labels})
    columns = [f"{name}: {what}" for name in GROUPS for what in ("pixels", "right")]
    table = pd.DataFrame(counts.reshape(6, classes).T, columns=columns, index=list(data.classes))
    table.loc["classes with boxes"] = table.iloc[boxed].sum()
    return table


def three_groups(counts: pd.DataFrame) -> pd.DataFrame:
    """Supplement Table 1: accuracy of confident pixels, of those inside a box of their class, and of those outside."""
    columns = {}
    for name in GROUPS:
        pixels, right = counts[f"{name}: pixels"], counts[f"{name}: right"]
        columns[f"{name}: pixels"] = pixels
        columns[f"{name}: accuracy, %"] = (100 * right / pixels.where(pixels > 0)).round(1)
    return pd.DataFrame(columns)


def _groups(output: Output, hidden: Tensor, boxes: Boxes, sure: float) -> list[tuple[Tensor, Tensor]]:
    """Predicted classes of all, and of the right, confident pixels with known truth: everywhere, in boxes, outside."""
    p, label = output.logits[0].softmax(0).max(0)
    inside = planes(boxes, len(output.logits[0]), (label.shape[0], label.shape[1])).gather(0, label[None])[0]
    known = (p >= sure) & (hidden[0] != IGNORE)
    chosen = (known, known & inside, known & ~inside)
    return [(label[group], label[group & (label == hidden[0])]) for group in chosen]


def boxes_picture(
    detections: Detections, data: SegmentationData, ids: Sequence[str], things: Sequence[int], score: float
) -> Figure:
    """What the detector finds on unlabeled images (solid) beside the boxes of the hidden masks (dotted)."""
    figure, axes = plt.subplots(1, len(ids), figsize=(1.6 * len(ids), 2.1), squeeze=False)
    for ax, key in zip(axes[0], ids, strict=True):
        ax.imshow(data.image(key).movedim(0, -1).numpy())
        mask = data.mask(key)
        sets = [(detections[key].above(score), "-")]
        if mask is not None:
            sets.append((component_boxes(mask, things), ":"))
        for boxes, style in sets:
            for (x0, y0, x1, y1), k in zip(boxes.edges.tolist(), boxes.labels.tolist(), strict=True):
                color = np.array(data.palette[k]) / 255
                place = (x0 - 0.5, y0 - 0.5)
                ax.add_patch(Rectangle(place, x1 - x0, y1 - y0, fill=False, color=color, ls=style, lw=2))
                if style == "-":
                    ax.text(x0, y0, data.classes[k], fontsize="x-small", color="white", backgroundcolor=color)
        ax.set(xticks=[], yticks=[])
        ax.grid(False)
    return figure


# --- the record ------------------------------------------------------------------------------


def record_detector(
    run: Run, data: SegmentationData, target: Path, *, ious: Sequence[float] = (0.8, 0.5), images: int = 500
) -> dict[str, Any]:
    """Measure the detector of a run on all unlabeled images, and the groups of pixels by the run's network.

    For data too large to ship: the numbers stay in `target`/detector.json, beside the run's own record.

    Args:
        run: of WPL with a detector; its folder holds the detections, and the weights where groups are to be counted.
        data: what it was trained on.
        target: folder of the run to be committed.
        ious: of what counts as a right box.
        images: the first so many unlabeled ones show the groups.

    Raises:
        ValueError: data of another hash than the run's, or a run without a detector.
    """
    if "detector" not in run.record:
        raise ValueError(f"{run.folder} asked no detector")
    if data.sha256 != run.record["data"]["sha256"]:
        raise ValueError(f"{run.folder} was trained on other data than {data.name} here")
    recipe = Recipe.from_dict(run.record["recipe"])
    o, detector = recipe[WPLOptions], recipe[DetectorOptions]
    score, least = o.box_score, detector.min_pixels
    detections, things = Detections.read(run.folder / DETECTIONS), thing_classes(data, detector.things)
    ids = [key for key in detections.found if data.mask(key) is not None]
    found = {
        "recipe_sha256": run.record["recipe_sha256"], "data": run.record["data"], "split": run.record["split"],
        "detector": run.record["recipe"]["detector"],
        "training": run.record["detector"], "images": len(ids), "score": score,
        "boxes": {
            str(iou): _rows(count_boxes(detections, data, ids, things, score=score, iou=iou, min_pixels=least))
            for iou in ious
        },
    }  # fmt: skip
    if (run.folder / WEIGHTS).is_file():
        network, some = load_exported(recipe, len(data.classes), run.folder / WEIGHTS).teacher.model, ids[:images]
        assert isinstance(network, DeepLabV3Plus)  # what WPL weighs by
        pixels = count_groups(network, detections, data, some, score=score, sure=o.sure)
        found["groups"] = {"sure": o.sure, "images": len(some), "pixels": _rows(pixels)}
    target.mkdir(parents=True, exist_ok=True)
    write_text(target / RECORD, json.dumps(found, indent=1))
    return found


def _rows(table: pd.DataFrame) -> dict[str, dict[str, int]]:
    return {str(name): {str(k): int(v) for k, v in row.items()} for name, row in table.iterrows()}


def read_record(folder: Path) -> tuple[dict[str, Any], dict[str, pd.DataFrame], pd.DataFrame | None]:
    """What `record_detector` wrote: all of it, box accuracy for each overlap asked for, and the three groups."""
    found = json.loads((folder / RECORD).read_text())
    boxes = {iou: box_accuracy(pd.DataFrame.from_dict(rows, orient="index")) for iou, rows in found["boxes"].items()}
    if "groups" not in found:
        return found, boxes, None
    return found, boxes, three_groups(pd.DataFrame.from_dict(found["groups"]["pixels"], orient="index"))
