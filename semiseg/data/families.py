"""Published partitions: lists of labeled and unlabeled images as papers use them, each with its address and SHA256.

A family is a set of partitions that belong together.  Numbers from different families must not be compared even
where the names are the same: "1_8" of `cps` holds 193 images with VOC's own masks among its 1323, that of `u2pl`
holds nothing else.

fetch_lists("cps", Path("data/splits"))
split = published_split("cps", "1_8", Path("data/splits"), data.train)
"""

from __future__ import annotations

import csv
import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Any, Literal

from semiseg.data.fetch.download import download
from semiseg.data.splits import Split, split_from_files

RAW = "https://raw.githubusercontent.com"
FAMILIES = {
    "classic": "VOC, the official 1464 masks only: UniMatch, U2PL, AugSeg and ST++ share these lists",
    "cps": "VOC with SBD (10582), lists of CPS: UniMatch, AugSeg and CPS",
    "u2pl": "VOC with SBD (10582), lists of U2PL, VOC's own masks first: U2PL, DDFP, DGCL",
    "cityscapes_cps": "Cityscapes, lists of CPS: UniMatch, AugSeg, WPL and CPS",
    "cityscapes_u2pl": "Cityscapes, lists of U2PL: U2PL, DDFP, DGCL",
    "cityscapes_stpp": "Cityscapes, 100 images: ST++, UniMatch and WPL",
    "coco": "COCO, lists of UniMatch; all other training images are unlabeled",
}


@dataclass(frozen=True)
class ListFile:
    """A list in a public repository at a fixed commit."""

    family: str
    data: str  # voc, cityscapes or coco
    name: str  # of the partition, as 1_8; train_aug for the list of all training images
    kind: Literal["labeled", "unlabeled", "train"]
    repository: str
    commit: str
    path: str
    lines: int
    sha256: str  # of the file's bytes

    @property
    def url(self) -> str:
        return f"{RAW}/{self.repository}/{self.commit}/{self.path}"

    def place(self, folder: Path) -> Path:
        """Where `fetch_lists` puts it."""
        return folder / self.family / self.name / f"{self.kind}.txt"


@cache
def list_files() -> tuple[ListFile, ...]:
    """All lists that are known."""
    text = files("semiseg.data").joinpath("published_lists.csv").read_text(encoding="utf-8")
    rows: list[dict[str, Any]] = [row | {"lines": int(row["lines"])} for row in csv.DictReader(text.splitlines())]
    return tuple(ListFile(**row) for row in rows)


def partitions(family: str) -> tuple[str, ...]:
    """Names of the partitions of a family.  Raises ValueError, with the valid ones, for an unknown family."""
    if family not in FAMILIES:
        raise ValueError(f"unknown family {family!r} of lists; expected one of {', '.join(FAMILIES)}")
    return tuple(file.name for file in list_files() if file.family == family and file.kind == "labeled")


def fetch_lists(family: str, folder: Path, *, progress: bool = True) -> tuple[Path, ...]:
    """All lists of a family, verified; those already there and right are not fetched again.

    Returns their paths.  Raises ValueError for an unknown family and DownloadError.
    """
    partitions(family)
    wanted = [file for file in list_files() if file.family == family and file.kind != "train"]
    return tuple(
        download((file.url,), file.place(folder), f"sha256:{file.sha256}", progress=progress) for file in wanted
    )


def fetch_train_list(voc: Path, *, progress: bool = True) -> Path:
    """The list of VOC's 10582 training images, to where `VOC` looks for it; one that is there stays as it is.

    With it, and without SBD, all of them serve as unlabeled images of family `classic`.
    """
    place = voc / "ImageSets" / "Segmentation" / "train_aug.txt"
    if place.exists():
        return place
    file = next(file for file in list_files() if file.kind == "train")
    return download((file.url,), place, f"sha256:{file.sha256}", progress=progress)


def published_split(family: str, name: str, folder: Path, train: Sequence[str]) -> Split:
    """A partition of a family, from the lists that `fetch_lists` put into `folder`.

    Lines are ids, paths, or an image and its mask in two columns.  Where no unlabeled list is published, all other
    training images are unlabeled.

    Args:
        family: one of FAMILIES.
        name: one of `partitions(family)`.
        folder: as of `fetch_lists`.
        train: ids of the data set's training images.

    Raises ValueError for an unknown family or name, for a file that is not the published one, and for ids that are no
    training images; FileNotFoundError where the lists were not fetched.
    """
    if name not in (known := partitions(family)):
        raise ValueError(f"unknown partition {name!r} of family {family}; expected one of {', '.join(known)}")
    paths = {file.kind: _verified(file, folder) for file in list_files() if (file.family, file.name) == (family, name)}
    try:
        split = split_from_files(paths["labeled"], paths.get("unlabeled"), train)
    except ValueError as error:
        hint = f"family {family} needs all {_needs(family)}"
        raise ValueError(f"{error}; {hint}") from error
    return replace(split, name=name, family=family)


def _verified(file: ListFile, folder: Path) -> Path:
    path = file.place(folder)
    if not path.is_file():
        raise FileNotFoundError(
            f"list {path} does not exist; fetch it: semiseg data fetch splits --family {file.family} --root {folder}"
        )
    found = hashlib.sha256(path.read_bytes()).hexdigest()
    if found != file.sha256:
        raise ValueError(
            f"{path} is not the published list: its SHA256 is {found}, expected {file.sha256}; "
            "delete it and fetch it again, or pass it as a list of your own"
        )
    return path


def _needs(family: str) -> str:
    data = next(file.data for file in list_files() if file.family == family)
    return {
        "voc": "10582 training images of VOC and SBD (list train_aug)",
        "cityscapes": "2975 training images of Cityscapes",
        "coco": "118287 training images of COCO 2017",
    }[data]
