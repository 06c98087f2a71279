"""What notebooks call: one function that turns their parameters into a recipe, images and a partition, and trains."""

from __future__ import annotations

import ast
import os
from collections.abc import Iterator, Mapping, Sequence, Set
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from .checkout import repo_root as repo_root
from .data.dataset import SegmentationData
from .data.open import open_data, open_split, parse_split, seed_number, whole_number
from .data.splits import Split
from .options import one_of, unknown
from .recipe import Recipe, reading, recipe, with_plug_ins
from .runs import LOCAL, RECORD, Run, find_runs
from .training.folder import run_name
from .training.run import train

# Parameters of every notebook that trains: default, and what it is.  Their cells hold these lines; a test compares.
# No equals sign: papermill could not list the parameter.
PARAMETERS: dict[str, tuple[object, str]] = {
    "split": ("1_8", "labeled share: 1_16, 1_8, 1_4, 1_2 or full; with a family, one of its names"),
    "data": ("digits", "digits (embedded), voc, cityscapes, camvid, coco, or folder (your own images and masks)"),
    "scale": ("tiny", "smoke (seconds), tiny (minutes), paper (the numbers of the paper; not for digits and camvid)"),
    "seed": (0, "of everything random"),
    "changes": (
        "",
        "options to change, as `semiseg train --set` takes them, spaces between; `semiseg methods` lists them",
    ),
    "root": ("", "folder of the data set in its official layout; of your own: with images/ and masks/"),
    "classes": (
        "",
        "voc: to keep; folder: in the order of their ids, or a TOML file; commas between; empty: all",
    ),
    "train_list": ("train_aug", "voc: name of the list of training images; others: a file below root; unchanged: all"),
    "labeled_list": ("", "a list file of labeled images, instead of the seeded partition"),
    "family": (
        "",
        "published lists the split is of, as cps (`semiseg data fetch splits`); empty: the seeded ones",
    ),
    "workers": (0, "data loading processes"),
    "overwrite": (False, "train again where this very run is finished, instead of reading it"),
}


class BadInput(ValueError):
    """Wrong input; a notebook shows its one line in place of a traceback."""

    def _render_traceback_(self) -> list[str]:
        """IPython's hook."""
        return [f"semiseg: {self}"]


@contextmanager
def one_line() -> Iterator[None]:
    """Foreseen errors become `BadInput`."""
    try:
        yield
    except (ValueError, OSError, ImportError, ArithmeticError) as error:
        raise BadInput(str(error)) from None


def declared(name: str) -> str:
    """The line that declares a shared parameter in a notebook."""
    default, meaning = PARAMETERS[name]
    value = f'"{default}"' if isinstance(default, str) else repr(default)
    return f"{name} = {value}  # {meaning}"


@dataclass(frozen=True)
class Prepared:
    """What a notebook works with."""

    recipe: Recipe
    data: SegmentationData
    split: Split
    workers: int = 0
    overwrite: bool = False

    def train(self, recipe: Recipe | None = None) -> Run:
        """Train the recipe, or another one on the same images: see `train_or_reuse`."""
        with one_line():
            return train_or_reuse(
                recipe or self.recipe, self.data, self.split, workers=self.workers, overwrite=self.overwrite
            )


def prepare(method: str, given: Mapping[str, Any], *, plug_ins: str = "", own: Sequence[str] = ()) -> Prepared:
    """The recipe, images and partition that the parameters of a notebook name.

    Args:
        method: a method.
        given: names and values of the notebook, as from `globals()`: the shared parameters (`PARAMETERS`), where the
            notebook has it `variant` ("default", "paper" or "official"), and its own.
        plug_ins: names of plug-ins.
        own: names of further parameters, which the notebook reads itself.

    Raises:
        BadInput: a parameter there is not, or a value that is refused, in one line.
    """
    with one_line():
        known = {*PARAMETERS, "variant", *own}
        for name in sorted(_named(given, known) - known):
            raise ValueError(unknown("parameter", name, sorted(known & given.keys())))
        p = {name: given.get(name, default) for name, (default, _) in PARAMETERS.items()}
        split, seed = parse_split(p["split"], p["family"]), seed_number(p["seed"])
        if not isinstance(p["changes"], str):
            raise ValueError(f"changes is a text such as 'ddfp.eps=1', got {p['changes']!r}")
        one_of("overwrite", p["overwrite"], (True, False))
        made = with_plug_ins(recipe(method, p["data"], split, p["scale"], seed), plug_ins)
        made = reading(made, given.get("variant", "default")).changed(p["changes"])
        data = open_data(p["data"], p["root"], p["classes"], p["train_list"])
        partition = open_split(data, split, seed, p["labeled_list"], p["family"], str(repo_root() / "data" / "splits"))
        workers = whole_number("workers", p["workers"], 0)
        return Prepared(replace(made, split=partition.name), data, partition, workers, p["overwrite"])


def _named(given: Mapping[str, Any], known: Set[str]) -> set[str]:
    """Names of the parameters given: of a notebook those in the cells of parameters that ran since it last called
    `prepare`, its own and papermill's; other cells have names of their own."""
    if "In" not in given:
        visible = {name: value for name, value in given.items() if not name.startswith("_")}
        return {n for n, value in visible.items() if isinstance(value, str | int | float | list | tuple | dict | None)}
    names: set[str] = set()
    for source in reversed(given["In"][:-1]):
        if "prepare(" in source:
            break
        found = _set_by(source)
        if found & known or source.startswith("# Parameters"):
            names |= found
    return names


def _set_by(source: str) -> set[str]:
    """The names that a cell sets to plain values; none where it does anything else."""
    try:
        lines = [(line.targets, ast.literal_eval(line.value)) for line in ast.parse(source).body]  # type: ignore[attr-defined]
    except (AttributeError, SyntaxError, ValueError):
        return set()
    return {target.id for targets, _ in lines for target in targets if isinstance(target, ast.Name)}


def train_or_reuse(
    recipe: Recipe,
    data: SegmentationData,
    split: Split,
    *,
    workers: int = 0,
    cache: float = 0.0,
    overwrite: bool = False,
) -> Run:
    """Train, into runs/local; a run that is already finished there is read, and said so, instead of trained again.

    Under SEMISEG_REUSE=1 (set by the tests of the committed notebooks) the record of the recipe in runs/ is read.

    workers, cache, overwrite: see `train`.
    Raises FileNotFoundError when there is no record to reuse.
    """
    runs = repo_root() / "runs"
    if os.environ.get("SEMISEG_REUSE") == "1":
        return _recorded(runs, recipe)
    folder = runs / LOCAL / run_name(recipe, data, split)
    if overwrite or not (folder / RECORD).is_file():
        return train(recipe, data, split, folder, workers=workers, cache=cache, overwrite=overwrite)
    run = Run.read(folder)
    print(f"{folder.relative_to(runs.parent)} is finished and is read; `-p overwrite True` trains it again")
    return run


def _recorded(runs: Path, recipe: Recipe) -> Run:
    """The committed run of a recipe, wherever it lies below runs/."""
    found = [run for run in find_runs(runs / recipe.name.split("/")[0]) if run.record["recipe_sha256"] == recipe.sha256]
    if not found:
        raise FileNotFoundError(f"no record in {runs} is of the recipe {recipe.name}; train it")
    return found[0]
