"""Numbers and pictures of the UPC chapter by hand: patch statistics, noise found, hosts side by side, what is drawn."""

import json
from dataclasses import replace
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
import torch
import toys
from oracle import Oracle

from semiseg.data.loader import training_batches
from semiseg.data.splits import seeded_split
from semiseg.methods.upc import UPCOptions, scores, top_patches
from semiseg.recipe import recipe
from semiseg.runs import Run
from semiseg.types import IGNORE, Target, View
from semiseg_book.chapters import upc as figures

S = 16


@pytest.fixture(autouse=True)
def _closed_figures():
    plt.switch_backend("Agg")
    yield
    plt.close("all")


def scene() -> View:
    """Two images of 4 x 4 patches of 4 x 4 pixels.

    In the first, patch (0, 1) has 8 wrong background pixels and the most entropy, patch (2, 2) 4 wrong foreground
    pixels and less of it; a row of the truth is unknown.  The second is right, and its last four columns are padding.
    """
    truth, label = torch.zeros(2, S, S, dtype=torch.long), torch.zeros(2, S, S, dtype=torch.long)
    truth[0, 8:12, 8:12], label[0, 8:12, 8:12] = 2, 2
    label[0, 0:2, 4:8] = 1
    label[0, 8, 8:12] = 3
    truth[0, 15] = IGNORE
    truth[1, :4, :4] = label[1, :4, :4] = 1
    uncertainty = torch.full((2, S, S), 0.01)
    uncertainty[0, 0:4, 4:8], uncertainty[0, 8:12, 8:12] = 1.0, 0.5
    known = torch.ones(2, S, S)
    known[1, :, 12:] = 0
    image = torch.randn(2, 3, S, S, generator=torch.Generator().manual_seed(0))
    return View(image, Target(label, known, known), entropy=uncertainty, hidden=truth)


def donors() -> View:
    return View(torch.full((3, 3, S, S), 2.0), Target.from_labels(torch.full((3, S, S), 3)))


# --- patch statistics -------------------------------------------------------------------------


def test_one_row_per_patch() -> None:
    stats = figures.patch_stats(scene(), ["a", "b"])
    assert len(stats) == 32 and stats.groupby("image").size().tolist() == [16, 16]
    at = stats.set_index(["image", "row", "col"])
    wild, mild, last = at.loc[("a", 0, 1)], at.loc[("a", 2, 2)], at.loc[("a", 3, 0)]
    assert (wild.noise_area, wild.sum_entropy, wild["rank"]) == (8, 16.0, 1)
    assert (mild.noise_area, mild.sum_entropy, mild["rank"]) == (4, 8.0, 2)
    assert (mild.foreground, mild.right_foreground) == (16, 12) and wild.foreground == 0
    assert (last.n_pixels, last.n_valid) == (16, 12), "a row of the truth is unknown"
    assert wild.mean_entropy == 1.0 and at.loc[("b", 0, 3)].n_pixels == 0
    assert wild.patch_miou == pytest.approx(0.25) and mild.patch_miou == pytest.approx(12 / 16 / 2)
    assert (wild.oracle_rank, mild.oracle_rank, wild.area_rank, mild.area_rank) == (1, 2, 1, 2)
    assert stats.groupby("image")["rank"].apply(lambda r: sorted(r) == list(range(1, 17))).all()
    assert (stats.selected_k2 == (stats["rank"] <= 2)).all() and stats.selected_k5.sum() == 10
    padding = stats[(stats.image == "b") & (stats.col == 3)]
    assert (padding["rank"] > 12).all() and (padding.oracle_rank > 12).all()


def test_ranks_are_the_choice_of_the_method() -> None:
    view = scene()
    stats = figures.patch_stats(view, ["a", "b"], 3)
    for select, rank in (("uncertainty", "rank"), ("oracle", "oracle_rank"), ("oracle_area", "area_rank")):
        for k in range(10):
            chosen = top_patches(scores(view, 3, select), k).flatten().numpy()
            assert ((stats[rank] <= k) == chosen).all()


def test_statistics_need_a_truth() -> None:
    with pytest.raises(ValueError, match="the oracle needs true masks"):
        figures.patch_stats(replace(scene(), hidden=torch.full((2, S, S), IGNORE)), ["a", "b"])


def test_whole_images_one_after_the_other() -> None:
    data = toys.Blobs()
    stats = figures.image_stats(Oracle(8), data, data.val)
    assert stats.image.unique().tolist() == list(data.val) and stats.n_pixels.sum() == 4 * 32 * 32
    assert (stats[stats.col == 0].noise_area == 64).all() and (stats[stats.col > 0].noise_area == 0).all()

    class Unlabeled(toys.Blobs):
        def mask(self, key):
            return None

    assert figures.image_stats(Oracle(), Unlabeled(), data.val).empty


# --- does uncertainty find the noise? ---------------------------------------------------------


def frame(entropy: list[float], noise: list[int], image: str = "a") -> pd.DataFrame:
    order = np.argsort(-np.array(entropy), kind="stable").argsort() + 1
    by_area = np.argsort(-np.array(noise), kind="stable").argsort() + 1
    return pd.DataFrame({
        "image": image, "n": 2, "sum_entropy": entropy, "noise_area": noise, "rank": order, "oracle_rank": by_area,
        "area_rank": by_area, "n_valid": 10, "foreground": [8, 2, 0, 0], "right_foreground": [5, 2, 0, 0],
    })  # fmt: skip


def test_correlations_by_hand() -> None:
    same = frame([4.0, 3, 2, 1], [100, 3, 2, 1])
    table = figures.correlations(same)
    assert table.loc["all patches", "Spearman"] == pytest.approx(1) and table.loc["all patches", "Pearson"] < 0.9
    turned = frame([1.0, 2, 3, 4], [4, 3, 2, 1], "b")
    without = frame([1.0, 2, 3, 4], [0, 0, 0, 0], "c")
    table = figures.correlations(pd.concat([same, turned, without]))
    assert table.loc["within an image, mean", "Spearman"] == pytest.approx(0), "1 and -1; the third has no noise"


def test_precision_and_recall_by_hand() -> None:
    stats = frame([4.0, 3, 2, 1], [3, 0, 6, 1])
    table = figures.found(stats).set_index(["selector", "k"])
    assert table.loc[("uncertainty", 1), ["recall", "precision"]].tolist() == [30, 30]
    assert table.loc[("uncertainty", 3), ["recall", "precision", "area"]].tolist() == pytest.approx([90, 30, 75])
    assert table.loc[("oracle", 1), ["recall", "precision"]].tolist() == [60, 60]
    assert table.loc[("random", 1), ["recall", "precision", "foreground"]].tolist() == [25, 25, 25]
    assert table.loc[
        ("uncertainty", 1), ["foreground", "foreground_share", "lost_per_found"]
    ].tolist() == pytest.approx([80, 80, 5 / 3])
    for selector in ("uncertainty", "oracle", "random"):
        assert table.loc[(selector, 4), ["recall", "precision", "area"]].tolist() == [100, 25, 100]
    assert figures.found(stats, (2,)).k.unique().tolist() == [2]
    clean = figures.found(frame([4.0, 3, 2, 1], [0, 0, 0, 0]))
    assert clean.recall.isna().all() and (clean.precision == 0).all()


def test_random_is_the_mean_of_draws() -> None:
    stats = figures.patch_stats(scene(), ["a", "b"])
    expected = figures.found(stats, (5,)).set_index("selector").loc["random", "recall"]
    noise, g = stats.noise_area.to_numpy().reshape(2, 16), np.random.default_rng(0)
    draws = [sum(row[g.permutation(16)[:5]].sum() for row in noise) / noise.sum() for _ in range(4000)]
    assert expected == pytest.approx(100 * np.mean(draws), abs=1.5)


def test_what_is_left_of_objects() -> None:
    stats = pd.concat([frame([4.0, 3, 2, 1], [0] * 4), frame([1.0, 2, 3, 4], [0] * 4, "b")])
    table = figures.objects_left(stats, (1, 2, 4))
    assert table.loc[1].tolist() == [pytest.approx((20 + 100) / 2), 50]
    assert table.loc[2].tolist() == [pytest.approx((0 + 100) / 2), 50] and table.loc[4].tolist() == [0, 100]


# --- records ----------------------------------------------------------------------------------


def run(
    root: Path, method: str, seed: int, miou: float, upc: UPCOptions | None = None, lists: str = "a", **last
) -> Run:
    made = recipe(method, "digits", "1_8", "tiny", seed)
    made = made if upc is None else made.having(upc)
    scored = {"teacher": {"miou": miou}, "student": {"miou": miou}}
    record = {
        "recipe": made.as_dict(),
        "last": scored,
        "data": {"sha256": "d"},
        "duration_s": 1.0,
        "split": {"sha256": lists},
    }
    folder = root / f"{made.label}-{seed}-{len(list(root.iterdir()))}"
    folder.mkdir()
    (folder / "run.json").write_text(json.dumps(record))
    pd.DataFrame({"epoch": [1, 2], **{k: [np.nan, v] for k, v in last.items()}}).to_csv(folder / "metrics.csv")
    return Run.read(folder)


def test_hosts_side_by_side(tmp_path: Path) -> None:
    runs = [run(tmp_path, "cps", s, m) for s, m in ((0, 0.5), (1, 0.6), (2, 0.9))]
    runs += [run(tmp_path, "cps", s, m, UPCOptions()) for s, m in ((0, 0.52), (1, 0.66))]
    runs += [run(tmp_path, "u2pl", 0, 0.5)]
    table = figures.beside_host(runs, ["cps", "u2pl"])
    assert table.values.tolist() == [["CPS", "1_8", 2, 55.0, 59.0, 4.0, round(float(np.std([2, 6], ddof=1)), 2)]]
    with pytest.raises(ValueError, match="must not be compared"):
        figures.beside_host([*runs, run(tmp_path, "u2pl", 0, 0.5, UPCOptions(), lists="b")], ["u2pl"])


def test_noise_of_hosts_is_read_from_the_last_epoch(tmp_path: Path) -> None:
    values = ((0, 0.1, 0.04), (1, 0.2, 0.06))
    runs = [
        run(tmp_path, "cps", s, 0.5, UPCOptions(), noise_before=a, noise_after=b, replaced=0.2) for s, a, b in values
    ]  # fmt: skip
    table = figures.noise_of_hosts([*runs, run(tmp_path, "cps", 0, 0.5)])
    assert table.loc["CPS"].tolist() == [15.0, 5.0, 20.0]
    assert figures.noise_of_hosts([]).empty


def test_hosts_without_pasting_stand_beside_their_own_pasting_and_upc(tmp_path: Path) -> None:
    runs = [run(tmp_path, "mean_teacher", seed, 0.6) for seed in range(3)]
    runs += [run(tmp_path, "mean_teacher", seed, 0.5, UPCOptions()) for seed in range(3)]
    runs += [run(tmp_path, "mean_teacher", seed, 0.7 + seed / 10, UPCOptions(k=(0,))) for seed in range(2)]
    runs += [run(tmp_path, "cps", 0, 0.9), run(tmp_path, "cps", 0, 0.9, UPCOptions(k=(5,)))]
    (row,) = figures.without_pasting(runs).to_dict("records")
    assert row == {
        "host": "mean teacher", "split": "1_8", "seeds": 2, "its own pasting": 60, "nothing pasted": 75, "UPC": 50,
    }  # fmt: skip
    assert figures.without_pasting(runs[:6]).empty


def test_ablations_say_what_differs(tmp_path: Path) -> None:
    variants = (UPCOptions(), UPCOptions(k=(5,)), UPCOptions(k=(5,), select="random"), UPCOptions(replace="box"))
    runs = [run(tmp_path, "stpp", 0, 0.5 + i / 10, u) for i, u in enumerate(variants)]
    runs += [run(tmp_path, "stpp", 1, 0.7, UPCOptions()), run(tmp_path, "stpp", 1, 0.1)]
    table = figures.ablations(runs).set_index("changed")
    assert table.index.tolist() == ["default", "k = [5]", "k = [5], select = random", "replace = box"]
    assert table.loc["default", ["mean", "seeds"]].tolist() == [60.0, 2] and table.loc["replace = box", "mean"] == 80
    assert (table.method == "ST++ + UPC").all()


# --- pictures ---------------------------------------------------------------------------------


def outlined(ax) -> list[tuple[float, float]]:
    return sorted((p.get_x() + 0.5, p.get_y() + 0.5) for p in ax.patches)


def test_located_patches_are_outlined_and_replaced() -> None:
    view = scene()
    figure = figures.located(view, donors(), toys.Blobs(), [0], k=(1, 2))
    image, entropy, first, second, label, errors, under, _ = figure.axes
    assert outlined(entropy) == outlined(second) == [(4, 0), (8, 8)] and outlined(first) == outlined(under) == [(4, 0)]
    assert [t.get_text() for t in entropy.texts] == ["1", "2"] and not image.patches
    before, after = (ax.images[0].get_array() for ax in (image, first))
    changed = (before != after).any(-1)
    assert changed[0:4, 4:8].all() and changed.sum() == 16
    pasted = under.images[0].get_array()[0:4, 4:8]
    assert np.allclose(pasted, np.array(toys.Blobs.palette[3]) / 255), "the label of the labeled image"
    wrong = errors.images[0].get_array()
    assert wrong[0, 4] == 1 and wrong[5, 5] == 0 and wrong[15, 3] == 0.5
    assert np.allclose(label.images[0].get_array()[9, 9], np.array(toys.Blobs.palette[2]) / 255)
    assert label.get_title() == "pseudo-label"


def test_donors_take_turns() -> None:
    for paste, turn in zip(figures.pastes(scene(), donors(), 4, (1, 2)), ([2, 3], [3, 4]), strict=True):
        assert paste.source.flatten(1).max(1).values.tolist() == turn


def test_erased_pixels_are_gray_and_as_many_as_patches_have() -> None:
    figure = figures.erased_or_replaced(scene(), donors(), toys.Blobs(), [0, 1], k=2)
    gone = figure.axes[3].images[0].get_array()
    assert (np.ptp(gone, axis=-1) == 0).sum() >= 32 and np.allclose(gone[0, 4], gone[9, 9])
    gray = np.isclose(gone, gone[0, 4]).all(-1)
    assert gray.sum() == 32 and gray[0:4, 4:8].all() and gray[8:12, 8:12].all()
    assert outlined(figure.axes[4]) == outlined(figure.axes[5]) == [(4, 0), (8, 8)]


def test_an_image_without_truth_has_no_errors() -> None:
    figure = figures.located(replace(scene(), hidden=None), donors(), toys.Blobs(), [0], k=(1,))
    assert figure.axes[4].get_title() == "truth unknown" and not figure.axes[4].images


def test_curves_show_the_numbers() -> None:
    stats = figures.patch_stats(scene(), ["a", "b"])
    table = figures.found(stats)
    figure = figures.noise_found(table, stats)
    left, middle, _ = figure.axes
    share = left.lines[0].get_ydata()
    assert share[0] == pytest.approx(100 * 8 / 32) and share[1] == pytest.approx(100 * 4 / 32)
    assert middle.lines[0].get_ydata()[:2].tolist() == pytest.approx([100 * 8 / 12, 100])


def test_curves_of_a_run(tmp_path: Path) -> None:
    one = run(tmp_path, "cps", 0, 0.5, UPCOptions(), noise_before=0.1, noise_after=0.04, replaced=0.2)
    left, right = figures.mixing_curves(one).axes
    assert [line.get_ydata()[-1] for line in left.lines[:2]] == pytest.approx([10, 4])
    assert right.lines[0].get_ydata()[-1] == pytest.approx(20)


def test_a_batch_as_a_host_sees_it() -> None:
    data = toys.Blobs()
    split = seeded_split(data.train, "1_4", 0)
    batch = next(iter(training_batches(data, split, crop=24, batch=4, steps=1, seed=0, scale=(0.5, 0.6))))
    own, labeled = figures.look(Oracle().eval(), batch)
    assert not batch.u_valid.all() and (own.entropy[~batch.u_valid] == 0).all()
    assert torch.equal(own.target.denominator > 0, batch.u_valid) and torch.equal(own.hidden, batch.u_hidden)
    assert torch.equal(labeled.target.weight > 0, batch.y != IGNORE)
