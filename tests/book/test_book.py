"""A small book with the settings of the real one builds without warnings and asks no other machine for anything."""

import re
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import nbformat
import pytest

from semiseg_book import offline as book

ROOT = Path(__file__).parents[2]
FIGURE = {"data": [{"y": [1, 2]}], "layout": {"height": 380, "title": {"text": "</script><b>"}}, "frames": []}
PAGE = """# A page

$$x^2$$ (eq-x)

```{computed} findings:misprints
```

See {eq}`eq-x` and {cite:p}`wang2024ddfp`, and [elsewhere](https://example.org).

```{bibliography}
```
"""


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of the pages of a book with one page and one notebook."""
    source = tmp_path_factory.mktemp("book")
    shutil.copy(ROOT / "_config.yml", source)
    shutil.copytree(ROOT / "book" / "_static", source / "book" / "_static")
    shutil.copy(ROOT / "book" / "references.bib", source / "book")
    (source / "_toc.yml").write_text("format: jb-book\nroot: book/page\nchapters:\n  - file: book/figure\n")
    (source / "book" / "page.md").write_text(PAGE)
    output = nbformat.v4.new_output("display_data", {book.PLOTLY_MIME: FIGURE})
    cells = [
        nbformat.v4.new_markdown_cell("# Figure"),
        nbformat.v4.new_code_cell("f", execution_count=1, outputs=[output]),
    ]
    metadata = {"kernelspec": {"name": "python3", "display_name": "Python 3", "language": "python"}}
    nbformat.write(nbformat.v4.new_notebook(cells=cells, metadata=metadata), source / "book" / "figure.ipynb")
    command = [str(Path(sys.executable).with_name("jupyter-book")), "build", ".", "-W", "-n", "--keep-going"]
    done = subprocess.run(command, cwd=source, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    return source / "_build" / "html"


@pytest.mark.parametrize("name", ["book/page.html", "book/figure.html", "search.html"])
def test_page_loads_nothing_from_elsewhere(site: Path, name: str) -> None:
    text = (site / name).read_text()
    tags = re.findall(r"<(?:script|link|img|iframe|source)\b[^>]*>", text)
    assert any("src=" in tag for tag in tags)
    assert [tag for tag in tags if re.search(r"""(?:src|href)=["']?(?:https?:)?//""", tag)] == []
    assert not re.search(r"jsdelivr|unpkg|cdnjs|googleapis|THEBE_JS_URL|x-thebe-config", text)


def test_a_page_shows_what_a_function_of_the_package_returns(site: Path) -> None:
    from semiseg_book.findings import misprints

    text = (site / "book" / "page.html").read_text()
    cells = re.findall(r"<td><p>([^<]*)</p></td>", text)
    assert cells == [cell.strip() for row in misprints().splitlines()[2:] for cell in row.strip("|").split("|")]


def test_mathjax_is_served_with_the_pages(site: Path) -> None:
    assert f"_static/{book.MATHJAX_SCRIPT}" in (site / "book" / "page.html").read_text()
    assert (site / "_static" / book.MATHJAX_SCRIPT).stat().st_size > 10**6


def test_plotly_is_loaded_where_there_is_a_figure_and_nowhere_else(site: Path) -> None:
    assert f"_static/{book.PLOTLY_SCRIPT}" in (site / "book" / "figure.html").read_text()
    assert "Plotly.newPlot" in (site / "book" / "figure.html").read_text()
    assert "lotly" not in (site / "book" / "page.html").read_text()
    assert (site / "_static" / book.PLOTLY_SCRIPT).stat().st_size > 10**6


def test_figure_data_cannot_close_their_script_element(site: Path) -> None:
    text = (site / "book" / "figure.html").read_text()
    start = text.index("data-plotly>")
    figure = text[start : text.index("</script>", start)]
    assert r"<\/script><b>" in figure
    assert "min-height:380px" in text
    assert "frames" not in figure


@pytest.mark.parametrize(("mime", "inline"), [("text/html", False), (book.PLOTLY_MIME, True)])
def test_renderer_leaves_other_outputs_alone(mime: str, inline: bool) -> None:
    data = SimpleNamespace(mime_type=mime, content="<p>")
    assert book.PlotlyRenderer.handle_mime(None, data, inline) is None


def test_renderer_reads_text_and_dict_alike() -> None:
    def render(content: object) -> str:
        data = SimpleNamespace(mime_type=book.PLOTLY_MIME, content=content)
        nodes = book.PlotlyRenderer.handle_mime(None, data, inline=False)
        assert nodes is not None
        return nodes[0].astext()

    assert render('{"data": [], "layout": {}}') == render({"layout": {}, "data": []})


def test_missing_mathjax_is_an_error_not_a_cdn(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(book, "MATHJAX_PACKAGE", "no-such-package")
    with pytest.raises(ModuleNotFoundError, match=r"no-such-package.*semiseg\[book\]"):
        book.mathjax_script()


def test_records_that_tables_link_to_lie_beside_the_pages(tmp_path: Path) -> None:
    for name in ("digits-tiny/cps-1_8-seed0", "local/digits-tiny"):
        (tmp_path / "src" / "runs" / name).mkdir(parents=True)
        (tmp_path / "src" / "runs" / name / "run.json").write_text(name)
    app = SimpleNamespace(builder=SimpleNamespace(format="html"), srcdir=tmp_path / "src", outdir=tmp_path / "out")
    book.copy_records(app, RuntimeError("the build failed"))
    assert not (tmp_path / "out").exists()
    book.copy_records(app, None)
    found = [p.relative_to(tmp_path / "out").as_posix() for p in (tmp_path / "out").rglob("*.json")]
    assert found == ["runs/digits-tiny/cps-1_8-seed0/run.json"]
