"""The package without the book's extra: what is installed of it, and that it trains, scores and predicts."""

import os
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import trees
from packaging.requirements import Requirement

ROOT = Path(__file__).parents[2]
MODULES = {"jupyter-book": "jupyter_book", "sphinx-mathjax-offline": "sphinx_mathjax_offline"}  # named otherwise
REFUSE = """
import importlib.metadata, sys
names = {names!r}
found = importlib.metadata.Distribution.from_name
def from_name(name):
    if name in names:
        raise importlib.metadata.PackageNotFoundError(name)
    return found(name)
importlib.metadata.Distribution.from_name = from_name
class Refuse:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in names:
            raise ModuleNotFoundError(f"{{name}} is not of the core", name=name)
sys.meta_path.insert(0, Refuse())
"""


@pytest.fixture(scope="module")
def core(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The package as a wheel installs it, where nothing of its extras can be imported."""
    folder = tmp_path_factory.mktemp("core")
    source = folder / "source"  # a build beside the checkout would take stale files along
    shutil.copytree(ROOT / "semiseg", source / "semiseg")
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source / name)
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps"]
    command = [*pip, "--target", str(folder / "site"), str(source)]
    made = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert made.returncode == 0, made.stderr
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    extra = [Requirement(line).name for name in ("book", "timm", "mask2former") for line in extras[name]]
    names = {MODULES.get(name, name) for name in extra} | {"IPython", "semiseg_book"}
    (folder / "site" / "sitecustomize.py").write_text(REFUSE.format(names=names))
    return folder


def semiseg(core: Path, *arguments: object) -> str:
    environment = os.environ | {"PYTHONPATH": str(core / "site"), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "semiseg", *map(str, arguments)]
    result = subprocess.run(command, capture_output=True, text=True, cwd=core, env=environment, timeout=300)
    assert result.returncode == 0, result.stderr
    return result.stdout


def test_the_wheel_holds_the_package_and_not_the_book(core: Path) -> None:
    installed = {path.name for path in (core / "site").iterdir()}
    assert "semiseg" in installed and "semiseg_book" not in installed
    assert (core / "site/semiseg/data/published_lists.csv").is_file()
    environment = os.environ | {"PYTHONPATH": str(core / "site")}
    for name in ("matplotlib", "semiseg_book"):
        result = subprocess.run(
            [sys.executable, "-c", f"import {name}"], capture_output=True, text=True, env=environment
        )
        assert "is not of the core" in result.stderr, "the test would prove nothing"


def test_the_core_trains_evaluates_and_predicts(core: Path) -> None:
    train = ("train", "--method", "ddfp", "--scale", "smoke", "--split", "1_4", "--no-progress", "--out", "run")
    assert "ddfp on digits (smoke)" in semiseg(core, *train)
    assert "mIoU" in semiseg(core, "evaluate", "run")
    trees.save(core / "photos/1.png", trees.pixels(1))
    semiseg(core, "predict", "run", "photos", "--out", "predictions")
    assert (core / "predictions/masks/1.png").is_file()
    semiseg(core, "export", "run", "model")
    assert "DDFP" in semiseg(core, "methods")
