"""Which images are labeled: nested seeded partitions, or partitions read from list files."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Container, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from semiseg.data.dataset import SegmentationData

_DIVISOR = {"1_16": 16, "1_8": 8, "1_4": 4, "1_2": 2, "full": 1}
SPLITS = tuple(_DIVISOR)
IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".tif", ".tiff", ".webp")


@dataclass(frozen=True)
class Split:
    """A partition of the training images.

    `sha256` is that of labeled.txt, an empty line and unlabeled.txt as `write_lists` writes them:
    `(cat labeled.txt; echo; cat unlabeled.txt) | sha256sum`.  Results with different hashes must not be compared.
    """

    name: str  # one of SPLITS, a number of labeled images, or the stem of a list file
    labeled: tuple[str, ...]
    unlabeled: tuple[str, ...]  # empty where every image is labeled
    family: str  # "seeded" or "file"
    sha256: str = field(init=False)

    def __post_init__(self) -> None:
        text = _text(self.labeled) + "\n" + _text(self.unlabeled)
        object.__setattr__(self, "sha256", hashlib.sha256(text.encode()).hexdigest())


def seeded_split(train: Sequence[str], name: str, seed: int, masked: Sequence[str] | None = None) -> Split:
    """The first 1/16, 1/8, ... of the ids in an order drawn from `seed`, so that smaller splits lie within larger ones.

    The order sorts by SHA256 of "seed:id": the same on any platform and for any order of `train`.  Unlabeled images
    keep the order of `train`.  Where only some training images have masks, `masked` names them: the share is one of
    them, and "full" labels them all.  Raises ValueError for an unknown name, and where no image has a mask.
    """
    if name not in _DIVISOR:
        raise ValueError(f"unknown split {name!r}; valid are {', '.join(SPLITS)}")
    choice = train if masked is None else masked
    if not choice and train:
        raise ValueError("no training image has a mask, so none can be labeled")
    return _labeled_first(train, max(1, round(len(choice) / _DIVISOR[name])), seed, name, choice)


def first(train: Sequence[str], n: int, seed: int) -> Split:
    """Exactly n labeled images, in the order (and so nested in the partitions) of `seeded_split`."""
    if n < 1:
        raise ValueError(f"a split needs at least one labeled image, not {n}")
    if n > len(train):
        raise ValueError(f"a partition larger than the set: {n} labeled images of {len(train)}")
    return _labeled_first(train, n, seed, str(n))


def split_from_files(labeled_list: str | Path, unlabeled_list: str | Path | None, train: Sequence[str]) -> Split:
    """A published partition.  Without an unlabeled list the rest of `train` is unlabeled, in its order.

    Raises FileNotFoundError for a missing list and ValueError, naming the list, for an empty one, for ids that
    repeat, that are not in `train`, or that are both labeled and unlabeled.
    """
    labeled = _read_subset(Path(labeled_list), train)
    known = set(labeled)
    if unlabeled_list is None:
        unlabeled = tuple(key for key in train if key not in known)
    else:
        unlabeled = _read_subset(Path(unlabeled_list), train)
        if both := [key for key in unlabeled if key in known]:
            raise ValueError(f"{unlabeled_list}: {len(both)} ids are also in {labeled_list}, the first: {both[0]}")
    return Split(Path(labeled_list).stem, labeled, unlabeled, "file")


def read_list(path: Path, known: Container[str] = ()) -> tuple[str, ...]:
    """Ids of a list file, one per line: a bare id or a path; of several columns the first counts.

    known: ids that may hold slashes or spaces; the longest end of a line that is one of them is meant.
    """
    if not path.is_file():
        raise FileNotFoundError(f"list file {path} does not exist")
    ids = tuple(_meant(line, known) for line in path.read_text(encoding="utf-8-sig").splitlines() if line.strip())
    if not ids:
        raise ValueError(f"{path}: the list is empty")
    if len(set(ids)) < len(ids):
        seen: set[str] = set()
        double = next(key for key in ids if key in seen or seen.add(key))  # type: ignore[func-returns-value]
        raise ValueError(f"{path}: {len(ids) - len(set(ids))} ids repeat, the first: {double}")
    return ids


def write_lists(split: Split, folder: str | Path) -> None:
    """labeled.txt and unlabeled.txt, one id per line; neither file is ever seen half-written."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    for name, ids in (("labeled.txt", split.labeled), ("unlabeled.txt", split.unlabeled)):
        _write_atomic(folder / name, _text(ids))


def missing_classes(data: SegmentationData, split: Split) -> tuple[str, ...]:
    """Names of the classes that no labeled mask contains: the run cannot learn them.  Reads all labeled masks."""
    import torch  # takes seconds, and lists can be read without

    present = torch.zeros(256, dtype=torch.bool)
    for key in split.labeled:
        mask = data.mask(key)
        if mask is None:
            raise ValueError(f"labeled image {key} of {data.name} has no mask")
        present |= torch.bincount(mask.flatten(), minlength=256) > 0
    return tuple(name for name, there in zip(data.classes, present.tolist(), strict=False) if not there)


def _labeled_first(train: Sequence[str], n: int, seed: int, name: str, choice: Sequence[str] | None = None) -> Split:
    if not train or len(set(train)) < len(train):
        raise ValueError("a split needs training ids, each of them once")
    labeled = tuple(sorted(choice or train, key=lambda key: hashlib.sha256(f"{seed}:{key}".encode()).digest())[:n])
    known = set(labeled)
    return Split(name, labeled, tuple(key for key in train if key not in known), "seeded")


def _read_subset(path: Path, train: Sequence[str]) -> tuple[str, ...]:
    known = set(train)
    ids = read_list(path, known)
    if strangers := [key for key in ids if key not in known]:
        raise ValueError(
            f"{path}: {len(strangers)} of {len(ids)} ids are not training images, the first: {strangers[0]}"
        )
    return ids


def _meant(line: str, known: Container[str]) -> str:
    """The id of a line: the whole of it if known, else the longest known end of its first column or of the line."""
    whole, column = line.strip(), line.split()[0]
    for entry, ends in ((whole, 1), (column, None), (whole, None)):
        path = entry.replace("\\", "/")
        steps = [*path.split("/")[:-1], _id(path)]
        for start in range(len(steps))[:ends]:
            end = "/".join(steps[start:])
            for name in (end, end.removesuffix("_leftImg8bit")):  # so Cityscapes calls its images, not its frames
                if name in known:
                    return name
    return _id(whole if known else column)


def _id(entry: str) -> str:
    name = entry.rsplit("/", 1)[-1]
    suffix = Path(name).suffix
    return name[: -len(suffix)] if suffix.lower() in IMAGE_SUFFIXES else name  # an id itself may contain dots


def _text(ids: Iterable[str]) -> str:
    return "".join(f"{key}\n" for key in ids)


def _write_atomic(path: Path, text: str) -> None:
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        temporary.write_text(text, encoding="utf-8", newline="\n")
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
