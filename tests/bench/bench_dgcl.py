"""Time and memory of DGCL's contrast: python tests/bench/bench_dgcl.py --out dgcl.json  (not a test).

Shapes of the paper: 21 classes, 4 + 4 images of 129 x 129 features of 256 channels, memory of 10,000 per class, at most
10,000 pixels of a class measured and 1,000 stored in a step.  Each variant runs in a process of its own, which measures
its peak.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import statistics
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from itertools import cycle
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from semiseg.build import build
from semiseg.data.loader import training_batches
from semiseg.data.sets.digits import Digits
from semiseg.data.splits import seeded_split
from semiseg.methods.dgcl import DensityContrast, DGCLOptions
from semiseg.recipe import recipe
from semiseg.runs import environment
from semiseg.training.loop import make_optimizer
from semiseg.types import Batch, Output, Target, View

K, D, BANK, QUOTA, PIXELS = 21, 256, 10_000, 1_000, 10_000
SCALES, ANCHORS, KEYS, NEGATIVES, TAU = (8, 16, 32), 200, 50, 512, 0.5


class Naive:
    """The loss as one would first write it: a top-k for each scale, banks copied whole, density anew for the memory."""

    def __init__(self, features: Tensor, projections: Tensor, scores: Tensor) -> None:
        self.features, self.projections, self.scores = list(features), list(projections), list(scores)

    def __call__(self, features: Tensor, embedding: Tensor, labels: Tensor) -> Tensor:
        loss = self.loss(features, embedding, labels, torch.stack(self.features), torch.stack(self.projections))
        self.update(features.detach(), embedding.detach(), labels)
        return loss

    def density(self, v: Tensor, bank: Tensor) -> Tensor:
        similar = F.normalize(v, dim=1) @ F.normalize(bank, dim=1).T
        return torch.stack([similar.topk(k, dim=1).values.mean(1) for k in SCALES]).mean(0)

    def loss(self, features: Tensor, embedding: Tensor, labels: Tensor, bank: Tensor, stored: Tensor) -> Tensor:
        terms = []
        for k in range(1, K):
            mine = (labels == k).nonzero()[:, 0]
            mine = mine[torch.randperm(len(mine), device=mine.device)[:PIXELS]]
            rho, z = self.density(features[mine].detach(), bank[k]), embedding[mine]
            peaks = stored[k][self.scores[k].topk(KEYS).indices]
            center = torch.cat((z[rho.topk(KEYS).indices].detach(), peaks)).mean(0, keepdim=True)
            others = embedding[(labels != k) & (labels != 255)].detach()
            others = F.normalize(others[torch.randperm(len(others), device=mine.device)[:NEGATIVES]], dim=1)
            anchors = F.normalize(z[rho.topk(ANCHORS, largest=False).indices], dim=1)
            logits = torch.cat((anchors @ F.normalize(center, dim=1).T, anchors @ others.T), 1) / TAU
            terms.append(F.cross_entropy(logits, torch.zeros(len(logits), dtype=torch.long, device=logits.device)))
        return torch.stack(terms).mean()

    @torch.no_grad()
    def update(self, features: Tensor, embedding: Tensor, labels: Tensor) -> None:
        for k in range(K):
            mine = (labels == k).nonzero()[:, 0]
            mine = mine[torch.randperm(len(mine), device=mine.device)[:QUOTA]]
            rho = self.density(features[mine], self.features[k])
            self.features[k] = torch.cat((features[mine], self.features[k]))[:BANK]
            self.projections[k] = torch.cat((embedding[mine], self.projections[k]))[:BANK]
            self.scores[k] = torch.cat((rho, self.scores[k]))[:BANK]


def scene(device: str, side: int, images: int) -> tuple[Tensor, Tensor, Tensor]:
    """Features and embedding of 2 * images maps, and labels in blobs, every class about as large."""
    g = torch.Generator().manual_seed(0)
    labels = torch.randint(0, K, (2 * images, 1, 12, 12), generator=g).float()
    labels = F.interpolate(labels, size=(side, side), mode="nearest")[:, 0].long()
    directions = torch.randn(K, D, generator=g)
    features = torch.empty(2 * images, D, side, side)
    for one, label in zip(features, labels, strict=True):
        one.copy_((directions[label] + 1.5 * torch.randn(side, side, D, generator=g)).movedim(-1, 0))
    embedding = torch.randn(2 * images, D, side, side, generator=g)
    return features.to(device), embedding.to(device), labels.to(device)


def make(variant: str, device: str, side: int, images: int) -> Callable[[], float]:
    """One step: forward, backward, update.  Both variants see the same maps and start with the same full banks."""
    features, embedding, labels = scene(device, side, images)
    embedding.requires_grad_()
    g = torch.Generator().manual_seed(1)
    rows = torch.randn(K, BANK, 2 * D + 2, generator=g)
    rows[..., :D] = F.normalize(rows[..., :D] + 0.4 * torch.randn(K, 1, D, generator=g), dim=-1)
    rows[..., D], rows[..., -1] = 1.0, torch.rand(K, BANK, generator=g)
    step: Callable[[], Tensor]
    if variant == "naive":
        naive = Naive(*(v.to(device).clone() for v in (rows[..., :D], rows[..., D + 1 : -1], rows[..., -1])))

        def step() -> Tensor:
            flat = (v.movedim(1, -1).flatten(0, 2) for v in (features, embedding))
            return naive(*flat, labels.flatten())
    else:
        options = DGCLOptions(
            embedding=D, bank=BANK, quota=QUOTA, pixels=PIXELS, scales=SCALES, anchors=ANCHORS, keys=KEYS,
            negatives=NEGATIVES, tau=TAU, weight=1.0,
        )  # fmt: skip
        ours = DensityContrast(K, D, options).to(device)
        assert ours.bank is not None
        ours.bank.rows.copy_(rows)
        ours.bank.filled.fill_(BANK)

        def step() -> Tensor:
            return ours(*(view(i, features, embedding, labels, images) for i in (0, images)), 0.5)

    del rows

    def run() -> float:
        embedding.grad = None
        loss = step()
        loss.backward()
        return loss.item()

    return run


def view(start: int, features: Tensor, embedding: Tensor, labels: Tensor, images: int) -> View:
    f, e, y = (v[start : start + images] for v in (features, embedding, labels))
    out = Output(f[:, :K], f, e, f[:, :1])
    return View(f[:, :3], Target.from_labels(y), teacher=out.detach(), student=out)


def measure(variant: str, device: str, side: int, images: int, repeats: int) -> dict[str, float]:
    """In a process of its own: median seconds, and MiB a step needs on top of what it is given."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    run = make(variant, device, side, images)
    cuda, clock = device == "cuda", clock_of(device)

    def peak() -> float:
        if cuda:
            return torch.cuda.max_memory_allocated() / 2**20
        return _resident("VmHWM")

    if cuda:
        torch.cuda.reset_peak_memory_stats()
    else:
        Path("/proc/self/clear_refs").write_text("5")  # the peak starts anew, without that of the preparation
    before, times, loss = peak(), [], 0.0
    for _ in range(repeats + 1):
        start = clock()
        loss = run()
        if cuda:
            torch.cuda.synchronize()
        times.append(clock() - start)
    return {"seconds": statistics.median(times[1:]), "extra_mib": peak() - before, "loss": loss}


def clock_of(device: str) -> Callable[[], float]:
    """Wall time on a GPU; on a CPU the time of this process, of one thread, so that a busy machine does not count."""
    return time.perf_counter if device == "cuda" else time.process_time


def _resident(field: str) -> float:
    """MiB of memory of this process, from Linux."""
    rows = Path("/proc/self/status").read_text().splitlines()
    return int(next(row for row in rows if row.startswith(field)).split()[1]) / 1024


def contrast(device: str, side: int, images: int, repeats: int) -> dict[str, Any]:
    results: dict[str, Any] = {}
    for variant in ("naive", "ours"):
        with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as process:
            results[variant] = process.submit(measure, variant, device, side, images, repeats).result()
    results["ratio_seconds"] = results["ours"]["seconds"] / results["naive"]["seconds"]
    return results


def step_times(device: str, repeats: int, warm: int = 30) -> dict[str, float]:
    """Processor seconds per training step on the embedded data, batches already loaded; methods take turns.

    warm: steps before, in which the banks are filled.
    """
    data = Digits()
    split, o = seeded_split(data.train, "1_8", 0), recipe("dgcl").optimization
    batches = list(training_batches(data, split, crop=o.crop, batch=o.batch, steps=30, seed=0, scale=o.resize))
    clock, hosts = clock_of(device), {}
    for method in ("mean_teacher", "dgcl"):
        torch.manual_seed(0)
        host = build(recipe(method), len(data.classes)).to(device).train()
        hosts[method] = host, make_optimizer(host, o)
    times: dict[str, list[float]] = {m: [] for m in hosts}
    for _, batch in zip(range(warm + repeats), cycle(batches), strict=False):
        batch = Batch(*(v if v is None else v.to(device) for v in batch))
        for method, (host, optimizer) in hosts.items():
            start = clock()
            losses = host.losses(batch, 0.5).losses
            optimizer.zero_grad()
            torch.stack(list(losses.values())).sum().backward()
            optimizer.step()
            host.after_step()
            if device == "cuda":
                torch.cuda.synchronize()
            times[method].append(clock() - start)
    medians = {m: statistics.median(t[warm:]) for m, t in times.items()}
    return {**medians, "ratio": medians["dgcl"] / medians["mean_teacher"]}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--side", type=int, default=129)
    parser.add_argument("--images", type=int, default=4, help="labeled, and as many unlabeled")
    a = parser.parse_args()
    torch.set_num_threads(1)
    result = {
        "shapes": {"classes": K, "channels": D, "side": a.side, "images": 2 * a.images, "bank": BANK, "quota": QUOTA},
        "contrast": contrast(a.device, a.side, a.images, a.repeats),
        "seconds_per_step_digits_tiny": step_times(a.device, 20 * a.repeats),
        "environment": environment(),
    }
    a.out.write_text(json.dumps(result, indent=1))
    print(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
