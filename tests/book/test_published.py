"""The papers' numbers as data: what their README claims is recomputed, and a damaged file says what is wrong."""

import re
from pathlib import Path

import pandas as pd
import pytest

from semiseg_book import published
from semiseg_book.published import CAPTIONS, COLUMNS, load, load_all

README = (published.folder() / "README.md").read_text()


@pytest.fixture(scope="module")
def cells() -> pd.DataFrame:
    return pd.concat([t.rows.assign(paper=t.paper, number=t.number) for t in load_all()], ignore_index=True)


def test_every_file_is_a_table_and_the_readme_counts_them(cells: pd.DataFrame) -> None:
    files = {p.name for p in published.folder().glob("*.csv")}
    assert files == {published.file_name(paper, n) for paper, numbers in CAPTIONS.items() for n in numbers}
    files_said, cells_said = re.search(r"(\d+) files, ([\d,]+) cells", README).groups()
    assert (len(files), len(cells)) == (int(files_said), int(cells_said.replace(",", "")))


def test_each_recomputed_gain_is_the_value_minus_that_of_its_host(cells: pd.DataFrame) -> None:
    where = ["paper", "number", "backbone", "dataset", "setting", "partition", "metric", "variable_value"]
    plugged = cells[
        cells.method.str.contains(r" \+ (?:UPC|WPL)$") & (cells.host != "") & cells.delta_recomputed.notna()
    ]
    base = cells.set_index([*where, "method"]).value
    checked = 0
    for _, row in plugged.iterrows():
        key = (*(row[c] for c in where), row.host)
        if key in base.index and pd.notna(base[key]):
            assert row.delta_recomputed == pytest.approx(row.value - base[key], abs=0.006), key
            checked += 1
    assert checked >= 160


def test_the_printed_gains_that_do_not_follow_are_the_three_of_the_readme(cells: pd.DataFrame) -> None:
    both = cells[cells.delta.notna() & cells.delta_recomputed.notna()]
    wrong = both[(both.delta - both.delta_recomputed).abs() > 0.006]
    found = {(r.paper, r.number, r.method, r.partition): (r.delta, r.delta_recomputed) for r in wrong.itertuples()}
    assert found == {
        ("upc", "1", "U2PL + UPC", "1/8"): (4.37, 4.38),
        ("upc", "2", "U2PL + UPC", "1/8"): (0.81, 0.91),
        ("upc", "2", "U2PL + UPC", "1/4"): (0.94, 1.06),
    }
    assert all(f"{number:.2f}" in README for pair in found.values() for number in pair)
    assert wrong.note.str.contains("does not follow").all()
    assert (cells[cells.paper == "wpl"].delta.notna() & cells.number.isin(["1", "2"])).sum() == 96


def test_nine_cells_are_derived(cells: pd.DataFrame) -> None:
    derived = cells[cells.note.str.contains("derived as|must be 76.96")]
    assert len(derived) == 9 and (derived.number == "2").sum() == 8


def test_the_class_order_of_wpl_gives_its_printed_means(cells: pd.DataFrame) -> None:
    table = cells[(cells.paper == "wpl") & (cells.number == "4")]
    for _, rows in table.groupby("method"):
        by_class = rows.set_index("variable_value").value
        assert len(by_class) == 22
        assert by_class.drop("mean").mean() == pytest.approx(by_class["mean"], abs=0.05)


def test_supervised_rows_of_the_ablations_are_quoted_numbers() -> None:
    main, parts = load("ddfp", 1).rows, load("ddfp", 4).rows
    of_main = main[main.method == "Supervised"].set_index("partition").value
    of_parts = parts[parts.method == "I: supervised"].set_index("partition").value
    assert (of_main[of_parts.index] == of_parts).all()


def test_types_and_titles() -> None:
    table = load("esl", "F7a")
    assert table.title == "Figure 7a" and load("wpl", "S2").title == "Supplement, Table 2"
    assert load("ddfp", 1).title == "Table 1" and load("ddfp", 1).rows.n_labeled.dtype == "Int64"
    assert table.rows.value.dtype == float and table.rows.value.isna().all() and table.rows.delta.notna().all()


@pytest.mark.parametrize(("paper", "number", "message"), [
    ("fixmatch", 1, "unknown paper 'fixmatch'; expected one of ddfp, dgcl, upc, esl, wpl"),
    ("ddfp", 8, "ddfp has no table '8'; expected one of 1, 2, 3, 4, 5, 6, 7"),
])  # fmt: skip
def test_unknown_tables_are_refused(paper: str, number: int, message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        load(paper, number)


@pytest.mark.parametrize(("old", "new", "message"), [
    ("partition", "share", r"ddfp_table1.csv: columns missing: \['partition'\]"),
    ("45.77", "45,77", "ddfp_table1.csv, line 2: value '45,77' is not a number"),
    ("45.77", "nan", "line 2: value 'nan' is not a number"),
    (",92,", ",92.5,", "line 2: n_labeled '92.5' is not a whole number"),
    ("quoted", "guessed", "line 2: origin 'guessed' is none of own, quoted"),
    ("1/16", "1/17", "line 2: partition '1/17' is none of"),
    ("Supervised", "CPS", "line 12: this cell stands in an earlier line, too"),
])  # fmt: skip
def test_a_damaged_file_says_what_and_where(old: str, new: str, message: str, tmp_path: Path) -> None:
    text = (published.folder() / "ddfp_table1.csv").read_text()
    head, first, rest = text.split("\n", 2)
    head, first = head.replace(old, new), first.replace(old, new)
    (tmp_path / "ddfp_table1.csv").write_text("\n".join([head, first.replace("45,77", '"45,77"'), rest]))
    with pytest.raises(ValueError, match=message):
        load("ddfp", 1, tmp_path)
    with pytest.raises(FileNotFoundError, match=r"ddfp_table2\.csv are missing"):
        load("ddfp", 2, tmp_path)
    assert len(COLUMNS) == 15
