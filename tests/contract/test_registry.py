"""The registry: whatever is in it can be built, trained, resumed and exported, and every page knows it."""

import ast
import re
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from toys import Blobs

from semiseg import registry
from semiseg.build import build
from semiseg.data.loader import training_batches
from semiseg.data.splits import seeded_split
from semiseg.inference.model import load_exported
from semiseg.options import SHARED
from semiseg.recipe import Recipe, from_toml, recipe, to_toml, with_plug_ins
from semiseg.training.checkpoint import write_tensors
from semiseg.training.loop import make_optimizer
from semiseg.types import Host
from semiseg_book.compare import without_idea

ROOT = Path(__file__).parents[2]
DATA = Blobs()
K = len(DATA.classes)
METHODS, PLUG_INS = tuple(registry.methods()), tuple(registry.plug_ins())
LABELS = [
    (method, plug_in) for method in METHODS for plug_in in ("", *PLUG_INS)
    if not plug_in or registry.method(method).unlabeled
]  # fmt: skip


def smoke(method: str, plug_in: str = "") -> Recipe:
    return with_plug_ins(recipe(method, "digits", "1_4", "smoke"), plug_in)


def steps(host: Host, made: Recipe, optimizer: torch.optim.Optimizer, first: int, last: int) -> list[float]:
    """Losses of steps first..last-1, each drawn by its own seed."""
    method, o, found = registry.method(made.method), made.optimization, []
    batches = training_batches(
        DATA, seeded_split(DATA.train, "1_4", 0), crop=o.crop, scale=o.resize, batch=o.batch, steps=last, start=first,
        seed=0, unlabeled=method.unlabeled, **method.loading(made),
    )  # fmt: skip
    for i, batch in enumerate(batches, first):
        if method.stages:
            batch = batch._replace(u_given=batch.u_hidden, u_entropy=torch.ones(batch.u_hidden.shape))
        torch.manual_seed(i)
        loss = torch.stack(list(host.losses(batch, 0.5 + i / 10).losses.values())).sum()
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        host.after_step()
        found.append(loss.item())
    return found


@pytest.mark.parametrize(("method", "plug_in"), LABELS)
def test_it_trains_resumes_and_exports(method: str, plug_in: str, tmp_path: Path) -> None:
    made = smoke(method, plug_in)

    def fresh() -> tuple[Host, torch.optim.Optimizer]:
        torch.manual_seed(0)
        host = build(made, K).train()
        return host, make_optimizer(host, made.optimization)

    host, optimizer = fresh()
    losses = steps(host, made, optimizer, 0, 2)
    assert all(map(torch.isfinite, map(torch.tensor, losses)))

    first, its_optimizer = fresh()
    steps(first, made, its_optimizer, 0, 1)
    resumed, its_new_optimizer = fresh()
    resumed.load_state_dict(first.state_dict())
    its_new_optimizer.load_state_dict(its_optimizer.state_dict())
    assert steps(resumed, made, its_new_optimizer, 1, 2) == losses[1:], "the state of a host is all in its state_dict"

    assert set(host.networks()) == {"student", "teacher"}
    exported = host.exported_state()
    assert exported.keys() <= host.state_dict().keys() and "teacher.model." in next(iter(exported))
    write_tensors(exported, tmp_path / "model.safetensors")
    loaded = load_exported(made, K, tmp_path / "model.safetensors")
    for name, value in load_file(tmp_path / "model.safetensors").items():
        assert torch.equal(loaded.state_dict()[name], value), name


@pytest.mark.parametrize("method", METHODS)
def test_the_optimizer_moves_every_parameter_of_the_student_and_none_of_a_part(method: str) -> None:
    host = build(smoke(method), K)
    moved = {id(p) for group in make_optimizer(host, smoke(method).optimization).param_groups for p in group["params"]}
    own = {id(p) for p in host.own_parameters()}
    assert not moved & own and {id(p) for p in host.student.parameters() if p.requires_grad} <= moved
    assert not moved & {id(p) for p in host.teacher.parameters()}
    assert bool(own) == (method == "ddfp"), "the flow, and nothing else so far, trains itself"


@pytest.mark.parametrize("name", [*METHODS, *PLUG_INS])
def test_it_says_all_that_pages_ask_for(name: str) -> None:
    found = registry.methods().get(name) or registry.plug_in(name)
    assert found.name == name and found.title
    chapter, _, _ = found.chapter.partition("#")
    assert (ROOT / f"{chapter}.py").is_file() and chapter in (ROOT / "_toc.yml").read_text()
    if name in METHODS and name != "supervised":
        assert f"@inproceedings{{{found.cite}," in (ROOT / "book/references.bib").read_text()
        assert re.search(r"\d{4}", found.paper)
    if found.options is not None:
        assert found.options.part == name
        for option in found.options.described():
            assert option.meaning, f"{name}.{option.name} says not what it is"


def test_titles_and_colors_tell_methods_apart() -> None:
    every = registry.methods().values()
    assert len({m.title for m in every}) == len({m.color for m in every}) == len(METHODS)
    assert all(re.fullmatch("#[0-9a-f]{6}", m.color) for m in every)


@pytest.mark.parametrize(("method", "plug_in"), LABELS)
def test_the_file_of_a_recipe_is_the_recipe(method: str, plug_in: str) -> None:
    for scale in ("smoke", "tiny"):
        made = with_plug_ins(recipe(method, "digits", "1_4", scale, seed=3), plug_in)
        assert from_toml(to_toml(made)) == made
        assert Recipe.from_dict(made.as_dict()).as_dict() == made.as_dict()


def test_every_method_of_a_paper_can_be_compared_with_itself_without_its_idea() -> None:
    for name, method in registry.methods().items():
        if method.chapter != "notebooks/hosts":
            (plain,) = without_idea(recipe(name))
            assert plain.sha256 != recipe(name).sha256
    assert [r.label for r in without_idea(with_plug_ins(recipe("cps"), "upc,wpl"))] == ["cps+wpl", "cps+upc"]


def test_every_option_is_read() -> None:
    """An option that no line of its file reads configures nothing."""
    for part, kind in registry.parts().items():
        if part in SHARED:
            continue
        sources = [p.read_text() for p in (ROOT / "semiseg" / Path(*kind.__module__.split(".")[1:-1])).glob("*.py")]
        for option in kind.described():
            read = re.compile(rf"\.{option.name}\b")
            assert any(read.search(s) for s in sources), f"{part}.{option.name} is read nowhere"


def test_modules_do_not_import_each_other_in_a_circle() -> None:
    """Imports inside functions, and those for types alone, do not count: they run when both modules are there."""
    edges: dict[str, set[str]] = {}
    for path in (ROOT / "semiseg").rglob("*.py"):
        name = ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
        package = name if path.name == "__init__.py" else name.rpartition(".")[0]
        edges[name] = {target for node in ast.parse(path.read_text()).body for target in _imported(node, package)}
    for name, targets in edges.items():
        edges[name] = {t if t in edges else t.rpartition(".")[0] for t in targets} & edges.keys() - {name}
    left = dict(edges)
    while ends := [name for name, targets in left.items() if not targets & left.keys()]:
        for name in ends:
            del left[name]
    packages = {name for name in left if (ROOT / Path(*name.split(".")) / "__init__.py").is_file()}
    assert not left.keys() - packages, f"these import each other: {sorted(left.keys() - packages)}"


def _imported(node: ast.stmt, package: str) -> set[str]:
    if isinstance(node, ast.ImportFrom):
        parts = package.split(".")
        base = ".".join(parts[: len(parts) - node.level + 1]) if node.level else ""
        module = ".".join(filter(None, (base, node.module)))
        return {f"{module}.{alias.name}" for alias in node.names} if module.startswith("semiseg") else set()
    return {alias.name for alias in node.names} if isinstance(node, ast.Import) else set()
