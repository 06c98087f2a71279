"""Tables of the page on what was learned about the papers, as Markdown, from files in book/."""

from __future__ import annotations

from pathlib import Path

import pandas as pd

from semiseg import registry
from semiseg.checkout import repo_root

from . import published

LOGS = "released-logs.csv"
_LOG_COLUMNS = ["method", "source", "commit", "data", "setting", "network", "best", "best_epoch", "last", "published"]


def _title(paper: str) -> str:
    """Of the method or plug-in of a paper."""
    return (registry.plug_in if paper in registry.plug_ins() else registry.method)(paper).title


def markdown(frame: pd.DataFrame) -> str:
    """A pipe table; empty cells stay empty."""
    lines = ["| " + " | ".join(map(str, frame.columns)) + " |", "|" + "---|" * len(frame.columns)]
    for row in frame.astype(object).where(frame.notna(), "").to_dict("split")["data"]:
        lines.append("| " + " | ".join(map(str, row)) + " |")
    return "\n".join(lines)


def misprints() -> str:
    """Printed differences that do not follow from the printed values (by 0.005 or more)."""
    rows = []
    for paper, tables in published.CAPTIONS.items():
        for number in tables:
            table = published.load(paper, number)
            cells = table.rows.dropna(subset=["delta", "delta_recomputed"])
            for cell in cells[(cells.delta - cells.delta_recomputed).abs() > 0.005].itertuples():
                where = " ".join(filter(None, map(str, (cell.host, cell.setting, cell.partition))))
                gains = [f"{float(gain):.2f}" for gain in (cell.delta, cell.delta_recomputed)]  # type: ignore[arg-type]
                rows.append([_title(paper), table.title, where, *gains])
    return markdown(pd.DataFrame(rows, columns=["paper", "table", "cell", "gain as printed", "gain by the values"]))


def read_logs(path: Path | None = None) -> pd.DataFrame:
    """Scores that authors' own training logs show.  Raises ValueError for missing columns or a best below the last."""
    path = path or repo_root(Path(__file__).parent) / "book" / LOGS
    frame = pd.read_csv(path, dtype={"commit": str, "setting": str})
    if list(frame.columns) != _LOG_COLUMNS:
        raise ValueError(f"{path}: expected the columns {', '.join(_LOG_COLUMNS)}, found {', '.join(frame.columns)}")
    odd = frame[frame.best < frame["last"]]
    if len(odd):
        raise ValueError(f"{path}, line {odd.index[0] + 2}: the best epoch scores less than the last")
    return frame


def released_logs() -> str:
    """Best and last epoch of authors' own logs, and what the choice of the epoch is worth."""
    frame = read_logs()
    shown = pd.DataFrame(
        {
            "method": frame.method,
            "data, labels": frame.data + ", " + frame.setting,
            "network": frame.network,
            "best epoch": [f"{b:.2f}" for b in frame.best],
            "last epoch": [f"{v:.2f}" for v in frame["last"]],
            "difference": [f"{d:.2f}" for d in frame.best - frame["last"]],
            "reported": frame.published.map(lambda v: "" if pd.isna(v) else f"{v:g}"),
        }
    )
    sources = sorted(set(frame.source + " at " + frame.commit))
    return f"{markdown(shown)}\n\nLogs of {', '.join(sources)}."


def disagreements() -> str:
    """The same baseline on the same partition with different numbers in different papers: at least one point apart."""
    parts = []
    for paper, tables in published.CAPTIONS.items():
        for number in tables:
            rows = published.load(paper, number).rows.assign(paper=_title(paper))
            parts.append(rows[(rows.origin == "quoted") & (rows.backbone == "R101") & (rows.variable == "")])
    cells = pd.concat(parts).dropna(subset=["value"])
    cells = cells[cells.metric.eq("mIoU") & cells.partition.ne("") & cells.host.eq("")]
    found = []
    for key, group in cells.groupby(["dataset", "setting", "method", "partition"], sort=False):
        values = {f"{value:.2f}": sorted(set(same.paper)) for value, same in group.groupby("value")}
        numbers = [float(v) for v in values]
        if max(numbers) - min(numbers) >= 1:
            dataset, setting, method, partition = map(str, key)
            data = "Cityscapes" if dataset == "cityscapes" else f"VOC {setting}"
            quoted = "; ".join(f"{value} ({', '.join(papers)})" for value, papers in values.items())
            found.append([data, method, partition, quoted, f"{max(numbers) - min(numbers):.2f}"])
    columns = ["data", "method", "labels", "number (quoted by)", "apart"]
    return markdown(pd.DataFrame(found, columns=columns))
