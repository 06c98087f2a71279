"""Where the repository lies."""

from __future__ import annotations

from pathlib import Path


def repo_root(start: Path | None = None) -> Path:
    """The folder of the repository: above `start` (the working folder by default), or where the package lies.

    papermill runs a notebook where it was started, nbval and Jupyter run it in its own folder; paths made from here
    are right in both.  Raises FileNotFoundError when the package is not installed from a checkout either.
    """
    here = (start or Path.cwd()).resolve()
    package = Path(__file__).resolve().parent
    for folder in (here, *here.parents, *package.parents):
        if (folder / "pyproject.toml").is_file() and (folder / "semiseg" / "notebook.py").is_file():
            return folder
    raise FileNotFoundError(f"no repository above {here}; start the notebook inside a checkout of semiseg")
