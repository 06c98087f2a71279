"""semiseg runs: what was trained."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ..checkout import repo_root
from ..runs import LOCAL, RECORD, find_runs, keep

app = typer.Typer(help=__doc__, no_args_is_help=True)
Folders = Annotated[list[Path], typer.Argument(help="Folders of finished runs.")]


def _root() -> Path:
    """The folder runs/ of the checkout; outside of one, runs/ right there, where `semiseg train` puts them."""
    here = Path("runs").resolve()
    try:
        root = repo_root()
    except FileNotFoundError:
        return here
    return here if here.is_dir() and not here.is_relative_to(root) else root / "runs"


def _say(text: str) -> None:
    typer.secho(text, err=True, fg="yellow")


@app.command("list")
def list_runs() -> None:
    """One line per finished run, those of this machine (runs/local) included."""
    for run in find_runs(_root(), local=True, skip=_say):
        typer.echo(run.line())


@app.command()
def latest() -> None:
    """One line about the run that finished last."""
    found = find_runs(_root(), local=True, skip=_say)
    if not found:
        typer.echo(f"no finished run under {_root()}")
        raise typer.Exit(1)
    typer.echo(max(found, key=lambda run: (run.folder / RECORD).stat().st_mtime).line())


@app.command("keep")
def keep_runs(folders: Folders) -> None:
    """Copy finished local runs to runs/, to be committed, without their weights."""
    for folder in folders:
        typer.echo(keep(folder, _root()))


@app.command()
def publish(folders: Folders) -> None:
    """Copy finished local runs with their weights, for runs that a committed notebook shows."""
    for folder in folders:
        typer.echo(keep(folder, _root(), weights=True))


@app.command()
def plan(
    grid: Annotated[Path, typer.Argument(help="TOML file: methods, plug_ins, splits, seeds, variants, data, ...")],
    out: Annotated[Path | None, typer.Option(help="folder of the plan; none: below runs/local/plans")] = None,
    cost: Annotated[Path | None, typer.Option(help="measured seconds of steps; none: runs/step-cost.json")] = None,
) -> None:
    """Write the runs of a grid that no record is of, a recipe for each, for Snakemake."""
    from ..sweep import COST, make_plan, read_cost, read_grid, summary, write_plan

    measured = read_cost(cost or _root() / COST)
    made = make_plan(read_grid(grid), find_runs(_root(), local=True, skip=_say), measured)
    table = write_plan(made, out or Path("runs") / LOCAL / "plans" / grid.stem)
    for line in summary(made, measured):
        typer.echo(line)
    if made.runs:
        typer.echo(f"snakemake --profile profiles/local --config plan={table.parent}")
