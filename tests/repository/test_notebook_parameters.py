"""Parameters as papermill hands them over become the names the package uses, or one clear error."""

from pathlib import Path

import pytest
from papermill.cli import _resolve_type

from semiseg.data.splits import SPLITS
from semiseg.notebook import choice, open_data, parse_split, positive_int, repo_root, seed_number, whole_numbers

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize("name", SPLITS)
def test_split_survives_the_command_line(name: str) -> None:
    injected = _resolve_type(name)  # what `papermill -p split NAME` injects
    assert parse_split(injected) == name
    assert parse_split(name) == parse_split(name.replace("_", "/")) == parse_split(f" {name} ") == name


def test_papermill_reads_a_split_as_an_integer() -> None:
    assert [_resolve_type(name) for name in SPLITS] == [116, 18, 14, 12, "full"]


@pytest.mark.parametrize("value", [True, 18.0, 0.125, 8, 17, -18, "18", "1_7", "FULL", "", None, ["1_8"], b"1_8"])
def test_unknown_split_is_refused_with_the_valid_names(value: object) -> None:
    with pytest.raises(ValueError, match=r"^unknown split .*expected one of 1_16, 1_8, 1_4, 1_2, full$"):
        parse_split(value)


def test_choice_returns_a_valid_name_and_refuses_the_rest() -> None:
    assert choice("scale", "tiny", ("smoke", "tiny")) == "tiny"
    assert choice("scale", "tiny", iter(["smoke", "tiny"])) == "tiny"
    for value in ("huge", "Tiny", "", 1, None):
        with pytest.raises(ValueError, match=r"^unknown scale .*expected one of smoke, tiny$"):
            choice("scale", value, iter(["smoke", "tiny"]))


def test_whole_numbers_have_a_range() -> None:
    assert positive_int("epochs", 1) == 1
    assert seed_number(0) == 0
    assert seed_number(2**32 - 1) == 2**32 - 1
    for value in (0, -1, 1.0, True, "3", None):
        with pytest.raises(ValueError, match=r"epochs: .*1 or more"):
            positive_int("epochs", value)
    for value in (-1, 2**32, 0.0, False, "0"):
        with pytest.raises(ValueError, match=r"seed: .*0 to 4294967295"):
            seed_number(value)


def test_several_whole_numbers() -> None:
    for value in ("2,3,5", " 2, 3,5 ", [2, 3, 5], (2, 3, 5)):
        assert whole_numbers("k", value, 0, 16) == (2, 3, 5)
    assert whole_numbers("k", _resolve_type("2,3,5"), 0) == (2, 3, 5) and whole_numbers("k", _resolve_type("5"), 0) == (
        5,
    )
    for value in ("2,17", "", "2;3", "2,,3", 17, 2.0, None, True, ["a"]):
        with pytest.raises(ValueError, match=r"^k: .* is not a whole number in the valid range, 0 to 16$"):
            whole_numbers("k", value, 0, 16)
    with pytest.raises(ValueError, match="k: no number given"):
        whole_numbers("k", [], 0)


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
