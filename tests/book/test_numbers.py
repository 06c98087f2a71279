"""No result in the book is typed: numbers come from records or the papers, and links to records lead there."""

import re
from pathlib import Path

import nbformat
import pytest

from semiseg_book.readme import BEGIN, END

ROOT = Path(__file__).parents[2]
PAGES = [*sorted((ROOT / "book").glob("*.md")), ROOT / "README.md", *sorted((ROOT / "notebooks").glob("*.py"))]
RESULT = re.compile(
    r"±|"
    r"(?<![\d.,/-])[1-9]\d\.\d{1,2}(?![\d.]|\s*(?:GB|MB|s\b|min))|"  # 63.2: a mIoU in percent
    r"(?:\d|one|two|three|four|five|six|seven|eight|nine|ten) (?:percentage )?points?\b|"
    r"\d ?mIoU\b|\bmIoU (?:of )?\d"
)
# A number that is no result, on which page, and why; the words around it tell it from others.
ALLOWED = {
    ("README.md", "and ± is their standard"): "explains the sign",
    ("calibration", "at 1/8 between 35 and 65 mIoU"): "a goal, set before training",
    ("calibration", "at least 15 points higher"): "a goal, set before training",
    ("calibration", "at least 4 points above"): "a goal, set before training",
    ("ddfp", "one point in ten labeled"): "points of a plane",
    ("hosts", "128 points"): "where the set loss samples",
    ("findings", "at least one point apart"): "what the table below it lists",
    ("findings", "Treat one point at few labels"): "advice",
}


def prose(path: Path) -> str:
    """What a page says in words: no code, equation, comment, address, directive or generated block."""
    text = path.read_text()
    if path.suffix == ".py":
        cells = re.findall(r"^# %% \[markdown\]\n((?:#.*\n)+)", text, re.MULTILINE)
        text = "\n\n".join(re.sub(r"^# ?", "", cell, flags=re.MULTILINE) for cell in cells)
    text = re.sub(rf"{re.escape(BEGIN)}.*?{re.escape(END)}", "", text, flags=re.DOTALL)
    text = re.sub(r"^(`{3,4}|:::)(?!.*admonition).*?^\1\s*$", "", text, flags=re.DOTALL | re.MULTILINE)
    text = re.sub(r"<!--.*?-->|\$\$.*?\$\$|\$[^$\n]+\$|`[^`\n]+`", "", text, flags=re.DOTALL)
    return re.sub(r"\]\([^)]*\)|https?://\S+", "]", text)


def typed(name: str, text: str) -> list[str]:
    """The results in a page's words that nothing allows, each with what stands around it."""
    words = re.sub(r"\s+", " ", text)
    spans = [words[max(0, m.start() - 40) : m.end() + 40] for m in RESULT.finditer(words)]
    return [s for s in spans if not any(page == name and phrase in s for page, phrase in ALLOWED)]


def name_of(path: Path) -> str:
    return path.name if path.name == "README.md" else path.stem


@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.name)
def test_no_result_is_typed(path: Path) -> None:
    assert typed(name_of(path), prose(path)) == []


def test_every_allowance_is_used() -> None:
    words = {name_of(path): re.sub(r"\s+", " ", prose(path)) for path in PAGES}
    unused = [phrase for page, phrase in ALLOWED if phrase not in words[page] or not RESULT.search(phrase)]
    assert not unused


@pytest.mark.parametrize("text", [
    "UPC reaches 63.2 on digits.", "mean 63.2 ± 1.1", "gains 12 points", "gains +12.2 points over", "an mIoU of 70",
    "ends at 70 mIoU", "two points better", "| 1_8 | CPS | 58.3 |", "by 3.4 percentage points",
])  # fmt: skip
def test_the_guard_sees_results(text: str) -> None:
    assert typed("intro", text)


@pytest.mark.parametrize("text", [
    "Python 3.11", "decay 0.99", "crop 513", "1/8 of 10,582 images", "commit 5f41130", "2.2 GB", "see Sec. 4.1",
    "a batch of 16", "points of interest", "at version 2026.11.25", "80 % of the pixels",
])  # fmt: skip
def test_the_guard_lets_parameters_pass(text: str) -> None:
    assert typed("intro", text) == []


def test_code_equations_and_generated_blocks_are_not_words(tmp_path: Path) -> None:
    page = tmp_path / "README.md"
    page.write_text(
        f"a\n```\n63.2\n```\n`63.2` $63.2$ $$\n63.2\n$$ [x](63.2.png)\n{BEGIN}\n63.2 ± 1\n{END}\n<!-- 63.2 -->"
    )
    assert typed("README.md", prose(page)) == []
    script = tmp_path / "n.py"
    script.write_text('# %%\nx = 63.2  # mIoU 63.2\n# %% [markdown]\n# text 12.34 here\n#\n# more\n# %%\ny = "71.5"\n')
    assert len(typed("n", prose(script))) == 1


def linked_records(path: Path) -> set[str]:
    """Records that a page or the outputs of a notebook link to, from the root of the repository."""
    return set(re.findall(r"(?:\.\./)?(runs/[\w./+-]+/run\.json)", path.read_text()))


@pytest.mark.parametrize("path", [*sorted((ROOT / "notebooks").glob("*.ipynb")), *PAGES], ids=lambda path: path.name)
def test_every_linked_record_is_there(path: Path) -> None:
    missing = sorted(name for name in linked_records(path) if not (ROOT / name).is_file())
    assert not missing, f"execute {path.name} again: {missing}"


def test_tables_of_the_papers_link_to_records() -> None:
    shown = [p for p in (ROOT / "notebooks").glob("*.ipynb") if "paper_tables.show" in p.read_text()]
    assert len(shown) >= 3 and all(len(linked_records(p)) >= 3 for p in shown)
    outputs = [
        "".join(o.data.get("text/html", ""))
        for p in shown
        for c in nbformat.read(p, 4).cells
        if c.cell_type == "code" and c.source.startswith("paper_tables.show")
        for o in c.outputs
    ]
    assert outputs and all('class="paper-table"' in html for html in outputs)
