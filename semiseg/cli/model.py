"""semiseg evaluate, predict, export: use the model of a finished run."""

from __future__ import annotations

import typer


def add_to(app: typer.Typer) -> None:
    """Register the commands."""
