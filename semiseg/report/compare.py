"""The comparison page: all methods, splits and data sets that have records, paired gains, and cost against gain.

Every number is rounded before it is drawn, so that a replayed notebook draws the very same figure.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd
import plotly.graph_objects as go

from ..data.splits import SPLITS
from ..recipes import METHODS, Recipe, differences, recipe, usual
from ..runs import Run, table
from .style import color, host_of, symbol, title

Rows = Sequence[tuple[str, str, "pd.Series[float]", Sequence[str]]]  # label, name, values, text of each point
COST = "step-cost.json"  # in runs/, written by tests/bench_hosts.py
DATA_TITLES = {"digits-tiny": "embedded digits", "voc-tiny": "VOC animals, small", "voc-paper": "PASCAL VOC"}
COST_COLUMNS = [
    "label", "method", "ms per step", "step, × supervised", "training, × supervised", "gain", "s.d.", "seeds",
]  # fmt: skip
COLUMNS = ["setting", "split", "label", "method", "seed", "mIoU", "run"]


def ordered(labels: Iterable[str]) -> list[str]:
    """Labels in the order of METHODS, each method followed by its plug-ins."""
    return sorted(set(labels), key=lambda label: (METHODS.index(host_of(label)), label))


def comparable(runs: Sequence[Run]) -> list[Run]:
    """Runs with nothing replaced but plug-ins; a file of pretrained weights counts as the weights it holds."""

    def unchanged(run: Run) -> bool:
        made = run.record["recipe"]
        changed = differences(usual(made).as_dict(), made)
        return made["scale"] != "smoke" and all(c.startswith("network.weights:") for c in changed)

    return [run for run in runs if unchanged(run)]


def scores(runs: Sequence[Run]) -> pd.DataFrame:
    """One row per run: setting (data-scale), split, label, method, seed, mIoU in percent (teacher, last epoch), run."""
    frame = table(list(runs))
    frame["setting"] = frame.data + "-" + frame.scale
    frame["label"], frame["mIoU"] = frame.method, frame.miou.round(2)
    frame["method"] = frame.label.map(title)
    frame["run"] = frame.folder.map(lambda folder: "/".join(Path(folder).parts[-2:]))
    return frame[COLUMNS].sort_values(COLUMNS[:5], ignore_index=True)


def blank(frame: pd.DataFrame) -> pd.DataFrame:
    """Two decimals, and nothing where there is no number."""
    shown = {
        str(c): frame[c].map(lambda v: "" if pd.isna(v) else f"{v:.2f}") for c in frame if frame[c].dtype == "float64"
    }
    return frame.assign(**shown)


def summary(frame: pd.DataFrame) -> pd.DataFrame:
    """Mean, standard deviation and number of seeds of every method in every setting and split."""
    grouped = frame.groupby(["setting", "split", "label"]).mIoU.agg(["mean", "std", "count"]).round(2).reset_index()
    grouped["order"] = grouped.label.map({label: i for i, label in enumerate(ordered(grouped.label))})
    grouped = grouped.sort_values(["setting", "split", "order"])
    grouped["label"] = grouped.label.map(title)
    grouped["setting"] = grouped.setting.map(lambda name: DATA_TITLES.get(name, name))
    named = grouped.rename(columns={"setting": "data", "label": "method", "std": "s.d.", "count": "seeds"})
    return blank(named.drop(columns="order").set_index(["data", "split", "method"]))


# --- figures ------------------------------------------------------------------------------


def _spread(x: pd.Series[float]) -> float | None:
    return round(float(x.std()), 2) if len(x) > 1 else None


def _bar(spread: float | None, paint: str) -> dict[str, Any] | None:
    return None if spread is None else {"type": "data", "array": [spread], "color": paint, "thickness": 1.5}


def _row(label: str, name: str, values: pd.Series[float], hover: Sequence[str], visible: bool) -> list[go.Scatter]:
    """Every seed as a pale point, the mean as a strong one with its standard deviation."""
    paint = {"color": color(label), "symbol": symbol(label)}
    shared = {"mode": "markers", "showlegend": False, "visible": visible}
    every = go.Scatter(
        x=list(values), y=[name] * len(values), text=list(hover), marker={**paint, "size": 8, "opacity": 0.45},
        hovertemplate="%{text}<br>%{x:.2f}<extra></extra>", **shared,
    )  # fmt: skip
    spread = _spread(values)
    mean = go.Scatter(
        x=[round(float(values.mean()), 2)], y=[name], error_x=_bar(spread, color(label)),
        marker={**paint, "size": 13, "line": {"color": "black", "width": 1}},
        hovertemplate=f"{name}<br>mean %{{x:.2f}}, s.d. {'-' if spread is None else f'{spread:.2f}'}, "
        f"n = {len(values)}<extra></extra>", **shared,
    )  # fmt: skip
    return [every, mean]


def _menu(names: Sequence[str], of_trace: Sequence[int], rows: Sequence[Sequence[str]]) -> list[dict[str, Any]]:
    """A menu above the figure that shows the traces of one name and makes room for its rows."""
    buttons = [
        {
            "label": name, "method": "update",
            "args": [
                {"visible": [i == t for t in of_trace]},
                {"yaxis.categoryarray": list(reversed(rows[i])), "height": _height(rows[i])},
            ],
        }
        for i, name in enumerate(names)
    ]  # fmt: skip
    place = {"x": 0, "xanchor": "left", "y": 1, "yanchor": "bottom", "pad": {"b": 8}}
    return [{"buttons": buttons, "direction": "down", "showactive": True, **place}]


def _height(names: Sequence[str]) -> int:
    return 150 + (42 if any("<br>" in name for name in names) else 30) * len(names)


def _dots(choices: Mapping[str, Rows], axis: str, zero: bool = False) -> go.Figure:
    """Rows of points; a menu chooses among several sets of rows (label, name, values, text of each point)."""
    figure, of_trace = go.Figure(), list[int]()
    names = [[name for _, name, _, _ in rows] for rows in choices.values()]
    for i, rows in enumerate(choices.values()):
        for label, name, values, hover in rows:
            for trace in _row(label, name, values, hover, visible=i == 0):
                figure.add_trace(trace)
                of_trace.append(i)
    figure.update_layout(
        height=_height(names[0]), updatemenus=_menu(list(choices), of_trace, names), margin={"t": 60, "l": 10},
        xaxis={"title": {"text": axis}, "zeroline": zero, "zerolinewidth": 2, "zerolinecolor": "gray"},
        yaxis={"type": "category", "categoryorder": "array", "categoryarray": list(reversed(names[0])),
               "automargin": True, "tickfont": {"size": 11}},
    )  # fmt: skip
    return figure


def _name_of(setting: str, split: str) -> str:
    return f"{DATA_TITLES.get(setting, setting)}, {split}"


def _places(frame: pd.DataFrame) -> list[tuple[str, str]]:
    """(setting, split) with records, those with most methods first."""
    labels: dict[tuple[str, str], set[str]] = {}
    for setting, split, label in zip(frame.setting, frame.split, frame.label, strict=True):
        labels.setdefault((setting, split), set()).add(label)
    return sorted(labels, key=lambda place: (-len(labels[place]), place))


def methods_figure(frame: pd.DataFrame) -> go.Figure:
    """mIoU of every method with records; a menu chooses data and split."""
    choices: dict[str, Rows] = {}
    for setting, split in _places(frame):
        here = frame[(frame.setting == setting) & (frame.split == split)]
        choices[_name_of(setting, split)] = [
            (label, title(label), here[here.label == label].mIoU, list(here[here.label == label].run))
            for label in ordered(here.label)
        ]
    return _dots(choices, "mIoU, %")


def splits_figure(frame: pd.DataFrame) -> go.Figure:
    """mIoU over the share of labeled images, for the data that have records of several of the named splits."""
    figure = go.Figure()
    named = frame[frame.split.isin(SPLITS)]
    for setting in sorted(set(named.setting)):
        here = named[named.setting == setting]
        for label in ordered(here.label):
            means = here[here.label == label].groupby("split").mIoU.agg(["mean", "std", "count"]).round(2)
            means = means.reindex([s for s in SPLITS if s in means.index])
            figure.add_trace(
                go.Scatter(
                    x=list(means.index), y=list(means["mean"]), mode="lines+markers", name=title(label),
                    legendgroup=label, marker={"color": color(label), "symbol": symbol(label), "size": 9},
                    line={"color": color(label), "width": 1.5, "dash": "solid" if "+" not in label else "dot"},
                    error_y={"type": "data", "array": [None if pd.isna(s) else s for s in means["std"]], "width": 3},
                    customdata=[[int(n)] for n in means["count"]],
                    hovertemplate=title(label) + ", %{x}<br>%{y:.2f}, n = %{customdata[0]}<extra></extra>",
                )
            )  # fmt: skip
    figure.update_layout(
        height=640, xaxis={"title": {"text": "share of labeled images"}, "type": "category"},
        yaxis={"title": {"text": "mIoU, %"}}, legend={"orientation": "h", "y": -0.22, "font": {"size": 11}},
    )  # fmt: skip
    figure.update_xaxes(categoryorder="array", categoryarray=list(SPLITS))
    return figure


# --- paired differences -------------------------------------------------------------------


def without_idea(made: Recipe) -> Iterable[Recipe]:
    """Recipes of which this one is a change: each plug-in taken away, a paper's method without its idea.

    DDFP without perturbation is mean teacher; DGCL without contrast and ESL with hard labels and without contrast are
    trainings of their own, since both leave colors alone.
    """
    if made.upc is not None:
        yield replace(made, upc=None)
    if made.wpl is not None:
        yield replace(made, wpl=None)
    if made.upc is None and made.wpl is None:
        match made.method:
            case "ddfp":
                yield recipe("mean_teacher", made.data, made.split, made.scale, made.seed)
            case "dgcl":
                yield replace(made, dgcl=replace(made.dgcl, weight=0.0))
            case "esl":
                yield replace(made, esl=replace(made.esl, label="hard", parts=0))


def gains(runs: Sequence[Run]) -> pd.DataFrame:
    """mIoU of a run minus that of the same recipe without its idea, on the same lists: one row per pair of runs.

    runs: all records, ablations among them.
    Returns setting, split, label, difference, seed, gain (points), run.
    """
    by_recipe = {_key(r.record["recipe"]): r for r in runs}
    rows = []
    for run in comparable(runs):
        made = Recipe.from_dict(run.record["recipe"])
        for base in without_idea(made):
            other = by_recipe.get(_key(base.as_dict() | {"network": run.record["recipe"]["network"]}))
            if other is None or any(run.record[k]["sha256"] != other.record[k]["sha256"] for k in ("data", "split")):
                continue
            less = title(base.label) if base.label != made.label else "the same without its idea"
            rows.append(
                [f"{made.data}-{made.scale}", made.split, made.label, f"{title(made.label)} minus {less}", made.seed,
                 round(100 * (run.miou - other.miou), 2), "/".join(run.folder.parts[-2:])]
            )  # fmt: skip
    columns = ["setting", "split", "label", "difference", "seed", "gain", "run"]
    return pd.DataFrame(rows, columns=columns).sort_values(columns[:5], ignore_index=True)


def _key(made: Mapping[str, Any]) -> str:
    return json.dumps(made, sort_keys=True)


def gains_figure(frame: pd.DataFrame) -> go.Figure:
    """Paired differences in points; a menu chooses data and split."""
    choices: dict[str, Rows] = {}
    for setting, split in _places(frame):
        here = frame[(frame.setting == setting) & (frame.split == split)]
        choices[_name_of(setting, split)] = [
            (label, str(name).replace(" minus", "<br>minus"), rows.gain, list(rows.run))
            for label in ordered(here.label)
            for name, rows in here[here.label == label].groupby("difference")
        ]
    return _dots(choices, "difference in mIoU, points", zero=True)


def gains_table(frame: pd.DataFrame) -> pd.DataFrame:
    """Mean, spread, extremes and number of pairs of each difference."""
    named = frame.assign(where=[_name_of(s, p) for s, p in zip(frame.setting, frame.split, strict=True)])
    out = named.groupby(["where", "difference"], sort=False).gain.agg(["mean", "std", "min", "max", "count"]).round(2)
    out = out.rename(columns={"std": "s.d.", "min": "smallest", "max": "largest", "count": "pairs"})
    return blank(out.rename_axis(["data, split", "difference"]))


# --- cost ---------------------------------------------------------------------------------


def read_cost(path: Path) -> dict[str, Any]:
    """The measured cost of steps.  Raises ValueError when the file is not one, with the command that writes it."""
    try:
        record = json.loads(path.read_text())
        record["how"], record["environment"]["cpu"], record["seconds"]["supervised"]["median"]
    except (OSError, json.JSONDecodeError, KeyError, TypeError) as error:
        raise ValueError(f"{path} has no cost of steps; write it: python tests/bench_hosts.py --out {path}") from error
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
                error_y=_bar(spread, color(label)),
                marker={"color": color(label), "symbol": symbol(label), "size": 12,
                        "line": {"color": "black", "width": 1}},
                hovertemplate=f"{row['method']}<br>%{{x:.2f}} × the step of supervised"
                f"<br>%{{y:.2f}} points, n = {row['seeds']}<extra></extra>",
            )
        )  # fmt: skip
    figure.update_layout(
        height=560, xaxis={"title": {"text": "time of a step, × supervised"}},
        yaxis={"title": {"text": "gain over supervised, points"}, "zeroline": True, "zerolinecolor": "gray"},
        legend={"orientation": "h", "y": -0.18, "font": {"size": 11}},
    )  # fmt: skip
    return figure


def cost_table(frame: pd.DataFrame) -> pd.DataFrame:
    """The numbers of `cost_figure`, with short heads."""
    heads = {"ms per step": "ms", "step, × supervised": "step", "training, × supervised": "training"}
    return frame.drop(columns="label").rename(columns=heads).set_index("method").pipe(blank)


def coverage(runs: Sequence[Run], cost: Mapping[str, Any], setting: Callable[[Run], bool]) -> pd.DataFrame:
    """What the page still lacks: methods without a record in a setting, or without measured cost."""
    found = {r.label for r in runs if setting(r)}
    labels = ordered([*METHODS, *found])
    rows = [[title(x), "yes" if x in found else "no", "yes" if x in cost["seconds"] else "no"] for x in labels]
    return pd.DataFrame(rows, columns=["method", "record", "cost"]).set_index("method")
