"""The UPC chapter: what is located and replaced, and whether uncertainty finds the noise."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import cast

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import seaborn as sns
import torch
import torch.nn as nn
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from matplotlib.ticker import MaxNLocator
from torch import Tensor

from semiseg.components import entropy
from semiseg.data.dataset import SegmentationData
from semiseg.methods.pasting import paste_labeled
from semiseg.methods.upc import (
    UPCOptions,
    noise,
    patch_edges,
    patch_mask,
    patch_miou,
    patch_sums,
    scores,
    top_patches,
    uncertainty,
)
from semiseg.methods.upc_controls import least_certain
from semiseg.runs import Run
from semiseg.types import IGNORE, Batch, Paste, Target, View

from ..pictures import legend
from ..style import title
from ..tables import paired_gain, standard
from . import wpl
from .hosts import drawn, picture

_COLORS = {"uncertainty": "C3", "oracle": "C2", "oracle, by area": "C4", "random": "0.6"}


def pastes(view: View, donors: View, n: int, k: Sequence[int]) -> list[Paste]:
    """For each k the paste that UPC makes, with labeled images taken in turn instead of at random."""
    score, size, images = scores(view, n), view.image.shape[-2:], torch.arange(len(view.image))
    masks = [patch_mask(top_patches(score, each), size) for each in k]
    turns = [(images + row)[None] % len(donors.image) for row in range(len(k))]
    return [paste_labeled([mask], turn) for mask, turn in zip(masks, turns, strict=True)]


def located(
    view: View, donors: View, data: SegmentationData, rows: Sequence[int], n: int = 4, k: Sequence[int] = (2, 3, 5)
) -> Figure:
    """Fig. 3: where the network is uncertain, the patches that go, and what takes their place, for each k.

    Two lines per image: image, entropy with its patches numbered from the most uncertain one, mixed images; and
    pseudo-label, its errors, mixed labels.

    Args:
        view: unlabeled images with pseudo-label and entropy; errors are drawn where `hidden` is known.
        donors: labeled images of the same size.
        rows: which of the images.
    """
    mixed = [paste.view(view, donors) for paste in pastes(view, donors, n, k)]
    columns, order = 2 + len(k), _order(scores(view, n))
    size = (1.75 * columns, 3.5 * len(rows) + 0.6)
    figure, axes = plt.subplots(2 * len(rows), columns, figsize=size, squeeze=False)
    for line, i in enumerate(rows):
        above, below = axes[2 * line], axes[2 * line + 1]
        _show(above[0], picture(view.image[i]), "unlabeled image")
        assert view.entropy is not None
        above[1].imshow(view.entropy[i].numpy(), cmap="magma", interpolation="nearest")
        _bare(above[1], "entropy")
        _numbers(above[1], order[i], max(k))
        _show(below[0], drawn(view.target, i, data.palette), "pseudo-label")
        _errors(below[1], view, i)
        for ax, under, each, made in zip(above[2:], below[2:], k, mixed, strict=True):
            _show(ax, picture(made.image[i]), f"k = {each}")
            _show(under, drawn(made.target, i, data.palette))
            for place in (ax, under):
                _outline(place, order[i] < each)
    legend(figure, data)
    return figure


def erased_or_replaced(
    view: View, donors: View, data: SegmentationData, rows: Sequence[int], n: int = 4, k: int = 5
) -> Figure:
    """Fig. 1a: as many uncertain pixels without label, against uncertain patches with the label of another image."""
    number = torch.full((len(view.image),), k * view.image[0, 0].numel() // n**2)
    pixels = least_certain(view, number)
    gone = view.target.only(~pixels)
    (paste,), order = pastes(view, donors, n, [k]), _order(scores(view, n))
    mixed = paste.view(view, donors)
    titles = ("unlabeled image", "pseudo-label", "", "pixels erased", "patches replaced", "image with patches")
    size = (1.5 * len(titles), 1.6 * len(rows) + 0.6)
    figure, axes = plt.subplots(len(rows), len(titles), figsize=size, squeeze=False)
    for line, i in zip(axes, rows, strict=True):
        planes = (picture(view.image[i]), *(drawn(t, i, data.palette) for t in (view.target, gone, mixed.target)))
        for place, plane in zip((0, 1, 3, 4), planes, strict=True):
            _show(line[place], plane)
        _errors(line[2], view, i)
        _show(line[5], picture(mixed.image[i]))
        for ax in line[4:]:
            _outline(ax, order[i] < k)
    for ax, name in zip(axes[0], titles, strict=True):
        ax.set_title(name or "errors", fontsize="small")
    for ax in axes[1:, 2]:
        ax.set_title("")
    legend(figure, data)
    return figure


def noise_found(shares: pd.DataFrame, stats: pd.DataFrame) -> Figure:
    """Left: how wrong a patch is by its rank.  Middle and right: recall and precision of the noise over k.

    shares, stats: of `found` and `patch_stats`.
    """
    figure, (left, middle, right) = plt.subplots(1, 3, figsize=(11, 3.3))
    for name, rank in (("uncertainty", "rank"), ("oracle", "oracle_rank")):
        pooled = stats.groupby(rank)[["noise_area", "n_valid"]].sum()
        share = 100 * pooled.noise_area / pooled.n_valid
        left.plot(share.index, share, marker="o", ms=4, color=_COLORS[name], label=name)
    average = 100 * stats.noise_area.sum() / stats.n_valid.sum()
    left.axhline(average, color=_COLORS["random"], ls="--", label="any patch")
    left.set(title="wrong pixels by rank", xlabel="rank of the patch", ylabel="% of its pixels", ylim=(0, None))
    left.legend(frameon=False)
    for ax, what in ((middle, "recall"), (right, "precision")):
        sns.lineplot(shares, x="k", y=what, hue="selector", palette=_COLORS, marker="o", ax=ax)
        ax.legend(frameon=False, title="")
    for ax in figure.axes:
        ax.xaxis.set_major_locator(MaxNLocator(integer=True))
    middle.set(title="share of the noise that goes", ylabel="%", ylim=(0, 102))
    right.set(title="noise in what goes", ylabel="%", ylim=(0, None))
    return figure


def mixing_curves(run: Run) -> Figure:
    """What UPC did over training: errors of supervised pixels before and after pasting, and how much is replaced."""
    m = run.metrics.set_index("epoch")
    figure, (left, right) = plt.subplots(1, 2, figsize=(8.5, 3))
    names = {"noise_before": "as pseudo-labeled", "noise_after": "after pasting"}
    sns.lineplot(100 * m[list(names)].rename(columns=names), dashes=False, markers=True, ax=left)
    left.set(title="wrong labels among supervised pixels", xlabel="epoch", ylabel="%", ylim=(0, None))
    names = {"replaced": "from labeled images", "kept": "pseudo-labels kept"}
    shown = [name for name in names if name in m]
    sns.lineplot(100 * m[shown].rename(columns=names), dashes=False, markers=True, ax=right)
    right.set(title="pixels", xlabel="epoch", ylabel="% of all", ylim=(0, 102))
    return figure


# --- drawing ---------------------------------------------------------------------------------


def _order(score: Tensor) -> Tensor:
    """Place of each patch, 0 for the highest score: (B, n, n)."""
    order = score.flatten(1).sort(dim=1, descending=True, stable=True).indices
    return order.argsort(1).view_as(score)


def _show(ax: Axes, plane: np.ndarray, title: str = "") -> None:
    ax.imshow(plane, interpolation="nearest")
    _bare(ax, title)


def _bare(ax: Axes, title: str = "") -> None:
    ax.set_title(title, fontsize="small")
    ax.set(xticks=[], yticks=[])
    ax.grid(False)


def _errors(ax: Axes, view: View, i: int) -> None:
    """Wrong pixels red, right ones blue, unknown ones gray."""
    if view.hidden is None or not bool((view.hidden != IGNORE).any()):
        _bare(ax, "truth unknown")
        return
    wrong, known = noise(view)
    plane = torch.where(wrong[i], 1.0, 0.0).where(known[i], torch.tensor(0.5))
    ax.imshow(plane.numpy(), cmap="coolwarm", vmin=-0.2, vmax=1.2, interpolation="nearest")
    _bare(ax, "errors")


def _boxes(ax: Axes, chosen: Tensor) -> list[tuple[int, int, float, float, float, float]]:
    """Row, column, left, top, width, height of the chosen patches (n, n) bool, in the coordinates of the picture."""
    plane = ax.images[0].get_array()
    assert plane is not None
    rows, columns = (patch_edges(side, len(chosen)).tolist() for side in plane.shape[:2])
    return [
        (r, c, columns[c] - 0.5, rows[r] - 0.5, columns[c + 1] - columns[c], rows[r + 1] - rows[r])
        for r, c in chosen.nonzero().tolist()
    ]


def _outline(ax: Axes, chosen: Tensor) -> None:
    for _, _, x, y, w, h in _boxes(ax, chosen):
        ax.add_patch(Rectangle((x, y), w, h, fill=False, color="red", lw=1.2))


def _numbers(ax: Axes, order: Tensor, most: int) -> None:
    """The first patches outlined, with their rank."""
    _outline(ax, order < most)
    for r, c, x, y, w, h in _boxes(ax, order < most):
        ax.text(x + w / 2, y + h / 2, str(int(order[r, c]) + 1), color="white", ha="center", va="center", fontsize=8)


# --- numbers: which patches are wrong, which are uncertain, what a choice costs --------------


SELECTORS: Mapping[str, str] = {"uncertainty": "rank", "oracle": "oracle_rank", "oracle, by area": "area_rank"}


@torch.no_grad()
def look(network: nn.Module, batch: Batch) -> tuple[View, View]:
    """The unlabeled crops of a batch as a host sees them, every pixel that is no padding kept, and the labeled ones.

    The network must be in evaluation mode.
    """
    output, valid = network(batch.u_weak), batch.u_valid.float()
    label, unsure = Target(output.logits.argmax(1), valid, valid), entropy(output.logits)
    own = View(batch.u_weak, label, output, entropy=unsure * valid, hidden=batch.u_hidden)
    return own, View(batch.x, Target.from_labels(batch.y))


def whole(network: nn.Module, data: SegmentationData, key: str) -> View:
    """One whole image, pseudo-label and entropy."""
    view = wpl.look(network, data, key)  # type: ignore[arg-type]
    assert view.teacher is not None
    return View(view.image, view.target, view.teacher, entropy=entropy(view.teacher.logits), hidden=view.hidden)


def image_stats(network: nn.Module, data: SegmentationData, ids: Sequence[str], n: int = 4) -> pd.DataFrame:
    """`patch_stats` of whole images, one after the other; those whose true mask is not known are left out."""
    frames = []
    for key in ids:
        mask = data.mask(key)
        if mask is not None and bool((mask != IGNORE).any()):
            frames.append(patch_stats(whole(network, data, key), [key], n))
    return pd.concat(frames, ignore_index=True) if frames else pd.DataFrame()


def patch_stats(view: View, ids: Sequence[str], n: int = 4, k: Sequence[int] = (2, 3, 5)) -> pd.DataFrame:
    """One row per image and patch: how sure the network is there, and how wrong.

    Args:
        view: B images with pseudo-label, entropy and hidden mask.
        ids: their names.
        n: patches per side.

    Returns:
        image, n, row, col; n_pixels; n_valid: whose truth is known; sum_entropy, mean_entropy; rank: 1 for the largest
        sum; noise_area: wrong pixels; patch_miou; oracle_rank, area_rank: 1 for what the oracle takes first, by mean
        IoU and by wrong pixels; foreground: true pixels of other classes than the first; right_foreground: those
        whose label is right; selected_k2, ...: whether the patch is among the k most uncertain ones.

    Raises:
        ValueError: no entropy, or no true mask.
    """
    assert view.hidden is not None
    wrong, known = noise(view)
    shown = view.target.denominator > 0
    foreground = known & (view.hidden != 0)
    planes = {
        "n_pixels": shown, "n_valid": known, "noise_area": wrong, "foreground": foreground,
        "right_foreground": foreground & ~wrong,
    }  # fmt: skip
    table: dict[str, Tensor] = {name: patch_sums(plane, n).round().long() for name, plane in planes.items()}
    table |= {"sum_entropy": uncertainty(view, n), "patch_miou": patch_miou(view, n)}
    table["mean_entropy"] = table["sum_entropy"] / table["n_pixels"].clamp(min=1)
    table |= {"rank": _ranks(scores(view, n)), "oracle_rank": _ranks(scores(view, n, "oracle"))}
    table["area_rank"] = _ranks(scores(view, n, "oracle_area"))
    places = torch.meshgrid(torch.arange(len(ids)), torch.arange(n), torch.arange(n), indexing="ij")
    image, row, col = (p.flatten().tolist() for p in places)
    frame = pd.DataFrame({"image": [ids[i] for i in image], "n": n, "row": row, "col": col})
    frame = frame.assign(**{name: plane.flatten().cpu().numpy() for name, plane in table.items()})
    return frame.assign(**{f"selected_k{each}": frame["rank"] <= each for each in k})


def _ranks(score: Tensor) -> Tensor:
    """1 for the highest score of an image; of equal ones the first, by rows."""
    order = score.flatten(1).sort(dim=1, descending=True, stable=True).indices
    return (order.argsort(1) + 1).view_as(score)


def correlations(stats: pd.DataFrame) -> pd.DataFrame:
    """Spearman's and Pearson's correlation of a patch's sum of entropy with its wrong pixels.

    Rows: over all patches; within an image, as the mean over images that have both wrong and right patches.
    """
    pair = stats[["sum_entropy", "noise_area"]]
    mixed = stats.groupby("image", sort=False).filter(lambda image: image.noise_area.nunique() > 1)
    rows = {}
    for name in ("spearman", "pearson"):
        within = [g.sum_entropy.corr(g.noise_area, method=name) for _, g in mixed.groupby("image", sort=False)]
        both = {"all patches": pair.sum_entropy.corr(pair.noise_area, method=name)}
        rows[name.capitalize()] = both | {"within an image, mean": pd.Series(within, dtype=float).mean()}
    return pd.DataFrame(rows)


def found(stats: pd.DataFrame, k: Sequence[int] | None = None) -> pd.DataFrame:
    """What is replaced if the first k patches of every image are, for each way to choose them.

    "random" is the expectation: every patch of an image is equally likely.

    Returns:
        A row per selector and k, everything in percent.  area: of the known pixels; recall: of all wrong pixels;
        precision: wrong pixels in what is replaced; foreground: of all foreground pixels, these are replaced;
        foreground_share: foreground pixels in what is replaced; and a number: lost_per_found, right foreground pixels
        that go for every wrong pixel that goes.
    """
    patches = int(stats.n.iloc[0]) ** 2
    numbers = range(1, patches + 1) if k is None else k
    columns = ["n_valid", "noise_area", "foreground", "right_foreground"]
    every, rows = stats[columns].sum(), []
    for name, rank in SELECTORS.items():
        by_rank = stats.groupby(rank)[columns].sum().cumsum()
        rows += [_shares(name, each, cast(pd.Series, by_rank.loc[each]), every) for each in numbers]
    rows += [_shares("random", each, every * each / patches, every) for each in numbers]
    return pd.DataFrame(rows)


def _shares(selector: str, k: int, chosen: pd.Series, every: pd.Series) -> dict[str, str | int | float]:
    def of(part: float, total: float) -> float:
        return part / total if total else float("nan")

    return {
        "selector": selector, "k": k, "area": 100 * of(chosen.n_valid, every.n_valid),
        "recall": 100 * of(chosen.noise_area, every.noise_area),
        "precision": 100 * of(chosen.noise_area, chosen.n_valid),
        "foreground": 100 * of(chosen.foreground, every.foreground),
        "foreground_share": 100 * of(chosen.foreground, chosen.n_valid),
        "lost_per_found": of(chosen.right_foreground, chosen.noise_area),
    }  # fmt: skip


def objects_left(stats: pd.DataFrame, k: Sequence[int] = (2, 3, 5)) -> pd.DataFrame:
    """What the k most uncertain patches leave of the foreground of an image, over the images that have any.

    Returns:
        A row per k: left: share of an image's foreground pixels that stay, mean in percent; less_than_half: images
        that keep less than half of it, in percent.
    """
    all_of = stats.groupby("image", sort=False).foreground.sum()
    rows = []
    for each in k:
        kept = stats[stats["rank"] > each].groupby("image", sort=False).foreground.sum()
        left = (kept.reindex(all_of.index, fill_value=0) / all_of)[all_of > 0]
        rows.append({"k": each, "left": 100 * left.mean(), "less_than_half": 100 * (left < 0.5).mean()})
    return pd.DataFrame(rows).set_index("k")


# --- from records ----------------------------------------------------------------------------


def beside_host(runs: Sequence[Run], hosts: Sequence[str]) -> pd.DataFrame:
    """Each host alone and with UPC, over the seeds that both have: mIoU in percent, teacher, last epoch.

    Returns:
        Columns host, split, seeds, alone, with UPC (means), difference (paired, mean), s.d. (of the difference).
    """
    rows = []
    for host in hosts:
        gains = paired_gain(runs, f"{host}+upc", host)
        for split, of_split in gains.groupby("split", sort=False):
            keys = {(split, seed) for seed in of_split.seed}
            means = [
                pd.Series([100 * r.miou for r in runs if r.label == label and _key(r) in keys]).mean()
                for label in (host, f"{host}+upc")
            ]
            rows.append([title(host), split, len(of_split), *means, of_split.gain.mean(), of_split.gain.std()])
    names = ["host", "split", "seeds", "alone", "with UPC", "difference", "s.d."]
    return pd.DataFrame(rows, columns=names).round(2)


def _key(run: Run) -> tuple[str, int]:
    return run.record["recipe"]["split"], run.record["recipe"]["seed"]


def noise_of_hosts(runs: Sequence[Run]) -> pd.DataFrame:
    """What UPC did to the labels of each host in the last epoch, in percent, means over seeds.

    wrong, before and after: of the pixels that are learned from and whose truth is known, as the host labels them and
    after pasting; replaced: pixels that come from labeled images.
    """
    names = {"noise_before": "wrong, before", "noise_after": "wrong, after", "replaced": "replaced"}
    rows = []
    for run in runs:
        if "upc" in run.record["recipe"] and set(names) <= set(run.metrics):
            last = 100 * run.metrics.iloc[-1][list(names)]
            rows.append({"host": title(run.record["recipe"]["method"]), **last})
    if not rows:
        return pd.DataFrame()
    return pd.DataFrame(rows).groupby("host", sort=False).mean().rename(columns=names).round(1)


def without_pasting(runs: Sequence[Run]) -> pd.DataFrame:
    """Hosts with their own pasting, with none (k = 0), and with UPC, over the seeds of the runs with none.

    Returns:
        A row per host and split: seeds, and mean mIoU in percent, teacher, last epoch, of each.
    """
    nothing = UPCOptions(k=(0,)).as_dict() | {"k": [0]}
    bare = [r for r in runs if r.record["recipe"].get("upc") == nothing]
    seen = {(r.record["recipe"]["method"], *_key(r)): r for r in bare}
    rows = []
    for method, split in dict.fromkeys(key[:2] for key in seen):
        seeds = [seed for m, s, seed in seen if (m, s) == (method, split)]
        keys = {(split, seed) for seed in seeds}
        own, upc = (
            [r.miou for r in standard(runs) if r.label == label and _key(r) in keys]
            for label in (method, f"{method}+upc")
        )
        none = [seen[method, split, seed].miou for seed in seeds]
        means = (100 * pd.Series(values, dtype=float).mean() for values in (own, none, upc))
        rows.append([title(method), split, len(seeds), *means])
    names = ["host", "split", "seeds", "its own pasting", "nothing pasted", "UPC"]
    return pd.DataFrame(rows, columns=names).round(2)


def ablations(runs: Sequence[Run]) -> pd.DataFrame:
    """Runs with UPC or a control of it: what differs from the default, mIoU in percent, teacher, last epoch."""
    usual = {o.name: list(o.default) if isinstance(o.default, tuple) else o.default for o in UPCOptions.described()}
    rows = []
    for run in runs:
        recipe = run.record["recipe"]
        given = recipe.get("upc")
        if given is None:
            continue
        changed = [f"{name} = {value}" for name, value in given.items() if value != usual[name]]
        rows.append([title(run.label), recipe["split"], ", ".join(changed) or "default", 100 * run.miou])
    frame = pd.DataFrame(rows, columns=["method", "split", "changed", "mIoU"])
    grouped = frame.groupby(["method", "split", "changed"], sort=False).mIoU.agg(["mean", "std", "count"])
    return grouped.rename(columns={"std": "s.d.", "count": "seeds"}).round(2).reset_index()
