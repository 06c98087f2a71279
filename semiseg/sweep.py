"""Sweeps: a grid of runs in one file, and the plan of those that no record is of yet.

The grid of `semiseg runs plan GRID.toml`.  What stands above the first [[runs]] holds for all of them:

    data = "voc"                                   # also scale, root, family, ... as `semiseg train` names them
    splits = ["1_16", "1_8"]
    seeds = "0-9"                                  # or a list

    [[runs]]                                       # the most informative first
    methods = ["mean_teacher", "unimatch"]
    plug_ins = ["", "upc", "wpl"]                  # "": none
    variants = ["", "optimization.crop=321"]       # changes, spaces between; "": none

Every method meets every plug-in and variant: first all of them with the first seed and split, then the next split.
"""

from __future__ import annotations

import csv
import io
import json
import shlex
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import product
from pathlib import Path
from typing import Any, NamedTuple

from .data.dataset import SegmentationData
from .data.open import open_data, open_split, parse_split, seed_number
from .data.splits import Split
from .options import one_of
from .recipe import Recipe, recipe, to_toml, usual, with_plug_ins
from .runs import LOCAL, Run, write_text
from .training.folder import run_name
from .training.loop import Fit
from .training.stages import plan as stages_of

AXES: dict[str, list[Any]] = {"methods": [], "plug_ins": [""], "splits": ["1_8"], "seeds": [0], "variants": [""]}
IMAGES = ("root", "classes", "train_list", "unlabeled", "longest")  # of `open_data`
PARTITION = ("family", "lists")  # of `open_split`
PATHS = ("root", "unlabeled", "lists")
TABLE = "plan.csv"
COST = "step-cost.json"  # in runs/


class Identity(NamedTuple):
    """SHA256 of recipe, images and lists: two runs that agree in them are one."""

    recipe: str
    data: str
    split: str

    @staticmethod
    def of(run: Run) -> Identity:
        record = run.record
        return Identity(record["recipe_sha256"], record["data"]["sha256"], record["split"]["sha256"])


@dataclass(frozen=True)
class Planned:
    """A run to be made.

    Args:
        name: its folder below runs/local.
        changes: of its recipe, as the grid has them.
        steps: of its optimizer, those of all stages together.
        seconds: what they take; None: not known.
    """

    name: str
    recipe: Recipe
    changes: str
    steps: int
    seconds: float | None


@dataclass(frozen=True)
class Plan:
    """What is to be done, the most informative first.

    Args:
        options: of `semiseg train`, for images and lists.
        done: how many runs of the grid have a record.
        notes: lines about what stands twice in the grid.
    """

    runs: tuple[Planned, ...]
    options: Mapping[str, str]
    done: int
    notes: tuple[str, ...]


def read_grid(path: Path) -> dict[str, Any]:
    """A grid whose names and values are checked as far as one can without its images.

    Raises ValueError, in one line, for what is no TOML, an entry there is not, and values of the wrong kind.
    """
    try:
        grid = tomllib.loads(path.read_text(encoding="utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} is not a TOML file: {error}") from error
    blocks = grid.setdefault("runs", [{}])
    if not isinstance(blocks, list) or not all(isinstance(block, dict) for block in blocks):
        raise ValueError(f"{path}: runs must be tables, each under a line [[runs]]")
    for name in grid:
        one_of("entry of a grid", name, ("data", "scale", *IMAGES, *PARTITION, *AXES, "runs"))
    for block in blocks:
        for name in block:
            one_of("entry of [[runs]]", name, AXES)
    shared = {name: grid.pop(name) for name in AXES if name in grid}
    grid["runs"] = [{axis: _values(axis, (shared | block).get(axis, AXES[axis])) for axis in AXES} for block in blocks]
    for name in PATHS:
        if grid.get(name):
            grid[name] = str(Path(grid[name]).expanduser().resolve())
    return grid


def _values(axis: str, given: Any) -> list[Any]:
    """The values of an axis; seeds may be a range such as "0-9"."""
    values = given if isinstance(given, list) else [given]
    if not values:
        raise ValueError(f"{axis} of [[runs]] is empty; give at least one")
    if axis == "seeds":
        return [seed for value in values for seed in _seeds(value)]
    kinds = (str, int) if axis == "splits" else str
    for value in values:
        if not isinstance(value, kinds):
            raise ValueError(f"{axis} of [[runs]] are texts, got {value!r}")
    return values


def _seeds(value: Any) -> list[int]:
    if not isinstance(value, str):
        return [seed_number(value)]
    first, dash, last = value.partition("-")
    if not (dash and first.strip().isdigit() and last.strip().isdigit()) or int(first) > int(last):
        raise ValueError(f'seeds are numbers, or a range such as "0-9", got {value!r}')
    return [seed_number(seed) for seed in range(int(first), int(last) + 1)]


def make_plan(grid: Mapping[str, Any], runs: Sequence[Run], cost: Mapping[str, Any] | None = None) -> Plan:
    """The runs of a grid that no record is of.

    A record counts if recipe, images and lists are the same.  What stands twice is planned once, where it stands first.

    Args:
        grid: as `read_grid` returns it.
        runs: those that are finished, here or in the repository.
        cost: as `read_cost` returns it.

    Raises:
        ValueError: an unknown name, a recipe that cannot be trained, and a folder for a planned run in which another
            one is finished.
        FileNotFoundError: images or lists that are not there.
    """
    images = {name: grid[name] for name in IMAGES if name in grid}
    lists = {name: grid[name] for name in PARTITION if name in grid}
    data = open_data(grid.get("data", "digits"), **images)
    finished = {Identity.of(run) for run in runs}
    taken = {"/".join(run.folder.parts[-2:]): run for run in runs if LOCAL in run.folder.parts}
    place: dict[Identity, tuple[int, str]] = {}
    planned, again = [], dict[tuple[int, int], list[str]]()
    for number, cell, changes, split in _cells(grid, data, lists):
        identity = Identity(cell.sha256, data.sha256, split.sha256)
        name = run_name(cell, data, split)
        if identity in place:
            again.setdefault((number, place[identity][0]), []).append(_title(name, changes, place[identity][1]))
            continue
        place[identity] = number, changes
        if identity in finished:
            continue
        if name in taken:
            raise ValueError(
                f"{taken[name].folder} holds a finished run of other images, lists or options; move it away"
            )
        steps = _steps(cell, data, split)
        planned.append(Planned(name, cell, changes, steps, _seconds(cell, steps, cost)))
    options = {name: str(value) for name, value in {**images, **lists}.items() if value}
    notes = [
        f"runs {number}: {len(titles)} of its runs stand in runs {before} already and are planned once: {titles[0]}"
        for (number, before), titles in again.items()
    ]
    return Plan(tuple(planned), options, len(place) - len(planned), tuple(notes))


def _title(name: str, changes: str, before: str) -> str:
    return name if changes == before else f"{name}, where {changes!r} is the same as {before!r}"


def _cells(
    grid: Mapping[str, Any], data: SegmentationData, lists: Mapping[str, str]
) -> Iterator[tuple[int, Recipe, str, Split]]:
    """Number of the block, recipe, its changes and partition of each run, in the order of the grid."""
    partitions: dict[tuple[str, int], Split] = {}
    for number, block in enumerate(grid["runs"], 1):
        for seed, split, method, plug_ins, changes in product(
            *(block[axis] for axis in ("seeds", "splits", "methods", "plug_ins", "variants"))
        ):
            try:
                name = parse_split(split, lists.get("family", ""))
                base = recipe(method, grid.get("data", "digits"), name, grid.get("scale", "tiny"), seed)
                made = with_plug_ins(base, plug_ins).changed(changes)
            except ValueError as error:
                raise ValueError(f"runs {number}: {error}") from error
            if (name, seed) not in partitions:
                partitions[name, seed] = open_split(data, name, seed, **lists)
            partition = partitions[name, seed]
            yield number, replace(made, split=partition.name), changes, partition


def _steps(made: Recipe, data: SegmentationData, split: Split) -> int:
    task = Fit(made, data, split, Path(), {})
    return sum(replace(task, recipe=stage.recipe).steps for stage in stages_of(task)) or task.steps


def read_cost(path: Path) -> dict[str, Any] | None:
    """Seconds of a step by method, as `tests/bench/bench_hosts.py` measures them; None where nothing was measured.

    Raises ValueError for a file of something else.
    """
    if not path.is_file():
        return None
    try:
        cost = json.loads(path.read_text(encoding="utf-8"))
        seconds = {label: float(each["median"]) for label, each in cost["seconds"].items()}
        return {"data": cost["data"], "scale": cost["scale"], "device": str(cost["device"]), "seconds": seconds}
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{path} has no cost of steps: {error!r}") from error


def _seconds(made: Recipe, steps: int, cost: Mapping[str, Any] | None) -> float | None:
    """None where nothing was measured for these images, this method, and a network and batch of these sizes."""
    if cost is None or (made.data, made.scale) != (cost["data"], cost["scale"]) or made.label not in cost["seconds"]:
        return None
    as_measured = usual(made.as_dict())
    for get in (lambda r: r.network, lambda r: r.optimization.batch, lambda r: r.optimization.crop):
        if get(made) != get(as_measured):
            return None
    return steps * cost["seconds"][made.label]


def write_plan(plan: Plan, folder: Path) -> Path:
    """One recipe for each run, as <folder>/<name>.toml, and a table of all, which is returned.

    A recipe that is there already stays untouched, so that a sweep in progress goes on.
    """
    options = " ".join(f"--{name.replace('_', '-')} {shlex.quote(value)}" for name, value in plan.options.items())
    text = io.StringIO()
    table = csv.writer(text, lineterminator="\n")
    table.writerow(["run", "method", "split", "seed", "changes", "steps", "seconds", "root", "options"])
    for run in plan.runs:
        file, made = folder / f"{run.name}.toml", run.recipe
        file.parent.mkdir(parents=True, exist_ok=True)
        if not file.is_file() or file.read_text(encoding="utf-8") != to_toml(made):
            write_text(file, to_toml(made))
        seconds = "" if run.seconds is None else f"{run.seconds:.0f}"
        root = plan.options.get("root", "")
        table.writerow([run.name, made.label, made.split, made.seed, run.changes, run.steps, seconds, root, options])
    folder.mkdir(parents=True, exist_ok=True)
    write_text(folder / TABLE, text.getvalue())
    return folder / TABLE


def summary(plan: Plan, cost: Mapping[str, Any] | None) -> Iterator[str]:
    """Lines about a plan: what is left out, and what each method takes."""
    yield from plan.notes
    labels = list(dict.fromkeys(run.recipe.label for run in plan.runs))
    width = max(map(len, labels), default=0)
    for label in labels:
        yield f"  {label:{width}}  {_counted([run for run in plan.runs if run.recipe.label == label])}"
    how = f" (training steps alone, on {cost['device']})" if cost else ""
    yield f"{plan.done} done, {_counted(plan.runs)} to do{how}" if plan.runs else f"{plan.done} done, nothing to do"


def _counted(runs: Sequence[Planned]) -> str:
    known = [run.seconds for run in runs if run.seconds is not None]
    costs = [f"{sum(known) / 3600:.1f} h"] * bool(known)
    if unknown := len(runs) - len(known):
        costs.append(f"{unknown} of unknown cost")
    return f"{len(runs)} runs, {' and '.join(costs)}"
