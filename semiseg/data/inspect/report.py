"""A report about a data set and a split of it, before hours are spent on training: what is there, and what is wrong.

report = inspect(data, split, crop=321)
print(to_text(report))
Path("report.html").write_text(to_html(report))
"""

from __future__ import annotations

import sys
from dataclasses import dataclass

import numpy as np
import pandas as pd
from tqdm import tqdm

from semiseg.data.dataset import SegmentationData
from semiseg.data.inspect.facts import examine
from semiseg.data.inspect.findings import find
from semiseg.data.inspect.page import Picture, pictures, to_html
from semiseg.data.inspect.survey import PARTS, Finding, Severity, Survey
from semiseg.data.splits import Split
from semiseg.types import IGNORE

__all__ = ["DataReport", "inspect", "to_html", "to_text"]


@dataclass(frozen=True)
class DataReport:
    """What `inspect` found.

    sizes: per part, number of images and the smallest, median and largest height and width, pixels.
    classes: per class and for IGNORE, images and share of the pixels (percent) among labeled and validation masks.
    findings: errors first.
    palette: one RGB color per class.
    lists: family and SHA256 of the split, as runs record them.
    """

    name: str
    split: str
    sizes: pd.DataFrame
    classes: pd.DataFrame
    findings: tuple[Finding, ...]
    pictures: tuple[Picture, ...]
    palette: tuple[tuple[int, int, int], ...]
    lists: str

    @property
    def ok(self) -> bool:
        """Whether there is no error."""
        return not self.of("error")

    def of(self, severity: Severity) -> tuple[Finding, ...]:
        return tuple(finding for finding in self.findings if finding.severity == severity)

    @property
    def verdict(self) -> str:
        """'2 errors, 1 note', or that nothing was found."""
        counts = {severity: len(self.of(severity)) for severity in ("error", "warning", "note")}
        said = [f"{n} {severity}{'s' * (n > 1)}" for severity, n in counts.items() if n]
        return ", ".join(said) or "nothing to complain about"


def inspect(
    data: SegmentationData, split: Split, *, crop: int | None = None, shown: int = 6, progress: bool = False
) -> DataReport:
    """Decodes every image and every mask of a split and of the validation images, and looks for trouble.

    Unlike `checks.check`, which stops a run at the first error, this goes through everything and raises nothing for
    what it finds.

    Args:
        data: what to look at; with `files` (see `facts.OnDisk`) file formats are looked at too.
        split: which training images are labeled.
        crop: side of the training crops in pixels, to find images smaller than that; None: not looked at.
        shown: number of pictures for the page.
        progress: show a bar on stdout.
    """
    keys = dict.fromkeys((*split.labeled, *split.unlabeled, *data.val))
    known = {*data.train, *data.val}
    wanted = [key for key in keys if key in known]
    bar = tqdm(examine(data, wanted), total=len(wanted), disable=not progress, file=sys.stdout, unit="image")
    survey = Survey(data, split, {facts.key: facts for facts in bar}, crop)
    findings = tuple(find(survey))
    return DataReport(
        data.name, split.name, _sizes(survey), _classes(survey), findings, pictures(survey, shown), data.palette,
        f"family {split.family}, SHA256 {split.sha256}",
    )  # fmt: skip


def _sizes(survey: Survey) -> pd.DataFrame:
    rows = {}
    for part in PARTS:
        sides = np.array([facts.size for facts in survey.of(part) if facts.size]).reshape(-1, 2)
        row: dict[str, object] = {"images": len(survey.parts[part]), "sizes": len(np.unique(sides, axis=0))}
        for name, side in zip(("height", "width"), sides.T, strict=True):
            if len(side):
                row[name] = f"{side.min()} / {np.median(side):g} / {side.max()}"
        rows[part] = row
    return pd.DataFrame.from_dict(rows, orient="index").fillna("")


def _classes(survey: Survey) -> pd.DataFrame:
    chosen = [*range(len(survey.data.classes)), IGNORE]
    columns = {}
    for part in ("labeled", "val"):
        pixels = survey.pixels(part)
        columns[f"{part}, images"] = survey.images(part)[chosen]
        columns[f"{part}, % of pixels"] = np.round(100 * pixels[chosen] / max(1, pixels.sum()), 2)
    return pd.DataFrame(columns, index=pd.Index([*survey.data.classes, "(ignored)"], name="class"))


def to_text(report: DataReport, examples: int = 5) -> str:
    """For a terminal; of each finding the first `examples` places, of unreadable files all."""
    parts = [
        f"{report.name}, split {report.split}: {report.verdict}\n(lists: {report.lists})",
        report.sizes.to_string() + "\n(height and width: smallest / median / largest, pixels)",
        report.classes.rename_axis(None).to_string(),
    ]
    parts += [_told(finding, examples) for finding in report.findings]
    return "\n\n".join(parts) + "\n"


def _told(finding: Finding, examples: int) -> str:
    """One finding, a place per line."""
    limit = len(finding.where) if "cannot be read" in finding.what else examples
    lines = [f"{finding.severity.upper()}: {finding.what}", *(f"    {place}" for place in finding.where[:limit])]
    if len(finding.where) > limit:
        lines.append(f"    and {len(finding.where) - limit} more")
    return "\n".join([*lines, f"    -> {finding.advice}"])
