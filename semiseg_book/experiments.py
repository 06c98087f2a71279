"""What a cell of a paper's table asks for: a recipe, the records that are of it, and the command that makes one."""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import PurePosixPath
from typing import Any

from semiseg import registry
from semiseg.data.splits import SPLITS
from semiseg.recipe import Recipe, recipe, with_plug_ins
from semiseg.runs import LOCAL, Run
from semiseg.scales import DATA, SCALES

Change = Any  # a value, or a function of the unchanged recipe for what depends on scale
SEEDS = (0, 1, 2)


def text_of(changes: Mapping[str, Any]) -> str:
    """What `parse_changes` reads."""
    return " ".join(
        f"{name}={value if isinstance(value, str) else repr(value).replace(' ', '')}" for name, value in changes.items()
    )


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
class Experiment:
    """A method, its plug-ins and its changed options, on whatever data and scale."""

    method: str
    plug_ins: tuple[str, ...] = ()
    changes: Mapping[str, Change] = field(default_factory=dict)

    @property
    def host(self) -> Experiment:
        """The same without plug-ins and without their options."""
        plugged = [registry.plug_in(name) for name in self.plug_ins]
        gone = {cls.part for each in plugged for cls in (each.options, each.companion) if cls}
        return Experiment(self.method, (), {k: v for k, v in self.changes.items() if k.split(".")[0] not in gone})

    def possible(self, at: Setting) -> bool:
        """Whether this package can train it: the method is here and has unlabeled images to learn from."""
        if self.method not in registry.methods() or at.data not in DATA or at.scale not in SCALES:
            return False
        return at.split != "full" or at.labeled is not None or not registry.method(self.method).unlabeled

    def recipe(self, at: Setting, seed: int = 0) -> Recipe:
        """The whole recipe.  Raises ValueError where it is not possible."""
        base = self.unchanged(at, seed)
        return base.changed(self.values(base))

    def unchanged(self, at: Setting, seed: int = 0) -> Recipe:
        """The recipe of the method and its plug-ins with every option as usual."""
        return with_plug_ins(recipe(self.method, at.data, at.split, at.scale, seed), ",".join(self.plug_ins))

    def values(self, base: Recipe) -> dict[str, Any]:
        """The changed options at this scale; those that are usual there are left out."""
        new = {name: value(base) if callable(value) else value for name, value in self.changes.items()}
        return {name: value for name, value in new.items() if value != base.value(name)}

    def command(self, at: Setting, seed: int = 0) -> list[str]:
        """The words of a papermill call that trains it."""
        base = self.unchanged(at, seed)
        changes = text_of(self.values(base))
        notebook, chosen = self._notebook(changes)
        chosen |= {"split": at.split, "seed": str(seed)} | _where(at)
        pairs = [word for name, value in chosen.items() if value for word in ("-p", name, value)]
        words = [at.data, at.scale, base.label, _label(at), f"seed{seed}", _for_a_file(changes)]
        return ["papermill", f"notebooks/{notebook}.ipynb", f"runs/{'-'.join(filter(None, words))}.ipynb", *pairs]

    def _notebook(self, changes: str) -> tuple[str, dict[str, str]]:
        """The notebook that trains it, and what names it there.

        A chapter trains its own method, that of WPL every host whose pseudo-labels it can weigh, with nothing changed;
        notebooks/recipe.ipynb trains everything else.
        """
        method = registry.method(self.method)
        if not changes and not self.plug_ins and PurePosixPath(method.chapter).name == self.method:
            return self.method, {}
        if not changes and self.plug_ins == ("wpl",) and method.unlabeled_weights:
            return "wpl", {"host": self.method}
        return "recipe", {"method": self.method, "plug_ins": ",".join(self.plug_ins), "changes": changes}


def _for_a_file(changes: str) -> str:
    """Changed options in the name of a notebook: 'ddfp.eps=1.0' -> 'ddfp.eps-1.0'."""
    return re.sub(r"[^\w.]+", "-", changes).strip("-")


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

    def of(self, experiment: Experiment, at: Setting) -> list[Run]:
        """The runs of an experiment, one per seed in their order; committed before local ones."""
        if not self._found or not experiment.possible(at):
            return []
        by_seed: dict[int, Run] = {}
        for run in self._found.get(_key_of(experiment.recipe(at)), ()):
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
