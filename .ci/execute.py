"""Write notebooks/*.ipynb from their scripts, executed on committed records: python .ci/execute.py [NAME...]."""

import os
import sys
from pathlib import Path

import jupytext
import nbformat
from nbclient import NotebookClient

FOLDER = Path(__file__).parents[1] / "notebooks"


def main(names: list[str]) -> None:
    os.environ["SEMISEG_REUSE"] = "1"
    os.environ["OMP_NUM_THREADS"] = "1"  # waiting threads spin: on a busy machine minutes instead of seconds
    for script in sorted(FOLDER.glob("*.py")):
        if names and script.stem not in names:
            continue
        notebook = jupytext.read(script)
        notebook.metadata.pop("jupytext", None)
        for index, cell in enumerate(notebook.cells):
            cell["id"] = f"{script.stem}-{index:02d}"  # random ids would change in every commit
        resources = {"metadata": {"path": str(FOLDER)}}
        NotebookClient(notebook, timeout=1200, record_timing=False, resources=resources).execute()
        notebook.metadata.pop("language_info", None)
        nbformat.write(notebook, script.with_suffix(".ipynb"))
        print(script.with_suffix(".ipynb"))


if __name__ == "__main__":
    main(sys.argv[1:])
