"""semiseg train: its options are the recipe's, and nothing finished is lost."""

from dataclasses import replace
from pathlib import Path

import pytest
import trees
from toys import command

from semiseg.cli.train import lr_hint
from semiseg.recipe import recipe
from semiseg.runs import Run


def test_the_train_command_trains_and_protects_what_is_there(run: Run, tmp_path: Path) -> None:
    arguments = ("train", "--method", "mean_teacher", "--split", "1/4", "--scale", "smoke", "--no-progress")
    result = command(*arguments, "--out", tmp_path / "run")
    assert result.exit_code == 0 and f"mIoU {100 * run.miou:.2f} (teacher, last epoch)" in result.output
    again = command(*arguments, "--out", tmp_path / "run")
    assert isinstance(again.exception, ValueError) and "holds a finished run" in str(again.exception)


def test_options_of_train_are_the_recipes(tmp_path: Path) -> None:
    result = command(
        "train", "--method", "supervised", "--scale", "smoke", "--no-progress", "--out", tmp_path / "run", "--seed", 3,
        "--split", "1_16", "--set", "optimization.batch=2 optimization.epochs=2", "--set", "optimization.crop=24",
        "--set", "evaluation.held_out=0.25",
    )  # fmt: skip
    assert result.exit_code == 0, result.output
    assert (
        "batch 2 instead of the recipe's 4, learning rate 0.003" in result.output
        and "--set optimization.lr=0.0015" in result.output
    )
    record = Run.read(tmp_path / "run").record
    o = record["recipe"]["optimization"]
    assert (o["batch"], o["epochs"], o["crop"], record["recipe"]["seed"]) == (2, 2, 24, 3)
    assert record["held_out"]["images"] == 16 and record["selected"]["epoch"] == 2


def test_all_masks_of_a_folder_are_labels_unless_a_share_is_asked_for(tmp_path: Path) -> None:
    for part in ("", "val/"):
        for key in range(8):
            trees.save(tmp_path / f"mine/{part}images/{key}.png", trees.pixels(key))
            trees.save(tmp_path / f"mine/{part}masks/{key}.png", trees.blocks([0, 1]))
    for split, labeled in (("", 8), ("1_4", 2)):
        out = tmp_path / f"run{split}"
        result = command(
            "train", "--data", "folder", "--root", tmp_path / "mine", "--scale", "smoke", "--method", "supervised",
            "--no-progress", "--out", out, *(("--split", split) if split else ()),
        )  # fmt: skip
        assert result.exit_code == 0, result.exception
        assert Run.read(out).record["split"]["labeled"] == labeled


def test_the_hint_speaks_when_the_batch_differs_and_the_rate_does_not_follow() -> None:
    usual = recipe("ddfp", "voc", "1_8", "paper")

    def other(**changes: float) -> str:
        return lr_hint(usual, replace(usual, optimization=replace(usual.optimization, **changes)))  # type: ignore[arg-type]

    assert lr_hint(usual, usual) == other(lr=1.0) == other(batch=4, lr=2.5e-4) == ""
    assert "--set optimization.lr=0.00025" in other(batch=4) and "batch 4 instead of the recipe's 16" in other(batch=4)


def test_every_run_writes_a_file_that_trains_it_again(tmp_path: Path) -> None:
    first = command(
        "train", "--method", "ddfp", "--scale", "smoke", "--split", "1_4", "--set", "ddfp.eps=3", "--plug-ins", "upc",
        "--no-progress", "--out", tmp_path / "first",
    )  # fmt: skip
    assert first.exit_code == 0, first.output
    file = tmp_path / "first" / "recipe.toml"
    again = command("train", "--config", file, "--no-progress", "--out", tmp_path / "again")
    other = command("train", "--config", file, "--seed", 1, "--no-progress", "--out", tmp_path / "other")
    runs = [Run.read(tmp_path / name) for name in ("first", "again", "other")]
    assert runs[0].record["recipe"] == runs[1].record["recipe"] and runs[0].miou == runs[1].miou
    assert runs[0].record["recipe"]["ddfp"]["eps"] == 3.0 and runs[0].label == "ddfp+upc"
    assert runs[2].record["recipe"] == runs[0].record["recipe"] | {"seed": 1}
    assert again.exit_code == other.exit_code == 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--method", "magic"), "unknown method 'magic'; expected one of supervised"),
        (("--method", "unimach"), "unknown method 'unimach'; did you mean 'unimatch'?"),
        (("--split", "1_3"), "unknown split '1_3'"),
        (("--data", "voc", "--root", "nowhere"), "root nowhere does not exist"),
        (("--set", "network.backbone=timm:resnt50"), "unknown backbone 'timm:resnt50'"),
        (("--set", "evaluation.held_out=1.5"), "evaluation.held_out should be less than 1, got 1.5"),
        (("--set", "optimization.epoch=3"), "unknown option of optimization 'epoch'; did you mean 'epochs'?"),
        (("--set", "upc.n=3"), "upc.n needs the plug-in upc"),
        (("--plug-ins", "ucp"), "unknown plug-in 'ucp'; did you mean 'upc'?"),
        (("--config", "nowhere.toml"), "nowhere.toml"),
        (("--family", "classic", "--split", "1_16"), "unknown split '1_16'"),
    ],
)
def test_bad_input_of_train(arguments: tuple[str, ...], message: str, tmp_path: Path) -> None:
    result = command("train", "--scale", "smoke", "--out", tmp_path / "run", *arguments)
    assert isinstance(result.exception, (ValueError, OSError)) and message in str(result.exception)
    assert "\n" not in str(result.exception) and not (tmp_path / "run").exists()


def test_methods_are_listed_with_their_papers_and_options() -> None:
    every = command("methods").output
    assert "ddfp               DDFP               Wang et al., CVPR 2024" in every and "wpl " in every
    ddfp = command("methods", "ddfp").output
    assert "ddfp.eps = 4.0    ε" in ddfp and "length of the step at every pixel" in ddfp and "(Eq. 11)" in ddfp
    assert "variants: default, paper, official" in ddfp
    wpl = command("methods", "wpl").output
    assert "wpl.k = 5" in wpl and "detector.size = 513 pixels" in wpl
    assert "optimization.crop = 513 pixels" in command("methods", "optimization").output
    wrong = command("methods", "ddpf").exception
    assert "unknown method, plug-in or part 'ddpf'; did you mean 'ddfp'?" in str(wrong)
    assert command("--version").output.startswith("semiseg ")
