"""Loader speed against a plain PIL pipeline: python tests/bench/bench_loader.py --out bench.json  (not a test).

Both read the same JPEG photographs of 500 x 375 pixels and their masks, with the same number of worker processes, and
make the same things of them: a labeled crop with its mask; an unlabeled crop, its mask, its valid pixels and its strong
views.  The PIL pipeline is UniMatch's augmentation, one sample at a time, collated by the DataLoader (its CutMix boxes
are left out: here they belong to the mixer).  The two take turns, so that other load on the machine meets both.
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
import tempfile
import time
from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageFilter, ImageOps
from torch.utils.data import DataLoader, Dataset
from torchvision import transforms

from semiseg.data.cached import Cached
from semiseg.data.loader import training_batches
from semiseg.data.sets.digits import Digits
from semiseg.data.sets.voc import VOC
from semiseg.data.splits import Split, seeded_split
from semiseg.data.transforms import MEAN, STD
from semiseg.recipe import recipe
from semiseg.runs import environment
from semiseg.types import IGNORE

BATCH = 8
BLUR = (0.1, 2.0)


# --- photographs --------------------------------------------------------------------------


def photographs(root: Path, count: int = 32) -> None:
    """Textured pictures with regions, in VOC's layout."""
    for folder in ("JPEGImages", "SegmentationClass", "ImageSets/Segmentation"):
        (root / folder).mkdir(parents=True)
    draw = np.random.default_rng(0)
    for i in range(count):
        coarse, fine = (
            np.asarray(Image.fromarray(draw.integers(0, 256, (*cells, 3), dtype=np.uint8)).resize((500, 375), 3), float)
            for cells in ((6, 8), (60, 80))
        )
        pixels = 0.75 * coarse + 0.25 * fine + draw.normal(0, 3, coarse.shape)
        Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(root / f"JPEGImages/{i:03d}.jpg", quality=92)
        regions = Image.fromarray(draw.integers(0, 21, (4, 5), dtype=np.uint8)).resize((500, 375), Image.NEAREST)
        regions.save(root / f"SegmentationClass/{i:03d}.png")
    names = [f"{i:03d}\n" for i in range(count)]
    (root / "ImageSets/Segmentation/train_aug.txt").write_text("".join(names))
    (root / "ImageSets/Segmentation/val.txt").write_text(names[0])


# --- UniMatch's pipeline in PIL -----------------------------------------------------------


class PilSamples(Dataset):
    """Pairs of a labeled and an unlabeled sample."""

    def __init__(self, root: Path, split: Split, crop: int, views: int, length: int) -> None:
        self.root, self.split, self.crop, self.views, self.length = root, split, crop, views, length
        self.jitter = transforms.ColorJitter(0.5, 0.5, 0.5, 0.25)
        self.gray = transforms.RandomGrayscale(0.2)
        self.normalize = transforms.Compose([transforms.ToTensor(), transforms.Normalize(MEAN, STD)])

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: int) -> tuple[torch.Tensor, ...]:
        random.seed(index)
        image, mask = self.weak(self.split.labeled[index % len(self.split.labeled)], IGNORE)
        labeled = self.normalize(image), torch.from_numpy(np.array(mask)).long()
        image, mask = self.weak(self.split.unlabeled[index % len(self.split.unlabeled)], 254)
        strong = [self.normalize(self.strong(image)) for _ in range(self.views)]
        hidden = torch.from_numpy(np.array(mask)).long()
        valid = hidden != 254
        hidden[~valid] = IGNORE
        return (*labeled, self.normalize(image), torch.stack(strong), valid, hidden)

    def weak(self, key: str, fill: int) -> tuple[Image.Image, Image.Image]:
        image = Image.open(self.root / f"JPEGImages/{key}.jpg").convert("RGB")
        mask = Image.open(self.root / f"SegmentationClass/{key}.png")
        long = max(image.size)
        side = random.randint(long // 2, 2 * long)
        size = tuple(int(s * side / long + 0.5) for s in image.size)
        image, mask = image.resize(size, Image.BILINEAR), mask.resize(size, Image.NEAREST)
        pad = [max(0, self.crop - s) for s in size]
        image, mask = ImageOps.expand(image, (0, 0, *pad), 0), ImageOps.expand(mask, (0, 0, *pad), fill)
        x, y = (random.randint(0, s - self.crop) for s in image.size)
        box = (x, y, x + self.crop, y + self.crop)
        image, mask = image.crop(box), mask.crop(box)
        if random.random() < 0.5:
            image, mask = ImageOps.mirror(image), ImageOps.mirror(mask)
        return image, mask

    def strong(self, image: Image.Image) -> Image.Image:
        if random.random() < 0.8:
            image = self.jitter(image)
        image = self.gray(image)
        if random.random() < 0.5:
            image = image.filter(ImageFilter.GaussianBlur(radius=random.uniform(*BLUR)))
        return image


# --- timing -------------------------------------------------------------------------------


def rate(batches: Iterable[object], steps: int) -> float:
    """Images per second, labeled and unlabeled, from the start of the workers to the last batch."""
    start = time.perf_counter()
    count = sum(1 for _ in batches)
    assert count == steps
    return 2 * BATCH * steps / (time.perf_counter() - start)


def compare(root: Path, crop: int, views: int, steps: int, rounds: int, workers: int) -> dict[str, float]:
    """Medians over rounds; `ratio` is the median of the ratios of neighboring runs."""
    data = VOC(root)
    split = seeded_split(data.train, "1_4", 0)
    samples = PilSamples(root, split, crop, views, BATCH * steps)
    options = {"crop": crop, "views": views, "batch": BATCH, "steps": steps, "seed": 0, "workers": workers}
    cached = Cached(data)
    for key in data.train:
        cached.image(key), cached.mask(key)
    runs: dict[str, Callable[[], Iterable[object]]] = {
        "pil": lambda: DataLoader(samples, BATCH, num_workers=workers),
        "semiseg": lambda: training_batches(data, split, **options),
        "semiseg_cached": lambda: training_batches(cached, split, **options),
    }
    rates: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(rounds):
        for name, run in runs.items():
            rates[name].append(rate(run(), steps))
    found = {name: statistics.median(values) for name, values in rates.items()}
    for name in ("semiseg", "semiseg_cached"):
        pairs = zip(rates[name], rates["pil"], strict=True)
        found[f"{name}_over_pil"] = statistics.median(ours / theirs for ours, theirs in pairs)
    return {name: round(value, 2) for name, value in found.items()}


def processor(root: Path, crop: int, views: int, steps: int, rounds: int) -> dict[str, float]:
    """Images per second of processor time, in one process: what other load on the machine changes least."""
    data = VOC(root)
    split = seeded_split(data.train, "1_4", 0)
    samples = PilSamples(root, split, crop, views, BATCH * steps)
    options = {"crop": crop, "views": views, "batch": BATCH, "steps": steps, "seed": 0}
    rates: list[tuple[float, float]] = []
    for _ in range(rounds):
        spent = []
        for batches in (DataLoader(samples, BATCH), training_batches(data, split, **options)):
            start = time.process_time()
            assert sum(1 for _ in batches) == steps
            spent.append(2 * BATCH * steps / (time.process_time() - start))
        rates.append((spent[0], spent[1]))
    ratio = statistics.median(ours / pil for pil, ours in rates)
    pil, ours = (statistics.median(column) for column in zip(*rates, strict=True))
    return {"pil": round(pil, 2), "semiseg": round(ours, 2), "semiseg_over_pil": round(ratio, 2)}


def embedded(steps: int) -> float:
    """Images per second of the embedded set at its recipe's crop, in the training process."""
    data, o = Digits(), recipe("mean_teacher").optimization
    split = seeded_split(data.train, "1_8", 0)
    options = {"crop": o.crop, "scale": o.resize, "batch": BATCH, "seed": 0}
    rate(training_batches(data, split, steps=5, **options), 5)
    return round(rate(training_batches(data, split, steps=steps, **options), steps), 1)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument(
        "--steps", type=int, default=12, help="batches per round, 8 labeled and 8 unlabeled images each"
    )
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--workers", type=int, default=2)
    options = parser.parse_args()
    torch.set_num_threads(1)
    settings = {"batch": BATCH, "steps": options.steps, "rounds": options.rounds, "workers": options.workers}
    found: dict[str, object] = {"environment": environment(), "settings": settings}
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder) / "voc"
        photographs(root)
        for crop, views in ((321, 1), (321, 2), (513, 1), (513, 2)):
            name = f"crop_{crop}_views_{views}"
            found[name] = compare(root, crop, views, options.steps, options.rounds, options.workers)
            found[f"{name}_processor"] = processor(root, crop, views, options.steps, options.rounds)
            print(name, found[name], "per processor second", found[f"{name}_processor"])
    found["embedded_images_per_second"] = embedded(40)
    print("embedded", found["embedded_images_per_second"])
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
