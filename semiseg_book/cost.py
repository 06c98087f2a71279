"""What a step of every method costs, and what it gains over supervised training.

Numbers are rounded before they are drawn, as in `compare.py`.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd
import plotly.graph_objects as go

from semiseg.runs import Run

from .compare import bar, blank, scores
from .style import color, ordered, symbol, title

COST = "step-cost.json"  # in runs/, written by tests/bench/bench_hosts.py
COST_COLUMNS = [
    "label", "method", "ms per step", "step, × supervised", "training, × supervised", "gain", "s.d.", "seeds",
]  # fmt: skip


def read_cost(path: Path) -> dict[str, Any]:
    """The measured cost of steps.  Raises ValueError when the file is not one, with the command that writes it."""
    try:
        record = json.loads(path.read_text())
        record["how"], record["environment"]["cpu"], record["seconds"]["supervised"]["median"]
    except (OSError, json.JSONDecodeError, KeyError, TypeError) as error:
        raise ValueError(
            f"{path} has no cost of steps; write it: python tests/bench/bench_hosts.py --out {path}"
        ) from error
    return record


def total_steps(run: Run) -> int:
    """Optimizer steps of a run, those of earlier stages included."""
    stages = run.record.get("stages")
    return sum(stage["steps"] for stage in stages) if stages else run.record["last"]["step"]


def cost_and_gain(runs: Sequence[Run], cost: Mapping[str, Any], split: str = "1_8") -> pd.DataFrame:
    """Per label: time of a step and of a whole training over those of supervised, and the paired gain over it.

    runs: comparable ones.  Labels without measured cost have none in their row.
    """
    frame = scores([r for r in runs if r.record["recipe"]["data"] == cost["data"]])
    frame = frame[(frame.setting == f"{cost['data']}-{cost['scale']}") & (frame.split == split)]
    base, seconds = frame[frame.label == "supervised"].set_index("seed").mIoU, cost["seconds"]
    steps = {"/".join(r.folder.parts[-2:]): total_steps(r) for r in runs}
    usual = steps[frame[frame.label == "supervised"].run.iloc[0]]
    rows = []
    for label in ordered(frame.label):
        mine = frame[frame.label == label].set_index("seed")
        gain = (mine.mIoU - base).dropna().round(2)
        measured = seconds.get(label)
        ratio = None if measured is None else measured["median"] / seconds["supervised"]["median"]
        longer = steps[mine.run.iloc[0]] / usual
        rows.append(
            [label, title(label), None if measured is None else 1000 * measured["median"], ratio,
             None if ratio is None else ratio * longer, gain.mean(), gain.std(), len(gain)]
        )  # fmt: skip
    return pd.DataFrame(rows, columns=COST_COLUMNS).round(2)


def cost_figure(frame: pd.DataFrame) -> go.Figure:
    """Gain over supervised against the cost of a step, with its name at each point."""
    figure = go.Figure()
    shown = frame.dropna(subset=["step, × supervised", "gain"])
    for row in shown.to_dict("records"):
        label = row["label"]
        spread = None if pd.isna(row["s.d."]) else row["s.d."]
        figure.add_trace(
            go.Scatter(
                x=[row["step, × supervised"]], y=[row["gain"]], mode="markers", name=row["method"],
                error_y=bar(spread, color(label)),
                marker={"color": color(label), "symbol": symbol(label), "size": 12,
                        "line": {"color": "black", "width": 1}},
                hovertemplate=f"{row['method']}<br>%{{x:.2f}} × the step of supervised"
                f"<br>%{{y:.2f}} points, n = {row['seeds']}<extra></extra>",
            )
        )  # fmt: skip
    figure.update_layout(
        height=340 + 13 * len(shown), xaxis={"title": {"text": "time of a step, × supervised"}},
        yaxis={"title": {"text": "gain over supervised, points"}, "zeroline": True, "zerolinecolor": "gray"},
        legend={"orientation": "h", "y": -0.18, "font": {"size": 11}},
    )  # fmt: skip
    return figure


def cost_table(frame: pd.DataFrame) -> pd.DataFrame:
    """The numbers of `cost_figure`, with short heads."""
    heads = {"ms per step": "ms", "step, × supervised": "step", "training, × supervised": "training"}
    return frame.drop(columns="label").rename(columns=heads).set_index("method").pipe(blank)
