"""Cost of a training step of every scheme and plug-in: python tests/bench/bench_hosts.py --out runs/step-cost.json

Not a test: nothing here fails on time.  The file it writes is committed; the book's comparison draws it.

`--add cps+upc ...` measures these labels beside the reference and adds them to the file, in the time of its session.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import cycle
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F

from semiseg.build import build
from semiseg.data.loader import training_batches
from semiseg.data.sets.digits import Digits
from semiseg.data.splits import seeded_split
from semiseg.recipe import Recipe, recipe, with_plug_ins
from semiseg.registry import method, methods, plug_ins
from semiseg.runs import environment, write_text
from semiseg.training.loop import make_optimizer
from semiseg.types import IGNORE, Batch

HALF_WAY = 0.5  # of training: warm-ups are over, memories are in use
USUAL = [name for name in methods() if name != "mask2former"]  # needs an extra: --add mask2former mask2former+upc
REFERENCE = "mean_teacher"
HOW = (
    "One step is losses, backward pass, optimizer and teacher, half way through training, batches already loaded. "
    "Schemes take turns, a few steps each, for several rounds; a round counts with its median step. Seconds of the "
    "one thread that computes, which other programs on the machine lengthen little."
)
HOW_ADDED = " {labels} were measured later, together with mean teacher, and scaled by the ratio of its two times."


def recipes(names: Sequence[str]) -> Iterator[Recipe]:
    """Each method at the tiny scale, alone and with each plug-in."""
    for name in names:
        made = recipe(name, "digits", "1_8")
        yield made
        if method(name).unlabeled:
            yield from (with_plug_ins(made, plug_in) for plug_in in plug_ins())


def loaded(made: Recipe, device: str) -> list[Batch]:
    """Four batches with everything any scheme asks for: given labels of stages, boxes of a detector."""
    data, asks = Digits(), method(made.method)
    split, o = seeded_split(data.train, made.split, made.seed), made.optimization
    loader = training_batches(
        data, split, crop=o.crop, batch=o.batch, steps=4, seed=0, scale=o.resize,
        unlabeled=asks.unlabeled, **asks.loading(made),
    )  # fmt: skip
    batches = []
    for batch in loader:
        if asks.unlabeled:
            known = batch.u_hidden.where(batch.u_hidden != IGNORE, 0).long()
            boxes = F.one_hot(known, len(data.classes)).movedim(-1, 1).bool()
            batch = batch._replace(u_given=known, u_entropy=torch.rand(known.shape), u_boxes=boxes)
        batches.append(Batch(*(None if v is None else v.to(device) for v in batch)))
    return batches


class Trained:
    """A scheme in the middle of its training."""

    def __init__(self, made: Recipe, device: str, warm: int) -> None:
        torch.manual_seed(0)
        self.host = build(made, len(Digits.classes)).to(device).train()
        self.optimizer = make_optimizer(self.host, made.optimization)
        self.batches, self.device = cycle(loaded(made, device)), device
        for _ in range(warm):
            self.step()

    def step(self) -> float:
        """Seconds of a step: of this thread on the CPU, of the wall clock on a GPU."""
        batch, clock = next(self.batches), time.perf_counter if self.device == "cuda" else time.thread_time
        start = clock()
        losses = self.host.losses(batch, HALF_WAY).losses
        self.optimizer.zero_grad()
        torch.stack(list(losses.values())).sum().backward()
        self.optimizer.step()
        self.host.after_step()
        if self.device == "cuda":
            torch.cuda.synchronize()
        return clock() - start


def measure(made: Iterable[Recipe], rounds: int, steps: int, warm: int, device: str) -> dict[str, dict[str, float]]:
    """Median seconds of a step, and the smallest and largest median of a round."""
    schemes = {each.label: Trained(each, device, warm) for each in made}
    medians: dict[str, list[float]] = {label: [] for label in schemes}
    for _ in range(rounds):
        for label, scheme in schemes.items():
            medians[label].append(statistics.median(scheme.step() for _ in range(steps)))
    return {
        label: {k: round(f(v), 5) for k, f in (("median", statistics.median), ("low", min), ("high", max))}
        for label, v in medians.items()
    }


def with_added(record: Mapping[str, Any], new: Mapping[str, Mapping[str, float]], made_with: Any) -> dict[str, Any]:
    """The record with the labels of a later session, brought to its own time by the reference that both measured."""
    factor = record["seconds"][REFERENCE]["median"] / new[REFERENCE]["median"]
    labels = [label for label in new if label != REFERENCE]
    scaled = {label: {k: round(factor * v, 5) for k, v in new[label].items()} for label in labels}
    later = {"labels": labels, "reference": REFERENCE, "factor": round(factor, 4), "environment": made_with}
    how = record["how"] + HOW_ADDED.format(labels=", ".join(labels))
    added = [*record.get("added", ()), later]
    return {**record, "how": how, "seconds": {**record["seconds"], **scaled}, "added": added}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--methods", nargs="*", default=USUAL, choices=tuple(methods()))
    parser.add_argument("--add", nargs="+", metavar="LABEL", help="add these to the file instead")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--steps", type=int, default=5)
    parser.add_argument("--warm", type=int, default=12)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    made = list(recipes(arguments.methods))
    if arguments.add:
        made = [each for each in recipes(tuple(methods())) if each.label in {REFERENCE, *arguments.add}]
    seconds = measure(made, arguments.rounds, arguments.steps, arguments.warm, device)
    size = {"rounds": arguments.rounds, "steps": arguments.steps, "device": device}
    if arguments.add:
        record = with_added(json.loads(arguments.out.read_text()), seconds, environment())
    else:
        head = {"data": "digits", "scale": "tiny", "how": HOW, **size}
        record = {**head, "environment": environment(), "seconds": seconds}
    write_text(arguments.out, json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    main()
