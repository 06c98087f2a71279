"""The only training loop, on Lightning Fabric: one network from its initial weights to a record of what came out."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, cast

import pandas as pd
import torch
import torch.nn as nn
from lightning_fabric import Fabric
from torch.nn.parallel import DistributedDataParallel
from tqdm import tqdm

from .. import evaluate as ev
from .. import registry
from ..build import build
from ..data.boxes import Detections
from ..data.dataset import SegmentationData, ids_of
from ..data.loader import Batches, training_batches
from ..data.resident import resident
from ..data.splits import Split
from ..data.transforms import MEAN_COLOR, WeakView
from ..options import Optimization
from ..recipe import Recipe
from ..runs import METRICS, RECORD, WEIGHTS, environment, peak_memory, write_text
from ..statistics import EpochMean
from ..types import Batch, Host, Step
from .checkpoint import Keep, checkpoints, load_module, load_state, save_checkpoint, write_tensors
from .health import Health
from .precision import Mixed, channels_last, chosen
from .selection import Selection


@dataclass(frozen=True)
class Fit:
    """One training, in a folder of its own.

    Args:
        recipe: of this training; where a method trains in stages, of the stage.
        record: what its run.json says about recipe and data; scores, duration and environment are added.
        host: recipe, number of classes -> training scheme.
        unlabeled: whether batches bring unlabeled images.
        keep: whose weights are kept on the way.
        objects: detected boxes of every unlabeled image (WPL).
        held_out: labeled images, in no list of the split, that choose the epoch to export; none: the last one is.
        resident: whether images are kept where it computes (`data.resident`); None: on a GPU where they fit.
    """

    recipe: Recipe
    data: SegmentationData
    split: Split
    folder: Path
    record: Mapping[str, Any]
    host: Callable[[Recipe, int], Host] = build
    unlabeled: bool = True
    keep: Keep | None = None
    objects: Detections | None = None
    held_out: tuple[str, ...] = ()
    workers: int = 0
    resident: bool | None = None
    progress: bool = True

    @property
    def epoch_steps(self) -> int:
        o = self.recipe.optimization
        return o.epoch_steps or max(1, len(self.split.unlabeled or self.split.labeled) // o.batch)

    @property
    def steps(self) -> int:
        return self.recipe.optimization.epochs * self.epoch_steps


def fit(fabric: Fabric, task: Fit, stop_after: int | None = None) -> None:
    """Train, or continue where the last epoch ended, and write record, curve and weights.  All processes call this.

    stop_after: return after that many epochs, as an interruption would; then there is no record yet.
    """
    o, writes = task.recipe.optimization, fabric.global_rank == 0
    host, losses_of, optimizer = _set_up(fabric, task)
    kind = chosen(o.precision, fabric.device.type)
    mixed = Mixed(host, kind)
    rates = [group["lr"] for group in optimizer.param_groups]
    rows, start = _resume(fabric, task.folder, host, optimizer)
    score, scores = _scorer(task, ids_of(task.data, task.recipe.evaluation.scored)), dict[str, ev.Scores]()
    select = Selection(task.folder, _scorer(task, task.held_out)) if task.held_out else None
    bar = tqdm(total=task.steps, initial=start, disable=not (task.progress and writes), file=sys.stdout, mininterval=2)
    batches = _batches(fabric, task, start)
    health = Health(batches.stream.ids, fabric.device)
    sums, began = EpochMean(), time.perf_counter() - (rows[-1]["seconds"] if rows else 0.0)
    for step, batch in enumerate(batches, start):
        t = step / task.steps
        for group, rate in zip(optimizer.param_groups, rates, strict=True):
            group["lr"] = rate * (1 - t) ** o.power
        result = losses_of(batch, t)
        health.see(step, result.losses)
        optimizer.zero_grad(set_to_none=True)
        fabric.backward(torch.stack(list(result.losses.values())).sum())
        if o.clip_norm is not None:
            fabric.clip_gradients(host, optimizer, max_norm=o.clip_norm)
        optimizer.step()
        host.after_step()
        sums.add(result)
        bar.update()
        if step % 20 == 0:
            bar.set_postfix({k: f"{v.item():.3f}" for k, v in result.losses.items()}, refresh=False)
        if (step + 1) % task.epoch_steps:
            continue
        epoch = (step + 1) // task.epoch_steps
        health.check_weights(host, epoch)
        row = {"epoch": epoch, "step": step + 1, "lr": optimizer.param_groups[0]["lr"], **sums.mean()}
        if writes and (epoch % task.recipe.evaluation.every == 0 or epoch == o.epochs):
            with mixed.off():
                scores = _scores(host, score)
                row |= {f"miou_{name}": found.miou for name, found in scores.items()}
                if select is not None:
                    row |= select(host, rows, scores, epoch)
        rows.append({**row, "seconds": time.perf_counter() - began})
        sums = EpochMean()
        if writes:
            if task.keep is not None:
                task.keep(task.folder, host, rows)
            _save(fabric, task.folder, host, optimizer, rows)
        fabric.barrier()
        if epoch == stop_after:
            break
    bar.close()
    if writes and rows[-1]["epoch"] == o.epochs:
        with mixed.off():
            scores = scores or _scores(host, score)
        how = {"precision": kind, "resident": batches.where}
        _finish(dict(task.record), task.folder, host, rows, scores, select, how)
    fabric.barrier()


def _batches(fabric: Fabric, task: Fit, start: int) -> Batches:
    o = task.recipe.optimization
    return training_batches(
        task.data, task.split, crop=o.crop, scale=o.resize, batch=max(1, o.batch // fabric.world_size),
        steps=task.steps, start=start, seed=task.recipe.seed, workers=task.workers, rank=fabric.global_rank,
        world=fabric.world_size, strong_labels=o.strong_labels, unlabeled=task.unlabeled, weak=weak_view(o),
        objects=task.objects, send=fabric.to_device,
        keep=partial(resident, device=fabric.device, wanted=task.resident),
        **registry.method(task.recipe.method).loading(task.recipe),
    )  # fmt: skip


def weak_view(o: Optimization) -> Callable[..., WeakView]:
    """The geometry that a recipe asks for, but for crop and bounds of the scale."""
    color = MEAN_COLOR if o.padding_color == "mean" else (0, 0, 0)
    return partial(
        WeakView, base=o.resize_base, law=o.resize_law, scales=o.scales, padding=o.padding, color=color
    )  # fmt: skip


def _set_up(fabric: Fabric, task: Fit) -> tuple[Host, Callable[[Batch, float], Step], torch.optim.Optimizer]:
    """Host and optimizer on their device, equal in every process; later draws differ between processes."""
    recipe = task.recipe
    torch.manual_seed(recipe.seed)
    host = task.host(recipe, len(task.data.classes))
    if fabric.world_size > 1 and fabric.device.type == "cuda":
        host = cast(Host, nn.SyncBatchNorm.convert_sync_batchnorm(host))
    # What a part trains itself has its own backward pass inside the step, and averages its gradients itself.
    own = {id(p) for p in host.own_parameters()}
    names = [name for name, p in host.named_parameters() if id(p) in own]
    DistributedDataParallel._set_params_and_buffers_to_ignore_for_model(host, names)
    channels_last(host, fabric.device)
    fused = fabric.device.type == "cuda" and recipe.optimization.clip_norm is None
    wrapped, optimizer = fabric.setup(host, make_optimizer(host, recipe.optimization, fused))
    wrapped.mark_forward_method("losses")
    wrapped.train()
    torch.manual_seed(recipe.seed + 1000 * fabric.global_rank)
    return host, wrapped.losses, optimizer


def make_optimizer(host: Host, o: Optimization, fused: bool = False) -> torch.optim.Optimizer:
    """SGD or AdamW over encoder and head.  Teachers need no gradient; what a part optimizes itself is left to it.

    Where `decay_norms` is off, parameters of one dimension (biases, scales and shifts) form two further groups.

    fused: one kernel for all parameters, on a GPU.
    """
    own = {id(p) for p in host.own_parameters()}
    backbones = [getattr(module, "backbone", None) for module in host.modules()]
    encoder = {id(p) for backbone in backbones if isinstance(backbone, nn.Module) for p in backbone.parameters()}
    trained = [p for p in host.parameters() if p.requires_grad and id(p) not in own]
    groups: list[dict[str, Any]] = [
        {"params": [p for p in trained if id(p) in encoder], "lr": o.lr},
        {"params": [p for p in trained if id(p) not in encoder], "lr": o.lr * o.head_lr_factor},
    ]
    if not o.decay_norms:
        spared = [[p for p in group["params"] if p.dim() < 2] for group in groups]
        for group, params in zip(tuple(groups), spared, strict=True):
            groups.append({**group, "params": params, "weight_decay": 0.0})
            group["params"] = [p for p in group["params"] if p.dim() > 1]
    if o.optimizer == "sgd":
        return torch.optim.SGD(groups, momentum=o.momentum, weight_decay=o.weight_decay, fused=fused)
    return torch.optim.AdamW(groups, weight_decay=o.weight_decay, fused=fused)


def _resume(
    fabric: Fabric, part: Path, host: Host, optimizer: torch.optim.Optimizer
) -> tuple[list[dict[str, Any]], int]:
    """Restore the newest checkpoint: the rows of the epochs behind it and the next step."""
    found = checkpoints(part)
    if not found:
        return [], 0
    state = load_state(found[-1])
    load_module(found[-1], host, state)
    optimizer.load_state_dict(state["optimizer"])
    if fabric.global_rank == 0:
        torch.set_rng_state(state["rng"]["cpu"])
        if fabric.device.type == "cuda":
            torch.cuda.set_rng_state(state["rng"]["cuda"], fabric.device)
    return state["rows"], state["step"]


def _save(fabric: Fabric, part: Path, host: Host, optimizer: torch.optim.Optimizer, rows: list[dict[str, Any]]) -> None:
    """The curve so far, and a checkpoint from which the next epoch continues bit by bit."""
    write_curve(part, pd.DataFrame(rows))
    rng = {"cpu": torch.get_rng_state()}
    if fabric.device.type == "cuda":
        rng["cuda"] = torch.cuda.get_rng_state(fabric.device)
    state = {"optimizer": optimizer.state_dict(), "rows": rows, "rng": rng}
    save_checkpoint(part, rows[-1]["step"], host, state)


def write_curve(folder: Path, curve: pd.DataFrame, first: Sequence[str] = ()) -> None:
    """metrics.csv with scores and seconds as its last columns."""
    last = ["miou_student", "miou_teacher", "seconds"]
    middle = [c for c in curve if c not in (*first, *last)]
    ordered = curve[[*first, *middle, *(c for c in last if c in curve)]]
    write_text(folder / METRICS, ordered.to_csv(index=False, float_format="%.6g"))


def _scores(host: Host, score: Callable[[nn.Module], ev.Scores]) -> dict[str, ev.Scores]:
    return {name: score(network) for name, network in host.networks().items()}


def _scorer(task: Fit, ids: Sequence[str]) -> Callable[[nn.Module], ev.Scores]:
    """The recipe's evaluation protocol on some images."""
    return ev.scorer(task.recipe.evaluation, task.data, ids, ev.batch_of(task.recipe.data))


def _finish(
    record: dict[str, Any], part: Path, host: Host, rows: list[dict[str, Any]], scores: dict[str, ev.Scores],
    select: Selection | None, how: dict[str, Any],
) -> None:  # fmt: skip
    """Export the weights of the last epoch, or of the selected one, and complete the record."""
    best = {}
    for name in scores:
        row = max((r for r in rows if f"miou_{name}" in r), key=lambda r: r[f"miou_{name}"])
        best[name] = {"epoch": row["epoch"], "miou": row[f"miou_{name}"]}
    if select is None:
        write_tensors(host.exported_state(), part / WEIGHTS)
    else:
        record["selected"] = select.export(part / WEIGHTS)
    last = {name: vars(found) for name, found in scores.items()}
    record |= {
        "last": {**last, "epoch": rows[-1]["epoch"], "step": rows[-1]["step"]},
        "best": best,
        "duration_s": round(rows[-1]["seconds"], 1),
        "peak_memory_mib": peak_memory(),
        "parameters": sum(p.numel() for p in host.student.parameters()),
        "environment": environment() | how,
    }
    write_text(part / RECORD, json.dumps(record, indent=1))
