"""Cells of the papers' tables: the published number, what our records of the same recipe say, and their difference."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from typing import Any

import pandas as pd

from semiseg.checkout import repo_root
from semiseg.runs import RECORD, Run

from .experiments import Experiment, Records, Setting
from .paper_maps import ABLATIONS, at_paper_scale, experiment_of, paper_setting
from .published import PublishedTable

NOTHING, ABSENT = "—", "·"
_SHORT = {
    "epsilon": "ε = ", "lambda_ft": "λ = ", "eta": "η = ", "K": "K = ", "k (N=4)": "k = ", "neighbors k": "neighbors ",
    "alpha (weight of the unsupervised loss)": "α = ", "box confidence threshold": "box score ",
    "memory size per class": "memory ", "unlabeled data": "",
}  # fmt: skip


@dataclass(frozen=True)
class Score:
    """Some runs of one recipe: points in percent, one per seed."""

    values: tuple[float, ...]
    runs: tuple[Run, ...]

    @property
    def mean(self) -> float:
        return sum(self.values) / len(self.values)

    def text(self, digits: int = 1, sign: bool = False) -> str:
        """'63.2 ± 1.1', which no line break parts; without the second number where there is one value."""
        mean = f"{self.mean:{'+' if sign else ''}.{digits}f}".replace("-", "−")
        return mean if len(self.values) < 2 else f"{mean}\u00a0±\u00a0{pd.Series(self.values).std():.{digits}f}"

    def html(self, digits: int = 1, sign: bool = False) -> str:
        """The text, and a link to the record of each seed."""
        links = " ".join(f'<a href="{link(r)}">{r.record["recipe"]["seed"]}</a>' for r in self.runs)
        return f'{self.text(digits, sign)} <span class="seeds">{links}</span>'


def link(run: Run) -> str:
    """From a notebook or page of the book to the record."""
    root = repo_root().resolve()
    folder = run.folder.resolve()
    return "../" + (folder.relative_to(root) if folder.is_relative_to(root) else folder).joinpath(RECORD).as_posix()


def score(runs: Sequence[Run], name: str = "") -> Score | None:
    """mIoU of the teachers after the last epoch, or the IoU of one class; None without runs."""
    kept = [r for r in runs if not name or name in r.record["data"]["classes"]]
    if not kept:
        return None
    if not name:
        return Score(tuple(100 * r.miou for r in kept), tuple(kept))
    return Score(tuple(100 * r.record["last"]["teacher"]["iou"][_at(r, name)] for r in kept), tuple(kept))


def _at(run: Run, name: str) -> int:
    return list(run.record["data"]["classes"]).index(name)


def paired(runs: Sequence[Run], others: Sequence[Run]) -> Score | None:
    """Differences of runs of one seed on the same lists, in points."""
    pairs = [
        (r, 100 * (r.miou - o.miou))
        for r in runs
        for o in others
        if r.record["recipe"]["seed"] == o.record["recipe"]["seed"]
        and all(r.record[part]["sha256"] == o.record[part]["sha256"] for part in ("data", "split"))
    ]
    return Score(tuple(d for _, d in pairs), tuple(r for r, _ in pairs)) if pairs else None


@dataclass(frozen=True)
class Cell:
    """A published cell and its counterpart at paper scale."""

    row: Any  # of PublishedTable.rows
    experiment: Experiment | None  # at paper scale; None: no counterpart here
    setting: Setting | None
    ours: Score | None

    @property
    def published(self) -> float:
        """NaN where the paper reports nothing; a difference where the table is of differences."""
        return float(self.row.delta if self.row.metric == "mIoU difference" else self.row.value)

    @property
    def fillable(self) -> bool:
        """Whether a command could fill it."""
        return self.experiment is not None and self.setting is not None and self.experiment.possible(self.setting)


def cell(table: PublishedTable, row: Any, records: Records) -> Cell:
    """The cell of a published row."""
    experiment, setting = experiment_of(table, row), paper_setting(row)
    if experiment is None or setting is None:
        return Cell(row, None, setting, None)
    experiment = at_paper_scale(experiment, row)
    runs = records.of(experiment, setting)
    if row.metric == "mIoU difference":
        ours = paired(runs, records.of(ABLATIONS[table.paper, table.number].reference, setting))
    else:
        by_class = row.variable == "class" and row.variable_value != "mean"
        ours = score(runs, row.variable_value if by_class else "")
    return Cell(row, experiment, setting, ours)


def row_label(table: PublishedTable, row: Any, backbone: bool = True) -> str:
    """How a row is called: the method, what is varied, and the backbone where there are several."""
    if row.variable == "class":
        return str(row.variable_value)
    words = [row.method]
    if row.variable == "N;k":
        n, k = row.variable_value.split(";")
        words.append(f"N = {n}, k = {k}")
    elif row.variable_value and row.variable_value != row.method:
        words.append(_SHORT.get(row.variable, f"{row.variable} ") + row.variable_value)
    if backbone and table.rows.backbone.nunique() > 1 and row.backbone in ("R50", "R101"):
        words.append(row.backbone.replace("R", "ResNet-"))
    return ", ".join(words)


def column_label(table: PublishedTable, row: Any) -> str:
    """How a column is called: the partition, before it the setting where there are several, or what is measured."""
    if row.variable == "class":
        return str(row.method)
    if table.rows.metric.nunique() > 1:
        return str(row.metric)
    setting = row.setting if table.rows.setting.nunique() > 1 else ""
    return " ".join(filter(None, [setting, row.partition])) or str(row.metric)


def note_of(cell: Cell) -> str:
    """What a reader must know about a published number; '' for most."""
    return "" if cell.row.note in ("", "default", "not reported") else str(cell.row.note)


def decimals(cells: Sequence[Cell]) -> int:
    """Of a table as it is printed: 1 where no number has more, else 2."""
    numbers = [c.published for c in cells if not pd.isna(c.published)]
    return 1 if all(round(n, 1) == n for n in numbers) else 2


def published_html(cell: Cell, digits: int) -> str:
    """The number as printed, gray where the paper quotes it, with a star to point at where it has a note."""
    sign = "+" if cell.row.metric == "mIoU difference" else ""
    text = NOTHING if pd.isna(cell.published) else f"{cell.published:{sign}.{digits}f}"
    star = f'<abbr title="{escape(note_of(cell))}">*</abbr>' if note_of(cell) else ""
    kind = "quoted" if cell.row.origin == "quoted" else "own"
    return f'<span class="{kind}">{text}</span>{star}'
