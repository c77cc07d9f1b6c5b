"""Commands and the Python interface with a detector that segments rectangles by their colour."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from groupdetr.cli.main import main
from groupdetr.data.layouts import load
from groupdetr.evaluation.coco import from_coco_results
from groupdetr.structures.detections import decode_mask
from groupdetr.tasks.detection2d.instance_segmentation import InstanceTask
from groupdetr.tasks.detection2d.prediction import Detector
from groupdetr.visualize.images import palette
from tests.json_docs import assert_documented
from tests.tasks.detection2d.segmenter import (
    COLOURS,
    rectangles,
    register_segmenter,
    save_weights,
    write_data,
)


@pytest.fixture
def weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A weights file of the segmenter."""
    register_segmenter(monkeypatch)
    return save_weights(tmp_path / "colours.safetensors", imgsz=48)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Images of coloured rectangles."""
    return write_data(tmp_path_factory.mktemp("colours"))


def test_val_has_the_ap_of_masks_and_of_the_boxes_around_them(
    weights: Path, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "val"
    options = ["--workers", "0", "--device", "cpu", "--batch", "2", "--out", str(out)]
    assert main(["val", str(weights), "--data", str(data), *options]) == 0
    metrics = json.loads((out / "metrics.json").read_text())
    assert metrics["kind"] == "mask"
    aps = [metrics["AP"], metrics["box_AP"], metrics["per_class"][0]["AP"]]
    assert aps == pytest.approx([1, 1, 1])
    rows = [line.split()[:4] for line in capsys.readouterr().out.splitlines()]
    assert ["mask", "100.0", "100.0", "100.0"] in rows
    assert ["box", "100.0", "100.0", "100.0"] in rows
    results = json.loads((out / "predictions.json").read_text())
    split = load(data, masks=True).splits["val"]
    first_image = from_coco_results(split, results)[0]
    assert any(decode_mask(run_lengths).any() for run_lengths in first_image.masks or ())


def test_predict_draws_masks_and_writes_their_run_lengths(
    weights: Path, data: Path, tmp_path: Path
) -> None:
    large = Image.open(data / "images/val/0.png").resize((384, 288), Image.Resampling.NEAREST)
    large.save(tmp_path / "large.png")
    out = tmp_path / "out"
    options = ["--device", "cpu", "--out", str(out)]
    assert main(["predict", str(weights), str(tmp_path / "large.png"), *options]) == 0
    (image,) = json.loads((out / "predictions.json").read_text())
    detections = image["detections"]
    assert {detection["name"] for detection in detections} == {"green", "blue"}
    assert all(detection["segmentation"]["size"] == [288, 384] for detection in detections)
    annotated = np.asarray(Image.open(out / image["annotated"])).astype(int)
    green_with_mask = 0.55 * np.array([0, 255, 0]) + 0.45 * np.array(palette(1))
    # The image is six times as large as the one with these rectangles.
    x, y, w, h = (6 * value for value in rectangles(0)[0][1])
    difference = abs(annotated[y : y + h, x : x + w] - green_with_mask).max(-1)
    assert (difference < 3).mean() > 0.6, "labels and outlines cover the other pixels"


def test_the_json_output_has_the_documented_keys(
    weights: Path, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = ["--device", "cpu", "--out", str(tmp_path / "predict"), "--json"]
    val_options = ["--data", str(data), "--workers", "0", "--out", str(tmp_path / "val")]
    assert main(["val", str(weights), *val_options, "--device", "cpu", "--json"]) == 0
    metrics = json.loads(capsys.readouterr().out)
    assert metrics["split"] == "val"
    subject = ("split", "weights", "data", "images")
    evaluation = {name: value for name, value in metrics.items() if name not in subject}
    assert_documented("Metrics of masks", evaluation)
    assert main(["predict", str(weights), str(data / "images/val"), *options]) == 0
    assert_documented("predict: masks", json.loads(capsys.readouterr().out))


def test_the_detector_returns_masks_that_cover_the_objects(weights: Path, data: Path) -> None:
    detector = Detector(weights, "cpu")
    assert detector.task is InstanceTask
    (result,) = detector.predict(data / "images/val/0.png")
    masks = result.masks
    assert masks is not None
    assert (masks.shape, masks.dtype) == ((2, 48, 64), bool)
    expected = {COLOURS[colour]: box for colour, box in rectangles(0)}
    for name, mask, box in zip(result.names, masks, result.boxes.tolist()):
        x, y, w, h = expected[name]
        assert box == [x, y, x + w, y + h]
        assert mask[y : y + h, x : x + w].sum() == mask.sum(), "no pixel is outside of the object"
        # Interpolation rounds the corners.
        assert mask.sum() == pytest.approx(w * h, abs=12)


def test_an_image_without_objects_has_no_masks(weights: Path) -> None:
    (result,) = Detector(weights, "cpu").predict(np.zeros((48, 64, 3), np.uint8))
    assert result.masks is not None
    assert result.masks.shape == (0, 48, 64)


def test_masks_convert_to_coco_and_supervision(weights: Path, data: Path) -> None:
    (result,) = Detector(weights, "cpu").predict(data / "images/val/1.png")
    keys = {"image_id", "category_id", "bbox", "score", "segmentation"}
    rows = result.to_coco(image_id=6)
    assert all(set(row) == keys for row in rows)
    json.dumps(rows)
    pytest.importorskip("supervision")
    detections = result.to_supervision()
    masks = result.masks
    assert masks is not None
    np.testing.assert_array_equal(detections.mask, masks)
    assert detections.area.tolist() == pytest.approx([mask.sum() for mask in masks])
