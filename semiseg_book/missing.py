"""The runs that the book's tables still lack, most valuable first."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from semiseg.options import one_of
from semiseg.recipe import Recipe
from semiseg.scales import SCALES

from .experiments import SEEDS, Experiment, Records, Setting, shell
from .paper_cells import Score, score
from .paper_maps import ABLATIONS, at_paper_scale, experiment_of, miniatures, paper_setting, reference_of
from .published import PublishedTable, load_all

RANKS = ("main comparisons at 1_8", "ablations", "main comparisons at other partitions")


@dataclass
class Missing:
    """A run that no record is of."""

    experiment: Experiment
    setting: Setting
    seed: int
    rank: int  # of RANKS
    tables: set[tuple[str, str]] = field(default_factory=set)  # paper and number
    place: int = 0  # among the runs of that seed one of its tables lacks: 0 is the first

    @property
    def command(self) -> str:
        """A line of a shell that trains it."""
        return shell(self.experiment.command(self.setting, self.seed))


def missing(records: Records, scale: str = "tiny") -> list[Missing]:
    """Runs that tables ask for and no record is of.

    Three seeds of the main comparisons at 1_8 come first, then ablations, then other partitions; within each the first
    seed of all before the second.  What fills more tables comes before what fills fewer; of the ablations one row of
    each table before further rows.

    Args:
        records: those that need no training.
        scale: "tiny", the embedded set, or "paper".
    """
    one_of("scale", scale, SCALES[1:])
    found: dict[tuple[Recipe, int | None, int], Missing] = {}
    for table in load_all():
        lacking: dict[int, list[Missing]] = {seed: [] for seed in SEEDS}
        for experiment, at in _experiments(table, scale):
            made = experiment.recipe(at)
            for seed in missing_seeds(score(records.of(experiment, at))):
                key = (made, at.labeled, seed)
                rank = 1 if (table.paper, table.number) in ABLATIONS else 0 if at.split == "1_8" else 2
                item = found.setdefault(key, Missing(experiment, at, seed, rank, place=len(lacking[seed])))
                item.rank, item.place = min(item.rank, rank), min(item.place, len(lacking[seed]))
                item.tables.add((table.paper, table.number))
                if item not in lacking[seed]:
                    lacking[seed].append(item)
    return sorted(found.values(), key=lambda m: (m.rank, m.seed, m.place if m.rank == 1 else -len(m.tables)))


def missing_seeds(found: Score | None) -> list[int]:
    """Of the three seeds of a comparison those without a run."""
    have = {r.record["recipe"]["seed"] for r in found.runs} if found else set()
    return [seed for seed in SEEDS if seed not in have]


def _experiments(table: PublishedTable, scale: str) -> Iterator[tuple[Experiment, Setting]]:
    """Every experiment of a table, and what its rows are compared with."""
    for row in table.rows.itertuples():
        experiment = experiment_of(table, row)
        if experiment is None:
            continue
        reference = reference_of(table, experiment)
        for each in (experiment, *([reference[0]] if reference else [])):
            for at in _settings(table, row, scale):
                chosen = at_paper_scale(each, row) if scale == "paper" else each
                if chosen.possible(at):
                    yield chosen, at


def _settings(table: PublishedTable, row: Any, scale: str) -> list[Setting]:
    if scale == "tiny":
        return miniatures(table, row)
    at = paper_setting(row)
    return [at] if at else []
