"""papermill trains every notebook at the smallest scale, and a wrong parameter stops in the first cells."""

import time
from pathlib import Path

import nbformat
import papermill
import pytest
from papermill.cli import _resolve_type
from papermill.exceptions import PapermillExecutionError

from semiseg.data.open import parse_split
from semiseg.notebook import repo_root
from semiseg.runs import RECORD, Run

NOTEBOOKS = repo_root() / "notebooks"
RUNS = {"wpl": "unimatch+wpl", "upc": "mean_teacher+upc", "recipe": "cps"}  # notebooks whose run is not named like them
METHODS = sorted(p.stem for p in NOTEBOOKS.glob("*.ipynb") if "scale" in papermill.inspect_notebook(p))


@pytest.mark.parametrize("name", METHODS)
def test_papermill_trains(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SEMISEG_REUSE", raising=False)
    out = tmp_path / "out.ipynb"
    parameters = {"scale": "smoke", "split": 14, "seed": 5, "overwrite": True}
    started = time.time()
    papermill.execute_notebook(NOTEBOOKS / f"{name}.ipynb", out, parameters, progress_bar=False)
    made = (repo_root() / "runs" / "local" / "digits-smoke").glob(f"{RUNS.get(name, name)}-{parse_split(14)}-seed5*")
    run = Run.read(min((f for f in made if (f / RECORD).stat().st_mtime >= started), key=lambda f: len(f.name)))
    assert run.record["recipe"]["split"] == "1_4" and run.record["last"]["step"] == 8
    cells = nbformat.read(out, 4).cells
    assert not any(o.get("name") == "stderr" for c in cells if c.cell_type == "code" for o in c.outputs)


@pytest.mark.parametrize(
    ("name", "parameters", "message"),
    [
        ("ddfp", {"splt": 18}, "unknown parameter 'splt'; did you mean 'split'? Valid are "),
        ("recipe", {"step": "vat"}, "unknown parameter 'step'; "),
        ("ddfp", {"split": "1_3"}, "unknown split '1_3'; did you mean '1_8'? Valid are 1_16, 1_8, 1_4, 1_2, full"),
        ("ddfp", {"split": "1_7"}, "unknown split '1_7'; "),
        ("ddfp", {"changes": "ddfp.epz=1"}, "unknown option of ddfp 'epz'; did you mean 'eps'? Valid are eps, "),
        ("ddfp", {"data": "voc"}, "data='voc' needs root"),
        ("upc", {"host": "supervised"}, "UPC changes unlabeled images, and supervised has none"),
        ("wpl", {"host": "stpp", "alpha": 0.5}, "unknown host with a factor alpha 'stpp'; "),
        ("own-data", {"changes": "optimization.epoch=1"}, "did you mean 'epochs'?"),
        ("own-data", {"spilt": 18}, "unknown parameter 'spilt'; did you mean 'split'?"),
    ],
)
def test_a_wrong_parameter_stops_before_training(name: str, parameters: dict, message: str, tmp_path: Path) -> None:
    out = tmp_path / "out.ipynb"
    with pytest.raises(PapermillExecutionError) as caught:
        papermill.execute_notebook(NOTEBOOKS / f"{name}.ipynb", out, parameters, progress_bar=False)
    assert message in str(caught.value)
    done = [c for c in nbformat.read(out, 4).cells if c.cell_type == "code" and c.execution_count]
    assert len(done) <= 4
    (error,) = [o for c in done for o in c.outputs if o.output_type == "error" and o.ename == "BadInput"]
    assert len("\n".join(error.traceback).splitlines()) <= 3


def test_the_split_arrives_from_the_command_line_as_a_number(tmp_path: Path) -> None:
    """What `papermill -p splt 1_8` injects is seen as it was written."""
    with pytest.raises(PapermillExecutionError, match="unknown parameter 'splt'; did you mean 'split'"):
        papermill.execute_notebook(
            NOTEBOOKS / "esl.ipynb", tmp_path / "out.ipynb", {"splt": _resolve_type("1_8")}, progress_bar=False
        )
