"""Train a recipe: what is checked first, the folder it happens in, and what is left there."""

from __future__ import annotations

import fcntl
import hashlib
import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from lightning_fabric import Fabric
from lightning_fabric.strategies.ddp import DDPStrategy

from .. import registry
from ..data.cached import Cached
from ..data.checks import check
from ..data.dataset import SegmentationData
from ..data.held_out import HELD_OUT, hold_out
from ..data.splits import Split, missing_classes, write_lists
from ..recipe import Recipe, to_toml
from ..runs import RECIPE, RECORD, Run, differences, write_text
from . import precision
from .checkpoint import checkpoints
from .folder import LOCK, SELECTED, STARTED, check_folder, move_into_place, partial_of
from .loop import Fit, fit
from .stages import fit_in_stages, plan


def train(
    recipe: Recipe,
    data: SegmentationData,
    split: Split,
    folder: Path | str,
    *,
    devices: int = 1,
    workers: int = 0,
    cache: float = 0.0,
    resident: bool | None = None,
    detections: Path | None = None,
    progress: bool = True,
    stop_after: int | None = None,
    overwrite: bool = False,
    reuse: bool = False,
) -> Run:
    """Train a recipe and write its record; an interrupted run continues where its last epoch ended.

    A method that trains in stages has one folder for each while it trains; no finished stage is done again.

    While it trains everything lies in `<folder>.partial`; `<folder>` appears when it is done.

    Args:
        recipe: what to do.
        data, split: on what; every image and mask it needs is checked first.
        folder: of the run.
        devices: processes; more than one needs as many GPUs (or trains on CPU processes where there is no GPU).
        workers: data loading processes; the batches do not depend on it.
        cache: GiB of memory in which each process keeps decoded images; it changes nothing but the time.
        resident: whether images are kept where it computes, a GPU or the CPU, and augmented there; None: on a GPU where
            they take less than a quarter of its free memory.  On a GPU colors may differ by rounding (`data.resident`).
        detections: file of `find_objects` that several runs share, made where it is absent; None: each makes its own.
            Only read where the recipe asks for a detector (WPL).
        progress: show a bar.
        stop_after: pause after that many epochs, counted over all stages, as an interruption would.
        overwrite: train again where a finished run lies, and replace it at the end.
        reuse: return a finished run of the same recipe, images and lists; wait for a process that is training it.

    Returns:
        The finished run.

    Raises:
        ValueError: a precision that this machine does not have, data that would spoil the run, an interrupted run of
            another recipe in the folder, a finished run that is not to be overwritten, or a folder in which something
            else could be lost (`check_folder`).
        PermissionError: a folder that cannot be written.
        InterruptedError: paused by `stop_after`.
        ArithmeticError: a loss or a weight that is not finite (`health.NotFinite`); there is no record then.
    """
    folder = Path(folder)
    if reuse and (found := _finished(folder, recipe, data, split)):
        return found
    check_folder(folder, data, overwrite)
    on = "cuda" if torch.cuda.is_available() else "cpu"
    plug_in = precision.plug_in(precision.chosen(recipe.optimization.precision, on), on)
    data = Cached(data, cache) if cache else data
    check(data, split.labeled)
    record = _record_of(recipe, data, split)
    part = partial_of(folder)
    task = _task(recipe, data, split, part, record)
    task = replace(task, workers=workers, resident=resident, progress=progress)
    run = fit_in_stages if plan(task) else fit
    with _claimed(part, wait=reuse):
        if reuse and (found := _finished(folder, recipe, data, split)):
            shutil.rmtree(part, ignore_errors=True)  # there is but a lock in it
            return found
        check_folder(folder, data, overwrite)  # another process may have finished it meanwhile
        _same_run(part, record)
        write_text(part / STARTED, json.dumps(record, indent=1))
        write_text(part / RECIPE, to_toml(recipe))
        if not (part / RECORD).is_file():  # else it was done, but not yet moved
            task = _prepared(task, detections)
            strategy = DDPStrategy(start_method="spawn", find_unused_parameters=True) if devices > 1 else "auto"
            fabric = Fabric(accelerator=on, devices=devices, strategy=strategy, plugins=plug_in)
            fabric.launch(partial(run, task=task, stop_after=stop_after))
        if not (part / RECORD).is_file():
            raise InterruptedError(f"paused after {stop_after} epochs; call train again to continue {folder}")
        write_lists(split, part)
        if task.held_out:
            write_text(part / HELD_OUT, "".join(f"{key}\n" for key in task.held_out))
        for old in (*checkpoints(part), *part.glob("stage*")):
            shutil.rmtree(old)
        move_into_place(part, folder)
        for name in (STARTED, LOCK, *SELECTED):
            (folder / name).unlink(missing_ok=True)
    return Run.read(folder)


def _task(recipe: Recipe, data: SegmentationData, split: Split, part: Path, record: dict[str, Any]) -> Fit:
    """What is trained on what; held-out images are in neither list, and the record counts them."""
    share = recipe.evaluation.held_out
    if not share:
        return Fit(recipe, data, split, part, record)
    kept, held = hold_out(data, split.labeled, share, recipe.seed)
    record["held_out"] = {"images": len(held), "sha256": hashlib.sha256("\n".join(held).encode()).hexdigest()}
    return Fit(recipe, data, replace(split, labeled=kept), part, record, held_out=held)


def _prepared(task: Fit, shared: Path | None) -> Fit:
    """The task with what its plug-ins make before training."""
    for name in task.recipe.plug_ins:
        task = registry.plug_in(name).prepare(task, shared)
    return task


def _record_of(recipe: Recipe, data: SegmentationData, split: Split) -> dict[str, Any]:
    return {
        "recipe": recipe.as_dict(),
        "recipe_sha256": recipe.sha256,
        "data": {"name": data.name, "sha256": data.sha256, "classes": list(data.classes), "val": len(data.val),
                 "palette": [list(color) for color in data.palette]},
        "split": {
            "name": split.name, "family": split.family, "sha256": split.sha256,
            "labeled": len(split.labeled), "unlabeled": len(split.unlabeled),
            "classes_without_label": list(missing_classes(data, split)),
        },
    }  # fmt: skip


def _finished(folder: Path, recipe: Recipe, data: SegmentationData, split: Split) -> Run | None:
    """The run that is finished in a folder.  Raises ValueError where it is of another recipe, images or lists."""
    if not (folder / RECORD).is_file():
        return None
    run = Run.read(folder)
    asked = {"recipe": recipe.as_dict(), "data": data.sha256, "split": split.sha256}
    there = {"recipe": run.record["recipe"], **{name: run.record[name]["sha256"] for name in ("data", "split")}}
    if found := differences(asked, there):
        raise ValueError(f"{folder} holds a finished run that differs in {'; '.join(found[:4])}")
    return run


@contextmanager
def _claimed(part: Path, wait: bool = False) -> Iterator[Path]:
    """The folder of an unfinished run, for this process alone."""
    try:
        part.mkdir(parents=True, exist_ok=True)
        lock = (part / LOCK).open("w")
    except OSError as error:
        raise PermissionError(f"cannot write to {part}: {error.strerror}; choose another folder for runs") from error
    with lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        except OSError as error:
            raise ValueError(f"another process is training in {part}") from error
        yield part


def _same_run(part: Path, record: dict[str, Any]) -> None:
    """Refuse to continue a run of another recipe, data set or split, unless nothing of it is there to be lost."""
    started = part / STARTED
    if not started.is_file() or all(path.name in (STARTED, RECIPE, LOCK) for path in part.iterdir()):
        return
    earlier = json.loads(started.read_text())
    earlier["data"]["palette"] = record["data"]["palette"]  # colors are no matter of identity
    found = differences(record, earlier)
    if found:
        found = [text for text in found if not text.startswith("recipe_sha256:")] or found
        raise ValueError(
            f"{part} holds an unfinished run that differs in {'; '.join(found[:4])}. "
            "Delete it, or choose another folder for runs."
        )
