"""Executes the notebooks of `examples/` and saves them with their outputs.

``python -m tests.examples.execute`` executes all of them, ``python -m tests.examples.execute
examples/quick_start.ipynb`` this one. Each is executed in a temporary folder, so the repository
gets no data and no runs, and is saved only if no cell has failed.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

import nbformat
from nbclient import NotebookClient

from tests.runs import environment

EXAMPLES = Path(__file__).parents[2] / "examples"
NOTEBOOKS = sorted(EXAMPLES.glob("*.ipynb"))
CELL_TIMEOUT = 1800  # seconds; it only ends a notebook that hangs


def execute(path: Path, folder: Path) -> nbformat.NotebookNode:
    """Execute a notebook from top to bottom in a folder, and return it with its outputs.

    `nbclient.exceptions.CellExecutionError` for the first cell that fails. The result does not
    depend on when it was executed, and not on the version of Python.
    """
    notebook = nbformat.read(path, as_version=4)
    client = NotebookClient(
        notebook,
        timeout=CELL_TIMEOUT,
        kernel_name="python3",
        resources={"metadata": {"path": str(folder)}},
        coalesce_streams=True,
        record_timing=False,
    )
    client.execute(env=environment())
    notebook.metadata = {
        "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
        "language_info": {"name": "python"},
    }
    return notebook


def main() -> None:
    """Execute and save the notebooks that are named as arguments, or all of them."""
    for path in [Path(argument) for argument in sys.argv[1:]] or NOTEBOOKS:
        print(path, flush=True)
        with tempfile.TemporaryDirectory() as folder:
            notebook = execute(path, Path(folder))
        nbformat.write(notebook, path)


if __name__ == "__main__":
    main()
