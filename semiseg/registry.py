"""What there is to train: methods and plug-ins, each described at the end of the file it lives in.

A module of `semiseg.hosts` or `semiseg.methods` says METHOD = Method(...) or PLUG_IN = PlugIn(...), and so does one
that an installed package names as an entry point of the group `semiseg.methods`.  Nothing is listed anywhere else.
"""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cache
from importlib.metadata import entry_points
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any, Literal

from .options import SHARED, Options, one_of

if TYPE_CHECKING:  # methods import this file
    from .recipe import Recipe
    from .training.loop import Fit
    from .training.stages import Stage
    from .types import Host

GROUP = "semiseg.methods"  # of entry points
PACKAGES = ("semiseg.hosts", "semiseg.methods")
Change = Callable[["Recipe"], "Recipe"]


def same(recipe: Recipe) -> Recipe:
    return recipe


@dataclass(frozen=True)
class Method:
    """A training scheme, or a paper that stands on one.

    Args:
        name: as in `semiseg train --method NAME`.
        title, color: in tables and figures; the color as #rrggbb.
        build: (recipe, number of classes) -> training scheme; of a method in stages that of the last.
        paper: authors, venue and year, and `cite` its key in the book's bibliography; `year` orders tables.
        options: class of its own options, whose `part` is the method's name; None: the shared ones are all.
        reads: the fields of `Consistency` it uses; the others stay out of its records.
        settings: the recipe that a scale makes for every method -> where this one trains otherwise.
        readings: "paper": every option as the text has it; "official": as the released code runs.
        plain: the same training without the method's idea, to which it is compared: another method, or a change of the
            recipe; None: it is a reference itself.
        loading: what it asks of `training_batches` beyond the shared options: views, strong, cutout, crops.
        stages: of its training; None: it is trained in one go.
        unlabeled: whether it learns from unlabeled images.
        unlabeled_weights: "part.option" of the weights of its pseudo-label terms.
        check: raises ValueError for a recipe that cannot be trained.
        chapter: the page of the book about it, as in "notebooks/ddfp".
    """

    name: str
    title: str
    color: str
    build: Callable[[Recipe, int], Host]
    paper: str = ""
    cite: str = ""
    year: int = 9999
    options: type[Options] | None = None
    reads: tuple[str, ...] = ("decay",)
    settings: Change = same
    readings: Mapping[str, Change] = field(default_factory=dict)
    plain: Change | str | None = None
    loading: Callable[[Recipe], dict[str, Any]] = lambda recipe: {}
    stages: Callable[[Fit], tuple[Stage, ...]] | None = None
    unlabeled: bool = True
    unlabeled_weights: tuple[str, ...] = ()
    check: Callable[[Recipe], None] = lambda recipe: None
    chapter: str = ""


@dataclass(frozen=True)
class PlugIn:
    """An idea that any host with a place for it takes as an argument.

    Args:
        component: which place.
        build: (recipe, width of the features, number of classes) -> what is plugged in.
        options: class of its options.  A recipe has the plug-in when it has them.
        at_scale: recipe -> its options, and those of its companion, at the scale of the recipe.
        companion: a further class of options that it reads, where `asks` says so of its own.
        prepare: (a training, a file that several runs share or None) -> the training with what must be made before it.
        shade, marker: how figures tell it from its host: share of black (or of white, where negative), plotly's symbol.
        name, title, paper, cite, year, readings, check, chapter: as of `Method`.
    """

    name: str
    title: str
    component: Literal["mix", "weigh"]
    build: Callable[[Recipe, int, int], Any]
    options: type[Options]
    at_scale: Callable[[Recipe], tuple[Options, ...]]
    companion: type[Options] | None = None
    asks: Callable[[Any], bool] = lambda options: False
    prepare: Callable[[Fit, Path | None], Fit] = lambda task, shared: task
    paper: str = ""
    cite: str = ""
    year: int = 9999
    readings: Mapping[str, Change] = field(default_factory=dict)
    check: Callable[[Recipe], None] = lambda recipe: None
    shade: float = 0.2
    marker: str = "cross"
    chapter: str = ""

    def __post_init__(self) -> None:
        if is_companion(self.name) or (self.companion and not is_companion(self.companion.part)):
            raise ValueError(
                f"plug-in {self.name!r}: its name has no underscore, and the part of its companion has one"
            )


@cache
def methods() -> Mapping[str, Method]:
    """Every method by name: training schemes, then papers, each by year."""
    return _by_name(Method)


@cache
def plug_ins() -> Mapping[str, PlugIn]:
    """Every plug-in by name."""
    return _by_name(PlugIn)


def method(name: str) -> Method:
    """Raises ValueError, with the nearest and all names, for a method there is not."""
    one_of("method", name, methods())
    return methods()[name]


def plug_in(name: str) -> PlugIn:
    """Raises ValueError, with the nearest and all names, for a plug-in there is not."""
    one_of("plug-in", name, plug_ins())
    return plug_ins()[name]


@cache
def parts() -> Mapping[str, type[Options]]:
    """The class of every part a recipe can have, by its name."""
    own = [m.options for m in methods().values() if m.options]
    plugged = [cls for p in plug_ins().values() for cls in (p.options, p.companion) if cls]
    return SHARED | {cls.part: cls for cls in (*own, *plugged)}


def is_companion(part: str) -> bool:
    """Whether a part is what a plug-in reads beside its own options; records are read without asking plug-ins."""
    return part == "detector" or "_" in part


def _by_name(kind: type[Any]) -> dict[str, Any]:
    found: dict[str, tuple[Any, str]] = {}
    for each, where in _described():
        if not isinstance(each, kind):
            continue
        if each.name in found and found[each.name][0] is not each:
            raise ValueError(f"{found[each.name][1]} and {where} both describe {each.name!r}; rename one of them")
        found.setdefault(each.name, (each, where))
    return {name: found[name][0] for name in sorted(found, key=lambda n: _place(*found[n]))}


def _place(each: Any, where: str) -> tuple[object, ...]:
    return where.startswith(PACKAGES[1]), each.name != "supervised", each.year, each.title.lower()


def _described() -> Iterator[tuple[object, str]]:
    """Descriptions, and where each was found."""
    for package in PACKAGES:
        for module in pkgutil.iter_modules(importlib.import_module(package).__path__, f"{package}."):
            yield from _of_module(importlib.import_module(module.name))
    for point in entry_points(group=GROUP):
        try:
            loaded = point.load()
        except Exception as error:
            raise ImportError(f"the method {point.name} ({point.value}) cannot be loaded: {error}") from error
        yield from _of_module(loaded) if isinstance(loaded, ModuleType) else [(loaded, point.value)]


def _of_module(module: ModuleType) -> Iterator[tuple[object, str]]:
    for name in ("METHOD", "PLUG_IN"):
        if hasattr(module, name):
            yield getattr(module, name), module.__name__
