"""Fill README.md from run records: `python -m semiseg.report.readme` writes its results table and its picture."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import matplotlib
import pandas as pd

from ..build import load_exported
from ..data.digits import Digits
from ..data.splits import SPLITS, seeded_split
from ..notebook import repo_root
from ..recipes import METHODS, Recipe
from ..runs import Run, find_runs, table, write_text
from . import pictures, tables
from .style import METHOD_TITLES, use_style

BEGIN, END = "<!-- results:begin -->", "<!-- results:end -->"


def results(runs: Sequence[Run]) -> str:
    """A Markdown table: one row per method and split, mean and standard deviation over seeds."""
    tables.same_lists(runs)
    frame = table(list(runs))
    lines = ["| split | method | mIoU, last epoch | best on validation | seeds |", "|---|---|---|---|---|"]
    for split in SPLITS:
        for method in METHODS:
            rows = frame[(frame.split == split) & (frame.method == method)]
            if len(rows):
                best = rows.best.mean()
                name = METHOD_TITLES[method]
                lines.append(f"| {split} | {name} | {_spread(rows.miou)} | {best:.1f} | {len(rows)} |")
    return "\n".join(lines)


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
        networks[METHOD_TITLES[method]] = host.teacher.model
    split = seeded_split(data.train, "1_8", seed=0)
    figure = pictures.problem(data, split, data.val[3:15], networks)
    figure.savefig(root / "book" / "_static" / "problem.png", dpi=130, metadata={"Software": None})


def main() -> None:
    root = repo_root(Path(__file__).parent)
    matplotlib.use("Agg")
    use_style()
    runs = tables.standard(find_runs(root / "runs" / "digits-tiny"))
    write_text(root / "README.md", filled((root / "README.md").read_text(), results(runs)))
    picture(root)


if __name__ == "__main__":
    main()
