"""pyproject.toml, environment.yml and requirements.lock ask for the same things."""

import re
import tomllib
from pathlib import Path

import yaml
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[2]
NAME_OUTSIDE_CONDA = {"pytorch": "torch"}  # conda-forge's name -> the package registry's
APART = {"sweep"}  # extras that are neither in environment.yml nor in the lock: they refuse newer packages of others


def wanted(*apart: str) -> dict[str, SpecifierSet]:
    """Names and ranges of the package and its extras, but for those apart."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    assert {*apart} <= extras.keys()
    lines = project["dependencies"] + [line for name, extra in extras.items() if name not in apart for line in extra]
    return {str(canonicalize_name(r.name)): r.specifier for r in map(Requirement, lines)}


def requires_python() -> SpecifierSet:
    return SpecifierSet(tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["requires-python"])


def environment() -> tuple[dict[str, str], list[str]]:
    """Conda lines as name -> range, and pip lines."""
    items = yaml.safe_load((ROOT / "environment.yml").read_text())["dependencies"]
    names = {re.split(r"[<>=!~]", item)[0]: item for item in items if isinstance(item, str)}
    conda = {NAME_OUTSIDE_CONDA.get(name, name): item[len(name) :] for name, item in names.items()}
    return conda, [line for item in items if isinstance(item, dict) for line in item["pip"]]


def lock() -> list[str]:
    lines = (ROOT / "requirements.lock").read_text().splitlines()
    return [line for line in lines if line and not line.startswith("#")]


def test_environment_has_the_names_and_ranges_of_pyproject() -> None:
    conda, pip = environment()
    found = {
        canonicalize_name(name): SpecifierSet(spec) for name, spec in conda.items() if name not in ("python", "pip")
    }
    for requirement in (Requirement(line) for line in pip if not line.startswith("-e")):
        found[canonicalize_name(requirement.name)] = requirement.specifier
    assert found == wanted(*APART)
    assert "-e ." in pip


def test_environment_python_is_one_the_package_supports() -> None:
    conda, _ = environment()
    assert conda["python"].lstrip("=") in requires_python()


def test_lock_is_nothing_but_exact_versions() -> None:
    odd = [line for line in lock() if not re.fullmatch(r"[a-z0-9][a-z0-9._-]*==[0-9][0-9a-z.]*", line)]
    assert not odd, "URLs, paths, editable installs and local builds have no place in the lock"


def test_lock_satisfies_every_requirement() -> None:
    pins = {str(canonicalize_name(name)): version for name, version in (line.split("==") for line in lock())}
    broken = {
        name: pins.get(name) for name, spec in wanted(*APART).items() if name not in pins or pins[name] not in spec
    }
    assert not broken


def test_every_requirement_carries_its_reason() -> None:
    text = (ROOT / "pyproject.toml").read_text()
    bare = [
        name for name in wanted() if not re.search(rf'^  "{name}[<>=].*", +# \S', text, re.MULTILINE | re.IGNORECASE)
    ]
    assert not bare
