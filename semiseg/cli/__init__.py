"""The command line, a thin layer over the functions that notebooks call: `semiseg --help` lists the commands."""

from __future__ import annotations

import typer

from . import data, model, runs

app = typer.Typer(help=__doc__, no_args_is_help=True, pretty_exceptions_enable=False, add_completion=False)
app.add_typer(data.app, name="data")
app.add_typer(runs.app, name="runs")
model.add_to(app)


def main() -> None:
    """Run a command; a foreseen error is one line and exit status 2, never a traceback."""
    try:
        app()
    except (ValueError, OSError, ImportError) as error:
        typer.secho(f"semiseg: {error}", err=True, fg="red")
        raise SystemExit(2) from error
