"""Benchmarks of WPL and its hosts: python tests/bench/bench_wpl.py --out bench.json  (not a test).

Weights of a step of the released code's size, against sorting all channels of every image pixel; a training step of
UniMatch with and without WPL; the augmentations of UniMatch and AugSeg against the same in PIL.  What is compared takes
turns, so that other load on the machine meets both.
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
import tempfile
import time
from collections.abc import Callable
from itertools import cycle
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from bench_loader import BATCH, BLUR, PilSamples, photographs, rate
from PIL import Image, ImageEnhance, ImageFilter, ImageOps
from torch import Tensor
from torch.utils.data import DataLoader

from semiseg.build import build
from semiseg.data.boxes import Detections, component_boxes
from semiseg.data.loader import training_batches
from semiseg.data.sets.digits import Digits
from semiseg.data.sets.voc import VOC
from semiseg.data.splits import seeded_split
from semiseg.methods.wpl import RankWeight, WPLOptions
from semiseg.recipe import recipe, with_plug_ins
from semiseg.registry import method
from semiseg.runs import environment
from semiseg.training.loop import make_optimizer
from semiseg.types import Batch, Output, Target, View

B, D, SIDE, CROP, K, TOP = 2, 256, 65, 513, 21, 5


def seconds(run: Callable[[], object], clock: Callable[[], float] = time.perf_counter) -> float:
    start = clock()
    run()
    return clock() - start


# --- the weights --------------------------------------------------------------------------


def a_step() -> tuple[View, RankWeight]:
    """Random features after a ReLU, and full banks."""
    g = torch.Generator().manual_seed(0)
    features = (torch.rand(B, D, SIDE, SIDE, generator=g) - 0.5).relu()
    label, ones = torch.randint(0, K, (B, CROP, CROP), generator=g), torch.ones(B, CROP, CROP)
    view = View(ones, Target(label, ones, ones), Output(torch.zeros(B, K, CROP, CROP), features, features, features))
    weigher = RankWeight(K, D, WPLOptions(k=TOP))
    for bank in (weigher.labeled, weigher.unlabeled):
        bank.push(torch.rand(K * 256, D, generator=g), torch.arange(K * 256) % K, quota=256)
    return view, weigher


@torch.no_grad()
def sorted_at_image_size(view: View, weigher: RankWeight) -> Tensor:
    """The released way: features brought to image size, all channels of every pixel sorted; one image at a time."""
    of_class = weigher.prototypes()[0].argsort(1, descending=True)[:, :TOP]
    weights = []
    for features, label in zip(view.teacher.features, view.target.label, strict=True):
        fine = F.interpolate(features[None], (CROP, CROP), mode="bilinear", align_corners=True)[0]
        mine = fine.argsort(0, descending=True)[:TOP]
        shared = (mine[:, None] == of_class[label].movedim(-1, 0)[None]).sum((0, 1))
        weights.append(shared / TOP)
    return torch.stack(weights)


def weights_of_a_step(repeats: int) -> dict[str, float]:
    """Seconds of a call: median and fastest; of one thread also those of its processor, which no other load changes."""
    view, weigher = a_step()
    found = {"processor": statistics.median(seconds(lambda: weigher(view), time.process_time) for _ in range(repeats))}
    for threads in (1, 2):
        torch.set_num_threads(threads)
        times = [seconds(lambda: weigher(view)) for _ in range(repeats)]
        found |= {f"threads_{threads}": statistics.median(times), f"threads_{threads}_fastest": min(times)}
        found[f"threads_{threads}_sorted_at_image_size"] = seconds(lambda: sorted_at_image_size(view, weigher))
    torch.set_num_threads(1)
    return found


# --- a training step ----------------------------------------------------------------------


def step_times(rounds: int, each: int = 4) -> dict[str, float]:
    """Seconds per step on the embedded data, batches already loaded; `ratio`: median of ratios of neighboring runs."""
    data, base = Digits(), recipe("unimatch")
    split, o = seeded_split(data.train, "1_8", 0), base.optimization
    boxes = Detections({key: component_boxes(data.mask(key), range(1, len(data.classes))) for key in data.train})
    loader = training_batches(
        data, split, crop=o.crop, batch=o.batch, steps=8, seed=0, scale=o.resize, objects=boxes,
        **method(base.method).loading(base),
    )  # fmt: skip
    batches = [Batch(*b) for b in loader]
    turns = {"unimatch": cycle(batches), "unimatch_wpl": cycle(batches)}
    runs: dict[str, Callable[[], None]] = {}
    for name, made in (("unimatch", base), ("unimatch_wpl", with_plug_ins(base, "wpl"))):
        torch.manual_seed(0)
        host = build(made, len(data.classes)).train()
        optimizer = make_optimizer(host, o)

        def steps(host=host, optimizer=optimizer, turn=turns[name]) -> None:
            for _ in range(each):
                losses = host.losses(next(turn), 0.5).losses
                optimizer.zero_grad()
                sum(losses.values()).backward()
                optimizer.step()
                host.after_step()

        runs[name] = steps
    times: dict[str, list[float]] = {name: [seconds(run)] for name, run in runs.items()}
    for _ in range(rounds):
        for name, run in runs.items():
            times[name].append(seconds(run) / each)
    pairs = zip(times["unimatch_wpl"][1:], times["unimatch"][1:], strict=True)
    found = {name: statistics.median(values[1:]) for name, values in times.items()}
    return found | {"ratio": statistics.median(with_wpl / alone for with_wpl, alone in pairs)}


# --- augmentations ------------------------------------------------------------------------


def _pil_hue(image: Image.Image) -> Image.Image:
    hue, saturation, value = image.convert("HSV").split()
    turned = Image.fromarray(np.asarray(hue) + np.uint8(random.randrange(256)))
    return Image.merge("HSV", (turned, saturation, value)).convert("RGB")


def _enhanced(kind: Callable[[Image.Image], ImageEnhance._Enhance]) -> Callable[[Image.Image], Image.Image]:
    return lambda image: kind(image).enhance(random.uniform(0.05, 0.95))


PIL_CHANGES: tuple[Callable[[Image.Image], Image.Image], ...] = (
    lambda image: image,
    ImageOps.autocontrast,
    ImageOps.equalize,
    lambda image: image.filter(ImageFilter.GaussianBlur(random.uniform(*BLUR))),
    *(_enhanced(getattr(ImageEnhance, kind)) for kind in ("Contrast", "Brightness", "Color", "Sharpness")),
    lambda image: ImageOps.posterize(image, random.randint(4, 7)),
    lambda image: ImageOps.solarize(image, random.randint(1, 255)),
    _pil_hue,
)


class PilAugSeg(PilSamples):
    """AugSeg's strong view in PIL; geometry as UniMatch's, which differs only in when it mirrors."""

    def strong(self, image: Image.Image) -> Image.Image:
        for _ in range(random.randint(1, 3)):
            image = random.choice(PIL_CHANGES)(image)
        return image


def augmentations(root: Path, steps: int, rounds: int) -> dict[str, dict[str, float]]:
    """Images per second in the training process, from files to batches; `ratio`: median of neighboring runs'."""
    data = VOC(root)
    split, found = seeded_split(data.train, "1_4", 0), {}
    for name, samples, crop in (("unimatch", PilSamples, 321), ("augseg", PilAugSeg, 513)):
        ask = method(name).loading(recipe(name))
        options = {"crop": crop, "batch": BATCH, "steps": steps, "seed": 0, **ask}
        in_pil = samples(root, split, crop, ask.get("views", 1), BATCH * steps)
        runs = {
            "pil": lambda in_pil=in_pil: DataLoader(in_pil, BATCH),
            "semiseg": lambda options=options: training_batches(data, split, **options),
        }
        rates: dict[str, list[float]] = {who: [] for who in runs}
        for _ in range(rounds):
            for who, run in runs.items():
                rates[who].append(rate(run(), steps))
        pairs = zip(rates["semiseg"], rates["pil"], strict=True)
        found[name] = {who: statistics.median(values) for who, values in rates.items()}
        found[name]["ratio"] = statistics.median(ours / theirs for ours, theirs in pairs)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--steps", type=int, default=4, help="batches per round of the augmentations")
    options = parser.parse_args()
    torch.set_num_threads(1)
    found = {"environment": environment(), "step_seconds": step_times(options.rounds)}
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder) / "voc"
        photographs(root)
        found["images_per_second"] = augmentations(root, options.steps, options.rounds)
    found["weights_seconds"] = {"images": B, "side": SIDE, "channels": D, "classes": K, "crop": CROP}
    found["weights_seconds"] |= weights_of_a_step(4 * options.rounds)
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(json.dumps(found, indent=1))
    print(json.dumps({k: v for k, v in found.items() if k != "environment"}, indent=1))


if __name__ == "__main__":
    main()
