"""The command line, a thin layer over the functions that notebooks call: `semiseg --help` lists the commands."""

from __future__ import annotations

from typing import Annotated

import typer

from .. import __version__
from . import data, model, runs
from .methods import methods

app = typer.Typer(no_args_is_help=True, pretty_exceptions_enable=False, add_completion=False)
app.add_typer(data.app, name="data")
app.add_typer(runs.app, name="runs")
app.command()(methods)
model.add_to(app)


def _version(asked: bool) -> None:
    if asked:
        typer.echo(f"semiseg {__version__}")
        raise typer.Exit


@app.callback()
def program(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Show the version.")
    ] = False,
) -> None:
    """Semi-supervised semantic segmentation, reproduced: train, compare, and use the result."""


def main() -> None:
    """Run a command; a foreseen error is one line and exit status 2, never a traceback."""
    try:
        app()
    except (ValueError, OSError, ImportError, ArithmeticError) as error:
        typer.secho(f"semiseg: {error}", err=True, fg="red")
        raise SystemExit(2) from error
