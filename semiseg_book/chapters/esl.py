"""Figures of the ESL chapter: who hesitates where and who gains from it; the parts, and the space they make."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import seaborn as sns
import torch
import torch.nn as nn
import torch.nn.functional as F
from matplotlib.axes import Axes
from matplotlib.colors import ListedColormap
from matplotlib.figure import Figure
from matplotlib.patches import ConnectionPatch, Patch, Rectangle
from matplotlib.ticker import MaxNLocator
from sklearn.manifold import TSNE
from threadpoolctl import threadpool_limits
from torch import Tensor

from semiseg.banks import as_pixels
from semiseg.components import entropy
from semiseg.data.dataset import SegmentationData
from semiseg.data.transforms import Normalize
from semiseg.hosts.mean_teacher import MeanTeacher
from semiseg.methods.esl import DynamicLabels, PixelToPart
from semiseg.methods.parts import Parts, group_means
from semiseg.runs import Run
from semiseg.types import IGNORE, Output

from ..pictures import colored, legend, predict

NUMBERS = ("1 class", "2 classes", "3 or more")
NUMBER_COLORS = ("#3b6fb6", "#5aa469", "#c8443c")
SOURCES = {"true": "truth", "hard": "hard labels", "soft": "dynamic soft labels"}


class Drawing(NamedTuple):
    """A figure, and the numbers it draws in tidy form."""

    figure: Figure
    frame: pd.DataFrame


@torch.no_grad()
def look(network: nn.Module, data: SegmentationData, key: str) -> Output:
    """What a network in evaluation mode says about one whole image, as a batch of one."""
    return network(Normalize()(data.image(key)[None]))


def show(ax: Axes, picture: np.ndarray | Tensor, title: str = "", **options: Any) -> None:
    """A picture without axes."""
    ax.imshow(np.asarray(picture), interpolation="nearest", **options)
    ax.set_title(title, fontsize="small")
    ax.set(xticks=[], yticks=[])
    ax.grid(False)


def most_hesitant(network: nn.Module, data: SegmentationData, ids: Sequence[str]) -> str:
    """The image with the least certain pixel."""
    return max(ids, key=lambda key: float(entropy(look(network, data, key).logits).max()))


def hesitation(
    network: nn.Module, data: SegmentationData, key: str, label: DynamicLabels, pixel: tuple[int, int] | None = None
) -> Drawing:
    """Fig. 1: entropy of the prediction, and the probabilities at one pixel (row, column), by default the least sure.

    The frame has a row per class: probability, soft label y*, and whether the class is dominant.
    """
    logits = look(network, data, key).logits
    h, p = entropy(logits)[0], logits.softmax(1)
    y, x = pixel or divmod(int(h.argmax()), h.shape[1])
    soft = label.soften(p)[0, :, y, x]
    frame = pd.DataFrame({"class": data.classes, "probability": p[0, :, y, x], "label": soft, "dominant": soft > 0})
    figure, (left, middle, right) = plt.subplots(1, 3, figsize=(10, 2.9), width_ratios=(1, 1.15, 1.6))
    show(left, data.image(key).movedim(0, -1), "unlabeled image")
    show(middle, h, "(a) entropy of the prediction, nats", cmap="inferno", vmin=0)
    figure.colorbar(middle.images[0], ax=middle, shrink=0.85)
    for ax, color in ((left, "black"), (middle, "white")):
        ax.plot(x, y, "+", color=color, ms=12, mew=2)
    shades = {True: NUMBER_COLORS[2], False: "0.75"}
    sns.barplot(frame, x="class", y="probability", hue="dominant", palette=shades, dodge=False, ax=right)
    right.set(title="(b) prediction at the cross", xlabel="", ylabel="probability")
    right.tick_params(axis="x", rotation=60, labelsize="small")
    return Drawing(figure, frame)


def near_edge(mask: Tensor, radius: int) -> Tensor:
    """(H, W) bool: another label within `radius` pixels (largest coordinate difference)."""
    plane, size = mask[None, None].float(), 2 * radius + 1
    largest = F.max_pool2d(plane, size, 1, radius)
    smallest = -F.max_pool2d(-plane, size, 1, radius)
    return (largest != smallest)[0, 0]


def dominant_maps(
    network: nn.Module, data: SegmentationData, ids: Sequence[str], label: DynamicLabels, radius: int = 1
) -> Drawing:
    """Fig. 3: how many dominant classes each pixel has.

    The frame has a row per image, place (near an edge of the true mask, or inside) and number: pixels and their share
    of the place.
    """
    figure, axes = plt.subplots(2, len(ids), figsize=(1.4 * len(ids), 3.2), squeeze=False)
    counts = []
    for (top, bottom), key in zip(axes.T, ids, strict=True):
        number = (label.soften(look(network, data, key).logits.softmax(1)) > 0).sum(1)[0].clamp(max=3) - 1
        show(top, data.image(key).movedim(0, -1))
        show(bottom, number, cmap=ListedColormap(NUMBER_COLORS), vmin=0, vmax=2)
        mask = data.mask(key)
        if mask is None:
            continue
        edge = near_edge(mask, radius)
        for place, where in (("near an edge", edge), ("inside", ~edge)):
            found = torch.bincount(number[where & (mask != IGNORE)], minlength=3).tolist()
            counts += [(key, place, name, n) for name, n in zip(NUMBERS, found, strict=True)]
    handles = [Patch(color=c, label=n) for n, c in zip(NUMBERS, NUMBER_COLORS, strict=True)]
    figure.legend(handles=handles, loc="outside lower center", ncols=3, frameon=False, fontsize="small")
    frame = pd.DataFrame(counts, columns=["image", "place", "dominant", "pixels"])
    frame["share"] = frame.pixels / frame.groupby(["image", "place"]).pixels.transform("sum").clip(lower=1)
    return Drawing(figure, frame)


def label_curves(run: Run) -> Drawing:
    """Over epochs: pixels by number of dominant classes, accuracy of their likeliest class, and the contrast.

    Reads what the run logged.  The frame is tidy: epoch, quantity, value.
    """
    m = run.metrics.set_index("epoch")
    numbers = {f"dominant_{n}": name for n, name in enumerate(NUMBERS, 1)}
    right = {f"accuracy_{n}": name for n, name in enumerate(NUMBERS, 1)}
    right |= {"truth_dominant": "truth among 2 or more"}
    cosines = {"cosine_positive": "anchor and positive", "cosine_negative": "anchor and negatives"}
    figure, axes = plt.subplots(1, 3, figsize=(11, 3.2))
    titles = ("pixels by dominant classes, %", "likeliest class right, %", "cosine in the contrast")
    parts = []
    for ax, names, title, factor in zip(axes, (numbers, right, cosines), titles, (100, 100, 1), strict=True):
        shown = factor * m.reindex(columns=list(names)).rename(columns=names).dropna(how="all", axis=1)
        parts.append(shown.melt(var_name="quantity", ignore_index=False).reset_index().assign(panel=title))
        if shown.columns.empty:
            ax.set_axis_off()
            continue
        sns.lineplot(shown, dashes=False, markers=True, ax=ax, palette=[*NUMBER_COLORS, "0.3"][: len(shown.columns)])
        ax.set(title=title, xlabel="epoch", ylabel="")
        ax.xaxis.set_major_locator(MaxNLocator(integer=True))
        ax.legend(fontsize="x-small")
    return Drawing(figure, pd.concat(parts, ignore_index=True))


def label_runs(runs: Sequence[Run]) -> pd.DataFrame:
    """The runs of Fig. 7a: ESL without contrast, hard or dynamic labels; mIoU in percent of the teacher, last epoch."""
    kinds = {"hard": SOURCES["hard"], "dynamic": SOURCES["soft"]}
    rows = [
        (
            kinds[r.record["recipe"]["esl"]["label"]],
            r.record["split"]["labeled"],
            r.record["recipe"]["seed"],
            100 * r.miou,
        )
        for r in runs
        if r.record["recipe"]["method"] == "esl"
        and r.record["recipe"]["esl"]["parts"] == 0
        and r.record["recipe"]["esl"]["label"] in kinds
    ]
    return pd.DataFrame(rows, columns=["label", "labeled", "seed", "miou"])


def hard_against_soft(frame: pd.DataFrame) -> Drawing:
    """Fig. 7a: mIoU with hard and with dynamic soft labels over the number of labeled images; `frame`: `label_runs`."""
    figure, ax = plt.subplots(figsize=(5.2, 3.4))
    palette = {SOURCES["hard"]: "0.5", SOURCES["soft"]: NUMBER_COLORS[2]}
    sns.lineplot(frame, x="labeled", y="miou", hue="label", palette=palette, marker="o", errorbar="sd", ax=ax)
    ax.set(xscale="log", xlabel="labeled images", ylabel="mIoU, %")
    ticks = sorted(frame.labeled.unique())
    ax.set_xticks(ticks, [str(n) for n in ticks], minor=False)
    ax.minorticks_off()
    return Drawing(figure, frame)


def class_shares(soft: Run, hard: Run | None = None) -> pd.DataFrame:
    """Each class's share of the unlabeled pixels in the last epoch: truth, hard labels, soft labels.

    Hard labels are those of the run `hard`, trained with them, or else the likeliest classes of `soft` itself.
    Raises ValueError for a run that logged no shares.
    """
    classes = soft.record["data"]["classes"]
    rows = []
    for source, run in (("true", soft), ("hard", hard or soft), ("soft", soft)):
        columns = [f"{source}_{k}" for k in range(len(classes))]
        if columns[0] not in run.metrics:
            raise ValueError(f"{run.folder} logged no class shares; ESL runs do, whatever their labels")
        last = run.metrics[columns].dropna().iloc[-1]
        rows += [(name, SOURCES[source], share) for name, share in zip(classes, last, strict=True)]
    return pd.DataFrame(rows, columns=["class", "source", "share"])


def class_distribution(frame: pd.DataFrame) -> Drawing:
    """Fig. 7b: the shares of `class_shares`, classes in the order of the truth, on a log axis.

    The frame adds, per source, the total variation distance to the truth.
    """
    wide = frame.pivot(index="class", columns="source", values="share")
    far = wide.sub(wide[SOURCES["true"]], axis=0).abs().sum() / 2
    order = wide[SOURCES["true"]].sort_values(ascending=False).index
    figure, ax = plt.subplots(figsize=(9, 3.4))
    palette = dict(zip(SOURCES.values(), ("0.25", "0.7", NUMBER_COLORS[2]), strict=True))
    sns.barplot(frame, x="class", y="share", hue="source", order=order, hue_order=list(palette), palette=palette, ax=ax)
    ax.set(yscale="log", xlabel="", ylabel="share of pixels")
    ax.legend(title="", fontsize="small")
    ax.tick_params(axis="x", rotation=45)
    return Drawing(figure, frame.assign(distance_to_truth=frame.source.map(far)))


# --- the contrast: parts, pairs, edges, and the space it makes -------------------------------


def part_colors(data: SegmentationData, parts: int) -> np.ndarray:
    """(K * parts, 3) colors: shades of the class's color, from light to dark."""
    mix = np.linspace(0.45, -0.45, parts)[None, :, None] if parts > 1 else np.zeros((1, 1, 1))
    base = np.array(data.palette)[:, None, :] / 255
    return np.where(mix > 0, base + (1 - base) * mix, base * (1 + mix)).reshape(-1, 3)


def truth_at(data: SegmentationData, key: str, size: tuple[int, int] | torch.Size) -> Tensor:
    """The mask of an image on a coarser grid, (1, h, w) long."""
    mask = data.mask(key)
    assert mask is not None
    return F.interpolate(mask[None, None].float(), size=tuple(size), mode="nearest")[0].long()


def _contrast_of(host: MeanTeacher) -> PixelToPart:
    if not isinstance(host.auxiliary, PixelToPart):
        raise ValueError("this run has no parts: it was trained without the contrast (parts=0)")
    return host.auxiliary


def _grouped(host: MeanTeacher, data: SegmentationData, key: str) -> tuple[Tensor, Tensor, Tensor]:
    """Part of each pixel (h, w), and mean teacher embedding (K * P, E) and size (K * P,) of each part of an image."""
    parts, out = _contrast_of(host).parts, look(host.teacher.model, data, key)
    part = parts.assign(parts.nearest(out.deep), truth_at(data, key, out.embedding.shape[-2:]))
    mean, count = group_means(out.embedding, part, parts.active.numel())
    return part[0], F.normalize(mean, dim=1), count


def pairs(host: MeanTeacher, data: SegmentationData, ids: Sequence[str], negatives: int = 6) -> Drawing:
    """Fig. 4: parts of images with masks, one anchor (circle), its positives (green) and some negatives (red).

    The anchor lies in the largest part of a foreground class that a later image shows as well.  The frame has a row
    for each part of each image: class, number, pixels, cosine of its mean to the anchor, and its role.
    """
    seen = [_grouped(host, data, key) for key in ids]
    k, p = _contrast_of(host).parts.active.shape
    owner, y, x, frame = _anchor(host, data, ids, seen, k, p)
    figure, axes = plt.subplots(2, len(ids), figsize=(1.7 * len(ids), 3.6), squeeze=False)
    colors = part_colors(data, p)
    for (top, bottom), key, (part, _, _) in zip(axes.T, ids, seen, strict=True):
        picture = np.where((part < 0).numpy()[..., None], 0.88, colors[part.clamp(min=0).numpy()])
        show(top, data.image(key).movedim(0, -1))
        show(bottom, picture)
    first = axes[1, 0]
    first.plot(x, y, "o", mec="gold", mfc="none", ms=11, mew=2.5)
    positive = frame[frame.role == "positive"]
    negative = frame[(frame.role == "negative") & (frame["class"] != data.classes[0])].head(negatives)
    for rows, color in ((negative, "crimson"), (positive, "limegreen")):
        for image, number in zip(rows["image"], rows["flat"], strict=True):
            i = list(ids).index(image)
            _arrow(figure, (first, x, y), (axes[1, i], *_center(seen[i][0] == number)[::-1]), color)
    frame = frame.assign(part=frame.flat % p).drop(columns="flat")
    return Drawing(figure, frame.assign(anchor_class=data.classes[owner // p]))


def _anchor(
    host: MeanTeacher, data: SegmentationData, ids: Sequence[str], seen: Sequence[tuple[Tensor, Tensor, Tensor]],
    k: int, p: int,
) -> tuple[int, int, int, pd.DataFrame]:  # fmt: skip
    """The anchor's part, row and column in the first image, and its cosines to every part of every image."""
    counts = torch.stack([count for _, _, count in seen])
    shared = counts[0] * (counts[1:].sum(0) > 0)
    shared[:p] *= 1e-6  # the background only where nothing else is shared
    owner = int(shared.argmax())
    if shared[owner] == 0:
        raise ValueError(f"{ids[0]} shares no part with the other images; choose images of the same classes")
    y, x = _center(seen[0][0] == owner)
    v = F.normalize(look(host.teacher.model, data, ids[0]).embedding[0, :, y, x], dim=0)
    rows = []
    for key, (_, mean, count) in zip(ids, seen, strict=True):
        for flat in count.nonzero()[:, 0].tolist():
            role = "positive" if flat == owner else "negative"
            rows.append((key, data.classes[flat // p], flat, int(count[flat]), float(mean[flat] @ v), role))
    return owner, y, x, pd.DataFrame(rows, columns=["image", "class", "flat", "pixels", "cosine", "role"])


def _center(where: Tensor) -> tuple[int, int]:
    """The pixel of a region nearest to its mean place: (row, column)."""
    places = where.nonzero().float()
    y, x = places[(places - places.mean(0)).norm(dim=1).argmin()].tolist()
    return int(y), int(x)


def _arrow(figure: Figure, start: tuple[Axes, float, float], end: tuple[Axes, float, float], color: str) -> None:
    line = ConnectionPatch(start[1:], end[1:], "data", "data", axesA=start[0], axesB=end[0], shrinkA=6, shrinkB=2)
    line.set(color=color, linewidth=1.4, arrowstyle="-|>")
    figure.add_artist(line)


def at_edges(data: SegmentationData, ids: Sequence[str], networks: Mapping[str, nn.Module]) -> Drawing:
    """Fig. 5: input, truth, and the predictions of some networks; a red box holds the pixels where these differ.

    The frame is `right_by_place` of these images.
    """
    titles = ["input", "truth", *networks]
    figure, axes = plt.subplots(len(ids), len(titles), figsize=(1.9 * len(titles), 1.8 * len(ids) + 0.4), squeeze=False)
    for row, key in zip(axes, ids, strict=True):
        mask = data.mask(key)
        assert mask is not None
        known = mask != IGNORE
        found = [predict(network, data, key) for network in networks.values()]
        planes = [mask.long(), *(torch.where(known, predicted, IGNORE) for predicted in found)]
        pictures = [data.image(key).movedim(0, -1).numpy(), *(colored(plane, data.palette) for plane in planes)]
        for ax, picture, title in zip(row, pictures, titles, strict=True):
            show(ax, picture, title if key == ids[0] else "")
        box = _differing(torch.stack(found), known)
        if box is not None:
            for ax in row[2:]:
                ax.add_patch(Rectangle(*box, fill=False, ec="red", ls="--", lw=1.5))
    legend(figure, data)
    return Drawing(figure, right_by_place(data, ids, networks))


def right_by_place(
    data: SegmentationData, ids: Sequence[str], networks: Mapping[str, nn.Module], radius: int = 1
) -> pd.DataFrame:
    """How often networks are right near edges of the true mask, and inside: network, place, pixels, share_right."""
    counts = []
    for key in ids:
        mask = data.mask(key)
        assert mask is not None
        known, edge = mask != IGNORE, near_edge(mask, radius)
        for name, network in networks.items():
            right = predict(network, data, key) == mask
            for place, where in (("near an edge", edge & known), ("inside", ~edge & known)):
                counts.append((name, place, int(where.sum()), int(right[where].sum())))
    frame = pd.DataFrame(counts, columns=["network", "place", "pixels", "right"])
    frame = frame.groupby(["network", "place"], sort=False, as_index=False).sum()
    return frame.assign(share_right=frame.right / frame.pixels.clip(lower=1)).drop(columns="right")


def _differing(planes: Tensor, known: Tensor) -> tuple[tuple[float, float], int, int] | None:
    """Corner, width and height of the box around the pixels where planes (n, H, W) differ."""
    places = ((planes != planes[0]).any(0) & known).nonzero()
    if not len(places):
        return None
    (top, left), (bottom, right) = places.amin(0).tolist(), places.amax(0).tolist()
    return (left - 0.5, top - 0.5), right - left + 1, bottom - top + 1


def embedding_sample(
    host: MeanTeacher, data: SegmentationData, ids: Sequence[str], classes: Sequence[int], per_part: int = 60,
    parts: int = 2,
) -> pd.DataFrame:  # fmt: skip
    """Pixels of the `parts` largest parts of some classes: class, part, and their embedding z in columns z0, z1, ...

    A run without contrast has neither projection nor parts: its z is the feature map the classifier reads, and its
    parts are K-means of its own backbone features.
    """
    seen: list[tuple[Output, Tensor]] = []
    for key in ids:
        out = look(host.teacher.model, data, key)
        seen.append((out, truth_at(data, key, out.features.shape[-2:])))
    with_contrast = isinstance(host.auxiliary, PixelToPart)
    made = _contrast_of(host).parts if with_contrast else _own_parts(seen, len(data.classes), parts)
    z = torch.cat([as_pixels(out.embedding if with_contrast else out.features) for out, _ in seen])
    part = torch.cat([made.assign(made.nearest(out.deep), y).flatten() for out, y in seen])
    g, p, rows = torch.Generator().manual_seed(0), made.active.shape[1], []
    for c in classes:
        sizes = torch.bincount(part[part // p == c] - c * p, minlength=p)
        for number, flat in enumerate(sizes.argsort(descending=True)[:parts].tolist()):
            of_part = (part == c * p + flat).nonzero()[:, 0]
            some = of_part[torch.randperm(len(of_part), generator=g)[:per_part]]
            rows += [(data.classes[c], number + 1, *v) for v in z[some].tolist()]
    return pd.DataFrame(rows, columns=["class", "part", *(f"z{i}" for i in range(z.shape[1]))])


def _own_parts(seen: Sequence[tuple[Output, Tensor]], classes: int, parts: int) -> Parts:
    made = Parts(classes, parts, seen[0][0].deep.shape[1], collect_steps=len(seen), pool=2000)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        for out, y in seen:
            size = tuple(out.deep.shape[-2:])
            made.collect(out.deep, F.interpolate(y[:, None].float(), size=size, mode="nearest")[:, 0].long())
    return made


def embedding_maps(samples: Mapping[str, pd.DataFrame], palette: Mapping[str, tuple[int, int, int]]) -> Drawing:
    """Fig. 6: t-SNE of `embedding_sample` of each model; color is the class, transparency the part.

    palette: color of each class.  The frame is tidy: model, class, part, x, y.
    """
    figure, axes = plt.subplots(1, len(samples), figsize=(4.8 * len(samples), 4), squeeze=False)
    colors = {name: tuple(v / 255 for v in rgb) for name, rgb in palette.items()}
    frames = []
    for ax, (title, sample) in zip(axes[0], samples.items(), strict=True):
        z = F.normalize(torch.tensor(sample.filter(regex=r"^z\d").to_numpy()).float(), dim=1).numpy()
        perplexity = min(30, max(2, (len(z) - 1) // 3))
        with threadpool_limits(1):  # its threads wait by spinning: on a busy machine minutes instead of seconds
            x, y = TSNE(perplexity=perplexity, init="pca", random_state=0).fit_transform(z).T
        frames.append(sample[["class", "part"]].assign(model=title, x=x, y=y))
        for number, alpha in ((1, 0.95), (2, 0.35)):
            shown = frames[-1][frames[-1].part == number]
            if shown.empty:
                continue
            sns.scatterplot(
                shown, x="x", y="y", hue="class", palette=colors, alpha=alpha, s=16, linewidth=0, ax=ax,
                legend=number == 1,
            )  # fmt: skip
        ax.set(title=title, xticks=[], yticks=[], xlabel="", ylabel="")
    return Drawing(figure, pd.concat(frames, ignore_index=True))


def of_one_class(data: SegmentationData, ids: Sequence[str], count: int) -> list[str]:
    """At most `count` images that show the foreground class which most of the images show."""
    shown = [set(torch.as_tensor(data.mask(key)).unique().tolist()) - {0, IGNORE} for key in ids]
    often = max(range(1, len(data.classes)), key=lambda c: sum(c in classes for classes in shown))
    return [key for key, classes in zip(ids, shown, strict=True) if often in classes][:count]
