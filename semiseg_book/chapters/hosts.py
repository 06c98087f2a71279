"""Pictures of the page on training schemes: what one step of a host shows its networks, and what it compares.

A host is never asked for its parts by name: a weigher that changes nothing watches a real step from inside.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import torch
import torch.nn as nn
import torch.nn.functional as F
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor

from semiseg.components import UniformWeight
from semiseg.data.dataset import SegmentationData
from semiseg.data.transforms import MEAN, STD
from semiseg.hosts.mask2former import mask_set
from semiseg.hosts.stpp import reliability, split_half
from semiseg.runs import Run, table
from semiseg.types import Batch, Target, View

from ..pictures import colored, legend, predict
from ..style import title
from ..tables import same_lists

Compare = Callable[[Tensor, Target], Tensor]
_GRAY = 224


class Watch(UniformWeight):
    """A pixel weighter that changes nothing and keeps what the host showed it last."""

    def __init__(self) -> None:
        super().__init__()
        self.views: dict[str, View] = {}

    def observe(self, labeled: View, mixed: View) -> None:
        self.views |= {"labeled": labeled, "mixed": mixed}

    def forward(self, view: View) -> Tensor:
        self.views["weak"] = view
        return super().forward(view)


@dataclass(frozen=True)
class Scene:
    """What one network saw, was told and said in one step."""

    labeled: View
    weak: View  # with the target before mixing
    mixed: View  # with the target after it, and the student's output


def staged(host: Any, student: nn.Module, teacher: nn.Module, other: nn.Module | None = None) -> Any:
    """The host in evaluation mode, with the weights of networks of the same architecture: its student's, its teacher's
    and, where it trains a second network, that one's.  A projection head they lack stays random.

    Raises ValueError for weights of another architecture.
    """
    pairs = [(host.student, student), (host.teacher.model, teacher)]
    if other is not None:
        pairs.append((host.other, other))
    for mine, given in pairs:
        missing, unknown = mine.load_state_dict(given.state_dict(), strict=False)
        lost = [name for name in missing if not name.startswith("project.")]
        if lost or unknown:
            raise ValueError(f"weights of another architecture: missing {lost[:3]}, unknown {unknown[:3]}")
    return host.eval()


@torch.no_grad()
def watched(host: Any, batch: Batch, t: float = 1.0, seed: int = 0) -> list[Scene]:
    """One step of a host, seen from inside: a scene for each network it trains.  The host keeps its weigher.

    Raises ValueError for a host without the component `weigh`.
    """
    names = [name for name, _ in host.named_children() if name.startswith("weigh")]
    if not names:
        raise ValueError(f"{type(host).__name__} has no weigher to watch from")
    own = {name: getattr(host, name) for name in names}
    spies = {name: Watch() for name in names}
    for name, spy in spies.items():
        setattr(host, name, spy)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        host.losses(batch, t)
    for name, weigher in own.items():
        setattr(host, name, weigher)
    # a network is watched by its own weigher, but its labels are weighed by their maker's
    views = [spy.views for spy in spies.values()]
    return [Scene(v["labeled"], said["weak"], v["mixed"]) for v, said in zip(views, reversed(views), strict=True)]


def per_pixel_cross_entropy(logits: Tensor, target: Target) -> Tensor:
    """(B, H, W) nats, 0 where nothing is supervised."""
    return F.cross_entropy(logits, target.label, reduction="none") * (target.weight > 0)


def per_pixel_squared_error(logits: Tensor, target: Target) -> Tensor:
    """(B, H, W), summed over classes, 0 where nothing is supervised."""
    soft = target.like(Target(logits, target.weight, target.denominator)).label
    return (logits.softmax(1) - soft).square().sum(1) * (target.weight > 0)


def picture(image: Tensor) -> np.ndarray:
    """A normalized image (3, H, W) -> (H, W, 3) in [0, 1]."""
    mean, std = torch.tensor(MEAN)[:, None, None], torch.tensor(STD)[:, None, None]
    return (image * std + mean).clamp(0, 1).movedim(0, -1).numpy()


def drawn(target: Target, row: int, palette: Sequence[tuple[int, int, int]]) -> np.ndarray:
    """A target as colors (H, W, 3) in [0, 1]: a soft label mixes those of its classes, gray is not supervised."""
    label = target.label[row]
    if label.dim() == 2:
        label = F.one_hot(label, len(palette)).movedim(-1, 0)
    colors = torch.einsum("khw,kc->hwc", label.float(), torch.tensor(palette, dtype=torch.float))
    gray = torch.full_like(colors, _GRAY)
    return (torch.where(target.weight[row, :, :, None] > 0, colors, gray) / 255).numpy()


def _show(ax: Axes, image: np.ndarray, title: str = "", **options: Any) -> None:
    ax.imshow(image, interpolation="nearest", **options)
    ax.set_title(title, fontsize="small")
    ax.set(xticks=[], yticks=[])
    ax.grid(False)


def rows_of(planes: Mapping[str, Sequence[np.ndarray]], data: SegmentationData, heads: Sequence[str] = ()) -> Figure:
    """Images from left to right, below each other what is known about them.

    Args:
        planes: name of a row -> pictures (H, W, 3), or numbers (H, W), drawn from 0 (dark) to the largest of the row.
        heads: titles of the columns.
    """
    columns = len(next(iter(planes.values())))
    size = (1.32 * columns, 1.35 * len(planes) + 0.6)
    figure, axes = plt.subplots(len(planes), columns, figsize=size, squeeze=False)
    for line, (name, row) in zip(axes, planes.items(), strict=True):
        most = max(float(plane.max()) for plane in row)
        for ax, plane in zip(line, row, strict=True):
            _show(ax, plane, cmap="magma", vmin=0, vmax=most or 1)
        line[0].set_ylabel(name, fontsize="small")
    for ax, head in zip(axes[0], heads, strict=False):
        ax.set_title(head, fontsize="small")
    legend(figure, data)
    return figure


def step(scene: Scene, data: SegmentationData, rows: Sequence[int], compare: Compare, who: str = "teacher") -> Figure:
    """A step of a host, image by image: a label, what was labeled by `who`, what the student had to say of its own view
    and did say, and the difference that is minimized.
    """
    titles = (
        "labeled image", "its mask", "weak view", f"{who}'s label", "student's view", "its target", "student says",
        "difference",
    )  # fmt: skip
    student = scene.mixed.student
    assert student is not None
    difference = compare(student.logits, scene.mixed.target)
    size = (1.32 * len(titles), 1.32 * len(rows) + 0.65)
    figure, axes = plt.subplots(len(rows), len(titles), figsize=size, squeeze=False)
    for line, row in zip(axes, rows, strict=True):
        shown = (
            picture(scene.labeled.image[row]),
            drawn(scene.labeled.target, row, data.palette),
            picture(scene.weak.image[row]),
            drawn(scene.weak.target, row, data.palette),
            picture(scene.mixed.image[row]),
            drawn(scene.mixed.target, row, data.palette),
            colored(student.logits[row].argmax(0), data.palette),
            difference[row].numpy(),
        )
        for ax, plane, name in zip(line, shown, titles, strict=True):
            _show(ax, plane, name if row == rows[0] else "", cmap="magma", vmin=0)
    legend(figure, data)
    return figure


@torch.no_grad()
def labels_alone(network: nn.Module, batch: Batch, data: SegmentationData, rows: Sequence[int]) -> Figure:
    """Supervised training: labeled images, masks, predictions, cross-entropy."""
    target, logits = Target.from_labels(batch.y), network(batch.x).logits
    difference = per_pixel_cross_entropy(logits, target)
    planes = {
        "labeled image": [picture(batch.x[r]) for r in rows],
        "its mask": [drawn(target, r, data.palette) for r in rows],
        "student says": [colored(logits[r].argmax(0), data.palette) for r in rows],
        "difference": [difference[r].numpy() for r in rows],
    }
    return rows_of(planes, data)


def comparison(runs: Sequence[Run], methods: Sequence[str], split: str = "1_8") -> pd.DataFrame:
    """One row per scheme: mIoU over seeds, time of a step, and for a scheme without record how to make one.

    Args:
        runs: of one data set and scale, recipes unchanged (`tables.standard`).
        methods: in the order of the rows.
        split: of the runs that count.

    Raises ValueError where the runs are of different lists, see `tables.same_lists`.
    """
    same_lists(runs)
    frame, rows = table(list(runs)), {}
    steps = {r.folder.as_posix(): r.record["duration_s"] / r.record["last"]["step"] for r in runs}
    for method in methods:
        found = frame[(frame.method == method) & (frame.split == split)]
        row = {"mIoU, %": "no record", "seeds": 0, "s per step": "", "to train it": f'recipe("{method}", seed=0)'}
        if len(found):
            spread = f" ± {found.miou.std():.1f}" if len(found) > 1 else ""
            seconds = found.folder.map(steps).mean()
            row = {"mIoU, %": f"{found.miou.mean():.1f}{spread}", "seeds": len(found), "s per step": f"{seconds:.3f}"}
        rows[title(method)] = row
    return pd.DataFrame.from_dict(rows, orient="index").fillna("").rename_axis("scheme")


# --- ideas beyond a single step: which images, which pixels, which masks ---------------------


def by_reliability(
    data: SegmentationData, ids: Sequence[str], stages: Sequence[nn.Module], columns: int = 8
) -> tuple[Figure, list[float]]:
    """ST++: images from the one on which the earlier networks agree best with the last to where they do least.

    Args:
        ids: images to rank.
        stages: networks in evaluation mode, the last one the judge.
        columns: images drawn, evenly spaced in the ranking.

    Returns:
        The figure, an image and what each network says about it per column, and the scores of all images, descending.
    """
    masks = {key: torch.stack([predict(network, data, key) for network in stages]) for key in ids}
    score = {key: reliability(said, len(data.classes)) for key, said in masks.items()}
    reliable, others = split_half(ids, list(score.values()))
    ranked = reliable + others
    shown = [ranked[i] for i in np.linspace(0, len(ranked) - 1, columns).astype(int)]
    planes = {"image": [data.image(key).movedim(0, -1).numpy() for key in shown]}
    for i in range(len(stages)):
        planes[f"network {i + 1}"] = [colored(masks[key][i], data.palette) for key in shown]
    figure = rows_of(planes, data, [f"{score[key]:.2f}" for key in shown])
    return figure, [score[key] for key in ranked]


def candidates(logits: Tensor, uncertain: Tensor, low: int) -> Tensor:
    """The `low` likeliest classes of uncertain pixels, their probabilities made to sum to one; elsewhere 0.

    (B, K, H, W), (B, H, W) bool -> (B, K, H, W).
    """
    p = logits.softmax(1)
    top = p.topk(low, dim=1)
    kept = torch.zeros_like(p).scatter(1, top.indices, top.values)
    return kept / kept.sum(1, keepdim=True) * uncertain[:, None]


def unreliable_pixels(
    view: View, unreliable: Tensor, data: SegmentationData, rows: Sequence[int], low: int = 3
) -> Figure:
    """U2PL: the most uncertain pixels teach no class, but rule out all classes beyond their likeliest few.

    Args:
        view: mixed images with target, and the teacher's output and entropy of its second look.
        unreliable: (B, H, W) bool.
        low: classes that stay possible.
    """
    assert view.teacher is not None and view.entropy is not None
    known = view.target.weight > 0
    kept, rest = (known & ~unreliable).float(), (known & unreliable).float()
    sure = Target(view.target.hard, kept, kept)
    possible = Target(candidates(view.teacher.logits, unreliable, low), rest, rest)
    planes = {
        "mixed view": [picture(view.image[r]) for r in rows],
        "entropy": [(view.entropy * known)[r].numpy() for r in rows],
        "pseudo-label": [drawn(sure, r, data.palette) for r in rows],
        "still possible": [drawn(possible, r, data.palette) for r in rows],
    }
    return rows_of(planes, data)


def sets_of_masks(view: View, data: SegmentationData, rows: Sequence[int], most: int = 3) -> Figure:
    """Mask classification: label maps as sets of masks, one per class in them; of many classes the largest `most`."""
    none = np.ones((*view.image.shape[-2:], 3))
    sets = [sorted(mask_set(view.target, r).values(), key=lambda mask: -int(mask.sum())) for r in rows]
    planes = {
        "image": [picture(view.image[r]) for r in rows],
        "label map": [drawn(view.target, r, data.palette) for r in rows],
    }
    for i in range(most):
        planes[f"mask {i + 1}"] = [s[i].float().numpy() if i < len(s) else none for s in sets]
    return rows_of(planes, data)
