"""The table of perturbations by hand: what counts, what is paired, what is not logged."""

from pathlib import Path

import pandas as pd
import pytest

from semiseg.recipe import recipe
from semiseg.runs import Run
from semiseg_book.chapters.ddfp import perturbations_table


def run(folder: Path, miou: float, seed: int = 0, method: str = "ddfp", curve: dict | None = None, **ddfp) -> Run:
    made = recipe(method, "digits", "1_8", "smoke", seed).as_dict()
    if ddfp:
        made["ddfp"] |= ddfp
    folder.mkdir()
    last = {"epoch": [1, 2], **{name: [9.0, value] for name, value in (curve or {}).items()}}
    pd.DataFrame(last).to_csv(folder / "metrics.csv", index=False)
    return Run(folder, {"recipe": made, "last": {"teacher": {"miou": miou}}})


def test_steps_are_compared_with_ddfps_own_seed_by_seed(tmp_path: Path) -> None:
    logged = {"flipped": 0.25, "step_norm": 1.0, "start_norm": 4.0}
    table = perturbations_table(
        [
            run(tmp_path / "a", 0.6, curve={"flipped": 0.05}),
            run(tmp_path / "b", 0.8, seed=1, curve={"flipped": 0.15}),
            run(tmp_path / "c", 0.5, seed=1, curve=logged, step="vat"),
            run(tmp_path / "d", 0.4, method="mean_teacher"),
            run(tmp_path / "e", 0.9, method="supervised"),
            run(tmp_path / "f", 0.9, eps=99.0),
        ]
    ).set_index("step")
    assert table.index.tolist() == ["none: mean teacher", "VAT, matched", "down the density"]
    assert table.seeds.tolist() == [1, 1, 2] and table.mIoU.tolist() == [40.0, 50.0, 70.0]
    assert table["minus density"].tolist() == pytest.approx([-20.0, -30.0, 0.0])
    assert table.loc["VAT, matched", ["flipped, %", "length"]].tolist() == [25.0, 0.25]
    assert table.loc["down the density", "flipped, %"] == 10.0 and pd.isna(table.loc["down the density", "length"])
    assert pd.isna(table.loc["none: mean teacher", "flipped, %"])


def test_without_runs_the_table_is_empty() -> None:
    assert len(perturbations_table([])) == 0
