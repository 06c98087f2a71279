"""What a clone contains is consistent: notebooks, README, metadata."""

import re
from pathlib import Path
from typing import Any

import nbformat
import pytest
import yaml

import semiseg

ROOT = Path(__file__).parents[2]
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
EACH_NOTEBOOK = pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
MACHINE_PATH = re.compile(rf"(?:{re.escape(str(ROOT))}|/home/|/Users/|/root/|/tmp/|[A-Z]:\\\\Users)[\w.-]*")


def code_cells(path: Path) -> list[Any]:
    cells = nbformat.read(path, as_version=4).cells
    return [cell for cell in cells if cell.cell_type == "code" and cell.source.strip()]


def outputs(path: Path) -> list[Any]:
    return [output for cell in code_cells(path) for output in cell.outputs]


def problems(path: Path) -> list[str]:
    """Outputs no committed notebook should have; nbval would pass over each of them."""
    counts = [cell.execution_count for cell in code_cells(path)]
    found = [] if counts == list(range(1, len(counts) + 1)) else [f"not executed once from the top: {counts}"]
    found += [f"error {o.ename}" for o in outputs(path) if o.output_type == "error"]
    found += [f"stderr {o.text!r}" for o in outputs(path) if o.output_type == "stream" and o.name == "stderr"]
    text = path.read_text()
    found += [f"path of a machine {hit}" for hit in MACHINE_PATH.findall(text)]
    found += ["script from a CDN"] * bool(re.search(r"cdn\.|cdnjs|unpkg", text))
    return found


@EACH_NOTEBOOK
def test_notebook_is_committed_as_executed(path: Path) -> None:
    assert problems(path) == []


@EACH_NOTEBOOK
def test_notebook_is_small_enough_for_a_repository(path: Path) -> None:
    assert path.stat().st_size < 4 * 2**20


@EACH_NOTEBOOK
def test_notebook_is_the_source_and_not_a_product_of_papermill(path: Path) -> None:
    notebook = nbformat.read(path, as_version=4)
    tags = [tag for cell in notebook.cells for tag in cell.metadata.get("tags", [])]
    assert tags.count("parameters") <= 1
    assert "injected-parameters" not in tags, "commit the notebook itself, not what papermill made of it"
    assert "papermill" not in notebook.metadata


def _notebook(folder: Path, source: str, count: int | None, outputs: list[Any]) -> Path:
    cell = nbformat.v4.new_code_cell(source, execution_count=count, outputs=outputs)
    path = folder / "n.ipynb"
    nbformat.write(nbformat.v4.new_notebook(cells=[cell]), path)
    return path


def test_the_guard_sees_each_kind_of_problem(tmp_path: Path) -> None:
    new = nbformat.v4.new_output
    good = new("stream", name="stdout", text="42\n")
    assert problems(_notebook(tmp_path, "x", 1, [good])) == []
    assert "not executed" in problems(_notebook(tmp_path, "x", None, [good]))[0]
    assert "not executed" in problems(_notebook(tmp_path, "x", 2, [good]))[0]
    assert problems(_notebook(tmp_path, "x", 1, [new("stream", name="stderr", text="w")])) == ["stderr 'w'"]
    assert problems(_notebook(tmp_path, "x", 1, [new("error", ename="E", evalue="", traceback=[])])) == ["error E"]
    assert "machine" in problems(_notebook(tmp_path, "open('/home/ann/a')", 1, []))[0]
    assert (
        "CDN" in problems(_notebook(tmp_path, "x", 1, [new("display_data", {"text/html": "https://cdn.plot.ly"})]))[0]
    )


@pytest.mark.parametrize("name", ["README.md", "CONTRIBUTING.md"])
def test_relative_links_lead_somewhere(name: str) -> None:
    links = re.findall(r"\]\(([^)#]+)\)", (ROOT / name).read_text())
    missing = [link for link in links if "://" not in link and not (ROOT / link).exists()]
    assert not missing


@pytest.mark.parametrize(
    "name", ["README.md", "CONTRIBUTING.md", *(f".github/workflows/{n}.yml" for n in ("book", "ci"))]
)
def test_make_targets_named_in_the_text_exist(name: str) -> None:
    rules = re.findall(r"^([a-z -]+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
    targets = {target for rule in rules for target in rule.split()}
    named = re.findall(r"(?:^|`|run: )make ([a-z-]+)(\$\{\{)?", (ROOT / name).read_text(), re.MULTILINE)
    for target, template in named:  # of a template the beginning
        assert target in targets or (template and any(each.startswith(target) for each in targets)), target


def test_readme_has_room_for_the_results() -> None:
    text = (ROOT / "README.md").read_text()
    assert text.count("<!-- results:begin -->") == text.count("<!-- results:end -->") == 1
    assert text.index("<!-- results:begin -->") < text.index("<!-- results:end -->")


def test_citation_is_of_this_version() -> None:
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert {"cff-version", "message", "title", "authors"} <= citation.keys()
    assert citation["version"] == semiseg.__version__
    assert citation["license"] == "Apache-2.0"
    assert (ROOT / "LICENSE").read_text().split()[:4] == ["Apache", "License", "Version", "2.0,"]


def test_every_citation_key_of_the_book_is_in_the_bibliography() -> None:
    known = re.findall(r"^@\w+\{([^,]+),", (ROOT / "book" / "references.bib").read_text(), re.MULTILINE)
    pages = [*(ROOT / "book").glob("*.md"), *(ROOT / "notebooks").glob("*.py")]
    cited = {
        key
        for page in pages
        for keys in re.findall(r"\{cite(?::\w)?\}`([^`]+)`", page.read_text())
        for key in keys.split(",")
    }
    assert len(known) == len(set(known))
    assert cited <= set(known)


def test_the_example_of_contributing_is_the_one_that_is_tested() -> None:
    text = (ROOT / "CONTRIBUTING.md").read_text()
    shown = text.split("<!-- example:begin -->\n```python\n")[1].split("\n```\n<!-- example:end -->")[0]
    assert shown == (ROOT / "tests/contract/entropy_weighted.py").read_text().rstrip()
