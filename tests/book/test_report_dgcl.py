"""Numbers behind the figures of the DGCL chapter."""

import matplotlib
import numpy as np
import pandas as pd
import pytest
import torch
import torch.nn.functional as F
from toys import Blobs, K, student

from semiseg.types import IGNORE
from semiseg_book.chapters.dgcl import (
    Pixels,
    clustering,
    contrast_curves,
    density_and_mistakes,
    density_map,
    feature_maps,
    image_scores,
    in_class_density,
    largest_classes,
    pixels,
)

matplotlib.use("Agg")


def clouds(spread: float = 0.1, n: int = 40) -> Pixels:
    """Three classes around three axes, the first with an outlier that is wrong and sure."""
    g = torch.Generator().manual_seed(0)
    y = torch.arange(3).repeat_interleave(n)
    x = torch.eye(6)[y] + spread * torch.randn(3 * n, 6, generator=g)
    x[0] = torch.tensor([0.5, 0, 0, 0, 0, 1.0])
    truth = y.clone()
    truth[0], truth[1] = 2, IGNORE
    return Pixels(x, y, torch.full((3 * n,), 0.99), truth)


def test_density_within_the_class_leaves_out_the_feature_itself() -> None:
    p = clouds()
    rho = in_class_density(p, k=4)
    unit = F.normalize(p.features[:40], dim=1)
    similar = (unit @ unit.T).fill_diagonal_(-2)
    torch.testing.assert_close(rho[:40], similar.topk(4).values.mean(1))
    assert rho.argmin() == 0, "the outlier"
    alone = Pixels(p.features[:1], p.predicted[:1], p.confidence[:1], p.truth[:1])
    assert in_class_density(alone).item() == pytest.approx(0, abs=1e-6)


def test_density_map_draws_confident_pixels_and_shows_that_the_sparse_are_wrong() -> None:
    p = clouds()
    p.confidence[2] = 0.5
    palette = [(0, 0, 0), (255, 0, 0), (0, 0, 255)]
    _, frame = density_map(p, ("a", "b", "c"), palette, shown=(0, 2), most=30, k=4)
    assert frame["class"].value_counts().to_dict() == {"a": 30, "c": 30} and (frame.confidence > 0.95).all()
    _, every = density_map(p, ("a", "b", "c"), palette, shown=(0, 1, 2), most=100, k=4)
    assert len(every) == 119 and every.right.isna().sum() == 1 and (every.right == 0).sum() == 1
    quarters = density_and_mistakes(every)
    assert quarters.pixels.sum() == 118
    assert quarters.right.iloc[0] < 100 and (quarters.right.iloc[1:] == 100).all()
    assert quarters.density.is_monotonic_increasing
    with pytest.raises(ValueError, match=r"have a confidence above 0\.999"):
        density_map(p, ("a", "b", "c"), palette, shown=(0,), threshold=0.999)


def test_clustering_prefers_tight_classes() -> None:
    table = clustering({"wide": clouds(0.4), "tight": clouds(0.05)})
    assert table["Silhouette"]["tight"] > table["Silhouette"]["wide"]
    assert table["Calinski-Harabasz"]["tight"] > table["Calinski-Harabasz"]["wide"]
    assert table["Davies-Bouldin"]["tight"] < table["Davies-Bouldin"]["wide"]
    p = clouds()
    assert clustering({"one": p.only(p.predicted == 1)}).isna().all(axis=None)


def test_feature_maps_and_sampling() -> None:
    p = clouds()
    _, frame = feature_maps({"x": p, "y": p}, ("a", "b", "c"), [(0, 0, 0)] * 3, most=20, drawn=7)
    assert frame.groupby(["network", "class"]).size().tolist() == [7] * 6
    assert torch.equal(p.some(5), p.some(5)) and len(p.some(5).unique()) == 15
    assert largest_classes(p, 5) == [1, 2] and largest_classes(p, 1, but=()) == [0]


def test_pixels_of_a_network_are_on_the_feature_grid() -> None:
    data, net = Blobs(), student().eval()
    p = pixels(net, data, data.val[:2])
    assert p.features.shape == (2 * 8 * 8, 16) and p.predicted.shape == p.truth.shape == (128,)
    assert ((p.confidence > 1 / K - 1e-6) & (p.confidence <= 1)).all()
    small = data.mask(data.val[0])[::4, ::4].flatten().long()
    assert torch.equal(p.truth[:64], small)
    table = image_scores({"net": net}, data, data.val[:2])
    assert table.index.tolist() == list(data.val[:2]) and table["net"].between(0, 100).all()


def test_curves_draw_what_was_logged() -> None:
    metrics = pd.DataFrame({"epoch": [1, 2], "kept": [np.nan, 0.8], "density_of_keys": [np.nan, 0.9], "other": [1, 2]})
    figure, drawn = contrast_curves(metrics)
    assert drawn.columns.tolist() == ["density_of_keys", "kept"]
    assert figure.axes[1].lines[0].get_ydata()[-1] == 80
