"""Scores of a trained model, and the commands' answers to bad input."""

import json
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from toys import command

import semiseg.cli
from semiseg.data.sets.digits import Digits
from semiseg.data.sets.patchwork import Patchwork
from semiseg.data.splits import seeded_split
from semiseg.evaluate import Scores
from semiseg.inference.model import Model, evaluate_model, images_of, load_model, palette_of, recorded, score_table
from semiseg.recipe import recipe
from semiseg.runs import Run
from semiseg.training.run import train

DATA = Digits()


def test_evaluation_repeats_the_record_bit_by_bit(run: Run, model: Model) -> None:
    found = json.loads(json.dumps(vars(evaluate_model(model, DATA))))
    assert found == run.record["last"]["teacher"]


def test_the_evaluate_command_prints_a_row_per_class_and_writes_json(run: Run, tmp_path: Path) -> None:
    result = command("evaluate", run.folder, "--device", "cpu", "--json", tmp_path / "scores.json")
    assert result.exit_code == 0, result.output
    lines = result.output.splitlines()
    assert [line.split()[0] for line in lines[2 : 2 + len(DATA.classes)]] == list(DATA.classes)
    score = f"{100 * run.miou:.2f}"
    assert f"mIoU {score}, pixel accuracy" in result.output and f"in the record of the run: mIoU {score}" in lines[-1]
    written = json.loads((tmp_path / "scores.json").read_text())
    assert written["miou"] == run.miou and written["data"]["sha256"] == DATA.sha256
    assert written["iou"] == run.record["last"]["teacher"]["iou"] and written["protocol"]["name"] == "whole"


def test_other_parts_than_validation(run: Run, model: Model) -> None:
    labeled = images_of(run.folder, DATA, "labeled")
    assert labeled == seeded_split(DATA.train, "1_4", 0).labeled and images_of(run.folder, DATA, "train") == DATA.train
    pixels = sum(map(sum, evaluate_model(model, DATA, "labeled").confusion))
    assert pixels == len(labeled) * 32 * 32
    result = command("evaluate", run.folder, "--split", "labeled", "--device", "cpu")
    assert "digits, labeled: mIoU" in result.output and "in the record" not in result.output


def test_the_table_is_computed_from_the_confusion() -> None:
    scores = Scores.of(torch.tensor([[6, 2, 0], [1, 1, 0], [0, 0, 0]]))
    frame = score_table(scores, ("a", "b", "c"))
    assert frame.IoU[:2].tolist() == pytest.approx([100 * 6 / 9, 25]) and np.isnan(frame.IoU.c)
    assert frame.loc["mean", "IoU"] == pytest.approx(100 * scores.miou)
    assert frame.recall.a == 75 and frame.precision.b == pytest.approx(100 / 3) and frame["% of pixels"].a == 80


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--split", "tset"), "unknown part 'tset'; expected one of val, tune, test, train"),
        (("--split", "test"), "digits has no part 'test'"),
        (("--split", "held_out"), "has no list held_out.txt"),
        (("--data", "voc"), "data='voc' needs root"),
        (("--device", "abacus"), "device 'abacus' cannot be used"),
    ],
)
def test_bad_input_of_evaluate(run: Run, arguments: tuple[str, ...], message: str) -> None:
    result = command("evaluate", run.folder, *arguments)
    assert isinstance(result.exception, (ValueError, OSError)) and message in str(result.exception)


def test_a_data_set_with_other_classes_is_refused(model: Model) -> None:
    class Other(Digits):
        classes = ("background", *"abcdefghij")

    with pytest.raises(ValueError, match=r"the model knows 11 classes .*must be the same"):
        evaluate_model(model, Other(16, 16))


@pytest.mark.parametrize("verb", ["evaluate", "predict", "export"])
def test_runs_that_are_none(verb: str, run: Run, tmp_path: Path) -> None:
    Image.new("RGB", (8, 8)).save(tmp_path / "a.png")
    more = {"evaluate": (), "predict": (tmp_path / "a.png",), "export": (tmp_path / "out",)}[verb]
    result = command(verb, tmp_path / "nowhere", *more)
    assert isinstance(result.exception, FileNotFoundError) and "no finished run in" in str(result.exception)
    bare = tmp_path / "bare"
    bare.mkdir()
    (bare / "run.json").write_text((run.folder / "run.json").read_text())
    result = command(verb, bare, *more)
    assert isinstance(result.exception, FileNotFoundError) and "has a record but no model.safetensors" in str(
        result.exception
    )
    save_file({"x": torch.zeros(1)}, bare / "model.safetensors")
    result = command(verb, bare, *more)
    assert isinstance(result.exception, ValueError) and "is not of this recipe" in str(result.exception)
    assert not (tmp_path / "out").exists()


def test_an_error_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture) -> None:
    monkeypatch.setattr(sys, "argv", ["semiseg", "evaluate", str(tmp_path)])
    with pytest.raises(SystemExit) as stopped:
        semiseg.cli.main()
    error = capsys.readouterr().err
    assert stopped.value.code == 2 and error.startswith("semiseg: no finished run in") and error.count("\n") == 1


def test_colors_of_older_records() -> None:
    assert palette_of({"classes": list(DATA.classes)}) == DATA.palette
    assert palette_of({"classes": ["background", "cat"]}) == ((0, 0, 0), (64, 0, 0))
    assert palette_of({"classes": ["a", "b"]}) == ((0, 0, 0), (128, 0, 0))
    assert palette_of({"classes": ["a"], "palette": [[1, 2, 3]]}) == ((1, 2, 3),)


def test_a_recipe_says_which_images_are_scored(tmp_path: Path) -> None:
    """A choice is made on tune: the record is of it, and says nothing of val or test."""
    data = Patchwork(8, 2, 3, 4)
    made = recipe("supervised", "patchwork", "1_4", "smoke").changed("evaluation.scored=tune")
    done = train(made, data, seeded_split(data.train, "1_4", 0), tmp_path / "run", progress=False)
    model = load_model(done.folder, "cpu")
    assert sum(map(sum, done.record["last"]["teacher"]["confusion"])) == 2 * 64 * 64
    assert evaluate_model(model, data, "tune").miou == done.miou
    assert recorded(model, data, "tune") == done.record["last"]["teacher"] and recorded(model, data, "val") is None
    assert sum(map(sum, evaluate_model(model, data, "test").confusion)) == 4 * 64 * 64
    with pytest.raises(ValueError, match="digits has no part 'tune'"):
        train(made, Digits(4, 1), seeded_split(Digits(4, 1).train, "1_4", 0), tmp_path / "other", progress=False)
