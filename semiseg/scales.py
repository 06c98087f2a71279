"""What each scale sets on each data set for all methods; what one method changes stands in its file.

Scales: "smoke" (seconds, for tests), "tiny" (minutes on two cores), "paper" (the papers' own numbers).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import replace
from fractions import Fraction

from .options import Consistency, Evaluation, Network, Optimization, Options, one_of

Shared = tuple[Options, ...]  # of Network, Optimization, Consistency, Evaluation; those left out keep their defaults


def digits() -> Shared:
    """The embedded set; calibrated with supervised and mean_teacher only."""
    return (
        Network("tiny", 8, None, width=64, low_width=16, rates=(1, 2)),
        Optimization(
            crop=32, resize=(0.8, 1.25), epochs=10, epoch_steps=160, optimizer="adamw", lr=3e-3, head_lr_factor=1.0,
            weight_decay=1e-2,
        ),
        Consistency(tau=0.8, decay=0.99),
        Evaluation("whole", 32),
    )  # fmt: skip


def patchwork() -> Shared:
    """The second embedded set; numbers were tried with supervised and mean_teacher only."""
    return (
        Network("tiny", 8, None, width=64, low_width=16, rates=(1, 2)),
        Optimization(
            crop=64, resize=(0.9, 1.1), batch=8, epochs=10, epoch_steps=80, optimizer="adamw", lr=3e-3,
            head_lr_factor=1.0, weight_decay=1e-2,
        ),
        Consistency(tau=0.8, decay=0.99),
        Evaluation("whole", 64, every=5),
    )  # fmt: skip


def smoke() -> Shared:
    """Every phase of training in a few seconds, whatever the data."""
    network, optimization, consistency, _ = digits()
    return (
        replace(network, width=16, low_width=8),
        replace(optimization, crop=32, batch=4, epochs=4, epoch_steps=2),
        replace(consistency, tau=0.0),  # an untrained network is sure of nothing
        Evaluation("whole", 32, every=2),
    )


def photographs() -> Shared:
    """Small photographs on a laptop: MobileNetV2, crop 128, AdamW because there is no time for SGD to converge."""
    return (
        Network("mobilenet_v2", 16, "imagenet", width=96, low_width=24, rates=(2, 4, 6)),
        Optimization(
            crop=128, batch=8, epochs=10, epoch_steps=30, optimizer="adamw", lr=5e-4, head_lr_factor=4.0,
            weight_decay=1e-2,
        ),
        Consistency(tau=0.95, decay=0.99),
        Evaluation("whole", 224, every=5),
    )  # fmt: skip


def voc_paper() -> Shared:
    """Sec. 4.1 of DDFP for PASCAL VOC, and of DGCL, which agrees; classic and blended differ in lists alone."""
    return ()


def cityscapes_paper() -> Shared:
    """Sec. 4.1 of DDFP for Cityscapes; OHEM is not in the paper, the released class has 0.7 and 100,000."""
    return (
        Optimization(769, batch=16, epochs=200, lr=1e-2, head_lr_factor=1.0),
        Consistency(tau=0.7),
        Evaluation("sliding", 801, 534),
    )


def coco_paper() -> Shared:
    """UniMatch's released numbers for COCO, but for its encoder, Xception-65: 8 images per step, evaluated whole."""
    return Optimization(513, batch=8, epochs=30, lr=4e-3, head_lr_factor=10.0), Evaluation("whole", 513)


def any_size(made: Callable[[], Shared]) -> Callable[[], Shared]:
    """A scale for images of which nothing is known: evaluated in windows, small ones whole."""

    def windows() -> Shared:
        parts = {part.part: part for part in (Evaluation(), *made())}
        evaluation = replace(parts["evaluation"], protocol="sliding", size=512, step=342)
        return (*(parts | {"evaluation": evaluation}).values(),)

    return windows


MAKERS: Mapping[str, Mapping[str, Callable[[], Shared]]] = {
    "digits": {"smoke": smoke, "tiny": digits},
    "voc": {"smoke": smoke, "tiny": photographs, "paper": voc_paper},
    "cityscapes": {"smoke": any_size(smoke), "tiny": any_size(photographs), "paper": cityscapes_paper},
    "camvid": {"smoke": smoke, "tiny": photographs},
    "coco": {"smoke": smoke, "tiny": photographs, "paper": coco_paper},
    "folder": {"smoke": any_size(smoke), "tiny": any_size(photographs), "paper": any_size(voc_paper)},
    "patchwork": {"smoke": smoke, "tiny": patchwork},
}
EMBEDDED = ("digits", "patchwork")
DATA, SCALES = tuple(MAKERS), ("smoke", "tiny", "paper")
IMAGES = {"voc": 10582, "cityscapes": 2975, "coco": 118287}  # of the training sets that papers split


def shared_parts(data: str, scale: str) -> Shared:
    """The shared parts of every recipe on a data set at a scale.  Raises ValueError for a scale it does not have."""
    one_of("data", data, DATA)
    one_of("scale", scale, SCALES)
    one_of(f"scale for data={data}", scale, MAKERS[data])
    return MAKERS[data][scale]()


def labeled_share(data: str, split: str) -> Fraction | None:
    """The share of the training images that the published lists of a name label: "1_8", "1464", "full".

    None for other names, and for a number of images of a set whose size is not known.
    """
    if split == "full":
        return Fraction(1)
    if found := re.fullmatch(r"1_([1-9]\d*)", split):
        return Fraction(1, int(found[1]))
    return Fraction(int(split), IMAGES[data]) if split.isdigit() and data in IMAGES else None
