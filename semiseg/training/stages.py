"""Training in stages: each is one fit from the initial weights, with labels that the stage before it wrote to disk.

In the folder of an unfinished run:

    stage1/, stage2/, ...   record, curve, checkpoints and kept networks of each stage
    labels/                 masks/ and entropy/ of unlabeled images; selection.json; stage2.json, ...: who labeled what

What is there is not done again: finished stages, finished passes, and the labeled images of an unfinished pass.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import pandas as pd
import torch.nn as nn
from lightning_fabric import Fabric
from torch import Tensor

from .. import registry
from ..build import build, without_pretraining
from ..data.pseudo_labels import PseudoLabeled
from ..recipe import Recipe
from ..runs import METRICS, RECORD, WEIGHTS, write_text
from ..types import Host
from .checkpoint import Epoch, Keep, checkpoints
from .folder import LABELS
from .labeling import write_labels
from .loop import Fit, fit, write_curve

SELECTION = "selection.json"
Labeler = Callable[[nn.Module, Tensor], tuple[Tensor, Tensor]]


@dataclass(frozen=True)
class Stage:
    """One training from the initial weights.

    Args:
        name: "stage1", "stage2", ...: its folder.
        recipe: of this training.
        keep: the network that later stages ask for; the last of its epochs, or the best one, labels.
        images: (fabric, task of the whole run, the first stage) -> unlabeled images it learns from; those without label
            get one from the stage before.  None: it learns from labeled images alone.
        label: (network in evaluation mode, images (B, 3, H, W)) -> labels (B, H, W) and entropies (B, H, W) in nats.
        host: recipe, number of classes -> training scheme.
    """

    name: str
    recipe: Recipe
    keep: Keep
    images: Callable[[Fabric, Fit, Stage], Sequence[str]] | None = None
    label: Labeler | None = None
    host: Callable[[Recipe, int], Host] = build


def plan(task: Fit) -> tuple[Stage, ...]:
    """The stages of a recipe; none where the method is trained in one fit."""
    stages = registry.method(task.recipe.method).stages
    return stages(task) if stages else ()


def on_labels(task: Fit, epochs: int) -> Recipe:
    """The supervised stage of a recipe: twice the labeled images per step, so that every stage reads as many images.

    Plug-ins are for pseudo-labels, and here are none.
    Where an epoch is a pass over the images, fewer than 200 labeled ones count twice, as in ST++.
    """
    o, labeled = task.recipe.optimization, len(task.split.labeled)
    steps = o.epoch_steps or max(1, (2 * labeled if labeled < 200 else labeled) // (2 * o.batch))
    plain = task.recipe.without(*task.recipe.plug_ins)
    return replace(plain, optimization=replace(o, epochs=epochs, batch=2 * o.batch, epoch_steps=steps))


def unlabeled_images(task: Fit) -> tuple[str, ...]:
    """Images without label; where there are none the labeled ones, as in every other method."""
    return task.split.unlabeled or task.split.labeled


def every_image(fabric: Fabric, task: Fit, first: Stage) -> tuple[str, ...]:
    return unlabeled_images(task)


def fit_in_stages(fabric: Fabric, task: Fit, stop_after: int | None = None) -> None:
    """Run all stages, or continue where they were interrupted; then write the record.  All processes call this.

    stop_after: return after that many epochs of all stages together.
    """
    stages, done = plan(task), 0
    for number, stage in enumerate(stages):
        folder = task.folder / stage.name
        if not (folder / RECORD).is_file():
            if stop_after is not None and done >= stop_after:
                return
            stage_task = replace(
                task, recipe=stage.recipe, folder=folder, record={"stage": stage.name}, host=stage.host,
                unlabeled=stage.images is not None, keep=stage.keep,
            )  # fmt: skip
            if stage.images is not None:
                stage_task = _with_labels(fabric, task, stage_task, stages[: number + 1])
            folder.mkdir(parents=True, exist_ok=True)
            fit(fabric, stage_task, None if stop_after is None else stop_after - done)
            if not (folder / RECORD).is_file():
                return
        if fabric.global_rank == 0:
            for old in checkpoints(folder):
                shutil.rmtree(old)
        done += stage.recipe.optimization.epochs
    if fabric.global_rank == 0:
        _conclude(task, stages)


def _with_labels(fabric: Fabric, task: Fit, stage_task: Fit, stages: Sequence[Stage]) -> Fit:
    """The task of the last of these stages with its images labeled."""
    *earlier, stage = stages
    chosen = [tuple(s.images(fabric, task, stages[0])) for s in stages if s.images is not None]
    known = {key for ids in chosen[:-1] for key in ids}
    fresh = tuple(key for key in chosen[-1] if key not in known)
    summary = task.folder / LABELS / f"{stage.name}.json"
    if not summary.is_file():
        by = earlier[-1]
        assert stage.label is not None, f"{stage.name} learns from unlabeled images, and nobody labels them"
        network = kept_network(fabric, task, by, by.keep.last)
        about = {"by": by.name, "epoch": by.keep.last, "network": by.keep.network}
        write_labels(fabric, task, partial(stage.label, network), fresh, summary, about)
    data = PseudoLabeled(task.data, task.folder / LABELS)
    return replace(stage_task, data=data, split=replace(task.split, unlabeled=chosen[-1]))


def kept_network(fabric: Fabric, task: Fit, stage: Stage, epoch: Epoch) -> nn.Module:
    """A network that a stage kept, on the device and in evaluation mode."""
    host = stage.host(without_pretraining(stage.recipe), len(task.data.classes))
    return stage.keep.read(task.folder / stage.name, epoch, host).to(fabric.device)


def _conclude(task: Fit, stages: Sequence[Stage]) -> None:
    """The record of the last stage, with a list of all; the curves of all; the weights of the last."""
    folders = [task.folder / stage.name for stage in stages]
    records = [json.loads((folder / RECORD).read_text()) for folder in folders]
    summaries = [_read_json(task.folder / LABELS / f"{folder.name}.json") for folder in folders]
    listed = [
        {
            "name": folder.name, "epochs": record["last"]["epoch"], "steps": record["last"]["step"],
            "duration_s": record["duration_s"], "miou": {name: record["last"][name]["miou"] for name in record["best"]},
            "labels": labels,
        }
        for folder, record, labels in zip(folders, records, summaries, strict=True)
    ]  # fmt: skip
    selection = _read_json(task.folder / LABELS / SELECTION)
    passes = [found for found in (*summaries, selection) if found]
    seconds = sum(found["duration_s"] for found in (*records, *passes))
    curves = [pd.read_csv(folder / METRICS).assign(stage=i) for i, folder in enumerate(folders, 1)]
    write_curve(task.folder, pd.concat(curves, ignore_index=True), first=("stage",))
    shutil.copyfile(folders[-1] / WEIGHTS, task.folder / WEIGHTS)
    record = {**records[-1], **task.record, "duration_s": round(seconds, 1), "stages": listed}
    del record["stage"]
    if selection:
        record["selection"] = {k: v for k, v in selection.items() if k not in ("scores", "reliable")}
    write_text(task.folder / RECORD, json.dumps(record, indent=1))


def _read_json(path: Path) -> Any:
    return json.loads(path.read_text()) if path.is_file() else None
