"""What the first cell of a notebook calls: checks of the parameters papermill injected, and where the repository is."""

from __future__ import annotations

import math
from collections.abc import Iterable
from pathlib import Path

from .data.splits import SPLITS

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
