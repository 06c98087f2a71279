"""Adding a method is one file: an installed package brings one, and everything knows it, with no edit elsewhere."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

EXAMPLE = Path(__file__).with_name("entropy_weighted.py")
TESTS = Path(__file__).parents[1]


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
    environment = os.environ | {"PYTHONPATH": f"{package}{os.pathsep}{TESTS}", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, *arguments]
    return subprocess.run(command, capture_output=True, text=True, cwd=package, env=environment, timeout=500)


TRAINED = """
from toys import command
from semiseg.recipe import recipe
from semiseg.runs import find_runs
from semiseg_book import compare, style

def semiseg(*arguments):
    result = command(*arguments)
    assert result.exit_code == 0, (arguments, result.output, result.exception)
    return result.output

label = "entropy_weighted"
assert label in semiseg("methods")
assert "entropy_weighted.power = 1.0    γ" in semiseg("methods", label)
train = ("train", "--scale", "smoke", "--split", "1_4", "--no-progress")
ours = ("--method", label, "--out")
semiseg(*train, *ours, "runs/digits-smoke/ours")
semiseg(*train, *ours, "runs/digits-smoke/power0", "--set", "entropy_weighted.power=0")
plugged = semiseg(*train, *ours, "runs/digits-smoke/upc", "--plug-ins", "upc")
assert "entropy_weighted+upc on digits (smoke)" in plugged
again = semiseg("train", "--config", "runs/digits-smoke/power0/recipe.toml", "--no-progress", "--out", "again")
assert again.split("mIoU ")[1].split(",")[0] in semiseg("runs", "list").splitlines()[1]
assert "mIoU" in semiseg("evaluate", "runs/digits-smoke/ours")

assert style.title(label + "+upc") == "entropy-weighted + UPC" and style.color(label) == "#8c6d31"
rows = compare.scores(find_runs("runs"))
assert label in set(rows.label), rows
assert any("entropy-weighted" in str(trace) for trace in compare.methods_figure(rows).data)
(plain,) = compare.without_idea(recipe(label))
assert plain.value("entropy_weighted.power") == 0.0 and plain.label == label
"""
REFUSED = """
from pathlib import Path
from toys import command

for arguments, message in (
    (("--method", "entropy_weigthed"), "did you mean 'entropy_weighted'?"),
    (("--method", "entropy_weighted", "--set", "entropy_weighted.powr=1"), "did you mean 'power'?"),
    (("--method", "entropy_weighted", "--set", "entropy_weighted.power=-1"), "should be greater than or equal to 0"),
):
    error = command("train", "--scale", "smoke", *arguments).exception
    assert isinstance(error, ValueError) and message in str(error) and "\\n" not in str(error), error
    assert not Path("runs").exists()
"""


@pytest.mark.parametrize("script", [TRAINED, REFUSED], ids=["trained", "refused"])
def test_a_method_is_one_file(package: Path, script: str) -> None:
    """In a process of its own, which finds the package as any other that is installed."""
    result = python(package, "-c", script)
    assert result.returncode == 0, result.stderr


def test_two_methods_of_one_name_and_a_broken_package_are_named(package: Path) -> None:
    points = package / "entropy_weighted-1.0.dist-info" / "entry_points.txt"
    (package / "second.py").write_text(EXAMPLE.read_text())
    points.write_text("[semiseg.methods]\none = entropy_weighted\ntwo = second\n")
    result = python(package, "-m", "semiseg", "methods")
    assert result.returncode == 2 and "entropy_weighted and second both describe 'entropy_weighted'" in result.stderr
    points.write_text("[semiseg.methods]\nbroken = nowhere\n")
    result = python(package, "-m", "semiseg", "methods")
    assert result.returncode == 2 and "the method broken (nowhere) cannot be loaded" in result.stderr
