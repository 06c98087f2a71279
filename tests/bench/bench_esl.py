"""Benchmark of ESL: python tests/bench/bench_esl.py --out bench.json  (not a test: nothing here fails on time)."""

from __future__ import annotations

import argparse
import json
import multiprocessing
import resource
import statistics
import sys
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from itertools import cycle
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from semiseg.build import build
from semiseg.data.loader import training_batches
from semiseg.data.sets.digits import Digits
from semiseg.data.splits import seeded_split
from semiseg.methods.esl import ESLOptions, PixelToPart
from semiseg.recipe import Recipe, recipe
from semiseg.runs import environment
from semiseg.training.loop import make_optimizer
from semiseg.types import Batch, Output, Target, View

K, P, Q, E, L = 21, 5, 128, 512, 2048  # PASCAL VOC and ResNet-101
IMAGES, SIDE, GRID, DEEP = 4, 513, 129, 65
MIB = 1024 if sys.platform != "darwin" else 1024**2


def median_seconds(run: Callable[[], object], repeats: int, warm: int = 1) -> float:
    """Median time of a call, after some calls to warm up.

    On a GPU wall time; on the CPU the time of this one thread, which other processes on the machine do not lengthen.
    """
    clock = time.perf_counter if torch.cuda.is_available() else time.process_time
    times = []
    for i in range(repeats + warm):
        start = clock()
        run()
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        if i >= warm:
            times.append(clock() - start)
    return statistics.median(times)


# --- the loss at the paper's shapes -------------------------------------------------------


def view(seed: int, device: str) -> View:
    """Four images of 513 pixels with patches of all classes, seen by a sure teacher and by a student."""
    g = torch.Generator().manual_seed(seed)
    patches = torch.randint(0, K, (IMAGES, 1, 9, 9), generator=g).float()
    label = F.interpolate(patches, size=(SIDE, SIDE), mode="nearest")[:, 0].long().to(device)
    logits = 20 * F.one_hot(label, K).movedim(-1, 1).float()

    def features(width: int, side: int) -> Tensor:
        return torch.randn(IMAGES, width, side, side, generator=g).to(device)

    teacher = Output(logits, logits[:, :0], features(E, GRID), features(L, DEEP))
    student = teacher._replace(embedding=features(E, GRID).requires_grad_())
    return View(label[:, None].float(), Target.from_labels(label), teacher, student)


def contrast(share: float, device: str) -> PixelToPart:
    """Full queues and prototypes, no bound on anchors."""
    options = ESLOptions(parts=P, embedding=E, queue=Q, share=share, max_anchors=None, collect_steps=1)
    made = PixelToPart(K, L, options)
    made.parts.prototypes.normal_()
    made.parts.active.fill_(True)
    made.parts.collected.fill_(1)
    made.bank.append(F.normalize(torch.randn(K * P * Q, E), dim=1), torch.arange(K * P).repeat(Q))
    return made.to(device)


def resident() -> float:
    """MiB of this process now."""
    statm = Path("/proc/self/statm")
    if statm.is_file():
        return int(statm.read_text().split()[1]) * resource.getpagesize() / 2**20
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / MIB


def _loss(share: float, repeats: int, device: str) -> dict[str, float]:
    """In a process of its own: anchors, seconds forward and backward, peak memory above inputs and bank."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    labeled, mixed, made = view(0, device), view(1, device), contrast(share, device)

    def run() -> None:
        made(labeled, mixed, 0.5).backward()
        for v in (labeled, mixed):
            assert v.student is not None
            v.student.embedding.grad = None

    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated() / 2**20
    else:
        before = resident()
    seconds = median_seconds(run, repeats)
    if device == "cuda":
        peak = torch.cuda.max_memory_allocated() / 2**20
    else:
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / MIB
    anchors = int(made.statistics["anchors"][0])
    return {"share": share, "anchors": anchors, "seconds": seconds, "peak_mib": peak - before}


def loss(share: float, repeats: int, device: str) -> dict[str, float]:
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as process:
        return process.submit(_loss, share, repeats, device).result()


def straightness(x: list[float], y: list[float]) -> dict[str, float]:
    """Least-squares line through (x, y): slope per 1,000, intercept, and the largest residual relative to y."""
    a = torch.tensor([[v / 1000, 1.0] for v in x], dtype=torch.double)
    b = torch.tensor(y, dtype=torch.double)[:, None]
    line = torch.linalg.lstsq(a, b).solution
    slope, intercept = line[:, 0].tolist()
    return {"per_1000": slope, "intercept": intercept, "worst_residual": float(((a @ line - b) / b).abs().max())}


# --- ESL against its host -----------------------------------------------------------------


def training_step(settings: Recipe, batches: list[Batch], classes: int, device: str, warm: int) -> Callable[[], None]:
    torch.manual_seed(0)
    host, turn = build(settings, classes).to(device).train(), cycle(batches)
    optimizer = make_optimizer(host, settings.optimization)

    def step() -> None:
        losses = host.losses(next(turn), 0.5).losses
        optimizer.zero_grad()
        torch.stack(list(losses.values())).sum().backward()
        optimizer.step()
        host.after_step()

    for _ in range(warm):
        step()
    return step


def step_times(device: str, repeats: int) -> dict[str, float]:
    """Seconds per training step on the embedded data, batches already loaded; methods take turns."""
    data = Digits()
    o = recipe("esl").optimization
    split = seeded_split(data.train, "1_8", 0)
    loader = training_batches(data, split, crop=o.crop, batch=o.batch, steps=8, seed=0, scale=o.resize)
    batches = [Batch(*(v if v is None else v.to(device) for v in b)) for b in loader]
    esl = recipe("esl")
    variants = {
        "mean_teacher": recipe("mean_teacher"),
        "esl": esl,
        "esl_without_contrast": esl.changed({"esl.parts": 0}),
    }
    warm = esl[ESLOptions].collect_steps + 1  # by then there are prototypes
    runs = {name: training_step(r, batches, len(data.classes), device, warm) for name, r in variants.items()}
    times: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(repeats):
        for name, run in runs.items():
            times[name].append(median_seconds(run, 5))
    return {name: statistics.median(t) for name, t in times.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--repeats", type=int, default=5)
    options = parser.parse_args()
    torch.set_num_threads(1)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    steps = step_times(device, options.repeats)
    losses = [loss(share, max(1, options.repeats // 2), device) for share in (0.025, 0.05, 0.1)]
    anchors = [v["anchors"] for v in losses]
    found = {
        "environment": environment(),
        "step_seconds": {"device": device, **steps, "esl_over_mean_teacher": steps["esl"] / steps["mean_teacher"]},
        "auxiliary_loss": {
            "classes": K, "parts": P, "queue": Q, "channels": E, "grid": GRID, "images": f"{IMAGES}+{IMAGES}",
            "runs": losses, "seconds_line": straightness(anchors, [v["seconds"] for v in losses]),
            "peak_mib_line": straightness(anchors, [v["peak_mib"] for v in losses]),
        },
    }  # fmt: skip
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(json.dumps(found, indent=1))
    print(json.dumps({k: v for k, v in found.items() if k != "environment"}, indent=1))


if __name__ == "__main__":
    main()
