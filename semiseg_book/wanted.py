"""What a cell of a paper's table wants: a recipe, the records that are of it, and the command that makes one."""

from __future__ import annotations

import json
import shlex
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

from semiseg.data.splits import SPLITS
from semiseg.recipes import DATA, METHODS, SCALES, Recipe, recipe
from semiseg.runs import LOCAL, Run
from semiseg.variants import changed, option_of, suffix_of, text_of, with_plug_ins

Change = Any  # a value, or a function of the unchanged recipe for what depends on scale
SEEDS = (0, 1, 2)
CHAPTERS = ("ddfp", "dgcl", "esl")  # methods whose own notebook trains their unchanged recipe
WPL_HOSTS = ("unimatch", "augseg", "ael", "u2pl", "mean_teacher")  # of notebooks/wpl.ipynb


@dataclass(frozen=True)
class Setting:
    """Where a recipe is trained.

    `labeled` is the number of labeled images a published list has, which a record must have too; None on the embedded
    set, whose partitions are seeded and known by name.
    """

    data: str
    scale: str
    split: str
    labeled: int | None = None


@dataclass(frozen=True)
class Want:
    """A method, its plug-ins and its changed options, on whatever data and scale."""

    method: str
    plug_ins: tuple[str, ...] = ()
    changes: Mapping[str, Change] = field(default_factory=dict)

    @property
    def host(self) -> Want:
        """The same without plug-ins and without their options."""
        kept = {name: value for name, value in self.changes.items() if name.split(".")[0] not in self.plug_ins}
        return Want(self.method, (), kept)

    def possible(self, at: Setting) -> bool:
        """Whether this package can train it: the method is here and has unlabeled images to learn from."""
        learns = self.method == "supervised" or at.split != "full" or at.labeled is not None
        return self.method in METHODS and at.data in DATA and at.scale in SCALES and learns

    def recipe(self, at: Setting, seed: int = 0) -> Recipe:
        """The whole recipe.  Raises ValueError where it is not possible."""
        base = recipe(self.method, at.data, at.split, at.scale, seed)  # type: ignore[arg-type]
        base = with_plug_ins(base, ",".join(self.plug_ins))
        return changed(base, self.values(base))

    def values(self, base: Recipe) -> dict[str, Any]:
        """The changed options at this scale; those that are usual there are left out."""
        new = {name: value(base) if callable(value) else value for name, value in self.changes.items()}
        return {name: value for name, value in new.items() if value != option_of(base, name)}

    def command(self, at: Setting, seed: int = 0) -> list[str]:
        """The words of a papermill call that trains it.

        The unchanged recipe of a chapter's own method is trained by the chapter, everything else by
        notebooks/recipe.ipynb.
        """
        base = with_plug_ins(recipe(self.method, at.data, at.split, at.scale, seed), ",".join(self.plug_ins))  # type: ignore[arg-type]
        values = self.values(base)
        chosen: dict[str, str] = {}
        notebook = "recipe"
        if not values and not self.plug_ins and self.method in CHAPTERS:
            notebook = self.method
        elif not values and self.plug_ins == ("wpl",) and self.method in WPL_HOSTS:
            notebook, chosen = "wpl", {"host": self.method}
        else:
            chosen = {"method": self.method, "plug_ins": ",".join(self.plug_ins), "changes": text_of(values)}
        chosen |= {"split": at.split, "seed": str(seed)} | _where(at)
        pairs = [word for name, value in chosen.items() if value for word in ("-p", name, value)]
        name = "-".join(filter(None, [at.data, at.scale, base.label, _label(at), f"seed{seed}", suffix_of(values)]))
        return ["papermill", f"notebooks/{notebook}.ipynb", f"runs/{name}.ipynb", *pairs]


def _label(at: Setting) -> str:
    return at.split if at.labeled is None else str(at.labeled)


def _where(at: Setting) -> dict[str, str]:
    """Parameters of a setting other than the usual, embedded, one; the list is named after its number of images."""
    if (at.data, at.scale) == ("digits", "tiny"):
        return {}
    found = {"data": at.data, "scale": at.scale}
    if at.data == "digits":
        return found
    roots = {"voc": "VOC2012", "cityscapes": "cityscapes"}
    lists = {} if at.labeled is None else {"labeled_list": f"{at.labeled}.txt"}
    return found | {"root": roots[at.data]} | lists


def shell(words: Iterable[str]) -> str:
    """The words as one line of a shell."""
    return shlex.join(words)


def split_of(partition: str) -> str | None:
    """'1/8' -> '1_8'; None for a partition that has no name here."""
    name = partition.replace("/", "_")
    return name if name in SPLITS else None


class Records:
    """Runs, found by what was trained: method, plug-ins, every option, data and scale; not by the folder's name."""

    def __init__(self, runs: Iterable[Run]) -> None:
        self._found: dict[str, list[Run]] = {}
        for run in sorted(runs, key=lambda r: (LOCAL in r.folder.parts, r.folder.as_posix())):
            self._found.setdefault(_key(run.record["recipe"]), []).append(run)

    def of(self, want: Want, at: Setting) -> list[Run]:
        """The runs of a wanted recipe, one per seed in their order; committed before local ones."""
        if not self._found or not want.possible(at):
            return []
        by_seed: dict[int, Run] = {}
        for run in self._found.get(_key_of(want.recipe(at)), ()):
            made, split = run.record["recipe"], run.record["split"]
            right = made["split"] == at.split if at.labeled is None else split.get("labeled") == at.labeled
            if right:
                by_seed.setdefault(made["seed"], run)
        return [by_seed[seed] for seed in sorted(by_seed)]


@lru_cache(maxsize=4096)  # tables share recipes, and a page asks for each many times
def _key_of(made: Recipe) -> str:
    return _key(made.as_dict())


def _key(values: Mapping[str, Any]) -> str:
    """Of a recipe's dictionary: without seed and name of the list, and wherever an encoder's weights came from."""
    kept = {name: value for name, value in values.items() if name not in ("seed", "split")}
    for part in ("network", "detector"):
        if part in kept:
            pretrained = kept[part].get("weights") is not None
            kept[part] = {**kept[part], "weights": pretrained}
    return json.dumps(_floats(kept), sort_keys=True)


def _floats(value: Any) -> Any:
    """1 and 1.0 are one option."""
    if isinstance(value, Mapping):
        return {name: _floats(each) for name, each in value.items()}
    if isinstance(value, list | tuple):
        return [_floats(each) for each in value]
    return float(value) if type(value) is int else value
