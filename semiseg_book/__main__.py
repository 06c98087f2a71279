"""python -m semiseg_book: what the tables of the book still lack, and the README filled from records."""

from __future__ import annotations

from typing import Annotated

import typer

from semiseg.checkout import repo_root
from semiseg.runs import find_runs

from .experiments import Records

app = typer.Typer(help=__doc__, no_args_is_help=True, pretty_exceptions_enable=False, add_completion=False)


@app.command()
def missing(
    scale: Annotated[str, typer.Option(help="tiny (the embedded set) or paper.")] = "tiny",
    limit: Annotated[int, typer.Option(min=1, help="How many commands at most.")] = 20,
) -> None:
    """Print the runs that tables still lack, as commands for a shell, most valuable first; those of this machine count
    as there."""
    from .missing import RANKS
    from .missing import missing as lacking

    found = lacking(Records(find_runs(repo_root() / "runs", local=True)), scale)
    rank = None
    for item in found[:limit]:
        if item.rank != rank:
            rank = item.rank
            typer.echo(f"# {RANKS[rank]}")
        typer.echo(item.command)
    typer.echo(f"# {min(limit, len(found))} of {len(found)} runs that tables ask for and no record is of")


@app.command()
def readme() -> None:
    """Write the results table of README.md, and its picture, from the records in runs/."""
    from .readme import write

    write()


def main() -> None:
    """Run a command; a foreseen error is one line and exit status 2, never a traceback."""
    try:
        app()
    except (ValueError, OSError, ImportError) as error:
        typer.secho(f"semiseg_book: {error}", err=True, fg="red")
        raise SystemExit(2) from error


if __name__ == "__main__":
    main()
