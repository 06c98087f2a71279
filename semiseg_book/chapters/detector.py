"""What WPL's detector finds, and what it adds to pseudo-labels (supplement Table 1), as tables, a picture, a record."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from torch import Tensor

from semiseg.build import load_exported
from semiseg.data.boxes import Boxes, Detections, component_boxes, planes
from semiseg.data.dataset import SegmentationData
from semiseg.methods.detector import hits, thing_classes
from semiseg.models.deeplabv3plus import DeepLabV3Plus
from semiseg.recipes import Recipe
from semiseg.runs import DETECTIONS, WEIGHTS, Run, write_text
from semiseg.types import IGNORE, Output

from .wpl import look

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


# --- the record ---------------------------------------------------------------------------


def record_detector(
    run: Run, data: SegmentationData, target: Path, *, ious: Sequence[float] = (0.8, 0.5), images: int = 500
) -> dict[str, Any]:
    """Measure the detector of a run on all unlabeled images, and the groups of pixels by the run's network.

    For data too large to ship: the numbers stay in `target`/detector.json, beside the run's own record.

    Args:
        run: of WPL with a detector; its folder holds the detections, and the weights where groups are wanted.
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
    assert recipe.wpl is not None
    score, least = recipe.wpl.box_score, recipe.detector.min_pixels
    detections, things = Detections.read(run.folder / DETECTIONS), thing_classes(data, recipe.detector.things)
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
        pixels = count_groups(network, detections, data, some, score=score, sure=recipe.wpl.sure)
        found["groups"] = {"sure": recipe.wpl.sure, "images": len(some), "pixels": _rows(pixels)}
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
