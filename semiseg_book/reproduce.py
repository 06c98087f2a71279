"""What runs took, as Markdown for the page on reproduction; read from records."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from semiseg.checkout import repo_root
from semiseg.runs import Run, find_runs

from .compare import DATA_TITLES, comparable
from .cost import total_steps
from .findings import markdown
from .style import ordered, title


def _runs() -> list[Run]:
    return find_runs(repo_root(Path(__file__).parent) / "runs")


def _hardware(record: dict[str, Any]) -> str:
    found = record["environment"]
    return found["gpu"] or f"{found['cpu']}, {found['threads']} thread{'s' * (found['threads'] != 1)}"


def _range(values: Sequence[float], digits: int = 1) -> str:
    low, high = (f"{v:.{digits}f}" for v in (min(values), max(values)))
    return low if low == high else f"{low} to {high}"


def times(runs: Sequence[Run] | None = None) -> str:
    """Minutes, steps and memory of the runs of unchanged recipes: a table per data, scale and hardware."""
    chosen = comparable(_runs() if runs is None else runs)
    groups: dict[tuple[str, str], dict[str, list[Run]]] = {}
    for run in chosen:
        made = run.record["recipe"]
        place = f"{made['data']}-{made['scale']}", _hardware(run.record)
        groups.setdefault(place, {}).setdefault(run.label, []).append(run)
    parts = []
    for (setting, hardware), of_label in sorted(groups.items()):
        table = pd.DataFrame([_cost(label, of_label[label]) for label in ordered(of_label)])
        parts.append(f"**{DATA_TITLES.get(setting, setting)}**, {hardware}:\n\n{markdown(table)}")
    return "\n\n".join(parts)


def _cost(label: str, group: Sequence[Run]) -> dict[str, str | int]:
    memory = [r.record["peak_memory_mib"]["gpu"] or r.record["peak_memory_mib"]["resident"] for r in group]
    return {
        "method": title(label),
        "runs": len(group),
        "steps": _range([float(total_steps(r)) for r in group], 0),
        "minutes": _range([r.record["duration_s"] / 60 for r in group]),
        "memory, GiB": _range([m / 1024 for m in memory]),
    }


def totals(runs: Sequence[Run] | None = None) -> str:
    """One sentence on all committed records."""
    chosen = _runs() if runs is None else list(runs)
    hours = sum(r.record["duration_s"] for r in chosen) / 3600
    seeds = sorted({r.record["recipe"]["seed"] for r in chosen})
    versions = sorted({r.record["environment"]["packages"]["torch"] for r in chosen})
    return (
        f"{len(chosen)} runs are committed, {hours:.1f} hours of training in all, seeds {', '.join(map(str, seeds))}, "
        f"PyTorch {', '.join(versions)}."
    )
