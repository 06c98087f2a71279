"""Numbers about pseudo-labels that every host logs: (2,) tensors of a sum and a count, pooled over an epoch."""

from __future__ import annotations

import torch
from torch import Tensor

from .types import IGNORE, Paste, Step, Target, View


def logged(*plug_ins: object) -> dict[str, Tensor]:
    """What plug-ins left in their attribute `statistics` at their last call; most have none."""
    return {name: pair for each in plug_ins for name, pair in getattr(each, "statistics", {}).items()}


def share(of: Tensor, among: Tensor) -> Tensor:
    """How many pixels of `among` (bool, any shape) are also in `of`: (2,) = (hits, size)."""
    return torch.stack(((of & among).sum(), among.sum())).float()


def soft_label_statistics(target: Target, hidden: Tensor) -> dict[str, Tensor]:
    """How many classes a soft label keeps, whether the truth is among them, and how the classes share the pixels.

    Args:
        target: soft pseudo-labels (B, K, H, W); a class is dominant where its share is > 0.
        hidden: (B, H, W) long, IGNORE where unknown.

    Returns:
        "dominant": mean number of dominant classes; "dominant_1", "_2", "_3": share of pixels with one, two, three or
        more; "accuracy_1" to "_3": share of those whose likeliest class is right; "truth_dominant": share of pixels
        with several dominant classes that keep the true one; "mass_on_truth"; and for each class k "true_k",
        "hard_k", "soft_k": its share of the known pixels by the truth, the likeliest class, the soft labels.
    """
    kept, classes = target.weight > 0, target.label.shape[1]
    judged = kept & (hidden != IGNORE)
    hard = target.hard
    truth, number = torch.where(judged, hidden, 0), (target.label > 0).sum(1)
    on_truth = target.label.gather(1, truth[:, None])[:, 0]
    found = {
        "dominant": torch.stack(((number * kept).sum(), kept.sum())).float(),
        "truth_dominant": share(on_truth > 0, judged & (number > 1)),
        "mass_on_truth": torch.stack(((on_truth * judged).sum(), judged.sum().float())),
    }
    for n in (1, 2, 3):
        of_n = number >= 3 if n == 3 else number == n
        found |= {f"dominant_{n}": share(of_n, kept), f"accuracy_{n}": share(hard == hidden, judged & of_n)}
    shares = {
        "true": torch.bincount(truth[judged], minlength=classes),
        "hard": torch.bincount(hard[judged], minlength=classes),
        "soft": (target.label * judged[:, None]).sum((0, 2, 3)),
    }
    for name, per_class in shares.items():
        pairs = torch.stack((per_class.float(), judged.sum().float().expand(classes)), 1)
        found |= {f"{name}_{k}": pair for k, pair in enumerate(pairs)}
    return found


def pseudo_label_statistics(target: Target, hidden: Tensor) -> dict[str, Tensor]:
    """Share of valid pixels kept, and accuracy of the kept ones where a hidden mask exists.

    Args:
        target: pseudo-labels before mixing.
        hidden: (B, H, W) long, the masks training never sees, IGNORE where unknown.
    """
    kept, known = target.weight > 0, hidden != IGNORE
    right = target.hard == hidden
    return {
        "kept": share(kept, target.denominator > 0),
        "pseudo_label_accuracy": share(right, kept & known),
        "teacher_accuracy": share(right, known & (target.denominator > 0)),
    }


def mixing_statistics(paste: Paste, own: View, donors: View) -> dict[str, Tensor]:
    """What a paste from labeled images does to the pseudo-labels.

    Args:
        paste: the plan.
        own: unlabeled images with pseudo-labels, `hidden` where their true masks are known.
        donors: the labeled images.

    Returns:
        "replaced": share of pixels from labeled images; "replaced_known": share of those that have a label; "erased":
        share of pixels of noise, where the plan has such; "noise_before" and "noise_after": error rate of the
        supervised pixels whose truth is known, of `own` and of what the paste makes of it.
    """
    foreign = paste.source >= len(own.image)
    every, label = torch.ones_like(foreign), own.target.hard
    truth = torch.full_like(label, IGNORE) if own.hidden is None else own.hidden
    judged = (own.target.weight > 0) & (truth != IGNORE)
    code = judged * (1 + (label != truth).to(torch.uint8))  # 0: not judged, 1: right, 2: wrong
    after = paste(code, (donors.target.weight > 0).to(torch.uint8))
    found = {"replaced": share(foreign, every), "replaced_known": share(after > 0, foreign)}
    if paste.erased is not None:
        found["erased"] = share(paste.erased, every)
        after = after * ~paste.erased
    for name, plane in (("noise_before", code), ("noise_after", after)):
        found[name] = share(plane == 2, plane > 0)
    return found


class EpochMean:
    """Losses and statistics of an epoch, summed on the device they were made on."""

    def __init__(self) -> None:
        self.losses: dict[str, Tensor] = {}
        self.pairs: dict[str, Tensor] = {}

    def add(self, step: Step) -> None:
        """Take in one batch."""
        for name, value in step.losses.items():
            pair = torch.stack((value.detach().float(), torch.ones_like(value, dtype=torch.float)))
            self.losses[name] = self.losses.get(name, 0) + pair
        for name, pair in step.statistics.items():
            self.pairs[name] = self.pairs.get(name, 0) + pair.double()

    def mean(self) -> dict[str, float]:
        """Mean of each loss, as `loss_<name>`, and pooled ratio of each statistic; nan where nothing counted."""
        named = {f"loss_{k}": v for k, v in self.losses.items()} | self.pairs
        return {k: float(v[0] / v[1]) if v[1] > 0 else float("nan") for k, v in named.items()}
