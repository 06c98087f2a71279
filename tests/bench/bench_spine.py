"""Benchmarks of the spine: python tests/bench/bench_spine.py --out bench.json  (not a test)."""

from __future__ import annotations

import argparse
import json
import math
import multiprocessing
import resource
import statistics
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from itertools import cycle, islice
from pathlib import Path

import torch
from torch import Tensor

from semiseg.build import build
from semiseg.data.loader import training_batches
from semiseg.data.sets.digits import Digits
from semiseg.data.splits import seeded_split
from semiseg.methods.ddfp import DDFPOptions, DensityDescent
from semiseg.methods.flow import UNLABELED, MixtureFlow
from semiseg.recipe import recipe
from semiseg.runs import environment
from semiseg.training.loop import make_optimizer
from semiseg.types import Batch, Output, Target, View

N, D, K = 20 * 1024, 256, 21


def median_seconds(run: Callable[[], object], repeats: int, device: str = "cpu") -> float:
    """Median wall time of a call, after two calls to warm up."""
    times = []
    for i in range(repeats + 2):
        start = time.perf_counter()
        run()
        if device == "cuda":
            torch.cuda.synchronize()
        if i >= 2:
            times.append(time.perf_counter() - start)
    return statistics.median(times)


# --- DDFP against its host ----------------------------------------------------------------


def step_times(device: str, repeats: int) -> dict[str, float]:
    """Seconds per training step on the embedded data, batches already loaded; methods take turns."""
    data = Digits()
    split = seeded_split(data.train, "1_8", 0)
    o = recipe("ddfp").optimization
    loader = training_batches(data, split, crop=o.crop, batch=o.batch, steps=8, seed=0, scale=o.resize)
    batches = [Batch(*(v if v is None else v.to(device) for v in b)) for b in loader]
    runs: dict[str, Callable[[], None]] = {}
    turns = {method: cycle(batches) for method in ("supervised", "mean_teacher", "ddfp")}
    for method in turns:
        torch.manual_seed(0)
        host = build(recipe(method), len(data.classes)).to(device).train()
        optimizer = make_optimizer(host, o)

        def step(host=host, optimizer=optimizer, turn=turns[method]) -> None:
            losses = host.losses(next(turn), 0.5).losses
            optimizer.zero_grad()
            sum(losses.values()).backward()
            optimizer.step()
            host.after_step()

        runs[method] = step
    times: dict[str, list[float]] = {m: [] for m in runs}
    for _ in range(repeats):
        for method, run in runs.items():
            times[method].append(median_seconds(run, 5, device))
    return {m: statistics.median(t) for m, t in times.items()}


# --- the flow step against a mixture of N x K x D -----------------------------------------


class NaiveFlow(MixtureFlow):
    """The same flow whose Gaussians are written out feature by class by channel."""

    def component_log_prob(self, v: Tensor) -> Tensor:
        z, log_det = self.encode(v)
        difference = z[:, None, :] - self.means[None]
        normal = -0.5 * (difference.square() + math.log(2 * math.pi))
        return normal.sum(-1) + log_det[:, None]


def _flow_step(naive: bool, repeats: int) -> dict[str, float]:
    """In a process of its own: seconds per step, and peak memory above what features and network take."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    step = DensityDescent(D, K, DDFPOptions(samples=N))
    if naive:
        flow = NaiveFlow(D, K)
        flow.load_state_dict(step.flow.state_dict())
        step.flow = flow
        step.optimizer = torch.optim.Adam(flow.parameters(), 1e-3, betas=(0.5, 0.9))
    h, w = 128, N // 2 // 128

    def view(features: Tensor, target: Target) -> View:
        return View(features[:, :3], target, Output(features, features, features, features))

    labeled = view(torch.randn(1, D, h, w), Target.from_labels(torch.randint(0, K, (1, h, w))))
    weak = view(torch.randn(1, D, h, w), Target.from_labels(torch.zeros(1, h, w, dtype=torch.long)))
    assert (step._features(labeled, weak)[1] == UNLABELED).sum() == N // 2
    small = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    seconds = median_seconds(lambda: step.observe(labeled, weak, 0.0), repeats)
    return {"seconds": seconds, "peak_mib": (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - small) / 1024}


def flow_step(naive: bool, repeats: int) -> dict[str, float]:
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as process:
        return process.submit(_flow_step, naive, repeats).result()


# --- the loader ---------------------------------------------------------------------------


def loader_rate(steps: int) -> dict[str, float]:
    """Images per second of the embedded set, weak and strong views, in the training process."""
    data = Digits()
    o = recipe("ddfp").optimization
    split = seeded_split(data.train, "1_8", 0)
    batches = iter(training_batches(data, split, crop=o.crop, batch=o.batch, steps=steps + 2, seed=0, scale=o.resize))
    list(islice(batches, 2))
    start = time.perf_counter()
    count = sum(2 * o.batch for _ in batches)
    return {"images_per_second": count / (time.perf_counter() - start)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--repeats", type=int, default=5)
    options = parser.parse_args()
    torch.set_num_threads(1)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    steps = step_times(device, options.repeats)
    ours, naive = flow_step(False, options.repeats), flow_step(True, options.repeats)
    found = {
        "environment": environment(),
        "step_seconds": {"device": device, **steps, "ddfp_over_mean_teacher": steps["ddfp"] / steps["mean_teacher"]},
        "flow_step": {
            "features": N, "channels": D, "classes": K, "ours": ours, "naive": naive,
            "time_share": ours["seconds"] / naive["seconds"], "memory_share": ours["peak_mib"] / naive["peak_mib"],
        },
        "loader": loader_rate(20),
    }  # fmt: skip
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(json.dumps(found, indent=1))
    print(json.dumps({k: v for k, v in found.items() if k != "environment"}, indent=1))


if __name__ == "__main__":
    main()
