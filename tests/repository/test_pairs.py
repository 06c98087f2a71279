"""Every notebook and its script carry the same cells."""

from pathlib import Path

import jupytext
import pytest
from jupytext.compare import compare_notebooks

FOLDER = Path(__file__).parents[2] / "notebooks"
NOTEBOOKS = sorted(FOLDER.glob("*.ipynb"))


def test_notebooks_and_scripts_come_in_pairs() -> None:
    assert [path.stem for path in NOTEBOOKS] == sorted(path.stem for path in FOLDER.glob("*.py"))


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_script_has_the_cells_of_the_notebook(path: Path) -> None:
    compare_notebooks(
        jupytext.read(path),
        jupytext.read(path.with_suffix(".py")),
        fmt="py:percent",
        allow_expected_differences=True,
        raise_on_first_difference=False,
        compare_outputs=False,
    )
