"""The tables of the five papers as the book shows them: what they print, what we measured, and what is still missing.

Numbers measured at another scale than the paper's never share a column with its own: they stand in a table below it.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from html import escape

from IPython.display import HTML

from semiseg.checkout import repo_root
from semiseg.data.splits import SPLITS
from semiseg.runs import Run, find_runs

from .experiments import Experiment, Records, Setting, shell, text_of
from .missing import missing_seeds
from .paper_cells import (
    ABSENT,
    NOTHING,
    Cell,
    Score,
    cell,
    column_label,
    decimals,
    note_of,
    paired,
    published_html,
    row_label,
    score,
)
from .paper_maps import ABLATIONS, ELSEWHERE, experiment_of, miniatures, reference_of
from .published import PublishedTable, load

MINIATURE = "Ours, in miniature (digits, tiny)"


def show(paper: str, number: int | str, runs: Sequence[Run] | None = None) -> HTML:
    """A table for a notebook.

    Args:
        paper: ddfp, dgcl, upc, esl or wpl.
        number: as in the paper; "S1" in the supplement, "F7a" for the numbers of a figure.
        runs: the records to fill it from; by default those committed in runs/.
    """
    records = Records(find_runs(repo_root() / "runs") if runs is None else runs)
    return HTML(table_html(load(paper, number), records))


def table_html(table: PublishedTable, records: Records) -> str:
    """The published table with ours beside it, the miniature below it, and the commands for empty cells."""
    cells = [cell(table, row, records) for row in table.rows.itertuples()]
    small = miniature_rows(table, records)
    parts = [f"<p><strong>{table.title}.</strong> {escape(table.caption)} {_legend(cells)}</p>"]
    parts.append(_paper_block(table, cells))
    if (table.paper, table.number) in ELSEWHERE:
        parts.append(f"<p>{escape(ELSEWHERE[table.paper, table.number])}</p>")
    else:
        parts += [_miniature_block(table, small), _commands(cells, small)]
    return f'<div class="paper-table">{"".join(parts)}</div>'


def _legend(cells: Sequence[Cell]) -> str:
    words = []
    if any(c.row.origin == "quoted" for c in cells):
        words.append("Gray: quoted by the paper from elsewhere.")
    if any(map(note_of, cells)):
        words.append("* has a note.")
    return " ".join(words)


# --- as in the paper ------------------------------------------------------------------------


def _paper_block(table: PublishedTable, cells: Sequence[Cell]) -> str:
    """Published | ours at paper scale | difference; while there is no such run, "ours" is one column that says so."""
    columns = list(dict.fromkeys(column_label(table, c.row) for c in cells))
    labels = list(dict.fromkeys(row_label(table, c.row) for c in cells))
    at = {(row_label(table, c.row), column_label(table, c.row)): c for c in cells}
    measured, digits = any(c.ours for c in cells), decimals(cells)
    elsewhere = (table.paper, table.number) in ELSEWHERE
    head = [("published", columns)]
    if not elsewhere:
        head += [("ours, paper scale", columns), ("difference", columns)] if measured else [("ours, paper scale", [""])]
    body = []
    for label in labels:
        row = [at.get((label, column)) for column in columns]
        line = [published_html(c, digits) if c else "" for c in row]
        if measured:
            line += [_ours(c) for c in row] + [_difference(c) for c in row]
        elif not elsewhere:
            line.append(NOTHING if any(c and c.fillable for c in row) else ABSENT)
        body.append((label, line))
    foot = "" if elsewhere else f"<p>{NOTHING} no run yet; {ABSENT} not in this package.</p>"
    return grid(head, body) + foot + _notes(table, cells)


def _notes(table: PublishedTable, cells: Sequence[Cell]) -> str:
    """The notes in full, each once with the cells it is about; a phone cannot point at a star."""
    about: dict[str, list[str]] = {}
    for c in filter(note_of, cells):
        about.setdefault(note_of(c), []).append(f"{row_label(table, c.row)} {column_label(table, c.row)}")
    items = (f"<li>{escape('; '.join(where))}: {escape(note)}</li>" for note, where in about.items())
    return f"<details><summary>Notes ({len(about)})</summary><ul>{''.join(items)}</ul></details>" if about else ""


def _ours(c: Cell | None) -> str:
    if c is None:
        return ""
    return c.ours.html(2) if c.ours else NOTHING if c.fillable else ABSENT


def _difference(c: Cell | None) -> str:
    if c is None or c.ours is None or c.published != c.published:
        return ""
    return f"{c.ours.mean - c.published:+.2f}".replace("-", "−")


# --- in miniature -----------------------------------------------------------------------------


@dataclass(frozen=True)
class Small:
    """A row of the miniature: one recipe on the embedded set, by split."""

    label: str
    experiment: Experiment
    options: str  # what is changed, as `recipe.parse_changes` reads it
    against: str  # what the differences are to
    scores: dict[str, Score | None]
    differences: dict[str, Score | None]

    def settings(self) -> list[Setting]:
        return [Setting("digits", "tiny", split) for split in self.scores]


def miniature_rows(table: PublishedTable, records: Records) -> list[Small]:
    """One per recipe of the table that the embedded set can train, in the order of the table."""
    found: dict[str, Small] = {}
    for row in table.rows.itertuples():
        experiment = experiment_of(table, row)
        for at in miniatures(table, row) if experiment is not None else ():
            if not experiment.possible(at):  # type: ignore[union-attr]
                continue
            label = row_label(table, row, backbone=False) if row.variable != "class" else row.method
            small = found.setdefault(label, _small(table, label, experiment, at))  # type: ignore[arg-type]
            _fill(small, table, at, records)
    return list(found.values())


def _small(table: PublishedTable, label: str, experiment: Experiment, at: Setting) -> Small:
    base = experiment.recipe(at)
    reference = reference_of(table, experiment)
    same = reference is not None and reference[0].possible(at) and reference[0].recipe(at) == base
    against = "" if reference is None or same else reference[1]
    return Small(label, experiment, text_of(experiment.values(experiment.unchanged(at))), against, {}, {})


def _fill(small: Small, table: PublishedTable, at: Setting, records: Records) -> None:
    runs = records.of(small.experiment, at)
    small.scores[at.split] = score(runs)
    reference = reference_of(table, small.experiment)
    others = records.of(reference[0], at) if reference and small.against else []
    small.differences[at.split] = paired(runs, others)


def _miniature_block(table: PublishedTable, rows: Sequence[Small]) -> str:
    """mIoU and paired difference for every split that has a run."""
    splits = [s for s in SPLITS if any(row.scores.get(s) for row in rows)]
    if not splits:
        return f"<p><strong>{MINIATURE}</strong>: {NOTHING} no run yet.</p>"
    options = any(row.options for row in rows)
    head: list[tuple[str, Sequence[str]]] = []
    compared = [s for s in splits if any(row.differences.get(s) for row in rows)]
    head += [(split, ["mIoU", "difference"] if split in compared else ["mIoU"]) for split in splits]
    head.append(("", ["compared with", "options"] if options else ["compared with"]))
    body = []
    for row in rows:
        line: list[str] = []
        for split in splits:
            ours, other = row.scores.get(split), row.differences.get(split)
            line.append(ours.html() if ours else NOTHING if split in row.scores else "")
            line += [other.text(sign=True) if other else ""] if split in compared else []
        line.append(escape(row.against))
        line += [f"<code>{escape(row.options)}</code>" if row.options else ""] if options else []
        body.append((row.label, line))
    what = (
        "teacher, last epoch, percent: mean ± standard deviation; the small numbers are seeds and lead to the records"
    )
    less = " Ablations are run at 1_8, whatever the partition of the paper." if _is_ablation(table) else ""
    text = f"<p><strong>{MINIATURE}</strong>: {what}. Differences are paired by seed, in points.{less}</p>"
    return text + grid(head, body)


def _is_ablation(table: PublishedTable) -> bool:
    return (table.paper, table.number) in ABLATIONS


# --- what is missing -----------------------------------------------------------------------------


def _commands(cells: Sequence[Cell], rows: Sequence[Small]) -> str:
    """The command that would fill each empty cell: the next seed in miniature, seed 0 at paper scale."""
    small = [
        shell(row.experiment.command(at, seed))
        for row in rows
        for at in row.settings()
        for seed in missing_seeds(row.scores[at.split])[:1]
    ]
    large = [
        shell(c.experiment.command(c.setting))
        for c in cells
        if c.fillable and c.ours is None and c.experiment and c.setting
    ]
    text = _lines("in miniature, minutes each on a CPU", small)
    text += _lines(
        "at paper scale; VOC2012, cityscapes and N.txt stand for the data and the list of N labeled images", large
    )
    count = len(set(small)) + len(set(large))
    if not count:
        return "<p>Every cell that this package can fill is filled.</p>"
    return f"<details><summary>Commands for what is missing ({count})</summary>{text}</details>"


def _lines(title: str, lines: Iterable[str]) -> str:
    unique = list(dict.fromkeys(lines))
    return f"<p>{escape(title)}:</p><pre>{escape(chr(10).join(unique))}</pre>" if unique else ""


def _kind(group: str, column: int) -> str:
    """Words stand in groups without a name; the first column of the others keeps a distance."""
    return ' class="text"' if not group else ' class="group"' if column == 0 else ""


def grid(head: Sequence[tuple[str, Sequence[str]]], body: Sequence[tuple[str, Sequence[str]]]) -> str:
    """An HTML table with two rows of headings: groups, and the columns of each.  Cells are HTML, headings are text."""
    groups = "".join(f'<th colspan="{len(columns)}">{escape(name)}</th>' for name, columns in head)
    names = "".join(f"<th>{escape(c)}</th>" for _, columns in head for c in columns)
    first = [sum(len(c) for _, c in head[:i]) for i in range(1, len(head))]
    rows = []
    for label, line in body:
        tds = "".join(f"<td{' class=group' if i in first else ''}>{text}</td>" for i, text in enumerate(line))
        rows.append(f"<tr><th>{escape(label)}</th>{tds}</tr>")
    return (
        f'<div class="scroll"><table class="dataframe paper"><thead><tr><th></th>{groups}</tr>'
        f"<tr><th></th>{names}</tr></thead><tbody>{''.join(rows)}</tbody></table></div>"
    )
