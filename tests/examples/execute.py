"""Executes the notebooks of `examples/` and saves them with their outputs.

``python -m tests.examples.execute`` executes all of them, ``python -m tests.examples.execute
examples/quick_start.ipynb`` this one. Each is executed in a temporary folder, so the repository
gets no data and no runs, and is saved only if no cell has failed.
"""

from __future__ import annotations

import base64
import io
import sys
import tempfile
from pathlib import Path

import nbformat
from nbclient import NotebookClient
from PIL import Image

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
    # tqdm, which huggingface-hub uses, warns in notebooks without ipywidgets.
    client.execute(env={**environment(), "PYTHONWARNINGS": "ignore:IProgress not found"})
    for cell in notebook.cells:
        for output in cell.get("outputs", []):
            if "image/png" in output.get("data", {}):
                output.data["image/png"] = with_few_colours(output.data["image/png"])
    notebook.metadata = {
        "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
        "language_info": {"name": "python"},
    }
    return notebook


def with_few_colours(png: str) -> str:
    """Return a PNG, as base64, with 128 colours. It looks the same and has a third of the size."""
    image = Image.open(io.BytesIO(base64.b64decode(png))).convert("RGB").quantize(128)
    small = io.BytesIO()
    image.save(small, "PNG", optimize=True)
    return base64.b64encode(small.getvalue()).decode()


def main() -> None:
    """Execute and save the notebooks that are named as arguments, or all of them."""
    for path in [Path(argument) for argument in sys.argv[1:]] or NOTEBOOKS:
        print(path, flush=True)
        with tempfile.TemporaryDirectory() as folder:
            notebook = execute(path, Path(folder))
        nbformat.write(notebook, path)


if __name__ == "__main__":
    main()
