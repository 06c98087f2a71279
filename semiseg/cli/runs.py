"""semiseg runs: what was trained."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ..checkout import repo_root
from ..runs import RECORD, find_runs, keep

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
