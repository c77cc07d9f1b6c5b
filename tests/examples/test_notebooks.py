"""The notebooks of `examples/` run, and are saved with their outputs, as readers want them."""

from __future__ import annotations

import re
from pathlib import Path

import nbformat
import pytest

from tests.examples.execute import NOTEBOOKS, execute

MAX_BYTES = 600_000  # a repository keeps every version of a notebook, and browsers load all of it
# How absolute paths begin on Linux, macOS and Windows.
ABSOLUTE_PATH = re.compile(
    r"(?<![\w.])/(?:home|root|tmp|usr|opt|var|mnt|Users|private)/|\b[A-Z]:\\"
)
all_notebooks = pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)


def read(path: Path) -> nbformat.NotebookNode:
    return nbformat.read(path, as_version=4)


def code_cells(notebook: nbformat.NotebookNode) -> list[nbformat.NotebookNode]:
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def faulty_outputs(notebook: nbformat.NotebookNode) -> list[nbformat.NotebookNode]:
    """Return all errors, and all that was written to stderr, such as warnings."""
    faulty = []
    for cell in code_cells(notebook):
        for output in cell.outputs:
            if output.output_type == "error" or output.get("name") == "stderr":
                faulty.append(output)
    return faulty


def texts(notebook: nbformat.NotebookNode) -> list[str]:
    """Return everything that a reader sees, except for images."""
    found = [cell.source for cell in notebook.cells]
    for cell in code_cells(notebook):
        for output in cell.outputs:
            found.append(output.get("text", ""))
            for kind, content in output.get("data", {}).items():
                if not kind.startswith("image/"):
                    found.append(content)
    return found


def count_images(notebook: nbformat.NotebookNode) -> int:
    outputs = [output for cell in code_cells(notebook) for output in cell.outputs]
    return sum("image/png" in output.get("data", {}) for output in outputs)


def test_there_are_three_notebooks() -> None:
    assert [path.stem for path in NOTEBOOKS] == ["own_data", "own_detr", "quick_start"]


@all_notebooks
def test_the_saved_notebook_was_executed_once_from_top_to_bottom(path: Path) -> None:
    counts = [cell.execution_count for cell in code_cells(read(path))]
    assert counts == list(range(1, len(counts) + 1))


@all_notebooks
def test_the_saved_notebook_has_no_errors_no_warnings_and_no_absolute_paths(path: Path) -> None:
    notebook = read(path)
    assert not faulty_outputs(notebook)
    for text in texts(notebook):
        assert not ABSOLUTE_PATH.search(text), text


@all_notebooks
def test_the_saved_notebook_is_small_and_has_figures(path: Path) -> None:
    assert path.stat().st_size < MAX_BYTES
    assert count_images(read(path)) >= 3


@all_notebooks
def test_every_file_that_a_notebook_links_to_exists(path: Path) -> None:
    for cell in read(path).cells:
        if cell.cell_type == "markdown":
            for link in re.findall(r"\]\((?!http)([^)#]+)", cell.source):
                assert (path.parent / link).exists(), link


# The test of the README runs the same commands as the others, so CI runs this one only.
IN_CI = "own_detr"
RUN_NOTEBOOKS = [
    pytest.param(path, id=path.stem, marks=pytest.mark.fair_sample if path.stem == IN_CI else ())
    for path in NOTEBOOKS
]


@pytest.mark.slow
@pytest.mark.parametrize("path", RUN_NOTEBOOKS)
def test_the_notebook_runs_from_top_to_bottom_without_warnings(path: Path, tmp_path: Path) -> None:
    executed = execute(path, tmp_path)
    assert not faulty_outputs(executed)
    assert count_images(executed) == count_images(read(path))
