"""Exported models: the same predictions, a card that says what the record says, and a program that agrees."""

import hashlib
from pathlib import Path

import pytest
import torch
from PIL import Image
from torch import Tensor
from toys import command

from semiseg.data.sets.digits import Digits
from semiseg.inference.export import PROGRAM, export_model
from semiseg.inference.model import Model, evaluate_model, load_model
from semiseg.runs import Run

DATA = Digits()


def test_an_exported_model_predicts_the_same(run: Run, model: Model, tmp_path: Path) -> None:
    folder = export_model(run, tmp_path / "model")
    assert {p.name for p in folder.iterdir()} == {"model.safetensors", "config.json", "README.md"}
    other = load_model(folder, "cpu")
    image = torch.randint(0, 256, (2, 3, 40, 56), dtype=torch.uint8)
    assert torch.equal(other.probabilities(image), model.probabilities(image))
    assert (other.classes, other.palette) == (model.classes, model.palette) == (DATA.classes, DATA.palette)
    assert vars(evaluate_model(other, DATA))["miou"] == run.miou


def test_the_card_says_what_the_record_says(run: Run, tmp_path: Path) -> None:
    folder = export_model(run, tmp_path / "model")
    text = (folder / "README.md").read_text()
    sha = hashlib.sha256((folder / "model.safetensors").read_bytes()).hexdigest()
    assert sha in text and run.record["recipe_sha256"] in text and run.record["split"]["sha256"] in text
    assert f"mIoU {100 * run.miou:.2f} %" in text and "UCI" in text and "4, the last one" in text
    for name, iou in zip(DATA.classes, run.record["last"]["teacher"]["iou"], strict=True):
        assert f"| {name} | {'not present' if iou is None else f'{100 * iou:.2f}'} |" in text
    chosen = {**run.record["last"], "epoch": 2, "teacher": {**run.record["last"]["teacher"], "miou": 0.125}}
    other = export_model(Run(run.folder, {**run.record, "selected": chosen}), tmp_path / "other")
    text = (other / "README.md").read_text()
    assert "mIoU 12.50 %" in text and "2, chosen on held-out labeled images" in text


def test_the_code_on_the_card_runs(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text = (export_model(run, tmp_path / "model") / "README.md").read_text()
    Image.new("RGB", (50, 40)).save(tmp_path / "model" / "image.jpg")
    monkeypatch.chdir(tmp_path / "model")
    names: dict[str, Tensor] = {}
    exec(text.split("```python\n")[1].split("```")[0], names)
    assert names["mask"].shape == (40, 50)


def test_a_program_of_torch_export_agrees_for_other_sizes(run: Run, model: Model, tmp_path: Path) -> None:
    result = command("export", run.folder, tmp_path / "model", "--format", "torch")
    assert result.exit_code == 0 and PROGRAM in result.output
    program = torch.export.load(tmp_path / "model" / PROGRAM).module()
    images = torch.rand(3, 3, 45, 90)
    torch.testing.assert_close(program(images), model.network(images).logits.detach(), rtol=1e-4, atol=1e-4)


def test_a_program_that_differs_is_not_kept(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "allclose", lambda *_, **__: False)
    with pytest.raises(ValueError, match="the exported program differs from the network by"):
        export_model(run, tmp_path / "model", "torch")
    assert list(tmp_path.iterdir()) == []


def test_an_export_replaces_nothing_but_an_export(run: Run, tmp_path: Path) -> None:
    mine = tmp_path / "mine"
    mine.mkdir()
    (mine / "thesis.tex").write_text("words")
    for overwrite in (False, True):
        with pytest.raises(ValueError, match=r"mine is not empty; choose a new folder"):
            export_model(run, mine, overwrite=overwrite)
    folder = export_model(run, tmp_path / "model")
    with pytest.raises(ValueError, match="holds an earlier export"):
        export_model(run, folder)
    export_model(run, folder, overwrite=True)
    with pytest.raises(ValueError, match="unknown format 'onnx'; expected one of safetensors, torch"):
        export_model(run, tmp_path / "x", "onnx")  # type: ignore[arg-type]
    assert (mine / "thesis.tex").read_text() == "words"


def test_damaged_exports_say_so(run: Run, tmp_path: Path) -> None:
    folder = export_model(run, tmp_path / "model")
    (folder / "model.safetensors").write_bytes(b"half")
    with pytest.raises(ValueError, match=r"does not hold the weights that config\.json describes"):
        load_model(folder)
    (folder / "config.json").write_text("{}")
    with pytest.raises(ValueError, match=r"is not that of an exported model"):
        load_model(folder)
    (folder / "model.safetensors").unlink()
    with pytest.raises(FileNotFoundError, match=r"has a config\.json but no model\.safetensors"):
        load_model(folder)
