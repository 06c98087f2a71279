"""The numbers the five papers print, one typed table each; how doubtful cells were read: book/published/README.md."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from semiseg.checkout import repo_root

COLUMNS = (
    "method", "host", "backbone", "dataset", "setting", "partition", "n_labeled", "variable", "variable_value",
    "metric", "value", "delta", "delta_recomputed", "origin", "note",
)  # fmt: skip
_NUMBERS = ("value", "delta", "delta_recomputed")
_ALLOWED = {
    "origin": ("own", "quoted"),
    "dataset": ("pascal_voc2012", "cityscapes", "coco", "pascal_voc2012 + coco"),
    "partition": ("", "full", *(f"1/{n}" for n in (512, 256, 128, 64, 32, 30, 16, 8, 4, 2))),
}
_CLASSIC = "PASCAL VOC, classic: labels from the 1,464 finely annotated images. mIoU in percent."
_BLENDED = "PASCAL VOC, blended: labels from all 10,582 images. mIoU in percent."
_CITY = "Cityscapes: labels from the 2,975 training images. mIoU in percent."
_BOTH = "Classic 1/4 and 1/2."
# In the words of this book; "S1" is Table 1 of the supplement, "F7a" what the text says of Fig. 7(a).
CAPTIONS: dict[str, dict[str, str]] = {
    "ddfp": {
        "1": _CLASSIC,
        "2": _BLENDED,
        "3": _CITY,
        "4": f"The parts of DDFP, one added after the other. {_BOTH}",
        "5": f"Length of the step down the density, ε of Eq. 11. {_BOTH}",
        "6": f"Weight of the loss on perturbed features, λ of Eq. 16. {_BOTH}",
        "7": f"Other perturbations of features in the same host. {_BOTH}",
    },
    "dgcl": {
        "1": _CLASSIC,
        "2": _BLENDED,
        "3": _CITY,
        "4": "How well features cluster by predicted class on the validation images, classic 1/8. Silhouette and "
        "Calinski-Harabasz: higher is better; Davies-Bouldin: lower.",
        "5": "The parts of DGCL, one added after the other, at 1/8.",
        "6": "What chooses anchors and positives of the contrast, at 1/8.",
        "7": "Number of neighbors in the density estimate, at 1/8.",
    },
    "upc": {
        "1": _CLASSIC,
        "2": _BLENDED,
        "3": _CITY,
        "4": "All of VOC labeled, COCO unlabeled. mIoU on VOC in percent.",
        "5": "Other ways to deal with noisy pseudo-labels, on ST++. Blended.",
        "6": "The parts of UPC, one added after the other, on ST++. Blended 1/4.",
        "7": "What ranks the patches, and how many of 4 × 4 are replaced, on ST++. Blended 1/4.",
        "8": "Patches per side (N) and number replaced (k), on ST++. Blended 1/4.",
    },
    "esl": {
        "1a": _CLASSIC,
        "1b": _BLENDED,
        "1c": _CITY,
        "2": "The losses of ESL. Classic, all 1,464 labels.",
        "3": "Where the dominant classes end, η of Eq. 4, without the contrast. Classic, all 1,464 labels.",
        "4": "Parts per class, K. Classic, all 1,464 labels.",
        "F7a": "Dynamic soft labels minus hard labels, in points, as far as the text states them. Classic.",
    },
    "wpl": {
        "1": "PASCAL VOC, classic and blended, two backbones. mIoU in percent.",
        "2": "Cityscapes, two backbones. mIoU in percent.",
        "3": "The parts of WPL on a plain teacher-student host. Classic.",
        "4": "Class by class on UniMatch. Classic 1/16. IoU in percent.",
        "S1": "Accuracy of the detector's boxes, and of pseudo-labels without and with them. Classic 1/16. Percent.",
        "S2": "Weight α of the unsupervised loss, on UniMatch. Classic.",
        "S3": "Confidence a box needs, on UniMatch. Classic.",
        "S4": "Features remembered per class, on UniMatch. Classic 1/16.",
        "S5": "On SemiVL, with a ViT-B/16. Cityscapes.",
        "S6": "On UniMatch with an Xception-65. COCO.",
    },
}


@dataclass(frozen=True)
class PublishedTable:
    """One table of one paper."""

    paper: str  # key of CAPTIONS
    number: str  # as in CAPTIONS
    caption: str
    rows: pd.DataFrame  # COLUMNS; one row per cell of the table, NaN where nothing is reported

    @property
    def title(self) -> str:
        """'Table 3', 'Supplement, Table 1' or 'Figure 7a'."""
        kind, rest = self.number[0], self.number[1:]
        return {"S": f"Supplement, Table {rest}", "F": f"Figure {rest}"}.get(kind, f"Table {self.number}")


def folder() -> Path:
    """Where the files lie in a checkout."""
    return repo_root(Path(__file__).parent) / "book" / "published"


def file_name(paper: str, number: int | str) -> str:
    """Of a table.  Raises ValueError, with the valid names, for a paper or a table there is not."""
    name = str(number)
    if paper not in CAPTIONS:
        raise ValueError(f"unknown paper {paper!r}; expected one of {', '.join(CAPTIONS)}")
    if name not in CAPTIONS[paper]:
        raise ValueError(f"{paper} has no table {name!r}; expected one of {', '.join(CAPTIONS[paper])}")
    kind = {"S": "_supp_table", "F": "_figure"}.get(name[0], "_table")
    return f"{paper}{kind}{name.lstrip('SF')}.csv"


def load(paper: str, number: int | str, root: Path | None = None) -> PublishedTable:
    """A table with its columns checked and typed.

    Args:
        paper: ddfp, dgcl, upc, esl or wpl.
        number: as in the paper, "S1" in a supplement, "F7a" for a figure.
        root: folder of the files; book/published by default.

    Raises:
        ValueError: an unknown paper or table, columns that are missing or too many, a cell that is not a number or
            not one of the valid names, or a row that stands twice; file and line are named.
        FileNotFoundError: the file is not there.
    """
    path = (root or folder()) / file_name(paper, number)
    if not path.is_file():
        raise FileNotFoundError(f"published numbers {path} are missing")
    frame = pd.read_csv(path, dtype=str, keep_default_na=False)
    if tuple(frame.columns) != COLUMNS:
        missing = [c for c in COLUMNS if c not in frame] or "none"
        raise ValueError(f"{path.name}: columns missing: {missing}; expected {', '.join(COLUMNS)}")
    for column in (*_NUMBERS, "n_labeled"):
        frame[column] = _numbers(frame[column], path, whole=column == "n_labeled")
    for column, valid in _ALLOWED.items():
        for line, text in enumerate(frame[column], 2):
            if text not in valid:
                raise ValueError(f"{path.name}, line {line}: {column} {text!r} is none of {', '.join(valid)}")
    key = ["method", "backbone", "setting", "partition", "variable_value", "metric"]
    if frame.duplicated(key).any():
        line = int(frame.duplicated(key).to_numpy().argmax()) + 2
        raise ValueError(f"{path.name}, line {line}: this cell stands in an earlier line, too")
    return PublishedTable(paper, str(number), CAPTIONS[paper][str(number)], frame)


def load_all(root: Path | None = None) -> list[PublishedTable]:
    """Every table of CAPTIONS, paper by paper."""
    return [load(paper, number, root) for paper, numbers in CAPTIONS.items() for number in numbers]


def _numbers(texts: pd.Series[str], path: Path, whole: bool) -> pd.Series[Any]:
    for line, text in enumerate(texts, 2):
        try:
            good = not text or (float(text).is_integer() if whole else abs(float(text)) < 1e6)
        except ValueError:
            good = False
        if not good:
            kind = "a whole number" if whole else "a number"
            raise ValueError(f"{path.name}, line {line}: {texts.name} {text!r} is not {kind}")
    numbers = pd.to_numeric(texts.where(texts != "", None))
    return numbers.astype("Int64") if whole else numbers.astype(float)
