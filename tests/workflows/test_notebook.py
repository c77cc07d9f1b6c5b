"""In a notebook: progress in one place, tables and images as results, and short saved outputs."""

from __future__ import annotations

import base64
import io
from pathlib import Path
from typing import Any

import nbformat
import pytest
from nbclient import NotebookClient
from PIL import Image

CELLS = (
    """
import groupdetr
recipe = {"channels": 32, "num_heads": 2, "dim_feedforward": 32, "decoder_layers": 2}
run = groupdetr.train(
    SHAPES, model="conditional-detr-tiny", groups=2, queries=8, set=recipe, epochs=2, batch=2,
    imgsz=48, workers=0, threads=1, device="cpu", out=OUT
)
""",
    "run",
    "groupdetr.evaluate(run.path, workers=0)",
    "groupdetr.check(SHAPES)",
    """
(result,) = groupdetr.Detector(run.path).predict(IMAGE, score=0)
result.show()
""",
)


def execute(cells: list[str]) -> list[list[Any]]:
    """Execute a notebook, and return the outputs of each cell as the notebook is saved."""
    notebook = nbformat.v4.new_notebook()
    notebook.cells = [nbformat.v4.new_code_cell(cell) for cell in cells]
    NotebookClient(notebook, timeout=900, coalesce_streams=True).execute()
    return [cell.outputs for cell in notebook.cells]


@pytest.mark.slow
@pytest.mark.fair_sample
def test_a_notebook_shows_progress_in_one_place_and_results_as_tables_and_images(
    shapes: Path, tmp_path: Path
) -> None:
    image = min((shapes / "images/val").iterdir())
    names = {"SHAPES": str(shapes), "OUT": str(tmp_path / "run"), "IMAGE": str(image)}
    assignments = "\n".join(f"{name} = {path!r}" for name, path in names.items())
    _, training, run, metrics, check, shown = execute([assignments, *CELLS])

    (progress,) = [output.data for output in training if output.output_type == "display_data"]
    assert set(progress) == {"text/plain"}, "rich would need ipywidgets"
    assert "100%  step 24/24" in progress["text/plain"]
    printed = "".join(output.text for output in training if output.get("name") == "stdout")
    assert printed.count("\ntrain ") == 2, "one line for each evaluation, none for steps"

    (run_table,) = [output.data["text/html"] for output in run]
    assert "<th>AP50</th>" in run_table
    assert f'href="{(tmp_path / "run/report.html").as_posix()}"' in run_table
    (metrics_output,) = [output.data for output in metrics]
    assert "<th>class</th>" in metrics_output["text/html"]
    assert "per_class" not in metrics_output["text/plain"]
    (check_output,) = [output.data for output in check]
    assert "ok: 0 errors, 0 warnings" in check_output["text/html"]
    (shown_output,) = [output.data for output in shown]
    png = base64.b64decode(shown_output["image/png"])
    assert Image.open(io.BytesIO(png)).size == Image.open(image).size
