"""Records: the finished runs are found, whatever else lies beside them."""

import json
from pathlib import Path

import pytest
from toys import command

from semiseg.runs import Run, find_runs

ROOT = Path(__file__).parents[1]
BAD = ({"last": None}, {"data": None}, {"duration_s": "long"})
GOOD = ROOT / "runs/digits-tiny/ddfp-1_8-seed0/run.json"


@pytest.fixture
def runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder runs/ with one good record, in the working folder."""
    folder = tmp_path / "runs"
    (folder / "digits-tiny/good").mkdir(parents=True)
    (folder / "digits-tiny/good/run.json").write_text(GOOD.read_text())
    monkeypatch.chdir(tmp_path)
    return folder


def test_all_committed_records_are_read() -> None:
    assert len(find_runs(ROOT / "runs")) == len(list((ROOT / "runs").glob("*-*/*/run.json"))) >= 205


@pytest.mark.parametrize("text", [
    "", "{", "[]", "null", '{"recipe": {}}', '{"recipe": {"method": "ddfp"}, "last": {"teacher": {"miou": 0.5}}}',
    *(json.dumps(json.loads(GOOD.read_text()) | bad) for bad in BAD),
])  # fmt: skip
def test_a_damaged_record_is_named_and_the_others_are_found(runs: Path, text: str) -> None:
    (runs / "digits-tiny/bad").mkdir()
    (runs / "digits-tiny/bad/run.json").write_text(text)
    with pytest.warns(UserWarning, match=r"skipped: .*bad.run\.json is not a run record"):
        assert [run.folder.name for run in find_runs(runs)] == ["good"]
    with pytest.raises(ValueError, match="is not a run record"):
        Run.read(runs / "digits-tiny/bad")
    for name in ("list", "latest"):
        result = command("runs", name)
        assert result.exit_code == 0 and "ddfp on digits (tiny), split 1_8, seed 0: mIoU" in result.output
        assert "bad" in result.output and "is not a run record" in result.output


def test_stages_of_an_unfinished_run_are_no_runs(runs: Path) -> None:
    stage = runs / "local/digits-tiny/stpp-1_8-seed0.partial/stage1"
    stage.mkdir(parents=True)
    (stage / "run.json").write_text(json.dumps({"stage": "stage1"}))
    assert [run.folder.name for run in find_runs(runs, local=True)] == ["good"]
    assert command("runs", "list").output.count("mIoU") == 1
