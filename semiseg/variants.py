"""A recipe from words: a method, plug-ins and changed options, as notebooks and the command line hand them over.

`"ddfp.eps=1.0 ddfp.step=vat"` changes two options of the part `ddfp` of a recipe; values are Python literals without
spaces, or bare words.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Mapping
from dataclasses import fields, is_dataclass, replace
from typing import Any

from .options import UPC, WPL, one_of
from .recipes import Recipe, recipe

PLUG_INS = {"upc": UPC, "wpl": WPL}


def with_plug_ins(base: Recipe, plug_ins: str) -> Recipe:
    """The recipe with the usual options of each plug-in of a list such as "upc" or "upc,wpl"; "" for none."""
    for name in re.split(r"[\s,+]+", plug_ins.strip()) if plug_ins.strip() else ():
        one_of("plug-in", name, tuple(PLUG_INS))
        base = replace(base, **{name: PLUG_INS[name]()})
    return base


def parse_changes(text: str) -> dict[str, Any]:
    """The changed options of a text.  Raises ValueError for a word that is not part.option=value."""
    found: dict[str, Any] = {}
    for word in text.split():
        name, equals, value = word.partition("=")
        if not equals or not value or not re.fullmatch(r"\w+\.\w+", name):
            raise ValueError(f"changes: {word!r} is not part.option=value, as in ddfp.eps=1.0")
        if name in found:
            raise ValueError(f"changes: {name} stands twice")
        try:
            found[name] = ast.literal_eval(value)
        except (ValueError, SyntaxError):
            found[name] = value
    return found


def changed(base: Recipe, changes: Mapping[str, Any]) -> Recipe:
    """The recipe with some options replaced.

    Args:
        base: the recipe.
        changes: values by "part.option"; a list becomes a tuple, an integer a float where the option is one.

    Raises:
        ValueError: a part or option there is not, a plug-in that does not take part, or a value the option refuses.
    """
    new: dict[str, dict[str, Any]] = {}
    for name, value in changes.items():
        new.setdefault(name.split(".")[0], {})[name.split(".")[1]] = _like(option_of(base, name), value, name)
    return replace(base, **{part: replace(getattr(base, part), **values) for part, values in new.items()})


def option_of(base: Recipe, name: str) -> Any:
    """The value of "part.option".  Raises ValueError, with the valid names, where there is none."""
    part, option = name.split(".")
    parts = [f.name for f in fields(base) if is_dataclass(getattr(base, f.name))]
    if part in PLUG_INS and part not in parts:
        raise ValueError(f"changes: {name} needs the plug-in {part}, which does not take part in {base.label}")
    one_of("part of a recipe", part, tuple(parts))
    options = getattr(base, part)
    one_of(f"option of {part}", option, tuple(f.name for f in fields(options)))
    return getattr(options, option)


def _like(now: Any, value: Any, name: str) -> Any:
    if isinstance(value, list):
        value = tuple(value)
    if isinstance(now, float) and type(value) is int:
        value = float(value)
    kinds = (bool, str, tuple)
    if any(isinstance(now, kind) and not isinstance(value, kind) and value is not None for kind in kinds):
        raise ValueError(f"changes: {name} is now {now!r}; {value!r} is of another kind")
    if type(now) in (int, float) and not (type(value) in (int, float) or value is None):
        raise ValueError(f"changes: {name} is a number, now {now!r}; got {value!r}")
    return value


def text_of(changes: Mapping[str, Any]) -> str:
    """What `parse_changes` reads."""
    return " ".join(f"{name}={_literal(value)}" for name, value in changes.items())


def suffix_of(changes: Mapping[str, Any]) -> str:
    """For the name of a run's folder: 'eps-1.0-step-vat'."""
    words = []
    for name, value in changes.items():
        text = "_".join(map(str, value)) if isinstance(value, tuple) else str(value)
        words.append(f"{name.split('.')[1]}-{re.sub(r'[^A-Za-z0-9_.]+', '_', text)}")
    return "-".join(words)


def _literal(value: Any) -> str:
    return value if isinstance(value, str) else repr(value).replace(" ", "")


def variant(
    method: str, plug_ins: str = "", changes: str = "", *, data: str, split: str, scale: str, seed: int
) -> Recipe:
    """The recipe of `notebooks/recipe.ipynb`: see `recipes.recipe`, `with_plug_ins` and `parse_changes`."""
    base = recipe(method, data, split, scale, seed)  # type: ignore[arg-type]  # names are checked there
    return changed(with_plug_ins(base, plug_ins), parse_changes(changes))
