"""papermill trains every notebook at the smallest scale, and a wrong parameter stops in the first cells."""

from pathlib import Path

import nbformat
import papermill
import pytest
from papermill.exceptions import PapermillExecutionError

from semiseg.notebook import parse_split, repo_root
from semiseg.runs import Run

NOTEBOOKS = repo_root() / "notebooks"
RUNS = {"wpl": "unimatch+wpl", "upc": "mean_teacher+upc", "recipe": "cps"}  # notebooks whose run is not named like them
METHODS = sorted(p.stem for p in NOTEBOOKS.glob("*.ipynb") if "scale" in papermill.inspect_notebook(p))


@pytest.mark.parametrize("name", METHODS)
def test_papermill_trains(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SEMISEG_REUSE", raising=False)
    out = tmp_path / "out.ipynb"
    papermill.execute_notebook(
        NOTEBOOKS / f"{name}.ipynb", out, {"scale": "smoke", "split": 14, "seed": 5}, progress_bar=False
    )
    run = Run.read(repo_root() / "runs" / "local" / "digits-smoke" / f"{RUNS.get(name, name)}-{parse_split(14)}-seed5")
    assert run.record["recipe"]["split"] == "1_4" and run.record["last"]["step"] == 8
    cells = nbformat.read(out, 4).cells
    assert not any(o.get("name") == "stderr" for c in cells if c.cell_type == "code" for o in c.outputs)


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({"split": "1_7"}, "unknown split '1_7'; expected one of 1_16, 1_8, 1_4, 1_2, full"),
        ({"data": "voc"}, "data='voc' needs root"),
    ],
)
def test_a_wrong_parameter_stops_before_training(parameters: dict, message: str, tmp_path: Path) -> None:
    with pytest.raises(PapermillExecutionError) as caught:
        papermill.execute_notebook(NOTEBOOKS / "ddfp.ipynb", tmp_path / "out.ipynb", parameters, progress_bar=False)
    assert message in str(caught.value)
    done = [c for c in nbformat.read(tmp_path / "out.ipynb", 4).cells if c.cell_type == "code" and c.execution_count]
    assert len(done) <= 3
