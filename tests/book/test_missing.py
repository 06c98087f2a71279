"""Commands for what is missing: notebooks take their parameters and make the recipes asked for; `semiseg runs`."""

import shlex
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import jupytext
import matplotlib
import papermill
import pytest
from papermill.cli import _resolve_type
from test_paper_tables import made
from typer.testing import CliRunner

from semiseg.cli import app
from semiseg.data.open import parse_split
from semiseg.data.sets.digits import Digits
from semiseg.notebook import repo_root
from semiseg.recipe import Recipe, recipe, with_plug_ins
from semiseg.runs import Run
from semiseg_book import __main__ as program
from semiseg_book import missing as module
from semiseg_book.experiments import Records, Setting
from semiseg_book.missing import RANKS, missing

NOTEBOOKS = repo_root() / "notebooks"


@pytest.fixture(scope="module")
def at_paper_scale() -> list[module.Missing]:
    return missing(Records([]), "paper")


@pytest.fixture(scope="module")
def wanted() -> list[module.Missing]:
    """Everything the tables ask for in miniature."""
    return missing(Records([]))


def parameters(command: str) -> tuple[str, str, dict[str, Any]]:
    """Notebook, output and parameters of a command, as papermill reads them."""
    program, notebook, out, *pairs = shlex.split(command)
    assert program == "papermill" and pairs[::3] == ["-p"] * (len(pairs) // 3)
    return notebook, out, dict(zip(pairs[1::3], map(_resolve_type, pairs[2::3]), strict=True))


def recipe_of(command: str) -> Recipe:
    """What a notebook would train: its cells up to the recipe run with the command's parameters."""
    notebook, _, given = parameters(command)
    cells = jupytext.read(NOTEBOOKS / f"{Path(notebook).stem}.py").cells
    defaults, setup = [c.source for c in cells if c.cell_type == "code"][:2]
    names: dict[str, Any] = {}
    exec(defaults, names)
    names |= given
    exec(setup.replace("%config", "# %config"), names)
    return names["prepared"].recipe


def test_every_command_has_parameters_its_notebook_takes(
    wanted: list[module.Missing], at_paper_scale: list[module.Missing]
) -> None:
    known: dict[str, set[str]] = {}
    for item in [*wanted, *at_paper_scale]:
        notebook, out, given = parameters(item.command)
        takes = known.setdefault(notebook, set(papermill.inspect_notebook(repo_root() / notebook)))
        assert given.keys() <= takes, item.command
        assert Path(out).parent == Path("runs") and out.endswith(".ipynb")
    assert known.keys() == {f"notebooks/{n}.ipynb" for n in ("ddfp", "dgcl", "esl", "wpl", "recipe")}


def test_outputs_of_different_commands_do_not_overwrite_each_other(
    wanted: list[module.Missing], at_paper_scale: list[module.Missing]
) -> None:
    everything = [*wanted, *at_paper_scale]
    assert (
        len({parameters(m.command)[1] for m in everything}) == len({m.command for m in everything}) == len(everything)
    )


def test_the_notebook_of_any_recipe_makes_what_is_wanted(wanted: list[module.Missing]) -> None:
    checked = 0
    for item in wanted:
        notebook, _, given = parameters(item.command)
        if notebook == "notebooks/recipe.ipynb":
            method, plug_ins, changes = (given.get(name, "") for name in ("method", "plug_ins", "changes"))
            base = recipe(method, "digits", parse_split(given["split"]), "tiny", given["seed"])
            there = with_plug_ins(base, plug_ins).changed(changes)
            assert there == item.experiment.recipe(item.setting, item.seed), item.command
            checked += 1
    assert checked > 300


def test_notebooks_make_what_is_wanted_of_their_parameters(
    wanted: list[module.Missing], monkeypatch: pytest.MonkeyPatch
) -> None:
    data = Digits()
    monkeypatch.setattr("semiseg.data.open.Digits", lambda: data)
    matplotlib.use("Agg")
    chosen: dict[tuple[str, bool], module.Missing] = {}
    for item in wanted:
        notebook, _, given = parameters(item.command)
        if item.seed:  # not the default
            chosen.setdefault((notebook, bool(given.get("changes"))), item)
    assert len(chosen) == 6
    for item in chosen.values():
        assert recipe_of(item.command) == item.experiment.recipe(item.setting, item.seed), item.command


@pytest.mark.parametrize("notebook", ["ddfp", "dgcl", "esl", "upc", "wpl", "recipe"])
def test_notebooks_take_published_lists(notebook: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("semiseg.data.open.Digits", lambda: Digits(2, 2))
    command = f"papermill notebooks/{notebook}.ipynb out.ipynb -p family classic -p split 92 -p labeled_list x.txt"
    with pytest.raises(ValueError, match=r"family='classic' and labeled_list='x.txt' are two splits"):
        recipe_of(command)
    with pytest.raises(ValueError, match="unknown split 92; expected one of 1_16"):
        recipe_of(command.replace("classic", "''"))


def test_a_record_is_wanted_no_more(wanted: list[module.Missing], tmp_path: Path) -> None:
    first = wanted[0]
    run = made(tmp_path, first.experiment.recipe(first.setting, first.seed), 0.5)
    left = missing(Records([run]))
    assert len(left) == len(wanted) - 1 and first.command not in {m.command for m in left}
    other = made(tmp_path, replace(first.experiment.recipe(first.setting, first.seed), split="other"), 0.5)
    assert len(missing(Records([other]))) == len(wanted)


def test_the_most_valuable_come_first(wanted: list[module.Missing]) -> None:
    assert [m.rank for m in wanted] == sorted(m.rank for m in wanted) and {m.rank for m in wanted} == {0, 1, 2}
    for rank in range(len(RANKS)):
        seeds = [m.seed for m in wanted if m.rank == rank]
        assert seeds == sorted(seeds) and set(seeds) == {0, 1, 2}
    assert (wanted[0].experiment.method, wanted[0].setting) == ("supervised", Setting("digits", "tiny", "1_8"))
    ablations = [m for m in wanted if m.rank == 1 and m.seed == 0]
    assert {t for m in ablations[:14] for t in m.tables} >= {("ddfp", "5"), ("ddfp", "6"), ("dgcl", "7"), ("esl", "4")}


def test_an_unknown_scale_is_refused() -> None:
    with pytest.raises(ValueError, match="unknown scale 'smoke'; expected one of tiny, paper"):
        missing(Records([]), "smoke")


# --- the command line ------------------------------------------------------------------------------


@pytest.fixture
def checkout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for name in ("semiseg.cli.runs", "semiseg_book.__main__"):
        monkeypatch.setattr(f"{name}.repo_root", lambda: tmp_path)
    (tmp_path / "runs").mkdir()
    monkeypatch.chdir(tmp_path)
    return tmp_path


def run(*words: str) -> tuple[int, str]:
    result = CliRunner().invoke(app, ["runs", *words])
    return result.exit_code, result.output


def list_missing(*words: str) -> tuple[int, str]:
    result = CliRunner().invoke(program.app, ["missing", *words])
    return result.exit_code, result.output


def test_outside_of_a_checkout_runs_are_those_right_there(
    checkout: Path, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = missing(Records([]))[0].experiment.recipe(Setting("digits", "tiny", "1_8"))
    made(checkout / "runs", recipe, 0.5, name="local/x/checkout")
    elsewhere = tmp_path_factory.mktemp("elsewhere")
    monkeypatch.chdir(elsewhere)
    assert "checkout" in run("list")[1], "no runs/ here"
    made(elsewhere / "runs", recipe, 0.5, name="local/x/mine")
    assert "x/mine" in run("list")[1] and "x/checkout" not in run("list")[1]

    def none() -> Path:
        raise FileNotFoundError("no repository")

    monkeypatch.setattr("semiseg.cli.runs.repo_root", none)
    assert "x/mine" in run("latest")[1]


def test_missing_prints_commands_up_to_the_limit(checkout: Path) -> None:
    code, text = list_missing("--limit", "3")
    lines = text.splitlines()
    assert code == 0 and [line.split()[0] for line in lines] == ["#", "papermill", "papermill", "papermill", "#"]
    assert lines[0] == f"# {RANKS[0]}" and lines[-1].startswith("# 3 of ")
    first = missing(Records([]))[0].experiment.recipe(Setting("digits", "tiny", "1_8"))
    made(checkout / "runs", first, 0.5, name="local/x/y")
    assert lines[1] not in list_missing("--limit", "3")[1]
    assert list_missing("--limit", "0")[0] == 2


def test_a_wrong_scale_is_one_line_and_no_traceback(
    checkout: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["semiseg_book", "missing", "--scale", "smoke"])
    with pytest.raises(SystemExit) as ended:
        program.main()
    said = capsys.readouterr().err
    assert ended.value.code == 2 and said == "semiseg_book: unknown scale 'smoke'; expected one of tiny, paper\n"


def test_the_program_has_both_commands() -> None:
    shown = CliRunner().invoke(program.app, ["--help"]).output
    assert "missing" in shown and "readme" in shown


def test_list_latest_keep_and_publish(checkout: Path) -> None:
    assert run("latest") == (1, f"no finished run under {checkout / 'runs'}\n")
    r = recipe("cps")
    local = made(checkout / "runs", r, 0.612, name=f"local/{r.name}")
    (local.folder / "model.safetensors").write_text("weights")
    code, text = run("latest")
    assert code == 0 and "mIoU 61.20 (teacher, last epoch)" in text and run("list") == (0, text)
    code, text = run("keep", str(local.folder))
    kept = checkout / "runs" / r.name
    assert code == 0 and text.strip() == str(kept) and Run.read(kept).miou == 0.612
    assert not (kept / "model.safetensors").exists()
    run("publish", str(local.folder))
    assert (kept / "model.safetensors").read_text() == "weights"
    result = CliRunner().invoke(app, ["runs", "keep", str(checkout / "nothing")])
    assert isinstance(result.exception, FileNotFoundError) and "no finished run" in str(result.exception)
    assert run("keep")[0] == 2
