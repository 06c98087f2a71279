"""The passes between the stages of training: scoring images by what networks predict, and writing their labels."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn as nn
from lightning_fabric import Fabric
from torch import Tensor

from ..data.pseudo_labels import PseudoLabeled, label_images, whole_images
from ..evaluate import Scores, batch_of
from ..runs import write_text
from ..types import IGNORE
from .loop import Fit


def write_labels(
    fabric: Fabric, task: Fit, label: Callable[[Tensor], tuple[Tensor, Tensor]], ids: Sequence[str], summary: Path,
    about: Mapping[str, Any],
) -> None:  # fmt: skip
    """Label images that have no label yet, beside `summary`, which says how good the labels are once all are there.

    label: images (B, 3, H, W) on the device -> labels (B, H, W) and entropies (B, H, W) in nats.
    about: what else the summary says.
    """
    began, writes = time.perf_counter(), fabric.global_rank == 0
    label_images(
        task.data, ids, summary.parent, lambda images: label(images.to(fabric.device)),
        batch=batch_of(task.recipe.data), rank=fabric.global_rank, world=fabric.world_size, workers=task.workers,
        progress=f"labels for {summary.stem}" if task.progress and writes else "",
    )  # fmt: skip
    fabric.barrier()
    if writes:
        found = {**about, "images": len(ids), **_quality(PseudoLabeled(task.data, summary.parent), ids)}
        write_summary(summary, found, began)
    fabric.barrier()


@torch.no_grad()
def score_images(
    fabric: Fabric, task: Fit, networks: Sequence[nn.Module], ids: Sequence[str],
    score: Callable[[Tensor, int], float],
) -> tuple[list[float], int]:  # fmt: skip
    """The score of each image, and how many of them all networks take for background.

    score: (predictions (M, H, W) long of the networks, number of classes) -> score.
    """
    size, place = batch_of(task.recipe.data), {key: i for i, key in enumerate(ids)}
    groups = [tuple(ids[i : i + size]) for i in range(0, len(ids), size)][fabric.global_rank :: fabric.world_size]
    scores, pure = torch.zeros(len(ids), dtype=torch.double), torch.zeros(1, dtype=torch.double)
    for keys, images in whole_images(task.data, groups, task.workers):
        on_device = images.to(fabric.device)
        predictions = torch.stack([network(on_device).logits.max(1).indices for network in networks], 1)
        for key, prediction in zip(keys, predictions, strict=True):
            scores[place[key]] = score(prediction, len(task.data.classes))
            pure += int((prediction == 0).all())
    if fabric.world_size > 1:
        scores, pure = (fabric.all_reduce(v, reduce_op="sum") for v in (scores, pure))  # type: ignore[assignment]
    return scores.tolist(), int(pure)


def _quality(data: PseudoLabeled, ids: Sequence[str]) -> dict[str, Any]:
    """How many labels are nothing but background, and all against the masks that training never sees, where known."""
    k = len(data.classes)
    confusion, pure = torch.zeros(k, k, dtype=torch.long), 0
    for key in ids:
        label, truth = data.given(key)[0].long(), data.mask(key)
        pure += int((label == 0).all())
        if truth is not None:
            known = truth != IGNORE
            pairs = truth[known].long() * k + label[known]
            confusion += torch.bincount(pairs, minlength=k * k).view(k, k)
    scores = Scores.of(confusion)
    judged = {"miou": scores.miou, "pixel_accuracy": scores.pixel_accuracy} if confusion.any() else {}
    return {"pure_background": pure, **judged}


def write_summary(path: Path, found: Mapping[str, Any], began: float) -> None:
    """A file of what a pass found, and how long it took."""
    path.parent.mkdir(parents=True, exist_ok=True)
    write_text(path, json.dumps({**found, "duration_s": round(time.perf_counter() - began, 1)}, indent=1))
