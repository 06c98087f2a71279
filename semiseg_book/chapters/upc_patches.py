"""Numbers of the UPC chapter: which patches of a pseudo-label are wrong, which are doubted, and what a choice costs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import cast

import pandas as pd
import torch
import torch.nn as nn
from torch import Tensor

from semiseg.components import entropy
from semiseg.data.dataset import SegmentationData
from semiseg.methods.upc import noise, patch_miou, patch_sums, scores, uncertainty
from semiseg.options import UPC
from semiseg.runs import Run
from semiseg.types import IGNORE, Batch, Target, View

from ..style import title
from ..tables import paired_gain, standard
from . import wpl

SELECTORS: Mapping[str, str] = {"uncertainty": "rank", "oracle": "oracle_rank", "oracle, by area": "area_rank"}


@torch.no_grad()
def look(network: nn.Module, batch: Batch) -> tuple[View, View]:
    """The unlabeled crops of a batch as a host sees them, every pixel that is no padding kept, and the labeled ones.

    The network must be in evaluation mode.
    """
    output, valid = network(batch.u_weak), batch.u_valid.float()
    label, doubt = Target(output.logits.argmax(1), valid, valid), entropy(output.logits)
    own = View(batch.u_weak, label, output, entropy=doubt * valid, hidden=batch.u_hidden)
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


# --- from records -----------------------------------------------------------------------------


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
    nothing = vars(UPC(k=(0,))) | {"k": [0]}
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
    usual, rows = UPC(), []
    for run in runs:
        recipe = run.record["recipe"]
        given = recipe.get("upc")
        if given is None:
            continue
        as_default = {name: list(v) if isinstance(v, tuple) else v for name, v in vars(usual).items()}
        changed = [f"{name} = {value}" for name, value in given.items() if value != as_default[name]]
        rows.append([title(run.label), recipe["split"], ", ".join(changed) or "default", 100 * run.miou])
    frame = pd.DataFrame(rows, columns=["method", "split", "changed", "mIoU"])
    grouped = frame.groupby(["method", "split", "changed"], sort=False).mIoU.agg(["mean", "std", "count"])
    return grouped.rename(columns={"std": "s.d.", "count": "seeds"}).round(2).reset_index()
