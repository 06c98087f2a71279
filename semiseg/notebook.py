"""What notebooks call: checks of the parameters papermill injected, the data they name, and the run itself."""

from __future__ import annotations

import math
import os
from collections.abc import Iterable
from pathlib import Path

from .data.dataset import SegmentationData
from .data.digits import Digits
from .data.splits import SPLITS, Split, seeded_split, split_from_files
from .data.voc import VOC
from .recipes import Recipe, differences
from .runs import LOCAL, Run
from .train import train

# `papermill -p split 1_8` injects the integer 18, since Python and YAML 1.1 allow underscores in numbers.
_SPLIT_OF_INTEGER = {int(name): name for name in SPLITS if "_" in name}


def parse_split(value: object) -> str:
    """The name of a partition from any spelling of it: 1_8, "1_8", "1/8" and the integer 18 are the same.

    Raises ValueError, with the valid names, for anything else.
    """
    name = value
    if isinstance(value, str):
        name = value.strip().replace("/", "_")
    elif isinstance(value, int):
        name = _SPLIT_OF_INTEGER.get(value)
    if isinstance(name, str) and name in SPLITS:
        return name
    raise ValueError(f"unknown split {value!r}; expected one of {', '.join(SPLITS)}")


def choice(parameter: str, value: object, valid: Iterable[str]) -> str:
    """The value if it is one of the valid names, otherwise a ValueError that lists them."""
    names = tuple(valid)
    if isinstance(value, str) and value in names:
        return value
    raise ValueError(f"unknown {parameter} {value!r}; expected one of {', '.join(names)}")


def whole_number(parameter: str, value: object, minimum: int, maximum: float = math.inf) -> int:
    """The value if it is an integer in the range, otherwise a ValueError that states the range."""
    if isinstance(value, int) and not isinstance(value, bool) and minimum <= value <= maximum:
        return value
    valid = f"{minimum} or more" if maximum == math.inf else f"{minimum} to {maximum}"
    raise ValueError(f"{parameter}: {value!r} is not a whole number in the valid range, {valid}")


def whole_numbers(parameter: str, value: object, minimum: int, maximum: float = math.inf) -> tuple[int, ...]:
    """Whole numbers in the range, from "2,3,5", 5 or a list; otherwise a ValueError that states the range."""
    given = value.split(",") if isinstance(value, str) else value if isinstance(value, list | tuple) else [value]
    if not given:
        raise ValueError(f"{parameter}: no number given, expected one or more, separated by commas")
    parsed = [int(v) if isinstance(v, str) and v.strip().isdecimal() else v for v in given]
    return tuple(whole_number(parameter, v, minimum, maximum) for v in parsed)


def positive_int(parameter: str, value: object) -> int:
    """A whole number of at least 1."""
    return whole_number(parameter, value, 1)


def seed_number(value: object) -> int:
    """A seed that torch, NumPy and Python all accept: 0 to 2**32 - 1."""
    return whole_number("seed", value, 0, 2**32 - 1)


def repo_root(start: Path | None = None) -> Path:
    """The folder of the repository: above `start` (the working folder by default), or where the package lies.

    papermill runs a notebook where it was started, nbval and Jupyter run it in its own folder; paths made from here
    are right in both.  Raises FileNotFoundError when the package is not installed from a checkout either.
    """
    here = (start or Path.cwd()).resolve()
    package = Path(__file__).resolve().parent
    for folder in (here, *here.parents, *package.parents):
        if (folder / "pyproject.toml").is_file() and (folder / "semiseg" / "notebook.py").is_file():
            return folder
    raise FileNotFoundError(f"no repository above {here}; start the notebook inside a checkout of semiseg")


def open_data(data: str, root: str = "", classes: str = "", train_list: str = "train_aug") -> SegmentationData:
    """The data set a notebook's parameters name.

    Args:
        data: "digits" (embedded) or "voc" (a folder in the layout of PASCAL VOC).
        root: folder of the images; for "voc".
        classes: comma-separated names of the classes to keep, the others are ignored; empty: all.
        train_list: name of the list of training images, below ImageSets/Segmentation.
    """
    if choice("data", data, ("digits", "voc")) == "digits":
        if root:
            raise ValueError(f"data='digits' is embedded and has no root, got root={root!r}; did you mean data='voc'?")
        return Digits()
    if not root:
        raise ValueError("data='voc' needs root: the folder with JPEGImages, SegmentationClass(Aug) and ImageSets")
    names = [name.strip() for name in classes.split(",")] if classes else None
    return VOC(Path(root).expanduser(), classes=names, train_list=train_list)


def open_split(data: SegmentationData, split: str, seed: int, labeled_list: str = "") -> Split:
    """The seeded partition of a name, or the one a list file of labeled images gives."""
    if labeled_list:
        return split_from_files(labeled_list, None, data.train)
    return seeded_split(data.train, split, seed)


def train_or_reuse(
    recipe: Recipe,
    data: SegmentationData,
    split: Split,
    *,
    suffix: str = "",
    workers: int = 0,
    cache: float = 0.0,
) -> Run:
    """Train, into runs/local; under SEMISEG_REUSE=1 (set by the tests of the committed notebooks) read runs/ instead.

    workers, cache: see `train`.
    Raises FileNotFoundError or ValueError when the record to reuse is absent or of another recipe.
    """
    name, runs = recipe.name + (f"-{suffix}" if suffix else ""), repo_root() / "runs"
    if os.environ.get("SEMISEG_REUSE") != "1":
        return train(recipe, data, split, runs / LOCAL / name, workers=workers, cache=cache)
    run = Run.read(runs / name)
    found = differences(recipe.as_dict(), run.record["recipe"])
    if found:
        raise ValueError(f"the record in runs/{name} is of another recipe: {'; '.join(found)}; train it again")
    return run
