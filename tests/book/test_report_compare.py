"""The comparison draws every record once, pairs only what differs in one idea, and shows cost as measured."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

from semiseg import registry
from semiseg.methods.upc import UPCOptions
from semiseg.methods.wpl import WPLOptions
from semiseg.recipe import Recipe, recipe
from semiseg.registry import Method, PlugIn
from semiseg.runs import RECORD, Run
from semiseg_book import compare, cost, findings, reproduce
from semiseg_book.style import color, ordered, symbol, title

COST = {
    "data": "digits", "scale": "tiny", "how": "h", "environment": {"cpu": "c"},
    "seconds": {"supervised": {"median": 0.02}, "mean_teacher": {"median": 0.05}},
}  # fmt: skip


def run(root: Path, made: Recipe, miou: float, lists: str = "s", suffix: str = "", **extra: object) -> Run:
    scores = {"miou": miou}
    record = {
        "recipe": made.as_dict(), "data": {"sha256": "d"}, "split": {"sha256": lists}, "duration_s": 120.0,
        "last": {"student": scores, "teacher": scores, "step": 100}, "best": {"teacher": scores},
        "peak_memory_mib": {"gpu": 0, "resident": 2048},
        "environment": {"gpu": None, "cpu": "CPU, 2 cores", "threads": 1, "packages": {"torch": "2.9"}}, **extra,
    }  # fmt: skip
    folder = root / (made.name + suffix)
    folder.mkdir(parents=True)
    (folder / RECORD).write_text(json.dumps(record))
    return Run.read(folder)


@pytest.fixture
def runs(tmp_path: Path) -> list[Run]:
    mt, sup = recipe("mean_teacher"), recipe("supervised")
    dgcl, esl = recipe("dgcl"), recipe("esl")
    return [
        run(tmp_path, sup, 0.5), run(tmp_path, replace(sup, seed=1), 0.52), run(tmp_path, mt, 0.6),
        run(tmp_path, replace(mt, seed=1), 0.63), run(tmp_path, mt.having(UPCOptions()), 0.61),
        run(tmp_path, mt.having(UPCOptions(), WPLOptions()), 0.64), run(tmp_path, recipe("ddfp"), 0.59),
        run(tmp_path, dgcl, 0.55), run(tmp_path, dgcl.changed({"dgcl.weight": 0.0}), 0.57, suffix="-n"),
        run(tmp_path, esl, 0.5), run(tmp_path, recipe("stpp"), 0.58, stages=[{"steps": 100}, {"steps": 200}]),
    ]  # fmt: skip


def test_every_unchanged_record_is_one_mark(runs: list[Run]) -> None:
    frame = compare.scores(compare.comparable(runs))
    assert len(frame) == 10, "the ablation of DGCL is no method of its own"
    figure = compare.methods_figure(frame)
    seeds = [t for t in figure.data if t.marker.opacity == 0.45]
    assert sorted(x for t in seeds for x in t.x) == sorted(frame.mIoU)
    means = {t.y[0]: (t.x[0], t.error_x.array) for t in figure.data if t.marker.opacity is None}
    assert means["supervised"] == (51.0, (1.41,)) and means["ESL"] == (50.0, None)


def test_files_of_pretrained_weights_change_no_recipe(tmp_path: Path) -> None:
    made = recipe("unimatch", "voc").having(WPLOptions())
    same = run(tmp_path, made.changed({"network.weights": "file.pth", "detector.weights": "file.pth"}), 0.5)
    assert compare.comparable([same]) == [same]
    other = run(tmp_path, made.changed({"detector.weights": "file.pth", "detector.epochs": 1}), 0.5, suffix="-short")
    assert compare.comparable([other]) == []


def test_the_summary_has_a_row_per_method_and_a_column_per_split(runs: list[Run], tmp_path: Path) -> None:
    more = [run(tmp_path, recipe("esl", split="1_16"), 0.4), run(tmp_path, recipe("esl", split="full"), 0.8)]
    found = compare.summary(compare.scores([*compare.comparable(runs), *more]), "digits-tiny")
    assert list(found.columns) == ["1_16", "1_8", "full"] and found.index.name == "embedded digits"
    assert found.loc["supervised"].tolist() == ["", "51.00 ± 1.41 (2)", ""]
    assert found.loc["ESL"].tolist() == ["40.00 (1)", "50.00 (1)", "80.00 (1)"]


def test_panels_over_splits_show_what_has_several_and_supervised_behind(runs: list[Run], tmp_path: Path) -> None:
    made = [recipe("mean_teacher", split="1_16"), recipe("mean_teacher", split="1_16").having(UPCOptions())]
    more = [run(tmp_path, m, 0.4) for m in (*made, recipe("supervised", split="1_16"))]
    figure = compare.splits_figure(compare.scores([*compare.comparable(runs), *more]), "digits-tiny")
    assert [a.text for a in figure.layout.annotations] == ["mean teacher"], "the others have one split"
    assert [list(t.y) for t in figure.data] == [[40.0, 51.0], [40.0, 61.5], [40.0, 61.0]]
    assert [t.marker.symbol for t in figure.data] == ["circle", "circle", "diamond"]
    assert figure.layout.xaxis.categoryarray == ("1_16", "1_8")


def test_labels_stand_in_the_order_of_the_methods() -> None:
    labels = ["cps+upc", "esl", "cps", "supervised"]
    assert ordered(labels) == ["supervised", "cps", "cps+upc", "esl"]


def test_the_menu_shows_the_marks_of_one_place(runs: list[Run], tmp_path: Path) -> None:
    more = run(tmp_path, recipe("cps", split="1_4"), 0.7)
    figure = compare.methods_figure(compare.scores([*compare.comparable(runs), more]))
    first, second = figure.layout.updatemenus[0].buttons
    assert (first.label, second.label) == ("embedded digits, 1_8", "embedded digits, 1_4")
    shown = [t.y[0] for t, visible in zip(figure.data, second.args[0]["visible"], strict=True) if visible]
    assert set(shown) == {"CPS"} == set(second.args[1]["yaxis.categoryarray"])


def test_pairs_differ_in_one_idea(runs: list[Run]) -> None:
    gains = compare.gains(runs).set_index("difference").gain.to_dict()
    assert gains == {
        "mean teacher + UPC minus mean teacher": 1.0,
        "mean teacher + UPC + WPL minus mean teacher + UPC": 3.0,
        "DDFP minus mean teacher": -1.0,
        "DGCL minus the same without its idea": -2.0,
    }


def test_other_lists_make_no_pair(tmp_path: Path) -> None:
    one = run(tmp_path, recipe("mean_teacher"), 0.6)
    other = run(tmp_path, recipe("ddfp"), 0.6, lists="other")
    assert compare.gains([one, other]).empty


def test_cost_and_gain_by_hand(runs: list[Run]) -> None:
    frame = cost.cost_and_gain(compare.comparable(runs), COST).set_index("label")
    assert frame.loc["mean_teacher", "step, × supervised"] == 2.5
    assert frame.loc["mean_teacher", "gain"] == 10.5 and frame.loc["mean_teacher", "seeds"] == 2
    assert frame.loc["stpp"].isna()["step, × supervised"], "nothing measured, nothing drawn"
    drawn = [t.name for t in cost.cost_figure(frame.reset_index()).data]
    assert drawn == ["supervised", "mean teacher"]
    assert cost.total_steps(runs[-1]) == 300 and cost.total_steps(runs[0]) == 100


def test_a_file_without_cost_names_the_command(tmp_path: Path) -> None:
    for text in ("", '{"how": 1}'):
        (tmp_path / "c.json").write_text(text)
        with pytest.raises(
            ValueError, match=r"has no cost of steps; write it: python tests/bench/bench_hosts.py --out"
        ):
            cost.read_cost(tmp_path / "c.json")


def test_the_committed_cost_is_of_methods_and_plug_ins() -> None:
    seconds = cost.read_cost(Path(__file__).parents[2] / "runs" / cost.COST)["seconds"]
    labels = {"supervised", *(m + p for m in registry.methods() if m != "supervised" for p in ("", "+upc", "+wpl"))}
    assert seconds.keys() - labels == set()
    assert all(v["low"] <= v["median"] <= v["high"] for v in seconds.values())


def test_styles_are_of_one_hue_and_distinct() -> None:
    own = {name: color(name) for name in registry.methods()}
    assert len(set(own.values())) == len(own) and own == {n: m.color for n, m in registry.methods().items()}
    shades = [color(f"cps{p}") for p in ("", "+upc", "+wpl", "+upc+wpl")]
    marks = [symbol(f"cps{p}") for p in ("", "+upc", "+wpl", "+upc+wpl")]
    assert len(set(shades)) == 4 and len(set(marks)) == 4 and shades[0] == own["cps"]
    assert marks == ["circle", "diamond", "square", "star"]


def test_what_an_installed_package_adds_is_drawn_as_it_says(monkeypatch: pytest.MonkeyPatch) -> None:
    theirs = Method("theirs", title="Theirs", color="#102030", build=registry.method("cps").build)
    usual = {"component": "mix", "build": lambda *_: None, "options": UPCOptions, "at_scale": lambda _: ()}
    added = {n: PlugIn(n, title=n.upper(), shade=s, marker="x", **usual) for n, s in (("dark", 0.5), ("light", -0.5))}
    methods, plug_ins = {**registry.methods(), "theirs": theirs}, {**registry.plug_ins(), **added}
    monkeypatch.setattr(registry, "methods", lambda: methods)
    monkeypatch.setattr(registry, "plug_ins", lambda: plug_ins)
    assert title("theirs+dark+wpl") == "Theirs + DARK + WPL"
    labels = ["ddfp", "theirs", "theirs+wpl", "theirs+dark+wpl"]
    assert ordered(reversed(labels)) == labels
    assert [color(f"theirs{p}") for p in ("", "+dark", "+light", "+dark+light")] == [
        "#102030", "#081018", "#889098", "#84888c",
    ]  # fmt: skip
    assert [symbol(f"theirs{p}") for p in ("", "+dark", "+dark+wpl")] == ["circle", "x", "star"]
    with pytest.raises(ValueError, match="unknown plug-in 'darc'; did you mean 'dark'"):
        title("theirs+darc")


# --- tables of text pages -----------------------------------------------------------------


def test_misprints_are_those_of_the_files() -> None:
    rows = findings.misprints().splitlines()[2:]
    assert rows == [
        "| UPC | Table 1 | U2PL classic 1/8 | 4.37 | 4.38 |",
        "| UPC | Table 2 | U2PL blended 1/8 | 0.81 | 0.91 |",
        "| UPC | Table 2 | U2PL blended 1/4 | 0.94 | 1.06 |",
    ]


def test_disagreements_are_at_least_a_point_and_name_the_papers() -> None:
    rows = [line.split(" | ") for line in findings.disagreements().splitlines()[2:]]
    assert ["| VOC blended", "UniMatch", "1/8", "78.40 (DDFP); 81.90 (WPL)", "3.50 |"] in rows
    assert min(float(row[-1].strip(" |")) for row in rows) >= 1


def test_logs_are_checked(tmp_path: Path) -> None:
    good = (Path(__file__).parents[2] / "book" / findings.LOGS).read_text()
    assert len(findings.read_logs()) == good.count("\n") - 1
    (tmp_path / "l.csv").write_text(good.replace("80.91", "90.91"))
    with pytest.raises(ValueError, match="line 2: the best epoch scores less than the last"):
        findings.read_logs(tmp_path / "l.csv")
    (tmp_path / "l.csv").write_text("a,b\n1,2\n")
    with pytest.raises(ValueError, match="expected the columns method, source"):
        findings.read_logs(tmp_path / "l.csv")


def test_times_are_those_of_the_records(runs: list[Run]) -> None:
    lines = reproduce.times(runs).splitlines()
    assert lines[0] == "**embedded digits**, CPU, 2 cores, 1 thread:"
    assert "| supervised | 2 | 100 | 2.0 | 2.0 |" in lines and "| ST++ | 1 | 300 | 2.0 | 2.0 |" in lines
    assert sum(line.startswith("**") for line in lines) == 1
    assert reproduce.totals(runs).startswith("11 runs are committed, 0.4 hours of training in all, seeds 0, 1,")
