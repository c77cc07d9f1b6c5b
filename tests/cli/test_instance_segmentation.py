"""Masks from one end to the other: the verbs and the users' face with a detector that finds rectangles by colour."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from groupdetr.cli.main import main
from groupdetr.data.formats import load
from groupdetr.evaluation.coco import from_coco_results
from groupdetr.structures.detections import decoded
from groupdetr.tasks.detection2d.instance_segmentation import InstanceTask
from groupdetr.tasks.detection2d.prediction import Detector
from groupdetr.visualize.images import palette
from tests.tasks.detection2d.segmenter import draw, rectangles, register, save


@pytest.fixture
def weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    register(monkeypatch)
    return save(tmp_path / "colours.safetensors", imgsz=48)


@pytest.fixture(scope="module")
def colours(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return draw(tmp_path_factory.mktemp("colours"))


def test_val_tells_ap_of_masks_and_of_the_boxes_around_them(
    weights: Path, colours: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "val"
    arguments = [
        "--data",
        str(colours),
        "--workers",
        "0",
        "--device",
        "cpu",
        "--batch",
        "2",
        "--out",
        str(out),
    ]
    assert main(["val", str(weights), *arguments]) == 0
    figures = json.loads((out / "metrics.json").read_text())
    assert figures["kind"] == "mask"
    assert figures["AP"] == figures["box_AP"] == figures["per_class"][0]["AP"] == 1
    said = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert ["mask", "100.0", "100.0", "100.0"] in [words[:4] for words in said]
    assert ["box", "100.0", "100.0", "100.0"] in said
    results = json.loads((out / "predictions.json").read_text())
    split = load(colours, masks=True).splits["val"]
    assert any(decoded(runs).any() for runs in from_coco_results(split, results)[0].masks or ())


def test_predict_draws_masks_and_writes_their_run_lengths(
    weights: Path, colours: Path, tmp_path: Path
) -> None:
    large = Image.open(colours / "images/val/0.png").resize((384, 288), Image.Resampling.NEAREST)
    large.save(tmp_path / "large.png")
    arguments = [str(tmp_path / "large.png"), "--device", "cpu", "--out", str(tmp_path / "out")]
    assert main(["predict", str(weights), *arguments]) == 0
    (picture,) = json.loads((tmp_path / "out/predictions.json").read_text())
    assert {d["name"] for d in picture["detections"]} == {"green", "blue"}
    assert all(d["segmentation"]["size"] == [288, 384] for d in picture["detections"])
    drawn = np.asarray(Image.open(tmp_path / "out" / picture["annotated"])).astype(int)
    veiled = 0.55 * np.array([0, 255, 0]) + 0.45 * np.array(palette(1))
    x, y, w, h = (6 * value for value in rectangles(0)[0][1])
    assert (abs(drawn[y : y + h, x : x + w] - veiled).max(-1) < 3).mean() > 0.6, (
        "chips and lines hide the rest"
    )


def test_the_detector_gives_masks_where_the_objects_are(weights: Path, colours: Path) -> None:
    detector = Detector(weights, "cpu")
    assert detector.task is InstanceTask
    (result,) = detector.predict(colours / "images/val/0.png")
    masks = result.masks
    assert masks is not None
    assert (masks.shape, masks.dtype) == ((2, 48, 64), bool)
    for name, mask, box in zip(result.names, masks, result.boxes.tolist()):
        x, y, w, h = next(
            place for colour, place in rectangles(0) if name == ("red", "green", "blue")[colour]
        )
        assert (
            mask[y : y + h, x : x + w].sum() == mask.sum() == pytest.approx(w * h, abs=12)
        )  # its corners are round
        assert box == [x, y, x + w, y + h]
    (nothing,) = detector.predict(np.zeros((48, 64, 3), np.uint8))
    assert nothing.masks is not None
    assert nothing.masks.shape == (0, 48, 64)


def test_masks_go_to_coco_and_supervision(weights: Path, colours: Path) -> None:
    (result,) = Detector(weights, "cpu").predict(colours / "images/val/1.png")
    rows = result.to_coco(image_id=6)
    assert all(
        set(row) == {"image_id", "category_id", "bbox", "score", "segmentation"} for row in rows
    )
    json.dumps(rows)
    pytest.importorskip("supervision")
    theirs = result.to_supervision()
    np.testing.assert_array_equal(theirs.mask, result.masks)
    assert theirs.area.tolist() == pytest.approx([mask.sum() for mask in result.masks])  # type: ignore[union-attr]
