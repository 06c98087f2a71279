"""Benchmark of UPC: python tests/bench/bench_upc.py --out bench.json  (not a test: nothing here fails on time).

What its masks cost of a training step, how fast ST++ labels images compared with running the network on the same
views, and whether entropy maps of one byte per pixel choose the same patches.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from itertools import cycle
from pathlib import Path

import torch
import torch.nn as nn
from torch import Tensor

from semiseg.build import build, make_student, without_pretraining
from semiseg.checkout import repo_root
from semiseg.data.loader import training_batches
from semiseg.data.pseudo_labels import PseudoLabeled, label_images, whole_images
from semiseg.data.sets.digits import Digits
from semiseg.data.splits import seeded_split
from semiseg.hosts.stpp import SCALES, pseudo_label
from semiseg.inference.model import load_exported
from semiseg.methods.upc import PatchCutMix, UPCOptions, patch_sums, top_patches
from semiseg.recipe import Recipe, recipe
from semiseg.runs import Run, environment
from semiseg.training.loop import make_optimizer
from semiseg.types import Batch, Mixer, Paste, Target, View


def clock_of(device: str) -> Callable[[], float]:
    """Wall time on a GPU; on the CPU the processor time of all threads, which other processes do not lengthen."""
    if device != "cuda":
        return time.process_time

    def synchronized() -> float:
        torch.cuda.synchronize()
        return time.perf_counter()

    return synchronized


def median_seconds(run: Callable[[], object], clock: Callable[[], float], repeats: int, warm: int = 1) -> float:
    times = []
    for i in range(repeats + warm):
        start = clock()
        run()
        if i >= warm:
            times.append(clock() - start)
    return statistics.median(times)


# --- the masks ----------------------------------------------------------------------------


class Watching:
    """A mixer that remembers what it was asked."""

    def __init__(self, mixer: Mixer) -> None:
        self.mixer = mixer

    def __call__(self, own: View, donors: View) -> Paste:
        self.asked = own, donors
        return self.mixer(own, donors)


def masks(base: Recipe, size: int, device: str, repeats: int) -> dict[str, float]:
    """Seconds of a mean-teacher step with UPC, of UPC's plan in it (scores, masks, donors, shares)."""
    data, clock, o = Digits(96, 8, size), clock_of(device), base.optimization
    split = seeded_split(data.train, "1_4", 0)
    loader = training_batches(data, split, crop=o.crop, batch=o.batch, steps=4, seed=0, scale=o.resize)
    batches = cycle([Batch(*(v if v is None else v.to(device) for v in b)) for b in loader])
    found = {}
    for rows in ("sample", "all"):
        torch.manual_seed(0)
        host = build(base.having(UPCOptions(rows=rows)), len(data.classes)).to(device).train()
        host.mix = Watching(host.mix)
        optimizer = make_optimizer(host, o)

        def step(host=host, optimizer=optimizer) -> None:
            losses = host.losses(next(batches), 0.5).losses
            optimizer.zero_grad()
            torch.stack(list(losses.values())).sum().backward()
            optimizer.step()
            host.after_step()

        whole = median_seconds(step, clock, repeats)
        plan = median_seconds(lambda host=host: host.mix.mixer(*host.mix.asked), clock, 4 * repeats)
        found |= {f"step_{rows}": whole, f"masks_{rows}": plan, f"share_{rows}": plan / whole}
    return found


# --- labels of ST++ -----------------------------------------------------------------------


def labeling(
    base: Recipe, size: int, images: int, batch: int, scales: Sequence[float], device: str
) -> dict[str, float]:
    """Images per second of a pass that writes masks and entropy maps, and of the network on the same views alone."""
    data = Digits(images, 8, size)
    network = make_student(base, len(data.classes)).to(device).eval()
    ids, clock = data.train, clock_of(device)
    groups = [tuple(ids[i : i + batch]) for i in range(0, len(ids), batch)]

    @torch.no_grad()
    def forward_alone() -> None:
        for _, x in whole_images(data, groups):
            for scale in scales:
                scaled = nn.functional.interpolate(x.to(device), scale_factor=scale) if scale != 1 else x.to(device)
                network(torch.cat((scaled, scaled.flip(-1))))

    def label(x: Tensor) -> tuple[Tensor, Tensor]:
        return pseudo_label(network, x.to(device), scales=scales)

    def written() -> None:
        with tempfile.TemporaryDirectory() as folder:
            label_images(data, ids, Path(folder), label, batch=batch)

    alone = median_seconds(forward_alone, clock, 2, 1)
    whole = median_seconds(written, clock, 2, 1)
    return {
        "network_alone": images / alone, "labels_written": images / whole, "speed": alone / whole,
    }  # fmt: skip


def entropy_maps(images: int = 256, batch: int = 32) -> dict[str, float]:
    """Bytes per pixel of entropy maps of a trained network on disk, and share of images whose 2, 3 or 5 patches they
    change: an untrained one doubts everything alike, and its order is chance.
    """
    data, run = Digits(), Run.read(repo_root() / "runs" / "digits-tiny" / "mean_teacher-1_8-seed0")
    ids, classes, changed = data.train[-images:], len(data.classes), 0
    host = load_exported(Recipe.from_dict(run.record["recipe"]), classes, run.folder / "model.safetensors")

    def label(x: Tensor) -> tuple[Tensor, Tensor]:
        return pseudo_label(host.teacher.model, x, scales=(0.8, 1.0, 1.25), flip=False)

    with tempfile.TemporaryDirectory() as folder:
        label_images(data, ids, Path(folder), label, batch=batch)
        stored = PseudoLabeled(data, folder)
        groups = [tuple(ids[i : i + batch]) for i in range(0, len(ids), batch)]
        for keys, x in whole_images(data, groups):
            doubt = label(x)[1].cpu()
            read = torch.stack([stored.given(key)[1] for key in keys]).float() * math.log(classes) / 255
            for k in (2, 3, 5):
                one, other = (top_patches(patch_sums(plane, 4), k) for plane in (doubt, read))
                changed += int((one != other).flatten(1).any(1).sum())
        files = list((Path(folder) / "entropy").glob("*.png"))
        pixels = len(ids) * data.image(ids[0])[0].numel()
        on_disk = sum(f.stat().st_size for f in files) / pixels
    return {"bytes_per_pixel": on_disk, "masks_changed": changed / (3 * len(ids))}


# --- the plan alone at the paper's size ---------------------------------------------------


def plan_alone(device: str, repeats: int, sizes: Sequence[int] = (321, 769)) -> dict[str, float]:
    """Seconds of UPC's plan for eight crops of so many pixels."""
    found = {}
    for size in sizes:
        label, ones = torch.randint(0, 21, (8, size, size), device=device), torch.ones(8, size, size, device=device)
        image = torch.zeros(8, 3, size, size, device=device)
        own = View(image, Target(label, ones, ones), entropy=torch.rand(8, size, size, device=device), hidden=label)
        donors, mixer = View(image, Target(label, ones, ones)), PatchCutMix(UPCOptions(rows="all"))
        found[f"seconds_{size}"] = median_seconds(
            lambda mixer=mixer, own=own, donors=donors: mixer(own, donors), clock_of(device), repeats
        )
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--repeats", type=int, default=10)
    parser.add_argument("--paper", action="store_true", help="also a step of the paper's network and crops (a GPU)")
    a = parser.parse_args()
    torch.set_num_threads(1)
    digits, voc = recipe("mean_teacher"), without_pretraining(recipe("mean_teacher", "voc", "1_8", "tiny"))
    settings = {"digits-tiny": (digits, 32), "voc-tiny": (voc, 224)}
    if a.paper:
        settings["voc-paper"] = without_pretraining(recipe("mean_teacher", "voc", "1_8", "paper")), 513
    low, high = digits.optimization.resize
    result = {
        "device": a.device,
        "masks": {name: masks(base, size, a.device, a.repeats) for name, (base, size) in settings.items()},
        "plan_of_8_crops_3_rows": plan_alone(a.device, a.repeats),
        "stpp_labels": {
            "digits-tiny": labeling(digits, 32, 256, 32, (low, 1.0, high), a.device),
            "voc-tiny": labeling(voc, 224, 4, 1, SCALES, a.device),
        },
        "entropy_maps": entropy_maps(),
        "environment": environment(),
    }
    a.out.parent.mkdir(parents=True, exist_ok=True)
    a.out.write_text(json.dumps(result, indent=1))
    print(json.dumps({name: part for name, part in result.items() if name != "environment"}, indent=1))


if __name__ == "__main__":
    main()
