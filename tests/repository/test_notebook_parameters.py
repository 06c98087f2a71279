"""Parameters as papermill hands them over become the names the package uses, or one clear error."""

import ast
from pathlib import Path
from typing import Any

import jupytext
import papermill
import pytest
from IPython.core.interactiveshell import InteractiveShell
from papermill.cli import _resolve_type

from semiseg.data.open import open_data, parse_split, seed_number, whole_number
from semiseg.data.splits import SPLITS
from semiseg.methods.upc import UPCOptions
from semiseg.notebook import PARAMETERS, BadInput, declared, prepare, repo_root
from semiseg.options import one_of
from semiseg.recipe import Recipe, recipe, with_plug_ins

ROOT = Path(__file__).parents[2]
OWN = {  # of each notebook that trains; those of own-data are apart, since it always trains on a folder
    "ddfp": ["variant"],
    "dgcl": ["variant"],
    "esl": [],
    "upc": ["host"],
    "wpl": ["host", "variant", "alpha"],
    "recipe": ["method", "plug_ins"],
}
OWN_DATA = ["method", "split", "longest", "photos", "out"]


def parameters_cell(name: str) -> list[str]:
    cells = jupytext.read(ROOT / "notebooks" / f"{name}.py").cells
    (found,) = [c.source for c in cells if "parameters" in c.metadata.get("tags", [])]
    return found.splitlines()


def named(line: str) -> str:
    return line.partition(" = ")[0]


def test_the_notebooks_that_train_are_these() -> None:
    scripts = (ROOT / "notebooks").glob("*.py")
    assert {path.stem for path in scripts if 'tags=["parameters"]' in path.read_text()} == {*OWN, "own-data"}


@pytest.mark.parametrize("name", OWN)
def test_notebooks_declare_the_shared_parameters_alike(name: str) -> None:
    lines = parameters_cell(name)
    assert [named(line) for line in lines] == [*OWN[name], *PARAMETERS]
    assert lines[len(OWN[name]) :] == [declared(shared) for shared in PARAMETERS]


def test_own_data_declares_those_that_apply_to_it() -> None:
    lines = parameters_cell("own-data")
    assert [named(line) for line in lines[: len(OWN_DATA)]] == OWN_DATA
    shared = ("seed", "changes", "root", "classes", "labeled_list", "workers", "overwrite")
    assert lines[len(OWN_DATA) :] == [declared(name) for name in shared]
    assert [name for name in PARAMETERS if name in shared] == list(shared)


@pytest.mark.parametrize("name", PARAMETERS)
def test_a_declared_line_holds_the_default(name: str) -> None:
    (line,) = ast.parse(declared(name)).body
    assert isinstance(line, ast.Assign) and ast.literal_eval(line.value) == PARAMETERS[name][0]
    assert len(declared(name)) <= 120


@pytest.mark.parametrize("name", [*OWN, "own-data"])
def test_papermill_lists_every_parameter(name: str) -> None:
    listed = papermill.inspect_notebook(ROOT / "notebooks" / f"{name}.ipynb")
    assert list(listed) == [named(line) for line in parameters_cell(name)]
    assert all(p["help"] for p in listed.values())


@pytest.mark.parametrize("name", SPLITS)
def test_split_survives_the_command_line(name: str) -> None:
    injected = _resolve_type(name)  # what `papermill -p split NAME` injects
    assert parse_split(injected) == name
    assert parse_split(name) == parse_split(name.replace("_", "/")) == parse_split(f" {name} ") == name


def test_papermill_reads_a_split_as_an_integer() -> None:
    assert [_resolve_type(name) for name in SPLITS] == [116, 18, 14, 12, "full"]


@pytest.mark.parametrize("value", [True, 18.0, 0.125, 8, 17, -18, "18", "1_7", "FULL", "", None, ["1_8"], b"1_8"])
def test_unknown_split_is_refused_with_the_valid_names(value: object) -> None:
    with pytest.raises(ValueError, match=r"^unknown split .*(expected one of|Valid are) 1_16, 1_8, 1_4, 1_2, full$"):
        parse_split(value)


def test_one_of_takes_a_valid_name_and_refuses_the_rest() -> None:
    one_of("scale", "tiny", ("smoke", "tiny"))
    one_of("scale", "tiny", iter(["smoke", "tiny"]))
    for value in ("huge", "", 1, None):
        with pytest.raises(ValueError, match=r"^unknown scale .*expected one of smoke, tiny$"):
            one_of("scale", value, iter(["smoke", "tiny"]))
    with pytest.raises(ValueError, match=r"^unknown scale 'Tiny'; did you mean 'tiny'\? Valid are smoke, tiny$"):
        one_of("scale", "Tiny", iter(["smoke", "tiny"]))


def test_whole_numbers_have_a_range() -> None:
    assert whole_number("epochs", 1, 1) == 1
    assert seed_number(0) == 0
    assert seed_number(2**32 - 1) == 2**32 - 1
    for value in (0, -1, 1.0, True, "3", None):
        with pytest.raises(ValueError, match=r"epochs: .*1 or more"):
            whole_number("epochs", value, 1)
    for value in (-1, 2**32, 0.0, False, "0"):
        with pytest.raises(ValueError, match=r"seed: .*0 to 4294967295"):
            seed_number(value)


def patches(changes: dict[str, Any] | str) -> tuple[int, ...]:
    return with_plug_ins(recipe("mean_teacher"), "upc").changed(changes)[UPCOptions].k


def test_several_whole_numbers() -> None:
    for value in ("2,3,5", " 2, 3,5 ", [2, 3, 5], (2, 3, 5)):
        assert patches({"upc.k": value}) == (2, 3, 5)
    assert patches(f"upc.k={_resolve_type('2,3,5')}") == (2, 3, 5) and patches(f"upc.k={_resolve_type('5')}") == (5,)
    for value in ("2,17", "", "2;3", "2,,3", 17, 2.5, None, ["a"], -1, []):
        with pytest.raises(ValueError, match=r"upc\.k |each k in 0\.\.n"):
            patches({"upc.k": value})


def test_root_is_found_from_below_and_from_elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert repo_root(ROOT / "notebooks") == ROOT
    monkeypatch.chdir(tmp_path)
    assert repo_root() == ROOT  # papermill started in another folder


def test_root_prefers_the_checkout_it_is_started_in(tmp_path: Path) -> None:
    (tmp_path / "semiseg").mkdir()
    (tmp_path / "semiseg" / "notebook.py").touch()
    assert repo_root(tmp_path) == ROOT  # no pyproject.toml: not a checkout
    (tmp_path / "pyproject.toml").touch()
    assert repo_root(tmp_path / "semiseg") == tmp_path


def test_missing_root_is_one_clear_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("semiseg.checkout.__file__", str(tmp_path / "site-packages" / "semiseg" / "notebook.py"))
    with pytest.raises(FileNotFoundError, match=r"start the notebook inside a checkout"):
        repo_root(tmp_path)


def test_data_sets_are_named_and_need_their_folder(tmp_path: Path) -> None:
    assert open_data("digits").name == "digits"
    with pytest.raises(
        ValueError, match="unknown data 'ade'; expected one of digits, voc, cityscapes, camvid, coco, f"
    ):
        open_data("ade", "x")
    (tmp_path / "images").mkdir()
    with pytest.raises(FileNotFoundError, match=r"images but no JPEGImages; .* your own images are data='folder'"):
        open_data("voc", str(tmp_path))
    for name in ("voc", "cityscapes", "camvid", "coco", "folder"):
        with pytest.raises(ValueError, match=f"data='{name}' needs root: the folder with "):
            open_data(name)
        with pytest.raises(FileNotFoundError, match="nowhere"):
            open_data(name, "nowhere")


def run_cells(*cells: str) -> dict[str, Any]:
    """The names of a notebook after its cells ran, as IPython keeps them."""
    shell = InteractiveShell()
    for cell in cells:
        shell.run_cell(cell, store_history=True).raise_error()
    return {**shell.user_ns}


PREPARE = "from semiseg.notebook import prepare\nprepared = prepare('ddfp', globals(), own=['variant'])"


@pytest.mark.parametrize("split", [18, 116, 14, 12, "1/8"])
def test_prepare_takes_any_spelling_of_a_split(split: object) -> None:
    made = prepare("ddfp", {"split": split}).recipe
    assert made.split == {18: "1_8", 116: "1_16", 14: "1_4", 12: "1_2", "1/8": "1_8"}[split]


def test_prepare_makes_what_the_parameters_say() -> None:
    prepared = prepare("mean_teacher", {"split": 14, "scale": "smoke", "seed": 3, "changes": "upc.k=5"}, plug_ins="upc")
    expected = with_plug_ins(recipe("mean_teacher", "digits", "1_4", "smoke", 3), "upc").changed({"upc.k": (5,)})
    assert prepared.recipe == expected
    assert prepared.data.name == "digits" and prepared.split.name == "1_4" and not prepared.overwrite
    assert prepare("dgcl", {}).recipe == recipe("dgcl")
    assert prepare("dgcl", {"variant": "paper"}).recipe != recipe("dgcl")


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"split": 18, "splt": 18}, r"^unknown parameter 'splt'; did you mean 'split'\? Valid are split$"),
        ({"split": "1_3"}, r"^unknown split '1_3'; did you mean '1_\d'\? Valid are 1_16, 1_8, 1_4, 1_2, full$"),
        ({"scale": "papr"}, r"^unknown scale 'papr'; did you mean 'paper'\? Valid are smoke, tiny, paper$"),
        ({"seed": "0"}, r"^seed: '0' is not a whole number"),
        ({"changes": 5}, r"^changes is a text such as 'ddfp.eps=1', got 5$"),
        ({"changes": "ddfp.epz=1"}, r"^unknown option of ddfp 'epz'; did you mean 'eps'\? Valid are "),
        ({"changes": "optimization.lr=-1"}, r"^optimization.lr should be greater than 0, got -1$"),
        (
            {"variant": "papers"},
            r"^unknown variant 'papers'; did you mean 'paper'\? Valid are default, paper, official$",
        ),
        ({"overwrite": "yes"}, r"^unknown overwrite 'yes'; expected one of True, False$"),
        ({"workers": -1}, r"^workers: -1 is not a whole number"),
        ({"data": "voc"}, r"^data='voc' needs root"),
        ({"labeled_list": "nowhere.txt"}, r"nowhere.txt"),
    ],
)
def test_prepare_refuses_in_one_line(given: dict[str, Any], message: str) -> None:
    with pytest.raises(BadInput, match=message) as caught:
        prepare("ddfp", given)
    assert "\n" not in str(caught.value) and caught.value._render_traceback_() == [f"semiseg: {caught.value}"]


def test_a_notebook_is_asked_for_its_parameters_alone() -> None:
    """Its cells have names of their own, which are there when the first ones are run again."""
    parameters = 'split = "1_8"\nvariant = "paper"  # or not'
    more = "import math\nsuffix, numbers = 'x', [1]"
    names = run_cells(parameters, "# Parameters\nsplit = 14\n", PREPARE, more, "threshold = 0.5", PREPARE)
    made: Recipe = names["prepared"].recipe
    assert made.split == "1_4"


@pytest.mark.parametrize("value", ["1", "'vat'", "[1, 2]", "None", "-0.5"])
def test_a_parameter_there_is_not_is_refused(value: str) -> None:
    with pytest.raises(BadInput, match=r"^unknown parameter 'splt'; did you mean 'split'\? Valid are split, variant$"):
        run_cells('split = "1_8"\nvariant = "default"', f"# Parameters\nsplt = {value}\n", PREPARE)


def test_a_refused_parameter_does_not_stay() -> None:
    shell = InteractiveShell()
    wrong = [shell.run_cell(cell, store_history=True) for cell in ("splt = 18\nseed = 1", PREPARE)][-1]
    right = [shell.run_cell(cell, store_history=True) for cell in ("split = 14", PREPARE)][-1]
    assert isinstance(wrong.error_in_exec, BadInput) and right.success
    assert shell.user_ns["prepared"].recipe.split == "1_4"
