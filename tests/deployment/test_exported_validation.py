"""`groupdetr val` of an exported file has the metrics of the detector that was exported."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image

from groupdetr.cli.main import main
from groupdetr.deployment.exported_detector import ExportedDetector
from groupdetr.deployment.runtimes import FORMATS
from groupdetr.workflows.ui import add_validation_set, open_exported
from tests.deployment.evaluations import assert_same_evaluation, evaluate, write_dataset

Exported = Callable[[str, str], Path]


@pytest.fixture(scope="module")
def dataset(weights: Path, photos: list[Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Images of three sizes, two of them of the same size."""
    folder = tmp_path_factory.mktemp("data")
    flipped = folder / "flipped.png"
    Image.open(photos[0]).transpose(Image.Transpose.FLIP_LEFT_RIGHT).save(flipped)
    return write_dataset(folder / "photos", weights, [*photos, flipped])


@pytest.mark.parametrize(
    ("format", "ending"), [(name, item.ending) for name, item in FORMATS.items()]
)
def test_a_file_has_the_metrics_of_its_weights(
    format: str, ending: str, exported: Exported, weights: Path, dataset: Path, tmp_path: Path
) -> None:
    file = exported(format, ending)
    metrics = assert_same_evaluation(file, weights, dataset, tmp_path)
    assert metrics["weights"] == str(file)


def test_batches_of_equal_sizes_have_the_detections_of_single_images(
    exported: Exported, dataset: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """In a batch of images of three sizes, those of one size run together, without padding."""
    file = exported("torch-export", ".pt2")
    _, alone = evaluate(file, dataset, tmp_path / "alone")
    arguments = ["val", str(file), "--data", str(dataset), "--workers", "0", "--batch", "8"]
    assert main(arguments) == 0
    output = capsys.readouterr().out
    assert "PyTorch: one image of 28 x 106 pixels takes" in output
    assert "groupdetr val RUN --batch 1" in output
    folder = file.parent / "val-labels-pt2"
    assert str(folder) in output
    together = json.loads((folder / "predictions.json").read_text())
    for one, other in zip(together, alone, strict=True):
        assert one["bbox"] == pytest.approx(other["bbox"], abs=0.1)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--per-group"], "it has one group of queries"),
        (["--vote", "2"], "it has one group of queries"),
        (["--precision", "bf16"], "the precision that it was exported with"),
        (["--device", "cuda"], "run on the CPU here"),
        (["--data"], "does not record which dataset"),
    ],
)
def test_val_refuses_what_a_file_cannot_do(
    options: list[str],
    message: str,
    exported: Exported,
    dataset: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    file = exported("torch-export", ".pt2")
    before = sorted(file.parent.iterdir())
    arguments = [] if options == ["--data"] else ["--data", str(dataset), *options]
    assert main(["val", str(file), *arguments]) == 2
    assert message in " ".join(capsys.readouterr().err.split())
    assert sorted(file.parent.iterdir()) == before


def test_the_web_page_of_a_file_has_its_detections_and_its_errors(
    exported: Exported, dataset: Path, photos: list[Path]
) -> None:
    file = exported("torch-export", ".pt2")
    session = open_exported(file, None)
    add_validation_set(session, file, None, None, None, None)
    assert "--data DATA" in session.no_data
    add_validation_set(session, file, dataset, None, None, None)
    info = session.info()
    assert info["groups"] == [0]
    assert "one group of queries" in info["note"]
    assert info["device"] == "PyTorch on the CPU"
    (group,) = session.detect(photos[0].read_bytes())["groups"]
    expected = ExportedDetector.load(file).detect(photos[0])
    scores = [detection["score"] for detection in group["detections"]]
    assert scores == pytest.approx(expected.scores.tolist(), abs=1e-6)
    assert session.validation is not None
    session.validation.compute()
    assert session.validation.state == "done"
    summary = session.errors(0.3, "missed", None, 0)["summary"]
    assert summary["detected"] > 0
    assert summary["missed"] + summary["false_positive"] > 0
