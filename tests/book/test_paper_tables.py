"""The papers' tables: which record fills which cell, what stands in which column, and what an empty cell says."""

import json
import re
from dataclasses import replace
from pathlib import Path

import pytest

from semiseg import registry
from semiseg.methods.upc import UPCOptions
from semiseg.methods.wpl import WPLOptions
from semiseg.recipe import Recipe, recipe
from semiseg.runs import RECORD, Run
from semiseg_book import paper_maps
from semiseg_book.experiments import Experiment, Records, Setting
from semiseg_book.paper_maps import ABLATIONS, ELSEWHERE, MAIN, at_paper_scale, experiment_of, paper_setting
from semiseg_book.paper_tables import MINIATURE, miniature_rows, show, table_html
from semiseg_book.published import load, load_all

DIGITS = Setting("digits", "tiny", "1_8")
NOT_HERE = {"PS-MT", "PCR", "GTA-Seg", "CCVC", "CCT", "GCT", "PC2Seg", "ReCo", "PseudoSeg", "DAW", "CFCG"}


def made(root: Path, r: Recipe, miou: float, labeled: int = 100, name: str = "", lists: str = "") -> Run:
    """A record of a recipe, in a folder of any name."""
    scores = {"miou": miou, "iou": [miou, 0.5], "pixel_accuracy": 0.9, "confusion": []}
    record = {
        "recipe": r.as_dict(), "data": {"classes": ["background", "cat"], "sha256": "d"},
        "split": {"sha256": lists or f"{r.split}{r.seed}", "labeled": labeled}, "duration_s": 60.0,
        "last": {"student": scores, "teacher": scores, "epoch": 10},
    }  # fmt: skip
    folder = root / (name or f"{len(list(root.iterdir()))}")
    folder.mkdir(parents=True)
    (folder / RECORD).write_text(json.dumps(record))
    return Run.read(folder)


def tables_of(html: str) -> list[list[list[str]]]:
    """Texts of the cells of each HTML table, row by row."""
    strip = re.compile(r'<span class="seeds">.*?</span>|<[^>]+>')
    rows = [re.findall(r"<tr>(.*?)</tr>", t, re.DOTALL) for t in re.findall(r"<table.*?</table>", html, re.DOTALL)]
    return [[[strip.sub("", c).strip() for c in re.findall(r"<t[hd].*?</t[hd]>", r)] for r in t] for t in rows]


# --- the map ----------------------------------------------------------------------------------


def test_every_published_row_has_a_counterpart_or_a_reason() -> None:
    unmapped = {
        (t.paper, t.number, row.method, row.variable_value)
        for t in load_all()
        for row in t.rows.itertuples()
        if experiment_of(t, row) is None and (t.paper, t.number) not in ELSEWHERE and row.method not in NOT_HERE
    }
    assert unmapped == {("upc", "8", "Patch CutMix", "3;11")}  # eleven of nine patches


def test_every_row_of_the_map_is_a_row_of_its_table() -> None:
    for (paper, number), ablation in ABLATIONS.items():
        rows = load(paper, number).rows
        known = set(rows.variable_value) | set(zip(rows.method, rows.variable_value, strict=True))
        assert set(ablation.rows) <= known, (paper, number)


def test_each_experiment_can_be_made_and_the_rows_of_an_ablation_differ() -> None:
    for table in load_all():
        recipes = []
        for row in table.rows.itertuples():
            experiment, at = experiment_of(table, row), paper_setting(row)
            if experiment is None or experiment.method not in registry.methods() or at is None:
                continue
            values = experiment.recipe(DIGITS).as_dict()
            assert values == Recipe.from_dict(values).as_dict()
            assert at_paper_scale(experiment, row).recipe(at).scale == "paper"
            first = (row.partition, row.setting) == (table.rows.partition[0], table.rows.setting[0])
            if first and (table.paper, table.number) in ABLATIONS:
                recipes.append(experiment.recipe(DIGITS))
        assert len(set(recipes)) == len(recipes), (table.paper, table.number)


def test_defaults_of_the_papers_are_the_unchanged_recipes() -> None:
    for paper, number, value in [
        ("ddfp", "5", "4"), ("ddfp", "6", "0.5"), ("dgcl", "7", "multi-scale 8,16,32"), ("esl", "4", "5"),
        ("wpl", "S3", "0.85"), ("wpl", "S4", "256"),
    ]:  # fmt: skip
        experiment = ABLATIONS[paper, number].rows[value]
        for at in (DIGITS, Setting("voc", "paper", "1_4", 366)):
            plain = Experiment(experiment.method, experiment.plug_ins).recipe(at)
            assert experiment.recipe(at) == plain, (paper, number)


def test_options_follow_the_scale() -> None:
    eps = ABLATIONS["ddfp", "5"].rows["8"]
    assert eps.recipe(Setting("voc", "paper", "1_4", 366)).value("ddfp.eps") == 8
    assert eps.recipe(DIGITS).value("ddfp.eps") == pytest.approx(2 * recipe("ddfp").value("ddfp.eps"), abs=0.01)
    alpha = ABLATIONS["wpl", "S2"].rows["0.4"].recipe(DIGITS)
    assert alpha.value("unimatch.weights") == (0.1, 0.1, 0.2) and alpha[WPLOptions] == WPLOptions()


def test_backbone_and_box_score_of_a_row_are_its_own() -> None:
    rows = load("wpl", 2).rows
    plugged = rows[(rows.method == "UniMatch + WPL") & (rows.backbone == "R50")].iloc[0]
    r = at_paper_scale(MAIN["UniMatch + WPL"], plugged).recipe(paper_setting(plugged))
    assert (r.network.backbone, r.value("wpl.box_score"), r.data) == ("resnet50", 0.95, "cityscapes")
    assert MAIN["UniMatch + WPL"].recipe(DIGITS).network == recipe("unimatch").network


# --- records ------------------------------------------------------------------------------------


def test_records_are_found_by_recipe_and_not_by_folder(tmp_path: Path) -> None:
    plain, vat = recipe("ddfp"), recipe("ddfp").changed({"ddfp.step": "vat"})
    records = Records([
        made(tmp_path, vat, 0.4, name="ddfp-1_8-seed0"),
        made(tmp_path, replace(plain, seed=2), 0.6, name="x"),
        made(tmp_path, plain, 0.5, name="y"),
        made(tmp_path, recipe("ddfp", split="1_4"), 0.7, name="z"),
    ])  # fmt: skip
    assert [r.folder.name for r in records.of(MAIN["DDFP"], DIGITS)] == ["y", "x"]
    assert [r.folder.name for r in records.of(ABLATIONS["ddfp", "7"].rows["VAT (PS-MT)"], DIGITS)] == ["ddfp-1_8-seed0"]
    assert not records.of(MAIN["DDFP"], Setting("digits", "tiny", "1_16"))


def test_plug_ins_and_their_options_tell_records_apart(tmp_path: Path) -> None:
    cps = recipe("cps")
    plugged = [("a", cps.having(UPCOptions())), ("b", cps.having(UPCOptions(n=3))), ("c", cps)]
    runs = [made(tmp_path, r, 0.5, name=name) for name, r in plugged]
    records = Records(runs)
    assert [r.folder.name for r in records.of(MAIN["CPS + UPC"], DIGITS)] == ["a"]
    assert [r.folder.name for r in records.of(MAIN["CPS"], DIGITS)] == ["c"]


def test_committed_records_come_before_local_ones_of_the_same_seed(tmp_path: Path) -> None:
    here = made(tmp_path, recipe("cps"), 0.5, name="local/b")
    kept = made(tmp_path, recipe("cps"), 0.6, name="z")
    assert [r.folder.name for r in Records([here, kept]).of(MAIN["CPS"], DIGITS)] == ["z"]
    assert len(Records([here]).of(MAIN["CPS"], DIGITS)) == 1


def test_a_published_list_is_known_by_its_number_of_labeled_images(tmp_path: Path) -> None:
    at = Setting("voc", "paper", "1_8", 183)
    r = replace(recipe("cps", "voc", "1_8", "paper"), split="labeled")
    r = replace(r, network=replace(r.network, weights="/some/resnet101.pth"))
    right, other = made(tmp_path, r, 0.7, 183, name="b"), made(tmp_path, r, 0.8, 1323, name="a")
    assert Records([right, other]).of(MAIN["CPS"], at) == [right]


def test_what_cannot_be_trained_wants_nothing() -> None:
    assert not MAIN["CPS"].possible(Setting("digits", "tiny", "full"))  # no unlabeled images are left
    assert MAIN["Supervised"].possible(Setting("digits", "tiny", "full"))
    assert MAIN["CPS"].possible(Setting("voc", "paper", "full", 1464))
    assert not Experiment("nothing").possible(DIGITS)


# --- tables -----------------------------------------------------------------------------------------


def test_without_records_every_cell_is_empty_and_has_a_command() -> None:
    html = table_html(load("ddfp", 1), Records([]))
    (published,) = tables_of(html)
    assert published[1][1:] == ["1/16", "1/8", "1/4", "1/2", "full", ""]
    assert published[2] == ["Supervised", "45.77", "54.92", "65.88", "71.69", "72.50", "—"]
    assert [row[-1] for row in published if row[0] in ("PS-MT", "DDFP")] == ["·", "—"]
    assert MINIATURE in html and "no run yet" in html
    assert "papermill notebooks/ddfp.ipynb runs/digits-tiny-ddfp-1_8-seed0.ipynb -p split 1_8 -p seed 0" in html
    assert "-p split 1_8 -p seed 0 -p data voc -p scale paper -p root VOC2012 -p labeled_list 183.txt" in html


def test_runs_of_another_scale_never_stand_beside_published_numbers(tmp_path: Path) -> None:
    small = [made(tmp_path, recipe("ddfp", seed=s), m) for s, m in enumerate([0.611, 0.633, 0.652])]
    small += [made(tmp_path, recipe("supervised", seed=s), m) for s, m in enumerate([0.501, 0.503, 0.502])]
    published, miniature = tables_of(table_html(load("ddfp", 1), Records(small)))
    assert "±" not in str(published) and published[-1][-1] == "—"
    assert miniature[0] == ["", "1_8", ""] and miniature[1] == ["", "mIoU", "difference", "compared with"]
    assert miniature[-1] == ["DDFP", "63.2\u00a0±\u00a02.1", "+13.0\u00a0±\u00a02.0", "supervised"]


def test_runs_at_paper_scale_stand_in_columns_of_their_own(tmp_path: Path) -> None:
    r = recipe("ddfp", "voc", "1_4", "paper")
    runs = [made(tmp_path, replace(r, split="366", seed=s), m, 366) for s, m in enumerate([0.79, 0.80])]
    published = tables_of(table_html(load("ddfp", 5), Records(runs)))[0]
    assert published[0] == ["", "published", "ours, paper scale", "difference"]
    assert published[1] == ["", *["1/4", "1/2"] * 3]
    by_row = {row[0]: row[1:] for row in published[2:]}
    assert by_row["DDFP, ε = 4"] == ["79.51", "81.21", "79.50\u00a0±\u00a00.71", "—", "−0.01", ""]
    assert by_row["DDFP, ε = 1"] == ["78.76", "81.03", "—", "—", "", ""]


def test_gains_of_plug_ins_are_paired_with_their_host(tmp_path: Path) -> None:
    cps = recipe("cps")
    runs = [made(tmp_path, cps, 0.50), made(tmp_path, cps.having(UPCOptions()), 0.53)]
    runs.append(made(tmp_path, replace(cps.having(UPCOptions()), seed=1), 0.9))  # its host has no such seed
    rows = {row.label: row for row in miniature_rows(load("upc", 1), Records(runs))}
    assert rows["CPS + UPC"].differences["1_8"].values == (pytest.approx(3.0),)
    assert rows["CPS + UPC"].against == "its host"
    other = made(tmp_path, cps.having(UPCOptions()), 0.6, lists="another list")
    rows = {row.label: row for row in miniature_rows(load("upc", 1), Records([runs[0], other]))}
    assert rows["CPS + UPC"].differences["1_8"] is None


def test_cells_link_to_their_records_seed_by_seed() -> None:
    html = show("ddfp", 4).data
    links = re.findall(r'<a href="\.\./(runs/[^"]+)">(\d)</a>', html)
    assert len(links) >= 9 and "/local/" not in html
    for link, seed in links:
        path = paper_maps.__file__.rsplit("/semiseg_book/", 1)[0] + "/" + link
        assert json.loads(Path(path).read_text())["recipe"]["seed"] == int(seed)


def test_classes_and_differences_fill_their_own_tables(tmp_path: Path) -> None:
    r = replace(recipe("unimatch", "voc", "1_16", "paper"), split="92")
    by_class = {row[0]: row for row in tables_of(table_html(load("wpl", 4), Records([made(tmp_path, r, 0.7, 92)])))[0]}
    assert by_class["cat"][3] == "50.00" and by_class["background"][3] == by_class["mean"][3] == "70.00"
    assert by_class["dog"][3] == "—"
    esl = recipe("esl", "voc", "1_16", "paper")
    soft = esl.changed({"esl.parts": 0})
    hard = soft.changed({"esl.label": "hard"})
    runs = [made(tmp_path, soft, 0.65, 92), made(tmp_path, hard, 0.60, 92)]
    assert tables_of(table_html(load("esl", "F7a"), Records(runs)))[0][2] == [
        "DSL minus hard label", "+5.53*", "+2.09*", "5.00", "—", "−0.53", "",
    ]  # fmt: skip


def test_notes_are_in_full_below_the_table() -> None:
    html = table_html(load("upc", 2), Records([]))
    assert "printed delta 0.81 does not follow from the printed values (0.91)" in html.split("Notes (")[1]
    assert "Notes (" not in table_html(load("ddfp", 1), Records([]))


def test_every_table_renders_and_says_why_it_stays_empty() -> None:
    for table in load_all():
        html = table_html(table, Records([]))
        assert html.count("<table") == 1 and table.title in html
        reason = ELSEWHERE.get((table.paper, table.number))
        assert (reason in html) if reason else ("Commands for what is missing" in html)
