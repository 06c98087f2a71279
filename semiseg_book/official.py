"""What released code effectively ran, setting by setting, beside what this package does under its official reading."""

from __future__ import annotations

import tomllib
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cache
from typing import Any

from semiseg import registry
from semiseg.checkout import repo_root
from semiseg.recipe import Recipe, reading, recipe, with_plug_ins

FOLDER = "book/official"
SPLIT = "1_8"  # of settings that are the same on every split
DATA_TITLES = {"voc": "PASCAL VOC", "cityscapes": "Cityscapes", "coco": "COCO"}


@dataclass(frozen=True)
class Setting:
    """One setting of released code.

    data, hosts: where it holds; without hosts, wherever the method or plug-in runs.
    official, source: the effective value, after world-size effects, and where it is read; paper: the text, where it
    differs or says nothing.
    ours, ours_by_split: values of "part.option" under the official reading; reason: what is not reproduced, and why.
    """

    topic: str
    name: str
    data: tuple[str, ...]
    official: str
    source: str
    paper: str = ""
    reason: str = ""
    hosts: tuple[str, ...] = ()
    ours: dict[str, Any] = field(default_factory=dict)
    ours_by_split: dict[str, dict[str, Any]] = field(default_factory=dict)

    def wanted(self) -> Iterator[tuple[str, dict[str, Any]]]:
        """Splits and the values that options must have there."""
        if self.ours:
            yield SPLIT, self.ours
        yield from self.ours_by_split.items()


@dataclass(frozen=True)
class Official:
    """The table of one method or plug-in; commit is empty where no code was released, and the paper is the source."""

    name: str
    repository: str
    commit: str
    license: str
    settings: tuple[Setting, ...]

    @property
    def is_plug_in(self) -> bool:
        return self.name in registry.plug_ins()

    def hosts(self) -> tuple[str, ...]:
        """The methods it is about: itself, or every host that a row of a plug-in names."""
        if not self.is_plug_in:
            return (self.name,)
        return tuple(dict.fromkeys(host for row in self.settings for host in row.hosts))

    def recipe(self, host: str, data: str, split: str) -> Recipe:
        """The paper-scale recipe under its official reading; as it is where it has no such reading."""
        made = recipe(host, data, split, "paper")
        if self.is_plug_in:
            made = with_plug_ins(made, self.name)
        known = {
            *registry.method(host).readings,
            *(key for name in made.plug_ins for key in registry.plug_in(name).readings),
        }
        return reading(made, "official") if "official" in known else made


@cache
def tables() -> dict[str, Official]:
    """Every table by the name of its method or plug-in, in the order of the registry.

    Raises ValueError for a setting with neither a value of ours nor a reason, or with a key there is not.
    """
    found = {}
    for name in (*registry.methods(), *registry.plug_ins()):
        values = tomllib.loads((repo_root() / FOLDER / f"{name}.toml").read_text(encoding="utf-8"))
        rows = tuple(_setting(name, row) for row in values["setting"])
        found[name] = Official(name, values["repository"], values["commit"], values["license"], rows)
    return found


def _setting(table: str, row: dict[str, Any]) -> Setting:
    if not row.keys() & {"ours", "ours_by_split", "reason"}:
        raise ValueError(f"{table}, {row.get('name')}: neither a value of ours nor a reason")
    try:
        return Setting(**row | {key: tuple(row[key]) for key in ("data", "hosts") if key in row})
    except TypeError as error:
        raise ValueError(f"{table}, {row.get('name')}: {error}") from error


def plain(value: Any) -> Any:
    """A value of an option as a table writes it."""
    return "none" if value is None else list(value) if isinstance(value, tuple) else value


def differences(table: Official) -> Iterator[tuple[Setting, str]]:
    """Every value under our official reading that is not the table's: its setting, and a line that names it."""
    for row in table.settings:
        for host in row.hosts or table.hosts():
            for data in row.data:
                for split, values in row.wanted():
                    made = table.recipe(host, data, split)
                    for option, value in values.items():
                        try:
                            ours = plain(made.value(option))
                        except ValueError as error:
                            ours = str(error)
                        if ours != value:
                            where = f"{host}, {DATA_TITLES[data]}, {split}: {row.name}: {option}"
                            yield row, f"{where} is {ours!r}, official {value!r}"


# --- the page -----------------------------------------------------------------------------


def page() -> str:
    """Markdown: for every method, what differs yet, what is not reproduced and why, then all settings, folded."""
    return "\n\n".join(_chapter(table) for table in tables().values())


def summary() -> str:
    """Markdown: of the settings of each method, how many are equal, differ yet, and are left out or in part."""
    head = "| | code | all | equal | not yet | left out |\n|---|---|---|---|---|---|"
    lines = [head]
    for table in tables().values():
        open_ = {id(row) for row, _ in differences(table)}
        left = {id(row) for row in table.settings if row.reason} - open_
        count = len(table.settings)
        numbers = f"{count} | {count - len(open_) - len(left)} | {len(open_)} | {len(left)}"
        lines.append(f"| [{_title(table)}](official-{table.name}) | {_code(table, short=True)} | {numbers} |")
    return "\n".join(lines)


def _title(table: Official) -> str:
    return (registry.plug_in if table.is_plug_in else registry.method)(table.name).title


def _code(table: Official, short: bool = False) -> str:
    if not table.commit:
        return "the paper's text" if short else "the paper's text; code was not released"
    name = table.repository.removeprefix("https://github.com/")
    if short:
        return f"[{name.partition('/')[2]}]({table.repository})"
    terms = "no license" if table.license in ("", "none") else table.license
    return f"[{name}]({table.repository}/tree/{table.commit}) `{table.commit[:7]}`, {terms}"


def _chapter(table: Official) -> str:
    left, found = [row for row in table.settings if row.reason], [f"- {line}" for _, line in differences(table)]
    lines = [f"(official-{table.name})=", f"## {_title(table)}", f"Read from {_code(table)}."]
    if found:
        lines += [
            "Where the official reading is not yet what the table says:",
            "\n".join(f"- {line}" for line in found),
        ]
    if left:
        lines += ["Left out, or reproduced in part:", "\n".join(map(_item, left))]
    lines += [f":::{{dropdown}} All {len(table.settings)} settings", "\n".join(map(_item, table.settings)), ":::"]
    return "\n\n".join(lines)


def _item(row: Setting) -> str:
    where = ", ".join([row.topic, *row.hosts, *(DATA_TITLES[data] for data in row.data)])
    values = [f"`{name}={value}`" for name, value in row.ours.items()]
    for split, each in row.ours_by_split.items():
        values.append(f"{split}: " + ", ".join(f"`{name}={value}`" for name, value in each.items()))
    paper = f" Paper: {row.paper}." if row.paper else ""
    ours = f" Here: {'; '.join(values)}." if values else ""
    reason = f" *{row.reason.rstrip('.')}.*" if row.reason else ""
    return f"- **{row.name}** ({where}): {row.official} (`{row.source}`).{paper}{ours}{reason}"
