"""Tables from run records; every number in them is read, none is typed."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pandas as pd

from semiseg.recipe import usual
from semiseg.runs import Run, differences, table

from .style import title


def per_class(run: Run, baselines: Sequence[Run] = ()) -> pd.DataFrame:
    """IoU in percent per class: the run's student and teacher after the last epoch, and the baselines' teachers."""
    columns = {f"{title(run.label)}, {who}": run.record["last"][who] for who in ("student", "teacher")}
    for other in baselines:
        columns[f"{title(other.label)}, teacher"] = other.record["last"]["teacher"]
    frame = pd.DataFrame({name: [*scores["iou"], scores["miou"]] for name, scores in columns.items()})
    frame.index = pd.Index([*run.record["data"]["classes"], "mean"], name="class")
    return (100 * frame.astype(float)).round(2)


def headline(run: Run) -> pd.DataFrame:
    """Last epoch (the headline) and best epoch on validation (optimistic), in percent."""
    rows = {
        who: {
            "last epoch": 100 * run.record["last"][who]["miou"],
            "best on validation": 100 * run.record["best"][who]["miou"],
            "at epoch": run.record["best"][who]["epoch"],
        }
        for who in ("teacher", "student")
    }
    return pd.DataFrame.from_dict(rows, orient="index").round(2)


def same_setting(run: Run, runs: Sequence[Run]) -> list[Run]:
    """The runs that may be compared with this one: same data, validation protocol, labeled lists and budget."""

    def fixed(r: Run) -> dict[str, Any]:
        recipe = r.record["recipe"]
        parts = {k: recipe[k] for k in ("data", "scale", "split", "seed", "network", "optimization", "evaluation")}
        return {**parts, "data_sha256": r.record["data"]["sha256"], "split_sha256": r.record["split"]["sha256"]}

    return [r for r in runs if r.folder != run.folder and not differences(fixed(run), fixed(r))]


def standard(runs: Sequence[Run]) -> list[Run]:
    """The runs of unchanged recipes: `recipe(method, data, split, scale, seed)`, plug-ins added, nothing replaced."""

    def unchanged(r: Run) -> bool:
        made = r.record["recipe"]
        return not differences(usual(made).as_dict(), made)

    return [r for r in runs if unchanged(r)]


def same_lists(runs: Sequence[Run]) -> None:
    """Raises ValueError where runs of one data set, scale and split name are not of the same labeled images.

    Lists drawn from a seed differ from seed to seed by intent, so that of those only the family counts; of published
    lists and of list files the hash must agree.
    """
    seen: dict[tuple[str, ...], Run] = {}
    for run in runs:
        recipe, lists = run.record["recipe"], _lists(run)
        key = tuple(recipe[part] for part in ("data", "scale", "split"))
        first = seen.setdefault(key, run)
        if _lists(first) != lists:
            raise ValueError(
                f"runs on different lists must not stand in one table: split {recipe['split']} is of "
                f"{' '.join(_lists(first))} in {first.folder} and of {' '.join(lists)} in {run.folder}"
            )


def _lists(run: Run) -> tuple[str, ...]:
    """Family, and the hash where it does not depend on the seed."""
    split = run.record["split"]
    family = split.get("family", "seeded")
    return (f"family {family}",) if family == "seeded" else (f"family {family},", f"SHA256 {split['sha256'][:12]}")


def over_seeds(runs: Sequence[Run]) -> pd.DataFrame:
    """Mean, standard deviation and number of seeds per method and split, mIoU in percent of the teacher, last epoch.

    Raises ValueError where runs of one split name are of different lists, see `same_lists`.
    """
    same_lists(runs)
    frame = table(list(runs))
    grouped = frame.groupby(["data", "scale", "split", "method"], sort=False).miou
    out = grouped.agg(["mean", "std", "count"]).rename(columns={"std": "s.d.", "count": "seeds"})
    return out.round(2).rename(index=title, level="method").reset_index()


def paired_gain(runs: Sequence[Run], method: str, baseline: str) -> pd.DataFrame:
    """mIoU of `method` minus `baseline` for each split and seed that both have, in points.

    Raises ValueError where two runs of one seed were not trained on the same lists, and see `same_lists`.
    """
    same_lists([r for r in runs if r.label in (method, baseline)])
    pairs = []
    for a in (r for r in runs if r.label == method):
        for b in (r for r in runs if r.label == baseline):
            keys = ("data", "scale", "split", "seed")
            if any(a.record["recipe"][k] != b.record["recipe"][k] for k in keys):
                continue
            for part in ("data", "split"):
                if a.record[part]["sha256"] != b.record[part]["sha256"]:
                    raise ValueError(f"{a.folder} and {b.folder} have different {part} lists and must not be compared")
            pairs.append({**{k: a.record["recipe"][k] for k in keys}, "gain": 100 * (a.miou - b.miou)})
    return pd.DataFrame(pairs, columns=["data", "scale", "split", "seed", "gain"])


def gain_summary(runs: Sequence[Run], pairs: Sequence[tuple[str, str]]) -> pd.DataFrame:
    """Paired differences over seeds: mean, standard deviation, smallest, number of seeds, in points."""
    rows = []
    for method, baseline in pairs:
        for split, gains in paired_gain(runs, method, baseline).groupby("split", sort=False).gain:
            what = f"{title(method)} minus {title(baseline)}"
            rows.append([what, split, gains.mean(), gains.std(), gains.min(), len(gains)])
    return pd.DataFrame(rows, columns=["difference", "split", "mean", "s.d.", "smallest", "seeds"]).round(2)


def with_counts(runs: Sequence[Run]) -> pd.DataFrame:
    """One row per run: method, seed, labeled and unlabeled images, steps, mIoU in percent (last and best epoch).

    Raises ValueError where runs of one split name are of different lists, see `same_lists`.
    """
    same_lists(runs)
    rows = [
        {
            "method": title(r.label),
            "seed": r.record["recipe"]["seed"],
            "labeled": r.record["split"]["labeled"],
            "unlabeled": r.record["split"]["unlabeled"],
            "steps": r.record["last"]["step"],
            "mIoU, last epoch": 100 * r.miou,
            "student": 100 * r.record["last"]["student"]["miou"],
            "best on validation": 100 * r.record["best"]["teacher"]["miou"],
        }
        for r in runs
    ]
    return pd.DataFrame(rows).round(2).sort_values("mIoU, last epoch", ignore_index=True) if rows else pd.DataFrame()
