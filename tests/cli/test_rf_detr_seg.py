"""Commands with a detector that predicts boxes and masks."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from groupdetr.cli.main import main
from groupdetr.data.synthetic import SyntheticConfig, write

ON_CPU = ["--device", "cpu"]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("shapes")
    write(SyntheticConfig(image_size=64), folder, {"train": 4, "val": 2})
    return folder


@pytest.fixture(scope="module")
def run(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A training of two steps, one group of three at a time."""
    folder = tmp_path_factory.mktemp("runs") / "run"
    options = ["--model", "rf-detr-seg-micro", "--groups", "3", "--group-chunk", "1"]
    options += ["--epochs", "1", "--batch", "2", "--imgsz", "64", "--workers", "0"]
    assert main(["train", str(data), *options, *ON_CPU, "--out", str(folder)]) == 0
    return folder


def test_a_training_has_losses_of_boxes_and_masks_for_every_layer(run: Path) -> None:
    lines = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
    losses = {name for line in lines for name in line.get("losses", line)}
    for layer in ("proposals", "layer0", "layer1"):
        for term in ("iou_aware_bce", "l1", "giou", "mask", "dice"):
            assert f"{layer}/{term}" in losses


def test_val_has_the_ap_of_masks_and_of_predicted_boxes(
    run: Path, data: Path, tmp_path: Path
) -> None:
    options = ["--data", str(data), "--workers", "0", "--out", str(tmp_path)]
    assert main(["val", str(run), *options, *ON_CPU]) == 0
    metrics = json.loads((tmp_path / "metrics.json").read_text())
    assert metrics["kind"] == "mask"
    assert {"AP", "box_AP"} <= metrics.keys()


def test_predict_writes_boxes_that_are_not_those_around_the_masks(
    run: Path, data: Path, tmp_path: Path
) -> None:
    image = next((data / "images/val").iterdir())
    options = ["--score", "0", "--out", str(tmp_path)]
    assert main(["predict", str(run), str(image), *options, *ON_CPU]) == 0
    (result,) = json.loads((tmp_path / "predictions.json").read_text())
    detections = result["detections"]
    assert len(detections) == 100
    assert all(detection["segmentation"]["size"] == [64, 64] for detection in detections)
    # A box around a mask has whole numbers.
    assert any(coordinate % 1 for detection in detections for coordinate in detection["box"])
