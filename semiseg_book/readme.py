"""Fill README.md from run records: its results table and its picture."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import matplotlib
import pandas as pd

from semiseg.checkout import repo_root
from semiseg.data.sets.digits import Digits
from semiseg.data.splits import SPLITS, seeded_split
from semiseg.inference.model import load_exported
from semiseg.recipe import Recipe
from semiseg.runs import Run, find_runs, table, write_text

from . import pictures, tables
from .style import host_of, ordered, title, use_style

BEGIN, END = "<!-- results:begin -->", "<!-- results:end -->"


def results(runs: Sequence[Run]) -> str:
    """A Markdown table: one row per split, method and plug-in, mean and standard deviation over seeds.

    The gain of a plug-in is over its host, paired by seed.
    """
    tables.same_lists(runs)
    frame = table(list(runs))
    lines = [
        "| split | method | mIoU, last epoch | paired gain over the host | best on validation | seeds |",
        "|---|---|---|---|---|---|",
    ]
    for split in SPLITS:
        here = [r for r in runs if r.record["recipe"]["split"] == split]
        for label in ordered(r.label for r in here):
            rows = frame[(frame.split == split) & (frame.method == label)]
            best, gain = rows.best.mean(), _gain(here, label)
            lines.append(f"| {split} | {title(label)} | {_spread(rows.miou)} | {gain} | {best:.1f} | {len(rows)} |")
    return "\n".join(lines)


def _gain(runs: Sequence[Run], label: str) -> str:
    """Mean and standard deviation of the paired difference to the host, in points; nothing for a host itself."""
    host = host_of(label)
    gains = tables.paired_gain(runs, label, host).gain if label != host else pd.Series(dtype=float)
    if not len(gains):
        return ""
    spread = f" ± {gains.std():.1f}" if len(gains) > 1 else ""
    unpaired = len(gains) != sum(r.label == label for r in runs)
    return f"{gains.mean():+.1f}".replace("-", "−") + spread + (f" ({len(gains)} pairs)" if unpaired else "")


def _spread(values: pd.Series[float]) -> str:
    return f"{values.mean():.1f} ± {values.std():.1f}" if len(values) > 1 else f"{values.mean():.1f}"


def filled(text: str, block: str) -> str:
    """The text with what lies between the two markers replaced.  Raises ValueError when a marker is missing."""
    if BEGIN not in text or END not in text:
        raise ValueError(f"README.md has lost its markers {BEGIN} and {END}")
    head, rest = text.split(BEGIN, 1)
    return f"{head}{BEGIN}\n{block}\n{END}{rest.split(END, 1)[1]}"


def picture(root: Path) -> None:
    """The problem in one picture, for README and first page: what is given, and what three networks made of it."""
    data, networks = Digits(), {}
    for method in ("supervised", "mean_teacher", "ddfp"):
        folder = root / "runs" / "digits-tiny" / f"{method}-1_8-seed0"
        made = Recipe.from_dict(Run.read(folder).record["recipe"])
        host = load_exported(made, len(data.classes), folder / "model.safetensors")
        networks[title(method)] = host.teacher.model
    split = seeded_split(data.train, "1_8", seed=0)
    figure = pictures.problem(data, split, data.val[3:15], networks)
    figure.savefig(root / "book" / "_static" / "problem.png", dpi=130, metadata={"Software": None})


def write() -> None:
    """Write both into the checkout."""
    root = repo_root(Path(__file__).parent)
    matplotlib.use("Agg")
    use_style()
    runs = tables.standard(find_runs(root / "runs" / "digits-tiny"))
    write_text(root / "README.md", filled((root / "README.md").read_text(), results(runs)))
    picture(root)
