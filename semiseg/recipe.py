"""Recipes: every number of a training run as one frozen value, checked when it is built.

`recipe("ddfp")` makes one; `changed("ddfp.eps=1")` makes another, in the language of notebooks
(`-p changes "ddfp.eps=1"`), of the command line (`--set ddfp.eps=1`) and of files (`--config run.toml`, with eps = 1
under [ddfp]).
"""

from __future__ import annotations

import ast
import hashlib
import json
import re
import tomllib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, TypeVar, get_args, get_type_hints

import tomlkit

from . import registry
from .options import SHARED, Consistency, Evaluation, Network, Optimization, Options, one_of
from .runs import HEAD, label_of
from .scales import DATA, SCALES, shared_parts

P = TypeVar("P", bound=Options)
# What an optimizer of another kind needs for its numbers to mean anything.
_OF_OPTIMIZER = ("optimizer", "lr", "head_lr_factor", "momentum", "weight_decay", "clip_norm")


@dataclass(frozen=True)
class Recipe:
    """A training run but for the data itself.

    parts: options of the method, and of the plug-ins that take part.
    """

    method: str
    data: str
    split: str
    scale: str
    seed: int = 0
    network: Network = field(default_factory=Network)
    optimization: Optimization = field(default_factory=Optimization)
    consistency: Consistency = field(default_factory=Consistency)
    evaluation: Evaluation = field(default_factory=Evaluation)
    parts: tuple[Options, ...] = ()

    def __post_init__(self) -> None:
        described = registry.method(self.method)
        one_of("data", self.data, DATA)
        one_of("scale", self.scale, SCALES)
        if not isinstance(self.seed, int) or self.seed < 0:
            raise ValueError(f"seed must be an integer >= 0, got {self.seed!r}")
        object.__setattr__(self, "parts", self._complete())
        components = [registry.plug_in(name).component for name in self.plug_ins]
        if len(set(components)) < len(components):
            raise ValueError(f"{' and '.join(self.plug_ins)} are the same component of a host; take one of them")
        described.check(self)
        for name in self.plug_ins:
            if registry.plug_in(name).component == "mix" and not described.unlabeled:
                title = registry.plug_in(name).title
                raise ValueError(f"{title} changes unlabeled images, and {self.method} has none; choose another method")
            registry.plug_in(name).check(self)

    def _complete(self) -> tuple[Options, ...]:
        """The parts in one order, the method's own among them even where nobody gave them."""
        own = registry.method(self.method).options
        given = {part.part: part for part in self.parts}
        if own is not None:
            given.setdefault(own.part, own())
        valid = {own.part} if own else set()
        for plug_in in registry.plug_ins().values():
            if plug_in.options.part in given:
                usual = {part.part: part for part in plug_in.at_scale(self)}
                given, valid = usual | given, valid | usual.keys()
        if strangers := given.keys() - valid:
            raise ValueError(f"{self.method} does not read the options of {', '.join(sorted(strangers))}")
        return tuple(given[name] for name in registry.parts() if name in given)

    def __getitem__(self, kind: type[P]) -> P:
        """The options of a class.  Raises ValueError where they take no part."""
        if (found := self.get(kind)) is None:
            raise ValueError(f"{self.label} has no options of {kind.part}")
        return found

    def get(self, kind: type[P]) -> P | None:
        """The options of a class, None where they take no part."""
        return next((part for part in self.parts if isinstance(part, kind)), None)

    def having(self, *parts: Options) -> Recipe:
        """The recipe with these options in place of those of the same part; those of a plug-in plug it in."""
        new = {part.part: part for part in parts}
        shared = {name: new.pop(name) for name in SHARED if name in new}
        kept = {part.part: part for part in self.parts}
        return replace(self, parts=tuple((kept | new).values()), **shared)  # type: ignore[arg-type]

    def without(self, *plug_ins: str) -> Recipe:
        """The recipe without some of its plug-ins."""
        gone = {cls for name in plug_ins for cls in (registry.plug_in(name).options, registry.plug_in(name).companion)}
        return replace(self, parts=tuple(part for part in self.parts if type(part) not in gone))

    @property
    def plug_ins(self) -> tuple[str, ...]:
        """Names of the plug-ins that take part, in alphabetical order."""
        there = {type(part) for part in self.parts}
        return tuple(sorted(name for name, each in registry.plug_ins().items() if each.options in there))

    @property
    def head(self) -> tuple[Any, ...]:
        """Method, data, split, scale and seed."""
        return tuple(getattr(self, name) for name in HEAD)

    @property
    def label(self) -> str:
        """The method and its plug-ins, as in 'cps+upc'."""
        return "+".join([self.method, *self.plug_ins])

    @property
    def name(self) -> str:
        return f"{self.data}-{self.scale}/{self.label}-{self.split}-seed{self.seed}"

    def read(self) -> Iterator[Options]:
        """The parts that take part: without the companion of a plug-in that does not ask it."""
        idle = set()
        for name in self.plug_ins:
            plug_in = registry.plug_in(name)
            if not plug_in.asks(self[plug_in.options]):
                idle.add(plug_in.companion)
        yield from (getattr(self, name) for name in SHARED)
        yield from (part for part in self.parts if type(part) not in idle)

    def as_dict(self) -> dict[str, Any]:
        """Plain values; what the method does not use is left out."""
        used = dict(zip(HEAD, self.head, strict=True)) | {part.part: part.as_dict() for part in self.read()}
        reads = registry.method(self.method).reads
        used["consistency"] = {name: value for name, value in used["consistency"].items() if name in reads}
        for part in used.values():
            if isinstance(part, dict) and part.get("weights") and isinstance(part["weights"], str):
                part["weights"] = Path(part["weights"]).name  # where the file lies is not the recipe
        return json.loads(json.dumps(used))

    @staticmethod
    def from_dict(values: Mapping[str, Any]) -> Recipe:
        """The recipe that `as_dict` wrote.  Raises ValueError for keys or values it cannot have."""
        if missing := [name for name in HEAD if name not in values]:
            raise ValueError(f"not a recipe: it has no {missing[0]}")
        parts = []
        for name in values.keys() - set(HEAD):
            one_of("part of a recipe", name, registry.parts())
            if not isinstance(values[name], Mapping):
                raise ValueError(f"not a recipe: {name} is {values[name]!r}, not its options")
            parts.append(registry.parts()[name](**values[name]))
        return Recipe(*(values[name] for name in HEAD)).having(*parts)

    @property
    def sha256(self) -> str:
        return hashlib.sha256(json.dumps(self.as_dict(), sort_keys=True).encode()).hexdigest()

    def changed(self, changes: Mapping[str, Any] | str) -> Recipe:
        """The recipe with some options replaced, those of one part together.

        Args:
            changes: values by "part.option", or a text as `parse_changes` reads it.

        Raises:
            ValueError: a part or option there is not, a plug-in that does not take part, or a value that is refused.
        """
        new: dict[str, dict[str, Any]] = {}
        for name, value in (parse_changes(changes) if isinstance(changes, str) else changes).items():
            part, option = _split(name)
            kind = type(self.part(part, name))
            one_of(f"option of {part}", option, [o.name for o in kind.described()])
            reads = registry.method(self.method).reads
            if kind is Consistency and option not in reads:
                raise ValueError(f"{self.method} does not read {name}; of consistency it reads {', '.join(reads)}")
            new.setdefault(part, {})[option] = _fitting(get_type_hints(kind)[option], value)
        return self.having(*(replace(self.part(name), **values) for name, values in new.items()))

    def part(self, name: str, wanted: str = "") -> Options:
        """The options of a part by its name.  Raises ValueError where it takes no part."""
        here = {**{shared: getattr(self, shared) for shared in SHARED}, **{part.part: part for part in self.parts}}
        if name not in here and name in registry.parts():
            for plug_in in registry.plug_ins().values():
                if name in {cls.part for cls in (plug_in.options, plug_in.companion) if cls}:
                    missing = f"{plug_in.name}, which does not take part in {self.label}"
                    raise ValueError(f"{wanted or name} needs the plug-in {missing}")
        one_of("part of a recipe", name, here)
        return here[name]

    def value(self, name: str) -> Any:
        """The value of "part.option".  Raises ValueError, with the valid names, where there is none."""
        part, option = _split(name)
        options = self.part(part, name)
        one_of(f"option of {part}", option, [o.name for o in options.described()])
        return getattr(options, option)


def _split(name: str) -> tuple[str, str]:
    if not re.fullmatch(r"\w+\.\w+", name):
        raise ValueError(f"{name!r} is not part.option, as in ddfp.eps")
    part, _, option = name.partition(".")
    return part, option


def _fitting(kind: Any, value: Any) -> Any:
    """What was written, as the option has it: one number for a tuple of one, 'none' for None."""
    if isinstance(value, str) and value.lower() == "none" and type(None) in get_args(kind):
        return None
    tuples = [each for each in (kind, *get_args(kind)) if getattr(each, "__origin__", None) is tuple]
    if tuples and value is not None and not isinstance(value, list | tuple):
        return tuple(value.split(",")) if isinstance(value, str) else (value,)
    return value


def parse_changes(text: str) -> dict[str, Any]:
    """The changed options of a text such as "ddfp.eps=1.0 upc.k=2,3"; values are Python literals without spaces, or
    bare words.  Raises ValueError for a word that is not part.option=value, and for an option that stands twice."""
    found: dict[str, Any] = {}
    for word in text.split():
        name, equals, value = word.partition("=")
        if not equals or not value or not re.fullmatch(r"\w+\.\w+", name):
            raise ValueError(f"{word!r} is not part.option=value, as in ddfp.eps=1.0")
        if name in found:
            raise ValueError(f"{name} stands twice")
        try:
            found[name] = ast.literal_eval(value)
        except (ValueError, SyntaxError):
            found[name] = value
    return found


def with_plug_ins(base: Recipe, plug_ins: str) -> Recipe:
    """The recipe with the options at its scale of each plug-in of a list such as "upc" or "upc,wpl"; "" for none."""
    for name in filter(None, re.split(r"[\s,+]+", plug_ins)):
        base = base.having(*registry.plug_in(name).at_scale(base))
    return base


def reading(base: Recipe, name: str) -> Recipe:
    """The recipe read one way: "default"; "paper": the text; "official": the released code.

    Raises ValueError for a reading that neither the method nor one of its plug-ins has.
    """
    described: list[registry.Method | registry.PlugIn] = [registry.plug_in(each) for each in base.plug_ins]
    described.append(registry.method(base.method))
    valid = ["default", *{key: None for each in described for key in each.readings}]
    one_of("variant", name, valid)
    for each in described:
        base = each.readings.get(name, registry.same)(base)
    return base


# --- files --------------------------------------------------------------------------------


def to_toml(made: Recipe) -> str:
    """The complete recipe as a file that `from_toml` reads; None is written as "none"."""
    document = tomlkit.document()
    document.add(tomlkit.comment("every option of a run; semiseg train --config FILE trains it again"))
    for name, value in zip(HEAD, made.head, strict=True):
        document[name] = value
    if made.plug_ins:
        document["plug_ins"] = list(made.plug_ins)
    for part in made.read():
        reads = registry.method(made.method).reads if part is made.consistency else None
        table = tomlkit.table()
        for option in part.described():
            if reads is None or option.name in reads:
                value = getattr(part, option.name)
                item = tomlkit.item("none" if value is None else list(value) if isinstance(value, tuple) else value)
                table.add(option.name, item.comment(option.meaning))
        document[part.part] = table
    return tomlkit.dumps(document)


def from_toml(text: str, **head: Any) -> Recipe:
    """The recipe that a file describes: method, data, split, scale, seed and plug_ins, and a table for each part.

    Args:
        text: what is left out is as usual, so that a file may hold a single option.
        head: what replaces the file's own method, data, split, ...

    Raises:
        ValueError: no TOML, a name there is not, or a value that is refused.
    """
    try:
        values = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise ValueError(f"not a TOML file: {error}") from error
    values |= head
    tables = {name: values.pop(name) for name in list(values) if isinstance(values[name], dict)}
    plug_ins = values.pop("plug_ins", [])
    for name in values:
        one_of("entry", name, (*HEAD, "plug_ins", *registry.parts()))
    if "method" not in values:
        raise ValueError('the file says no method, as in method = "ddfp"')
    base = with_plug_ins(recipe(**values), ",".join(plug_ins))
    return base.changed({f"{part}.{name}": v for part, table in tables.items() for name, v in table.items()})


# --- recipes ------------------------------------------------------------------------------


def recipe(method: str, data: str = "digits", split: str = "1_8", scale: str = "tiny", seed: int = 0) -> Recipe:
    """The recipe of a method on a data set at a scale.

    Args:
        method: a name of `registry.methods`.
        data: one of DATA: "digits" (embedded), a benchmark, or "folder" (your own images).
        split: one of SPLITS, or the name of list files.
        scale: "smoke" (seconds, for tests), "tiny" (minutes on two cores), "paper" (the paper's own numbers).
        seed: of everything random in the run.

    Raises:
        ValueError: an unknown name, or a scale the data set does not have.
    """
    base = Recipe(method, data, split, scale, seed).having(*shared_parts(data, scale))
    made = registry.method(method).settings(base)
    if data == "coco" and scale == "paper":  # papers have settings for PASCAL VOC: what depends on images stays COCO's
        kept = _OF_OPTIMIZER if made.optimization.optimizer != base.optimization.optimizer else ()
        own = {name: getattr(made.optimization, name) for name in kept}
        return made.having(replace(base.optimization, **own), base.evaluation)
    return made.having(base.evaluation) if data == "folder" else made


def usual(values: Mapping[str, Any]) -> Recipe:
    """The recipe of the same method, plug-ins, data, split, scale and seed with nothing replaced."""
    made = recipe(*(values[name] for name in HEAD))
    return with_plug_ins(made, ",".join(label_of(values).split("+")[1:]))
