"""The only training loop, on Lightning Fabric: a CPU, one GPU or several, with a record that says what was done."""

from __future__ import annotations

import fcntl
import json
import shutil
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import pandas as pd
import torch
import torch.nn as nn
from lightning_fabric import Fabric
from lightning_fabric.strategies.ddp import DDPStrategy
from safetensors.torch import save_file
from torch import Tensor
from torch.nn.parallel import DistributedDataParallel
from tqdm import tqdm

from . import evaluate as ev
from .build import build, loading
from .checkpoint import checkpoints, load_module, load_state, save_checkpoint
from .data.cached import Cached
from .data.checks import check
from .data.dataset import SegmentationData
from .data.loader import evaluation_batches, training_batches
from .data.splits import Split, missing_classes, write_lists
from .data.transforms import MEAN, STD
from .options import Optimization
from .recipes import Recipe, differences
from .runs import METRICS, RECORD, WEIGHTS, Run, environment, peak_memory, write_text
from .statistics import EpochMean
from .types import Step

NETWORKS = ("student", "teacher")


def train(
    recipe: Recipe,
    data: SegmentationData,
    split: Split,
    folder: Path | str,
    *,
    devices: int = 1,
    workers: int = 0,
    cache: float = 0.0,
    progress: bool = True,
    stop_after: int | None = None,
) -> Run:
    """Train a recipe and write its record; an interrupted run continues where its last epoch ended.

    While it trains everything lies in `<folder>.partial`; `<folder>` appears (replacing an older run) when it is done.

    Args:
        recipe: what to do.
        data, split: on what; every image and mask it needs is checked first.
        folder: of the run.
        devices: processes; more than one needs as many GPUs (or trains on CPU processes where there is no GPU).
        workers: data loading processes; the batches do not depend on it.
        cache: GiB of memory in which each process keeps decoded images; it changes nothing but the time.
        progress: show a bar.
        stop_after: pause after that many epochs, as an interruption would.

    Returns:
        The finished run.

    Raises:
        ValueError: data that would spoil the run, or an interrupted run of another recipe in the folder.
        PermissionError: a folder that cannot be written.
        InterruptedError: paused by `stop_after`.
    """
    folder = Path(folder)
    data = Cached(data, cache) if cache else data
    check(data, split.labeled)
    record = _record_of(recipe, data, split)
    with _claimed(folder.with_name(folder.name + ".partial")) as part:
        _same_run(part, record)
        write_text(part / "started.json", json.dumps(record, indent=1))
        if not (part / RECORD).is_file():  # else it was done, but not yet moved
            strategy = DDPStrategy(start_method="spawn", find_unused_parameters=True) if devices > 1 else "auto"
            precision = "bf16-mixed" if torch.cuda.is_available() else "32-true"
            fabric = Fabric(devices=devices, strategy=strategy, precision=precision)  # type: ignore[arg-type]
            fabric.launch(partial(_fit, recipe, data, split, part, workers, progress, stop_after))
        if not (part / RECORD).is_file():
            raise InterruptedError(f"paused after {stop_after} epochs; call train again to continue {folder}")
        write_lists(split, part)
        for old in checkpoints(part):
            shutil.rmtree(old)
        if folder.exists():
            shutil.rmtree(folder)
        part.rename(folder)
        for name in ("started.json", "lock"):
            (folder / name).unlink()
    return Run.read(folder)


def _record_of(recipe: Recipe, data: SegmentationData, split: Split) -> dict[str, Any]:
    return {
        "recipe": recipe.as_dict(),
        "recipe_sha256": recipe.sha256,
        "data": {"name": data.name, "sha256": data.sha256, "classes": list(data.classes), "val": len(data.val)},
        "split": {
            "name": split.name, "family": split.family, "sha256": split.sha256,
            "labeled": len(split.labeled), "unlabeled": len(split.unlabeled),
            "classes_without_label": list(missing_classes(data, split)),
        },
    }  # fmt: skip


@contextmanager
def _claimed(part: Path) -> Iterator[Path]:
    """The folder of an unfinished run, for this process alone."""
    try:
        part.mkdir(parents=True, exist_ok=True)
        lock = (part / "lock").open("w")
    except OSError as error:
        raise PermissionError(f"cannot write to {part}: {error.strerror}; choose another folder for runs") from error
    with lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise ValueError(f"another process is training in {part}") from error
        yield part


def _same_run(part: Path, record: dict[str, Any]) -> None:
    """Refuse to continue a run of another recipe, data set or split."""
    started = part / "started.json"
    if not started.is_file():
        return
    found = differences(record, json.loads(started.read_text()))
    if found:
        raise ValueError(
            f"{part} holds an unfinished run that differs in {'; '.join(found[:4])}. "
            "Delete it, or choose another folder for runs."
        )


def _fit(
    recipe: Recipe, data: SegmentationData, split: Split, part: Path, workers: int, progress: bool,
    stop_after: int | None, fabric: Fabric,
) -> None:  # fmt: skip
    """Every process runs this; process 0 writes."""
    o, writes = recipe.optimization, fabric.global_rank == 0
    per_epoch = o.epoch_steps or max(1, len(split.unlabeled or split.labeled) // o.batch)
    steps = o.epochs * per_epoch
    host, losses_of, optimizer = _set_up(fabric, recipe, len(data.classes))
    rates = [group["lr"] for group in optimizer.param_groups]
    rows, start = _resume(fabric, part, host, optimizer)
    batches = training_batches(
        data, split, crop=o.crop, scale=o.resize, batch=max(1, o.batch // fabric.world_size), steps=steps, start=start,
        seed=recipe.seed, workers=workers, rank=fabric.global_rank, world=fabric.world_size,
        strong_labels=o.strong_labels, unlabeled=recipe.method != "supervised", **loading(recipe),
    )  # fmt: skip
    score, scores = _scorer(recipe, data), dict[str, ev.Scores]()
    bar = tqdm(total=steps, initial=start, disable=not (progress and writes), file=sys.stdout, mininterval=2)
    sums, began = EpochMean(), time.perf_counter() - (rows[-1]["seconds"] if rows else 0.0)
    for step, batch in enumerate(batches, start):
        t = step / steps
        for group, rate in zip(optimizer.param_groups, rates, strict=True):
            group["lr"] = rate * (1 - t) ** o.power
        result = losses_of(fabric.to_device(batch), t)
        optimizer.zero_grad(set_to_none=True)
        fabric.backward(torch.stack(list(result.losses.values())).sum())
        optimizer.step()
        host.after_step()
        sums.add(result)
        bar.update()
        if step % 20 == 0:
            bar.set_postfix({k: f"{v.item():.3f}" for k, v in result.losses.items()}, refresh=False)
        if (step + 1) % per_epoch:
            continue
        epoch = (step + 1) // per_epoch
        row = {"epoch": epoch, "step": step + 1, "lr": optimizer.param_groups[0]["lr"], **sums.mean()}
        if writes and (epoch % recipe.evaluation.every == 0 or epoch == o.epochs):
            scores = _both(host, score)
            row |= {f"miou_{name}": found.miou for name, found in scores.items()}
        rows.append({**row, "seconds": time.perf_counter() - began})
        sums = EpochMean()
        if writes:
            _save(fabric, part, host, optimizer, rows)
        fabric.barrier()
        if epoch == stop_after:
            break
    bar.close()
    if writes and rows[-1]["epoch"] == o.epochs:
        _finish(_record_of(recipe, data, split), part, host, rows, scores or _both(host, score))


def _set_up(fabric: Fabric, recipe: Recipe, classes: int) -> tuple[Any, Callable[..., Step], Any]:
    """Host and optimizer on their device, equal in every process; later draws differ between processes."""
    torch.manual_seed(recipe.seed)
    host = build(recipe, classes)
    assert isinstance(host, nn.Module)
    if fabric.world_size > 1 and fabric.device.type == "cuda":
        host = nn.SyncBatchNorm.convert_sync_batchnorm(host)
    # A perturber's flow has its own backward pass inside the step and averages its gradients itself.
    own = [name for name, _ in host.named_parameters() if name.startswith("perturb.")]
    DistributedDataParallel._set_params_and_buffers_to_ignore_for_model(host, own)
    wrapped, optimizer = fabric.setup(host, make_optimizer(host, recipe.optimization))
    wrapped.mark_forward_method("losses")
    wrapped.train()
    torch.manual_seed(recipe.seed + 1000 * fabric.global_rank)
    return host, wrapped.losses, optimizer


def make_optimizer(host: nn.Module, o: Optimization) -> torch.optim.Optimizer:
    """SGD or AdamW over encoder and head.  Teachers need no gradient; a plug-in's own network has its own optimizer."""
    trained = [(n, p) for n, p in host.named_parameters() if p.requires_grad and not n.startswith("perturb.")]
    groups = [
        {"params": [p for n, p in trained if ".backbone." in n], "lr": o.lr},
        {"params": [p for n, p in trained if ".backbone." not in n], "lr": o.lr * o.head_lr_factor},
    ]
    if o.optimizer == "sgd":
        return torch.optim.SGD(groups, momentum=o.momentum, weight_decay=o.weight_decay)
    return torch.optim.AdamW(groups, weight_decay=o.weight_decay)


def _resume(fabric: Fabric, part: Path, host: nn.Module, optimizer: Any) -> tuple[list[dict[str, Any]], int]:
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


def _save(fabric: Fabric, part: Path, host: nn.Module, optimizer: Any, rows: list[dict[str, Any]]) -> None:
    """The curve so far, and a checkpoint from which the next epoch continues bit by bit."""
    last = ["miou_student", "miou_teacher", "seconds"]
    curve = pd.DataFrame(rows)
    curve = curve[[c for c in curve if c not in last] + [c for c in last if c in curve]]
    write_text(part / METRICS, curve.to_csv(index=False, float_format="%.6g"))
    rng = {"cpu": torch.get_rng_state()}
    if fabric.device.type == "cuda":
        rng["cuda"] = torch.cuda.get_rng_state(fabric.device)
    state = {"optimizer": optimizer.state_dict(), "rows": rows, "rng": rng}
    save_checkpoint(part, rows[-1]["step"], host, state)


def _both(host: Any, score: Callable[[nn.Module], ev.Scores]) -> dict[str, ev.Scores]:
    return {name: score(getattr(host, name)) for name in NETWORKS}


def _scorer(recipe: Recipe, data: SegmentationData) -> Callable[[nn.Module], ev.Scores]:
    """The recipe's evaluation protocol on the validation images."""
    e = recipe.evaluation
    black = (0 - torch.tensor(MEAN)) / torch.tensor(STD)
    predict = partial(ev.sliding, size=e.size, step=e.step) if e.protocol == "sliding" else ev.whole

    def batches() -> Iterator[tuple[Tensor, Tensor]]:
        for _, images, masks in evaluation_batches(data, data.val, batch=32 if recipe.data == "digits" else 1):
            yield ev.center_crop(images, masks, e.size, black) if e.protocol == "center_crop" else (images, masks)

    return lambda network: ev.evaluate(network, batches(), len(data.classes), predict)


def _finish(
    record: dict[str, Any], part: Path, host: Any, rows: list[dict[str, Any]], scores: dict[str, ev.Scores]
) -> None:
    """Export the teacher (and the perturber, DDFP's flow; the prototypes of ESL) and complete the record."""
    best = {}
    for name in NETWORKS:
        row = max((r for r in rows if f"miou_{name}" in r), key=lambda r: r[f"miou_{name}"])
        best[name] = {"epoch": row["epoch"], "miou": row[f"miou_{name}"]}
    kept = ("teacher.model.", "perturb.", "auxiliary.parts.")
    tensors = {k: v for k, v in host.state_dict().items() if k.startswith(kept) and isinstance(v, Tensor)}
    save_file({k: v.detach().cpu().contiguous() for k, v in tensors.items()}, part / WEIGHTS)
    last = {name: vars(found) for name, found in scores.items()}
    record |= {
        "last": {**last, "epoch": rows[-1]["epoch"], "step": rows[-1]["step"]},
        "best": best,
        "duration_s": round(rows[-1]["seconds"], 1),
        "peak_memory_mib": peak_memory(),
        "parameters": sum(p.numel() for p in host.student.parameters()),
        "environment": environment(),
    }
    write_text(part / RECORD, json.dumps(record, indent=1))
