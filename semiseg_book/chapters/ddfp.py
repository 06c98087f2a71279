"""Figures of the DDFP chapter: what the flow knows, and where the features go."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import plotly.express as px
import plotly.graph_objects as go
import torch
import torch.nn.functional as F
from matplotlib.figure import Figure
from sklearn.manifold import TSNE
from threadpoolctl import threadpool_limits
from torch import Tensor

from semiseg.banks import as_pixels
from semiseg.components import ConfidentLabels
from semiseg.data.dataset import SegmentationData
from semiseg.data.transforms import Normalize
from semiseg.methods.ddfp import DensityDescent
from semiseg.methods.flow import MixtureFlow
from semiseg.models.deeplabv3plus import DeepLabV3Plus
from semiseg.recipe import usual
from semiseg.runs import Run, differences
from semiseg.types import IGNORE


@dataclass(frozen=True)
class Sample:
    """Features of confident pixels and their density-descended copies."""

    features: Tensor  # (N, D)
    descended: Tensor  # (N, D)
    predicted: Tensor  # (N,) class before
    flipped: Tensor  # (N,) bool, another class after
    truth: Tensor  # (N,) class, IGNORE where unknown
    log_p: Tensor  # (N,) nats, before
    log_p_descended: Tensor  # (N,) nats, after

    def table(self, classes: Sequence[str]) -> pd.DataFrame:
        """Per predicted class: pixels, mean log-density before and after the step, share that changes class."""
        frame = pd.DataFrame(
            {
                "class": [classes[k] for k in self.predicted.tolist()],
                "before": self.log_p.double(), "after": self.log_p_descended.double(),
                "flipped": 100.0 * self.flipped.double(),
            }
        )  # fmt: skip
        grouped = frame.groupby("class").agg(
            pixels=("before", "size"), before=("before", "mean"), after=("after", "mean"), flipped=("flipped", "mean")
        )
        return grouped.reindex([c for c in classes if c in grouped.index])


def sample(
    network: DeepLabV3Plus,
    step: DensityDescent,
    data: SegmentationData,
    ids: Sequence[str],
    *,
    tau: float,
    per_class: int,
) -> Sample:
    """Confident pixels of validation images, at most `per_class` of each predicted class, moved as in training.

    The network is the teacher in evaluation mode, so clean statistics normalize both copies.
    """
    parts = [_one(network, step, data, key, tau) for key in ids]
    f, d, p, q, t = (torch.cat(column) for column in zip(*parts, strict=True))
    g = torch.Generator().manual_seed(0)
    keep = torch.cat([_some((p == k).nonzero()[:, 0], per_class, g) for k in range(len(data.classes))])
    f, d, p, q, t = (v[keep] for v in (f, d, p, q, t))
    with torch.no_grad():
        return Sample(f, d, p, p != q, t, step.flow.log_prob(f), step.flow.log_prob(d))


def _some(rows: Tensor, n: int, g: torch.Generator) -> Tensor:
    return rows[torch.randperm(len(rows), generator=g)[:n]]


def _one(
    network: DeepLabV3Plus, step: DensityDescent, data: SegmentationData, key: str, tau: float
) -> tuple[Tensor, ...]:
    image = Normalize()(data.image(key)[None])
    with torch.no_grad():
        z, deep = network.trunk(image)
        output = network.read(z, deep, image.shape[-2:])
    target = ConfidentLabels(tau)(output, torch.ones(1, *image.shape[-2:], dtype=torch.bool), 1.0)
    at_input = step.tap == "decoder_input"
    onward = network.refine if at_input else torch.nn.Identity()
    start = z if at_input else output.features
    delta = step(start, onward, target)
    with torch.no_grad():
        moved = onward(start + delta)
        small, small_moved = network.classify(output.features).argmax(1), network.classify(moved).argmax(1)
    size = output.features.shape[-2:]
    known = target.at(size).flatten() != IGNORE
    mask = data.mask(key)
    truth = torch.full(image.shape[-2:], IGNORE) if mask is None else mask
    truth = F.interpolate(truth[None, None].float(), size=size, mode="nearest").flatten().long()
    columns = (as_pixels(output.features), as_pixels(moved), small.flatten(), small_moved.flatten(), truth)
    return tuple(v[known] for v in columns)


def embed(s: Sample, seed: int = 0) -> np.ndarray:
    """t-SNE of features and descended copies together: (2, N, 2)."""
    both = torch.cat((s.features, s.descended)).numpy()
    with threadpool_limits(1):  # its threads wait by spinning: on a busy machine minutes instead of seconds
        points = TSNE(perplexity=30, init="pca", random_state=seed).fit_transform(both)
    return points.reshape(2, len(s.features), 2)


def tsne(points: np.ndarray, s: Sample, classes: Sequence[str], palette: Sequence[tuple[int, int, int]]) -> Figure:
    """Fig. 1 of the paper: (a) features by class, (b) their density-descended copies in red."""
    figure, (left, right) = plt.subplots(1, 2, figsize=(10, 4.6), sharex=True, sharey=True)
    for k, name in enumerate(classes):
        chosen = (s.predicted == k).numpy()
        color = "0.6" if k == 0 else np.array(palette[k]) / 255
        left.scatter(*points[0, chosen].T, s=7, color=color, label=name, linewidths=0)
    right.scatter(*points[0].T, s=7, color="0.72", linewidths=0, label="feature")
    right.scatter(*points[1].T, s=7, color="crimson", linewidths=0, alpha=0.7, label="descended copy")
    left.set_title("(a) features of confident pixels")
    right.set_title("(b) after one step down the density")
    for ax in (left, right):
        ax.set(xticks=[], yticks=[])
        ax.legend(markerscale=2.5, fontsize="x-small", ncols=2 if ax is left else 1)
    return figure


def interactive(points: np.ndarray, s: Sample, classes: Sequence[str]) -> go.Figure:
    """The same map to explore: color is log-density, hover tells class, truth and what the step does."""
    truth = ["unknown" if t == IGNORE else classes[t] for t in s.truth.tolist()]
    frame = pd.DataFrame(
        {
            "x": points[0, :, 0].round(2), "y": points[0, :, 1].round(2),
            "log p(v)": s.log_p.numpy().round(2), "after the step": s.log_p_descended.numpy().round(2),
            "predicted": [classes[k] for k in s.predicted.tolist()], "truth": truth,
            "changes class": np.where(s.flipped.numpy(), "yes", "no"),
        }
    )  # fmt: skip
    low, high = frame["log p(v)"].quantile([0.02, 0.98])
    figure = px.scatter(
        frame, x="x", y="y", color="log p(v)", symbol="changes class", symbol_map={"no": "circle", "yes": "x"},
        hover_data={"x": False, "y": False, "predicted": True, "truth": True, "after the step": True},
        color_continuous_scale="Viridis", range_color=(low, high),
    )  # fmt: skip
    figure.update_traces(marker_size=6)
    figure.update_layout(legend={"orientation": "h", "y": 1.08}, xaxis_title="", yaxis_title="")
    return figure.update_xaxes(showticklabels=False).update_yaxes(showticklabels=False)


@torch.no_grad()
def density_plane(
    flows: dict[str, MixtureFlow], s: Sample, corners: tuple[int, int, int], names: Sequence[str]
) -> Figure:
    """log p on the plane through the mean features of three classes, and the features near it, for each flow."""
    centers = torch.stack([s.features[s.predicted == k].mean(0) for k in corners])
    origin, along = centers.mean(0), centers[1] - centers[0]
    x_axis = F.normalize(along, dim=0)
    y_axis = F.normalize((centers[2] - centers[0]) - ((centers[2] - centers[0]) @ x_axis) * x_axis, dim=0)
    plane = torch.stack((x_axis, y_axis), 1)
    reach = 1.3 * ((centers - origin) @ plane).norm(dim=1).max().item()
    axis = torch.linspace(-reach, reach, 80)
    grid = torch.cartesian_prod(axis, axis)
    figure, axes = plt.subplots(1, len(flows), figsize=(5 * len(flows), 4.2), squeeze=False, sharex=True, sharey=True)
    for ax, (title, flow) in zip(axes[0], flows.items(), strict=True):
        log_p = flow.log_prob(origin + grid @ plane.T).view(80, 80).T
        log_p = log_p.clamp(min=log_p.max() - 200)  # the far tails would take all the colors
        drawn = ax.contourf(axis, axis, log_p, levels=18, cmap="viridis")
        figure.colorbar(drawn, ax=ax, label="log p(v), nats", shrink=0.85)
        for k, color in zip(corners, ("tomato", "white", "orange"), strict=True):
            near = (s.features[s.predicted == k] - origin) @ plane
            ax.scatter(*near.T, s=5, color=color, alpha=0.6, linewidths=0, label=names[k])
        ax.set(title=title, xticks=[], yticks=[], xlim=(-reach, reach), ylim=(-reach, reach))
        ax.grid(False)
    axes[0, 0].legend(fontsize="x-small", markerscale=2, facecolor="0.3", labelcolor="white")
    return figure


def toy_flow(steps: int = 250, seed: int = 0) -> tuple[Tensor, Tensor, MixtureFlow]:
    """Two moons, half of them labeled by two points' neighborhoods, and a two-dimensional flow fitted to them."""
    from sklearn.datasets import make_moons

    x, y = make_moons(1000, noise=0.08, random_state=seed)
    v, labels = torch.tensor(x, dtype=torch.float), torch.tensor(y)
    with torch.random.fork_rng(), threadpool_limits(1):
        torch.manual_seed(seed)
        flow = MixtureFlow(2, 2, blocks=4, hidden=32)
        known = torch.rand(len(v)) < 0.1
        optimizer = torch.optim.Adam(flow.parameters(), 5e-3)
        for _ in range(steps):
            optimizer.zero_grad()
            (-flow.log_prob(v, torch.where(known, labels, -1)).mean()).backward()
            optimizer.step()
    return v, labels, flow


def toy_picture(v: Tensor, labels: Tensor, before: MixtureFlow, after: MixtureFlow, eps: float = 0.35) -> Figure:
    """Density contours of a two-dimensional flow before and after fitting, and one step of some points down them."""
    axis_x, axis_y = torch.linspace(-1.8, 2.8, 120), torch.linspace(-1.4, 1.9, 120)
    grid = torch.stack(torch.meshgrid(axis_x, axis_y, indexing="xy"), -1).view(-1, 2)
    figure, axes = plt.subplots(1, 2, figsize=(10, 3.8), sharey=True)
    for ax, flow, title in zip(axes, (before, after), ("before fitting", "after fitting"), strict=True):
        with torch.no_grad():
            log_p = flow.log_prob(grid).view(120, 120).clamp(min=-12)
        ax.contourf(axis_x, axis_y, log_p, levels=16, cmap="Blues")
        ax.scatter(*v.T, c=["tab:orange" if k else "tab:green" for k in labels.tolist()], s=4, linewidths=0)
        ax.set(title=f"log p(v), {title}", xticks=[], yticks=[])
        ax.grid(False)
    some = v[::25].clone().requires_grad_()
    (g,) = torch.autograd.grad(-after.log_prob(some).sum(), some)
    delta = eps * F.normalize(g, dim=1)
    axes[1].quiver(*v[::25].T, *delta.T, angles="xy", scale_units="xy", scale=1, width=0.004, color="crimson")
    return figure


STEPS = {
    "none": "none: mean teacher", "uniform": "uniform noise", "dropout": "channel dropout", "normal": "random normal",
    "vat": "VAT, matched", "vat_published": "VAT, published setting", "density": "down the density",
}  # fmt: skip


def perturbations_table(runs: Sequence[Run]) -> pd.DataFrame:
    """Table 7 and the noise of Table 4: what DDFP becomes with another step in feature space, and without any.

    Args:
        runs: any; those of DDFP that differ from its recipe in nothing but `ddfp.step` count, and mean teacher's.

    Returns:
        A row per split and step: seeds; mIoU of the teacher after the last epoch in percent, mean over seeds;
        "minus density": mean of its paired differences to DDFP's own step, over the seeds that have both; and of the
        last epoch "flipped, %": confident pixels whose class the step changes, "length": of the step, relative to that
        of the features, where the run logged it.  Empty where there is no such run.
    """
    rows = [row for row in map(_step_row, runs) if row is not None]
    frame = pd.DataFrame(rows, columns=["split", "step", "seed", "mIoU", "flipped, %", "length"])
    own = frame[frame.step == "density"].set_index(["split", "seed"]).mIoU.rename("own")
    frame = frame.join(own, on=["split", "seed"])
    frame["minus density"] = frame.mIoU - frame.own
    frame["step"] = pd.Categorical(frame.step, list(STEPS))
    grouped = frame.groupby(["split", "step"], observed=True)
    table = grouped[["mIoU", "minus density", "flipped, %", "length"]].mean()
    table.insert(0, "seeds", grouped.seed.nunique())
    return table.reset_index().assign(step=lambda t: t.step.map(STEPS).astype(str)).round(2)


def _step_row(run: Run) -> list[object] | None:
    """Split, step, seed, mIoU, flipped and relative length; None for a run that is no part of the comparison."""
    recipe = run.record["recipe"]
    if run.label not in ("ddfp", "mean_teacher"):
        return None
    step = recipe["ddfp"].get("step", "density") if run.label == "ddfp" else "none"
    plain = {**recipe, "ddfp": {k: v for k, v in recipe["ddfp"].items() if k != "step"}} if step != "none" else recipe
    if differences(usual(plain).as_dict(), plain):
        return None
    last = run.metrics.iloc[-1]
    length = last.get("step_norm", np.nan) / last.get("start_norm", np.nan)
    return [recipe["split"], step, recipe["seed"], 100 * run.miou, 100 * last.get("flipped", np.nan), length]
