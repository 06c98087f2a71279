"""Adding a method is one file: an installed package brings one, and everything knows it, with no edit elsewhere."""

import os
import shutil
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

EXAMPLE = Path(__file__).with_name("entropy_weighted.py")


@pytest.fixture
def package(tmp_path: Path) -> Path:
    """A folder with the example as an installed package: the file, and the metadata that an installer writes."""
    shutil.copy(EXAMPLE, tmp_path / "entropy_weighted.py")
    metadata = tmp_path / "entropy_weighted-1.0.dist-info"
    metadata.mkdir()
    (metadata / "METADATA").write_text("Metadata-Version: 2.1\nName: entropy-weighted\nVersion: 1.0\n")
    (metadata / "entry_points.txt").write_text("[semiseg.methods]\nentropy_weighted = entropy_weighted\n")
    return tmp_path


def python(package: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    environment = os.environ | {"PYTHONPATH": str(package), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, *arguments]
    return subprocess.run(command, capture_output=True, text=True, cwd=package, env=environment, timeout=300)


def semiseg(package: Path, *arguments: str) -> str:
    result = python(package, "-m", "semiseg", *arguments)
    assert result.returncode == 0, result.stderr
    return result.stdout


def test_a_method_is_one_file(package: Path) -> None:
    assert "entropy_weighted" in semiseg(package, "methods")
    assert "entropy_weighted.power = 1.0    γ" in semiseg(package, "methods", "entropy_weighted")
    train = ("train", "--scale", "smoke", "--split", "1_4", "--no-progress")
    ours = ("--method", "entropy_weighted", "--out")
    semiseg(package, *train, *ours, "runs/digits-smoke/ours")
    semiseg(package, *train, *ours, "runs/digits-smoke/power0", "--set", "entropy_weighted.power=0")
    plugged = semiseg(package, *train, *ours, "runs/digits-smoke/upc", "--plug-ins", "upc")
    assert "entropy_weighted+upc on digits (smoke)" in plugged
    config = ("--config", "runs/digits-smoke/power0/recipe.toml")
    again = semiseg(package, "train", *config, "--no-progress", "--out", "again")
    assert again.split("mIoU ")[1].split(",")[0] in semiseg(package, "runs", "list").splitlines()[1]
    assert "mIoU" in semiseg(package, "evaluate", "runs/digits-smoke/ours")

    drawn = python(package, "-c", textwrap.dedent("""
        from semiseg.recipe import recipe, without_idea
        from semiseg.runs import find_runs
        from semiseg_book import compare, style
        runs = find_runs("runs")
        label = "entropy_weighted"
        assert style.title(label + "+upc") == "entropy-weighted + UPC" and style.color(label) == "#8c6d31"
        rows = compare.scores(runs)
        assert label in set(rows.label), rows
        figure = compare.methods_figure(rows)
        assert any("entropy-weighted" in str(trace) for trace in figure.data)
        (plain,) = without_idea(recipe(label))
        assert plain.value("entropy_weighted.power") == 0.0 and plain.label == label
    """))  # fmt: skip
    assert drawn.returncode == 0, drawn.stderr


def test_a_wrong_word_is_answered_with_the_nearest(package: Path) -> None:
    for arguments, message in (
        (("--method", "entropy_weigthed"), "did you mean 'entropy_weighted'?"),
        (("--method", "entropy_weighted", "--set", "entropy_weighted.powr=1"), "did you mean 'power'?"),
        (
            ("--method", "entropy_weighted", "--set", "entropy_weighted.power=-1"),
            "should be greater than or equal to 0",
        ),
    ):
        result = python(package, "-m", "semiseg", "train", "--scale", "smoke", *arguments)
        lines = result.stderr.strip().splitlines()
        assert result.returncode == 2 and len(lines) == 1 and message in lines[0]
        assert not (package / "runs").exists()


def test_two_methods_of_one_name_and_a_broken_package_are_named(package: Path) -> None:
    points = package / "entropy_weighted-1.0.dist-info" / "entry_points.txt"
    (package / "second.py").write_text(EXAMPLE.read_text())
    points.write_text("[semiseg.methods]\none = entropy_weighted\ntwo = second\n")
    result = python(package, "-m", "semiseg", "methods")
    assert result.returncode == 2 and "entropy_weighted and second both describe 'entropy_weighted'" in result.stderr
    points.write_text("[semiseg.methods]\nbroken = nowhere\n")
    result = python(package, "-m", "semiseg", "methods")
    assert result.returncode == 2 and "the method broken (nowhere) cannot be loaded" in result.stderr
