"""The comparison page: all methods, splits and data sets that have records, and paired gains; costs are in `cost.py`.

Every number is rounded before it is drawn, so that a replayed notebook draws the very same figure.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from semiseg import registry
from semiseg.data.splits import SPLITS
from semiseg.recipe import Recipe, recipe, usual
from semiseg.runs import Run, differences, table

from .style import color, host_of, ordered, symbol, title

Rows = Sequence[tuple[str, str, "pd.Series[float]", Sequence[str]]]  # label, name, values, text of each point
DATA_TITLES = {"digits-tiny": "embedded digits", "voc-tiny": "VOC animals, small", "voc-paper": "PASCAL VOC"}
_WEIGHTS = ("network.weights:", "detector.weights:")
COLUMNS = ["setting", "split", "label", "method", "seed", "mIoU", "run"]


def comparable(runs: Sequence[Run]) -> list[Run]:
    """Runs with nothing replaced but plug-ins; a file of pretrained weights counts as the weights it holds."""

    def unchanged(run: Run) -> bool:
        made = run.record["recipe"]
        changed = differences(usual(made).as_dict(), made)
        return made["scale"] != "smoke" and all(c.startswith(_WEIGHTS) for c in changed)

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


def summary(frame: pd.DataFrame, setting: str) -> pd.DataFrame:
    """Mean ± standard deviation (number of seeds) of every method of a setting, one column per split."""
    here = frame[frame.setting == setting]
    cells = here.groupby(["label", "split"]).mIoU.agg(_mean_and_spread).unstack(fill_value="")
    cells = cells.loc[ordered(cells.index), [s for s in (*SPLITS, *sorted({*cells} - {*SPLITS})) if s in cells]]
    return cells.rename(index=title).rename_axis(index=DATA_TITLES.get(setting, setting), columns=None)


def _mean_and_spread(x: pd.Series[float]) -> str:
    return f"{x.mean():.2f} ± {x.std():.2f} ({len(x)})" if len(x) > 1 else f"{x.mean():.2f} (1)"


# --- figures ------------------------------------------------------------------------------


def _spread(x: pd.Series[float]) -> float | None:
    return round(float(x.std()), 2) if len(x) > 1 else None


def bar(spread: float | None, paint: str) -> dict[str, Any] | None:
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
        x=[round(float(values.mean()), 2)], y=[name], error_x=bar(spread, color(label)),
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
    place = {"x": 1, "xanchor": "right", "y": 1, "yanchor": "bottom", "pad": {"b": 8}}
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


def splits_figure(frame: pd.DataFrame, setting: str) -> go.Figure:
    """mIoU over the share of labeled images: a panel for every scheme and method that has several of the named splits,
    alone and with its plug-ins, supervised training in gray behind each."""
    here = frame[(frame.setting == setting) & frame.split.isin(SPLITS)]
    means = {
        label: here[here.label == label].groupby("split").mIoU.agg(["mean", "std", "count"]).round(2)
        for label in ordered(here.label)
    }
    means = {label: of_label for label, of_label in means.items() if len(of_label) > 1}
    hosts = list(dict.fromkeys(host_of(label) for label in means if label != "supervised"))
    figure = make_subplots(
        -(-len(hosts) // 2), 2, shared_xaxes="all", shared_yaxes="all", vertical_spacing=0.06,
        horizontal_spacing=0.03, subplot_titles=[title(host) for host in hosts],
    )  # fmt: skip
    for i, host in enumerate(hosts):
        for label, of_label in means.items():
            if label == "supervised" or host_of(label) == host:
                figure.add_trace(_over_splits(label, of_label), i // 2 + 1, i % 2 + 1)
    used = [s for s in SPLITS if any(s in x.index for x in means.values())]
    figure.update_layout(height=120 + 190 * -(-len(hosts) // 2), showlegend=False)
    figure.update_xaxes(type="category", categoryorder="array", categoryarray=used)
    return figure


def _over_splits(label: str, means: pd.DataFrame) -> go.Scatter:
    """A line through the means (columns mean, std, count; by split) of one label."""
    means = means.loc[[s for s in SPLITS if s in means.index]]
    paint = "lightgray" if label == "supervised" else color(label)
    return go.Scatter(
        x=list(means.index), y=list(means["mean"]), mode="lines+markers",
        marker={"color": paint, "symbol": symbol(label), "size": 9},
        line={"color": paint, "width": 1.5, "dash": "dot" if "+" in label else "solid"},
        error_y={"type": "data", "array": [None if pd.isna(s) else s for s in means["std"]], "width": 3},
        customdata=[[int(n)] for n in means["count"]],
        hovertemplate=title(label) + ", %{x}<br>%{y:.2f}, n = %{customdata[0]}<extra></extra>",
    )  # fmt: skip


# --- paired differences -------------------------------------------------------------------


def without_idea(made: Recipe) -> Iterator[Recipe]:
    """Recipes of which this one is a change: each plug-in taken away, or the method without its idea."""
    for name in made.plug_ins:
        yield made.without(name)
    plain = registry.method(made.method).plain
    if plain is not None and not made.plug_ins:
        yield recipe(plain, *made.head[1:]) if isinstance(plain, str) else plain(made)


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


def coverage(runs: Sequence[Run], cost: Mapping[str, Any], setting: Callable[[Run], bool]) -> pd.DataFrame:
    """What the page still lacks: methods without a record in a setting, or without measured cost."""
    found = {r.label for r in runs if setting(r)}
    labels = ordered([*registry.methods(), *found])
    rows = [[title(x), "yes" if x in found else "no", "yes" if x in cost["seconds"] else "no"] for x in labels]
    return pd.DataFrame(rows, columns=["method", "record", "cost"]).set_index("method")
