"""Tables and the README: numbers are read from records, pairs are fair, figures draw what they say."""

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from matplotlib import pyplot as plt
from toys import Blobs, D, student

from semiseg.data.splits import seeded_split
from semiseg.methods.ddfp import DDFPOptions, DensityDescent
from semiseg.notebook import repo_root
from semiseg.recipe import recipe
from semiseg.runs import RECORD, Run, find_runs, keep, table
from semiseg.types import IGNORE
from semiseg_book import pictures, readme, style, tables
from semiseg_book.chapters import ddfp as figures


@pytest.fixture(autouse=True)
def _closed_figures():
    plt.switch_backend("Agg")
    yield
    plt.close("all")


def run(root: Path, method: str, seed: int, miou: float, split: str = "1_8", lists: str = "a", name: str = "") -> Run:
    r = recipe(method, "digits", split, "tiny", seed)
    scores = {"miou": miou, "iou": [miou, None, 1.0], "pixel_accuracy": 0.9, "confusion": []}
    record = {
        "recipe": r.as_dict(), "data": {"classes": ["background", "x", "y"], "sha256": "d"}, "split": {"sha256": lists},
        "last": {"student": scores, "teacher": scores, "epoch": 10}, "duration_s": 60.0,
        "best": {"student": {"miou": miou, "epoch": 9}, "teacher": {"miou": miou + 0.01, "epoch": 8}},
    }  # fmt: skip
    folder = root / (name or r.name)
    folder.mkdir(parents=True)
    (folder / RECORD).write_text(json.dumps(record))
    pd.DataFrame({"epoch": [1, 2], "miou_teacher": [np.nan, miou], "loss_labeled": [1.0, 0.5]}).to_csv(
        folder / "metrics.csv", index=False
    )
    return Run.read(folder)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    for seed, (sup, mt) in enumerate([(0.50, 0.60), (0.52, 0.59), (0.54, 0.65)]):
        run(tmp_path, "supervised", seed, sup, lists=str(seed))
        run(tmp_path, "mean_teacher", seed, mt, lists=str(seed))
    run(tmp_path, "ddfp", 0, 0.7, name="local/digits-tiny/ddfp-1_8-seed0", lists="0")
    return tmp_path


def test_local_runs_are_found_only_when_asked_for(root: Path) -> None:
    assert len(find_runs(root)) == 6 and len(find_runs(root, local=True)) == 7


def test_means_and_paired_differences_by_hand(root: Path) -> None:
    runs = find_runs(root)
    means = tables.over_seeds(runs).set_index("method")
    assert means["mean"].to_dict() == {"supervised": 52.0, "mean teacher": 61.33}
    assert means["s.d."]["supervised"] == 2.0 and means.seeds["mean teacher"] == 3
    gain = tables.gain_summary(runs, [("mean_teacher", "supervised")]).iloc[0]
    assert (gain["mean"], gain["smallest"], gain["seeds"]) == (9.33, 7.0, 3)
    assert gain["s.d."] == pytest.approx(np.std([10, 7, 11], ddof=1), abs=0.01)


def test_tables_have_one_line_of_heads_and_no_row_numbers() -> None:
    frame = pd.DataFrame({"a": [1, 2]}, index=pd.Index(["x", "y"], name="class"))
    html = style.one_head(frame)
    assert html.count("<tr") == 3 and "<th>class</th>" in html and "<th>x</th>" in html
    assert style.one_head(frame.rename_axis(None)).count("<tr") == 3
    assert "<td>1.0&nbsp;±&nbsp;0.2&nbsp;(3)</td>" in style.one_head(frame.assign(a="1.0 ± 0.2 (3)"))
    assert "NaN" not in style.one_head(frame.assign(a=float("nan")))
    numbered = style.one_head(pd.DataFrame({"a": ["p", "q"]}))
    assert "<th>0</th>" not in numbered and "<td>q</td>" in numbered
    two = frame.set_index("a", append=True).assign(b=0)
    assert style.one_head(two) == two.to_html(), "two levels keep their line"


def test_different_lists_are_not_compared(root: Path) -> None:
    run(root, "mean_teacher", 7, 0.6, lists="one")
    run(root, "supervised", 7, 0.5, lists="other")
    with pytest.raises(ValueError, match="different split lists and must not be compared"):
        tables.paired_gain(find_runs(root), "mean_teacher", "supervised")


def test_only_runs_of_the_same_setting_stand_beside_a_run(root: Path) -> None:
    ddfp = Run.read(root / "local/digits-tiny/ddfp-1_8-seed0")
    beside = tables.same_setting(ddfp, find_runs(root, local=True))
    assert {r.record["recipe"]["method"] for r in beside} == {"supervised", "mean_teacher"}
    assert {r.record["recipe"]["seed"] for r in beside} == {0}


def test_changed_recipes_are_not_standard(root: Path) -> None:
    path = root / "digits-tiny" / "supervised-1_8-seed0" / RECORD
    record = json.loads(path.read_text())
    record["recipe"]["optimization"]["strong_labels"] = True
    path.write_text(json.dumps(record))
    assert len(tables.standard(find_runs(root))) == 5


def test_per_class_shows_absent_classes_as_missing(root: Path) -> None:
    ddfp = Run.read(root / "local/digits-tiny/ddfp-1_8-seed0")
    frame = tables.per_class(ddfp, [Run.read(root / "digits-tiny/supervised-1_8-seed0")])
    assert list(frame.index) == ["background", "x", "y", "mean"]
    assert frame["DDFP, teacher"]["mean"] == 70.0 and frame["supervised, teacher"]["background"] == 50.0
    assert frame.loc["x"].isna().all()
    assert tables.headline(ddfp).loc["teacher"].tolist() == [70.0, 71.0, 8.0]


def test_readme_block(root: Path) -> None:
    block = readme.results(find_runs(root))
    assert "| 1_8 | mean teacher | 61.3 ± 3.2 |  | 62.3 | 3 |" in block
    text = f"before\n{readme.BEGIN}\nold\n{readme.END}\nafter"
    assert readme.filled(text, block) == f"before\n{readme.BEGIN}\n{block}\n{readme.END}\nafter"
    with pytest.raises(ValueError, match="lost its markers"):
        readme.filled("nothing", block)


def test_readme_rows_of_plug_ins_have_their_paired_gain(root: Path) -> None:
    plain = [r for r in find_runs(root) if r.label == "mean_teacher"]
    for r, miou in zip(plain[:2], (0.50, 0.61), strict=True):  # 10 below and 2 above their hosts
        record = json.loads((r.folder / RECORD).read_text())
        record["recipe"]["upc"] = {}
        record["last"]["teacher"]["miou"] = miou
        folder = root / f"plugged{record['recipe']['seed']}"
        folder.mkdir()
        (folder / RECORD).write_text(json.dumps(record))
    block = readme.results(find_runs(root))
    assert "| 1_8 | mean teacher + UPC | 55.5 ± 7.8 | −4.0 ± 8.5 | 60.5 | 2 |" in block
    assert block.index("| mean teacher |") < block.index("| mean teacher + UPC |")
    assert "| 1_8 | mean teacher + UPC | 50.0 | −10.0 | " in readme.results(find_runs(root)[:-1])


def test_a_run_is_kept_at_its_place(root: Path, tmp_path: Path) -> None:
    target = keep(root / "local/digits-tiny/ddfp-1_8-seed0", tmp_path / "kept")
    assert target == tmp_path / "kept/digits-tiny/ddfp-1_8-seed0" and Run.read(target).miou == 0.7


def test_table_of_no_runs_is_empty_not_an_error() -> None:
    assert table([]).empty and tables.over_seeds([]).empty


def test_colored_marks_ignored_pixels() -> None:
    picture = pictures.colored(torch.tensor([[0, 1, IGNORE]]), Blobs.palette)
    assert picture.tolist() == [[[0, 0, 0], [255, 0, 0], [224, 224, 224]]]


def test_sampled_features_are_confident_balanced_and_lose_density() -> None:
    torch.manual_seed(0)
    data, net = Blobs(), student(second_bn=True).eval()
    step = DensityDescent(D, 4, DDFPOptions(eps=0.05, tap="features", flow_hidden=16))
    s = figures.sample(net, step, data, data.val, tau=0.0, per_class=10)
    assert s.predicted.bincount().max() <= 10 and len(s.features) > 0
    torch.testing.assert_close((s.descended - s.features).norm(dim=1), torch.full((len(s.features),), 0.05))
    assert (s.log_p_descended < s.log_p).all()
    frame = s.table(data.classes)
    assert frame.pixels.sum() == len(s.features) and (frame.after < frame.before).all()
    none = figures.sample(net, step, data, data.val, tau=0.999, per_class=10)
    assert len(none.features) == 0


def test_scenes_and_curves_draw_what_they_are_given(root: Path) -> None:
    data = Blobs()
    assert len(pictures.scenes(data, data.train[:3]).axes) == 6
    net = student().eval()
    shown = pictures.predictions(data, data.val[:2], {"net": net})
    assert [ax.get_title() for ax in shown.axes[:3]] == ["input", "net", "ground truth"]
    split = seeded_split(data.train, "1_8", 0)
    problem = pictures.problem(data, split, data.val[:4], {"net": net}, labeled=2)
    assert [len(ax.images) for ax in problem.axes[:8]] == [1, 1, 1, 1, 1, 1, 0, 0], "two of four scenes show a mask"
    assert [ax.get_title(loc="left") for ax in (problem.axes[0], problem.axes[2])] == ["2 with mask", "14 without"]
    truth = pictures.colored(data.mask(data.val[0]).long(), data.palette)
    np.testing.assert_array_equal(problem.axes[20].images[0].get_array(), truth)
    both = [Run.read(root / f"digits-tiny/{m}-1_8-seed0") for m in ("mean_teacher", "supervised")]
    left = pictures.curves(both[0], both[1:]).axes[0]
    assert [line.get_ydata().tolist() for line in left.lines] == [[60.0], [50.0]]


def test_readme_shows_the_committed_records() -> None:
    text = (repo_root() / "README.md").read_text()
    block = readme.results(tables.standard(find_runs(repo_root() / "runs" / "digits-tiny")))
    assert readme.filled(text, block) == text, "out of date: python -m semiseg_book readme"
