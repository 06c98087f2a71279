"""A grid becomes the runs that no record is of, once each, in its order."""

import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import trees
from toys import command

from semiseg.data.sets.digits import Digits
from semiseg.data.splits import seeded_split
from semiseg.recipe import from_toml, recipe, to_toml, with_plug_ins
from semiseg.runs import RECORD, Run, find_runs
from semiseg.sweep import Plan, make_plan, read_cost, read_grid, summary, write_plan
from semiseg.training.run import train

ROOT = Path(__file__).parents[1]
COST = {"data": "digits", "scale": "tiny", "device": "cpu", "seconds": {"mean_teacher": 0.5, "stpp": 2.0}}
Planner = Callable[..., Plan]


@pytest.fixture
def plan(tmp_path: Path) -> Planner:
    """The plan of a grid's text."""

    def made(text: str, runs: list[Run] | None = None, cost: dict[str, Any] | None = None) -> Plan:
        (tmp_path / "grid.toml").write_text(text)
        return make_plan(read_grid(tmp_path / "grid.toml"), runs or [], cost)

    return made


def names(plan: Plan) -> list[str]:
    return [run.name.removeprefix("digits-smoke/").removeprefix("digits-tiny/") for run in plan.runs]


def test_a_grid_is_the_product_of_its_axes_in_its_order(plan: Planner) -> None:
    made = plan(
        """
        scale = "smoke"
        splits = [1_8, "1/16"]
        seeds = [3, "0-1"]
        [[runs]]
        methods = ["mean_teacher", "cps"]
        plug_ins = ["", "upc"]
        [[runs]]
        methods = ["supervised"]
        splits = ["full"]
        seeds = [0]
        """
    )
    labels = ("mean_teacher", "mean_teacher+upc", "cps", "cps+upc")
    expected = [f"{label}-{split}-seed{s}" for s in (3, 0, 1) for split in ("1_8", "1_16") for label in labels]
    assert names(made) == [*expected, "supervised-full-seed0"]
    assert made.runs[1].recipe == with_plug_ins(recipe("mean_teacher", "digits", "1_8", "smoke", 3), "upc")
    assert made.done == 0 and made.notes == ()


def test_variants_change_the_recipe_and_have_folders_of_their_own(plan: Planner) -> None:
    made = plan(
        'scale = "smoke"\nmethods = ["ddfp"]\nvariants = ["", "ddfp.eps=1", "ddfp.step=vat optimization.batch=2"]'
    )
    base = recipe("ddfp", scale="smoke")
    assert [run.recipe for run in made.runs] == [
        base, base.changed({"ddfp.eps": 1}), base.changed({"ddfp.step": "vat", "optimization.batch": 2})
    ]  # fmt: skip
    assert [run.changes for run in made.runs] == ["", "ddfp.eps=1", "ddfp.step=vat optimization.batch=2"]
    assert len(set(names(made))) == 3 and names(made)[1] == f"ddfp-1_8-seed0-{made.runs[1].recipe.sha256[:8]}"


def test_what_stands_twice_is_named_and_planned_once(plan: Planner) -> None:
    usual = recipe("ddfp", scale="smoke").value("ddfp.eps")
    made = plan(
        f"""
        scale = "smoke"
        methods = ["ddfp"]
        [[runs]]
        seeds = [0]
        [[runs]]
        seeds = [0, 1]
        variants = ["", "ddfp.eps={usual}"]
        """
    )
    assert names(made) == ["ddfp-1_8-seed0", "ddfp-1_8-seed1"]
    assert made.notes == (
        "runs 2: 2 of its runs stand in runs 1 already and are planned once: digits-smoke/ddfp-1_8-seed0",
        "runs 2: 1 of its runs stand in runs 2 already and are planned once: digits-smoke/ddfp-1_8-seed1, "
        f"where 'ddfp.eps={usual}' is the same as ''",
    )


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('methods = ["ddpf"]', r"^runs 1: unknown method 'ddpf'; did you mean 'ddfp'\? Valid are "),
        ('methods = ["ddfp"]\n[[runs]]\n[[runs]]\nplug_ins = ["ucp"]', r"^runs 2: unknown plug-in 'ucp'; did you mean"),
        ('methods = ["ddfp"]\nvariants = ["ddfp.epz=1"]', r"^runs 1: unknown option of ddfp 'epz'; did you mean 'eps'"),
        ('methods = ["ddfp"]\nvariants = ["ddfp.eps=-1"]', r"^runs 1: ddfp\.eps should be greater"),
        ('methods = ["ddfp"]\nvariants = ["upc.k=2"]', r"^runs 1: upc\.k needs the plug-in upc, which does not take"),
        ('methods = ["supervised"]\nplug_ins = ["upc"]', r"^runs 1: .*supervised has none; choose another method$"),
        ('methods = ["ddfp"]\nsplits = ["1_3"]', r"^runs 1: unknown split '1_3'; did you mean '1_\d'\?"),
        ('methods = ["ddfp"]\nscale = "tinny"', r"^runs 1: unknown scale 'tinny'; did you mean 'tiny'\?"),
        ('methods = ["ddfp"]\ndata = "digit"', r"^unknown data 'digit'; did you mean 'digits'\?"),
        ('methods = ["ddfp"]\ndata = "voc"', r"^data='voc' needs root"),
        ('methods = ["ddfp"]\nfamily = "cpss"', r"^runs 1: unknown family 'cpss'"),
        ('method = "ddfp"', r"^unknown entry of a grid 'method'; did you mean 'methods'\?"),
        ('[[runs]]\nmethods = ["ddfp"]\nseed = [0]', r"^unknown entry of \[\[runs\]\] 'seed'; did you mean 'seeds'\?"),
        ("scale = 'smoke'", r"^methods of \[\[runs\]\] is empty; give at least one$"),
        ('methods = ["ddfp"]\nseeds = []', r"^seeds of \[\[runs\]\] is empty"),
        ('methods = ["ddfp"]\nseeds = ["9-0"]', r'^seeds are numbers, or a range such as "0-9", got \'9-0\'$'),
        ('methods = ["ddfp"]\nseeds = [-1]', r"^seed: -1 is not a whole number"),
        ("methods = [1]", r"^methods of \[\[runs\]\] are texts, got 1$"),
        ("runs = 3", r"runs must be tables, each under a line \[\[runs\]\]$"),
        ("methods = [", r"is not a TOML file: "),
    ],
)
def test_a_wrong_grid_is_one_clear_line(plan: Planner, text: str, message: str) -> None:
    with pytest.raises(ValueError, match=message) as caught:
        plan(text)
    assert "\n" not in str(caught.value)


GRID = 'scale = "smoke"\nmethods = ["supervised", "mean_teacher"]\nsplits = ["1_4", "1_8"]'


def test_what_is_done_is_left_out(plan: Planner, run: Run) -> None:
    made = plan(GRID, [run])  # mean_teacher at 1_4
    assert names(made) == ["supervised-1_4-seed0", "supervised-1_8-seed0", "mean_teacher-1_8-seed0"]
    assert made.done == 1 and list(summary(made, None))[-1].startswith("1 done, 3 runs")


@pytest.mark.parametrize("part", ["data", "split", "recipe"])
def test_a_record_of_something_else_does_not_count(plan: Planner, run: Run, part: str) -> None:
    record = json.loads(json.dumps(run.record))
    if part == "recipe":
        record["recipe_sha256"] = "0" * 64
    else:
        record[part]["sha256"] = "0" * 64
    other = Run(Path("runs/digits-smoke/mean_teacher-1_4-seed0"), record)
    assert "mean_teacher-1_4-seed0" in names(plan(GRID, [other]))
    local = Run(Path("runs/local/digits-smoke/mean_teacher-1_4-seed0"), record)
    with pytest.raises(ValueError, match=r"mean_teacher-1_4-seed0 holds a finished run of other .*; move it away$"):
        plan(GRID, [local])


def test_cost_is_that_of_the_steps_of_all_stages(plan: Planner) -> None:
    made = plan('methods = ["mean_teacher", "stpp", "cps"]\nvariants = ["", "optimization.crop=24"]', cost=COST)
    trained, in_stages = made.runs[0], made.runs[2]
    assert trained.steps == 1600 and trained.seconds == 800
    recorded = Run.read(ROOT / "runs/digits-tiny/stpp-1_8-seed0").record
    assert in_stages.steps == sum(stage["steps"] for stage in recorded["stages"]) > 1600
    assert in_stages.seconds == 2 * in_stages.steps
    assert [run.seconds is None for run in made.runs] == [False, True, False, True, True, True]
    hours = (800 + 2 * in_stages.steps) / 3600
    assert list(summary(made, COST)) == [
        "  mean_teacher  2 runs, 0.2 h and 1 of unknown cost",
        f"  stpp          2 runs, {2 * in_stages.steps / 3600:.1f} h and 1 of unknown cost",
        "  cps           2 runs, 2 of unknown cost",
        f"0 done, 6 runs, {hours:.1f} h and 4 of unknown cost to do (training steps alone, on cpu)",
    ]
    assert plan('methods = ["mean_teacher"]\nscale = "smoke"', cost=COST).runs[0].seconds is None


def test_measured_cost_is_read(tmp_path: Path) -> None:
    cost = read_cost(ROOT / "runs" / "step-cost.json")
    assert cost is not None and 0 < cost["seconds"]["supervised"] < cost["seconds"]["mean_teacher"] < 1
    assert read_cost(tmp_path / "none.json") is None
    (tmp_path / "other.json").write_text('{"seconds": 1}')
    with pytest.raises(ValueError, match=r"other.json has no cost of steps"):
        read_cost(tmp_path / "other.json")


def test_a_plan_on_disk_is_a_recipe_for_each_run_and_a_table(plan: Planner, tmp_path: Path) -> None:
    made = plan(GRID + '\nvariants = ["optimization.batch=2"]', cost=COST)
    table = pd.read_csv(write_plan(made, tmp_path / "plan"), keep_default_na=False, dtype=str)
    assert list(table.run) == [run.name for run in made.runs]
    assert [*table.split] == ["1_4", "1_4", "1_8", "1_8"] and set(table.changes) == {"optimization.batch=2"}
    assert set(table.options) == set(table.root) == {""}
    for run in made.runs:
        assert from_toml((tmp_path / "plan" / f"{run.name}.toml").read_text()).sha256 == run.recipe.sha256
    files = {path: path.stat().st_mtime_ns for path in (tmp_path / "plan").rglob("*.toml")}
    write_plan(made, tmp_path / "plan")
    assert files == {path: path.stat().st_mtime_ns for path in (tmp_path / "plan").rglob("*.toml")}


def test_images_and_lists_reach_every_run(plan: Planner, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = trees.folder(tmp_path / "my images")
    monkeypatch.chdir(tmp_path)
    made = plan('data = "folder"\nroot = "my images"\nlongest = 16\nscale = "smoke"\nmethods = ["supervised"]')
    table = pd.read_csv(write_plan(made, tmp_path / "plan"), keep_default_na=False)
    assert [*table.root] == [str(root)] and [*table.options] == [f"--root '{root}' --longest 16"]
    assert re.fullmatch(r"folder-smoke/supervised-1_8-seed0-[0-9a-f]{8}", table.run[0])


def test_the_command_writes_the_plan_and_says_how_to_go_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "runs").mkdir()
    (tmp_path / "few.toml").write_text(GRID)
    monkeypatch.chdir(tmp_path)
    result = command("runs", "plan", "few.toml")
    assert result.exit_code == 0, result.output
    assert result.output.splitlines()[-2:] == [
        "0 done, 4 runs, 4 of unknown cost to do",
        "snakemake --profile profiles/local --config plan=runs/local/plans/few",
    ]
    assert len(pd.read_csv("runs/local/plans/few/plan.csv")) == 4 and find_runs("runs", local=True) == []
    wrong = command("runs", "plan", "none.toml")
    assert isinstance(wrong.exception, FileNotFoundError)


def test_a_finished_run_is_read_only_if_it_is_the_same(run: Run) -> None:
    data, before = Digits(), (run.folder / RECORD).read_bytes()
    split = seeded_split(data.train, "1_4", 0)
    made = from_toml((run.folder / "recipe.toml").read_text())
    assert train(made, data, split, run.folder, reuse=True).record == run.record
    with pytest.raises(ValueError, match=r"holds a finished run that differs in recipe\.consistency\.decay: 0\.5 != "):
        train(made.changed("consistency.decay=0.5"), data, split, run.folder, reuse=True)
    with pytest.raises(ValueError, match=r"holds a finished run that differs in split: "):
        train(made, data, seeded_split(data.train, "1_4", 1), run.folder, reuse=True)
    with pytest.raises(ValueError, match="holds a finished run; choose"):
        train(made, data, split, run.folder)
    assert (run.folder / RECORD).read_bytes() == before


def test_a_run_in_progress_is_waited_for(run: Run, tmp_path: Path) -> None:
    """Two processes that are given one run make it once."""
    data = Digits()
    split, made = seeded_split(data.train, "1_4", 0), recipe("mean_teacher", "digits", "1_4", "smoke")
    folder, found = tmp_path / "run", list[Run]()
    threads = [
        threading.Thread(target=lambda: found.append(train(made, data, split, folder, reuse=True, progress=False)))
        for _ in range(2)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 2 and found[0].record == found[1].record
    assert found[0].record["duration_s"] > 0 and [path.name for path in tmp_path.iterdir()] == ["run"]


SNAKEMAKE = pytest.mark.skipif(importlib.util.find_spec("snakemake") is None, reason="snakemake is not installed")


def snakemake(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    words = [sys.executable, "-m", "snakemake", "--snakefile", str(ROOT / "Snakefile"), "--directory", str(folder)]
    words += ["--profile", str(ROOT / "profiles" / "local"), *arguments]
    python_path = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
    return subprocess.run(words, capture_output=True, text=True, env={**os.environ, "PYTHONPATH": python_path})


@SNAKEMAKE
def test_each_planned_run_is_a_job_until_its_record_is_there(plan: Planner, tmp_path: Path) -> None:
    made = plan(GRID)
    write_plan(made, tmp_path / "plan")

    def jobs() -> set[str]:
        listed = snakemake(tmp_path, "--dry-run", "--config", "plan=plan")
        assert listed.returncode == 0, listed.stderr
        return set(re.findall(r"wildcards: run=(\S+)", listed.stdout + listed.stderr))

    assert jobs() == {run.name for run in made.runs}
    record = tmp_path / "plan" / f"{made.runs[0].name}.json"
    record.touch()
    os.utime(record, (0, 0))  # older than its recipe
    assert jobs() == {run.name for run in made.runs[1:]}


@SNAKEMAKE
def test_a_finished_run_survives_jobs_that_fail(plan: Planner, run: Run, tmp_path: Path) -> None:
    write_plan(plan('scale = "smoke"\nmethods = ["mean_teacher"]\nsplits = ["1_4"]'), tmp_path / "plan")
    name = "digits-smoke/mean_teacher-1_4-seed0"
    folder = shutil.copytree(run.folder, tmp_path / "runs" / "local" / name)
    before = (folder / RECORD).read_bytes()
    words = ["--forceall", "--retries", "0", "--config", "plan=plan"]
    assert snakemake(tmp_path, *words, "train=--no-such-option").returncode != 0
    assert not (tmp_path / "plan" / f"{name}.json").exists() and (folder / RECORD).read_bytes() == before
    done = snakemake(tmp_path, *words)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "plan" / f"{name}.json").read_bytes() == (folder / RECORD).read_bytes() == before
    assert "mean_teacher on digits (smoke), split 1_4" in (tmp_path / "plan" / f"{name}.log").read_text()


@SNAKEMAKE
def test_without_a_plan_snakemake_says_what_to_type(tmp_path: Path) -> None:
    asked = snakemake(tmp_path, "--dry-run")
    assert (
        asked.returncode != 0 and "no plan: write one with `semiseg runs plan GRID.toml`" in asked.stdout + asked.stderr
    )


@pytest.mark.parametrize("path", sorted((ROOT / "runs" / "plans").glob("*.toml")), ids=lambda path: path.stem)
def test_committed_grids_are_read_and_their_recipes_survive_a_file(path: Path) -> None:
    made = make_plan(read_grid(path), [])
    once = {run.recipe.label + run.changes: run.recipe for run in made.runs}
    for found in once.values():
        assert from_toml(to_toml(found)).sha256 == found.sha256
    assert len(once) > 20 and made.notes == ()
