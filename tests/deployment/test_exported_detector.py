"""An exported detector detects what `Detector.predict` detects, in every format."""

from __future__ import annotations

import json
import runpy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import groupdetr
from groupdetr.cli.main import main
from groupdetr.deployment.exported_detector import ExportedDetector
from groupdetr.deployment.runtimes import FORMATS
from groupdetr.errors import UsageError
from groupdetr.structures.detections import Detections
from groupdetr.workflows.export import export
from tests.deployment.evaluations import assert_same_evaluation, write_dataset
from tests.deployment.exports import CATEGORIES, IMGSZ, SCORE_THRESHOLD, SMALL, write_weights

ROOT = Path(__file__).parents[2]
Exported = Callable[[str, str], Path]
SMALL_VIT: dict[str, Any] = {"global_blocks": (1,), "map_blocks": (0, 1), "decoder_layers": 1}
every_format = pytest.mark.parametrize(
    ("format", "ending"), [(name, item.ending) for name, item in FORMATS.items()]
)


def assert_same(ours: Detections, theirs: Detections) -> None:
    """Assert equal classes, scores within 1e-4 and boxes within half a pixel."""
    assert len(ours) == len(theirs) > 0
    assert torch.equal(ours.labels, theirs.labels)
    torch.testing.assert_close(ours.scores, theirs.scores, rtol=0, atol=1e-4)
    torch.testing.assert_close(ours.boxes, theirs.boxes, rtol=0, atol=0.5)


@every_format
def test_images_of_any_size_have_the_detections_of_the_detector(
    format: str, ending: str, exported: Exported, weights: Path, photos: list[Path]
) -> None:
    detector = groupdetr.Detector(weights, "cpu")
    of_file = ExportedDetector.load(exported(format, ending))
    for photo in photos:
        (expected,) = detector.predict(photo, score=0)
        assert_same(of_file.detect(photo), expected.detections)


def predictions_of(source: Path, photos: list[Path], out: Path) -> list[dict[str, Any]]:
    """Return predictions.json of `groupdetr predict`, with the default score threshold."""
    arguments = ["predict", str(source), *map(str, photos), "--out", str(out), "--save-txt"]
    assert main([*arguments, "--batch", "2", "--device", "cpu"]) == 0
    content: list[dict[str, Any]] = json.loads((out / "predictions.json").read_text())
    return content


@every_format
def test_predict_writes_the_same_with_a_file_as_with_its_weights(
    format: str, ending: str, exported: Exported, weights: Path, photos: list[Path], tmp_path: Path
) -> None:
    same_size = tmp_path / "same-size.png"
    Image.open(photos[0]).transpose(Image.Transpose.FLIP_LEFT_RIGHT).save(same_size)
    photos = [photos[0], same_size, photos[2]]
    expected = predictions_of(weights, photos, tmp_path / "weights")
    found = predictions_of(exported(format, ending), photos, tmp_path / "file")
    assert sum(len(image["detections"]) for image in expected) > 0
    for ours, theirs in zip(found, expected, strict=True):
        assert len(ours["detections"]) == len(theirs["detections"])
        for one, other in zip(ours.pop("detections"), theirs.pop("detections"), strict=True):
            assert (one["category_id"], one["name"]) == (other["category_id"], other["name"])
            assert one["score"] == pytest.approx(other["score"], abs=1e-4)
            assert one["box"] == pytest.approx(other["box"], abs=0.5)
        assert ours == theirs
    written = [
        sorted(file.relative_to(tmp_path / name) for file in (tmp_path / name).rglob("*.*"))
        for name in ("weights", "file")
    ]
    assert written[0] == written[1]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--show-groups"], "--show-groups is for runs"),
        (["--vote", "2"], "--vote is for runs"),
        (["--precision", "bf16"], "--precision is for runs"),
        (["--split", "train"], "--split is for runs"),
        (["--device", "cuda"], "run on the CPU here"),
        (["--imgsz", "0"], "imgsz"),
    ],
)
def test_predict_refuses_what_a_file_cannot_do(
    options: list[str],
    message: str,
    exported: Exported,
    photos: list[Path],
    capsys: pytest.CaptureFixture[str],
) -> None:
    file = exported("torch-export", ".pt2")
    assert main(["predict", str(file), str(photos[0]), *options]) == 2
    assert message in " ".join(capsys.readouterr().err.split())


def test_a_file_of_any_size_takes_images_of_another_size(
    exported: Exported, weights: Path, photos: list[Path]
) -> None:
    of_file = ExportedDetector.load(exported("torch-export", ".pt2"), imgsz=96)
    (found,) = of_file.predict(photos[0], score=0)
    (expected,) = groupdetr.Detector(weights, "cpu", imgsz=96).predict(photos[0], score=0)
    assert_same(found.detections, expected.detections)


@every_format
def test_images_of_a_batch_have_the_detections_that_they_have_alone(
    format: str, ending: str, exported: Exported
) -> None:
    runtime = ExportedDetector.load(exported(format, ending)).runtime
    images = np.random.default_rng(0).uniform(0, 255, (3, 3, 70, 90)).astype(np.float32)
    together = runtime(images)
    for index in range(len(images)):
        alone = runtime(images[index : index + 1])
        for name, values in alone.items():
            np.testing.assert_allclose(together[name][index], values[0], rtol=0, atol=1e-3)


@every_format
def test_a_file_says_which_classes_and_sizes_it_has(
    format: str, ending: str, exported: Exported
) -> None:
    of_file = ExportedDetector.load(exported(format, ending))
    assert of_file.categories == [(category_id, name) for category_id, name in CATEGORIES]
    assert of_file.metadata["imgsz"] == IMGSZ
    assert of_file.score == SCORE_THRESHOLD
    assert of_file.metadata["version"] == groupdetr.__version__


def test_a_file_of_onnx_runs_without_this_library(
    exported: Exported, weights: Path, photos: list[Path]
) -> None:
    """Pillow and torchvision resize a little differently, so scores differ in the third digit."""
    script = ROOT / "examples/onnx_detection.py"
    text = script.read_text()
    assert "import groupdetr" not in text
    assert "torch" not in text
    detect = runpy.run_path(str(script))["detect"]
    for photo in photos:
        found = list(detect(str(exported("onnx", ".onnx")), photo, 0.3))
        (expected,) = groupdetr.Detector(weights, "cpu").predict(photo, score=0.3)
        assert [name for name, _, _ in found] == expected.names
        np.testing.assert_allclose([score for _, score, _ in found], expected.scores, atol=5e-3)
        np.testing.assert_allclose([box for _, _, box in found], expected.boxes, atol=1)


@pytest.mark.slow
def test_images_of_any_size_have_whole_windows(photos: list[Path], tmp_path: Path) -> None:
    """Both sides are rounded, in the export as in the detector."""
    sizes = {"num_groups": 1, "num_queries": 8, "vit_depth": 2, "square_images": False}
    weights = write_weights(tmp_path / "any.safetensors", "rf-detr-micro", **sizes, **SMALL_VIT)
    of_file = ExportedDetector.load(export(weights, "torch-export", tmp_path / "any.pt2").file)
    detector = groupdetr.Detector(weights, "cpu")
    for photo in photos:
        (expected,) = detector.predict(photo, score=0)
        assert_same(of_file.detect(photo), expected.detections)


def test_a_file_of_a_fixed_size_in_half_precision(
    weights: Path, exported: Exported, photos: list[Path], tmp_path: Path
) -> None:
    """It stretches images to its size. Its weights have half of the bytes."""
    out = tmp_path / "fixed.pt2"
    result = export(weights, "torch-export", out, size=(64, 96), top=5, half=True)
    full = exported("torch-export", ".pt2").stat().st_size
    assert result.file.stat().st_size < 0.8 * full
    assert 1e-6 < result.agreement.score < 2e-2
    of_file = ExportedDetector.load(result.file)
    detections = of_file.detect(photos[1])  # of 70 x 120 pixels
    assert len(detections) == 5
    assert bool((detections.boxes <= torch.tensor([70, 120, 70, 120])).all())
    with pytest.raises(UsageError, match="fixed size, 64 x 96"):
        ExportedDetector.load(result.file, imgsz=64)
    with pytest.raises(Exception, match="64"):
        of_file.runtime(np.zeros((1, 3, 96, 64), dtype=np.float32))


@every_format
def test_a_file_of_something_else_is_refused(format: str, ending: str, tmp_path: Path) -> None:
    file = tmp_path / f"other{ending}"
    for content in (b"", b"something else", b"PK\x03\x04"):
        file.write_bytes(content)
        with pytest.raises(UsageError, match="did not write it"):
            ExportedDetector.load(file)


@pytest.mark.parametrize(
    ("preset", "sizes"),
    [
        ("mask2former-tiny", {**SMALL, "decoder_layers": 1, "encoder_dim_feedforward": 32}),
        pytest.param(
            "rf-detr-seg-micro",
            {"num_groups": 2, "num_queries": 8, "vit_depth": 2, **SMALL_VIT},
            marks=pytest.mark.slow,
        ),
    ],
)
def test_masks_and_their_metrics_are_those_of_the_detector(
    preset: str, sizes: dict[str, Any], photos: list[Path], tmp_path: Path
) -> None:
    weights = write_weights(tmp_path / "masks.safetensors", preset, **sizes)
    # An export for images of any size takes a minute.
    file = export(weights, "torch-export", tmp_path / "masks.pt2", size=(64, 64)).file
    photo = photos[2]  # of 64 x 64 pixels
    result: Any
    (result,) = groupdetr.Detector(weights, "cpu").predict(photo, score=0)
    detections = ExportedDetector.load(file).detect(photo)
    torch.testing.assert_close(detections.scores, result.detections.scores, rtol=0, atol=1e-4)
    torch.testing.assert_close(detections.boxes, result.detections.boxes, rtol=0, atol=0.5)
    assert json.dumps(str(detections.masks)) == json.dumps(str(result.detections.masks))
    data = write_dataset(tmp_path / "data", weights, [photo])
    metrics = assert_same_evaluation(file, weights, data, tmp_path)
    assert metrics["kind"] == "mask"
    assert metrics["box_AP"] > 0
