"""`Detector` with ``uncertainty`` and ``vote``, and what `predict` writes of them."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from groupdetr.analysis.box_fusion import fuse_groups
from groupdetr.checkpoints import native
from groupdetr.cli.main import main
from groupdetr.errors import UsageError
from groupdetr.registry import create_model, recipe_to_dict
from groupdetr.tasks.detection2d.group_vote import voting_groups
from groupdetr.tasks.detection2d.prediction import Detector
from tests.json_docs import assert_documented

IMAGE = Image.fromarray(np.random.default_rng(0).integers(0, 256, (48, 64, 3), dtype=np.uint8))


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A weights file of a detector of three groups with random weights."""
    return write_weights(tmp_path_factory.mktemp("weights") / "model.safetensors")


def write_weights(path: Path, **options: object) -> Path:
    torch.manual_seed(0)
    model = create_model("conditional-detr-tiny", num_classes=2, num_groups=3, **options)
    metadata = {"recipe": recipe_to_dict(model.recipe), "categories": [[1, "a"], [2, "b"]]}
    native.save(model, path, {**metadata, "imgsz": 48})
    return path


def test_voting_groups_begin_with_the_one_that_answers() -> None:
    assert voting_groups(4, 2, answering=2) == [2, 0]
    assert voting_groups(4, 4, answering=0) == [0, 1, 2, 3]


def test_each_group_is_detected_once_whichever_is_the_primary_one(
    weights: Path, tmp_path: Path
) -> None:
    groups = Detector(weights, "cpu").detect_each_group(IMAGE)
    other = Detector(write_weights(tmp_path / "other.safetensors", inference_group=1), "cpu")
    assert other.group_order == [1, 0, 2]
    for number, detections in zip(other.group_order, other.detect_each_group(IMAGE), strict=True):
        torch.testing.assert_close(detections.boxes, groups[number].boxes)
    options = {"match": "match_naively", "inference_group": None}
    together = Detector(write_weights(tmp_path / "together.safetensors", **options), "cpu")
    (answer,) = together.detect_each_group(IMAGE)
    (result,) = together.predict(IMAGE, score=0)
    torch.testing.assert_close(answer.scores, result.detections.scores)


def test_a_vote_is_the_fusion_of_the_groups(weights: Path) -> None:
    (voted,) = Detector(weights, "cpu", vote=2).predict(IMAGE, score=0)
    groups = Detector(weights, "cpu").detect_each_group(IMAGE)
    expected = fuse_groups(groups[:2], max_detections=100).detections
    torch.testing.assert_close(voted.detections.boxes, expected.boxes)
    torch.testing.assert_close(voted.detections.scores, expected.scores)


def test_the_uncertainty_is_that_of_the_other_groups_and_changes_no_detection(
    weights: Path,
) -> None:
    """Computed here from its definition, box by box."""
    (plain,) = Detector(weights, "cpu").predict(IMAGE, score=0)
    (result,) = Detector(weights, "cpu", uncertainty=True).predict(IMAGE, score=0, show_groups=True)
    assert plain.uncertainty is None
    torch.testing.assert_close(result.detections.boxes, plain.detections.boxes)
    assert result.uncertainty is not None
    assert result.disagreement is not None
    assert result.groups is not None
    scores, boxes = result.groups.scores, result.groups.boxes
    assert 0 < np.isnan(scores[:, 1:]).mean() < 1, "some groups have the box and others do not"
    for index in range(len(result)):
        agreements, confirmed = [], [float(result.scores[index])]
        for group in (1, 2):
            if np.isnan(scores[index, group]):
                agreements.append(0.0)
                confirmed.append(0.0)
                continue
            x0, y0 = np.maximum(result.boxes[index, :2], boxes[index, group, :2])
            x1, y1 = np.minimum(result.boxes[index, 2:], boxes[index, group, 2:])
            intersection = (x1 - x0) * (y1 - y0)
            areas = [
                (b[2] - b[0]) * (b[3] - b[1]) for b in (result.boxes[index], boxes[index, group])
            ]
            pair = sorted((float(result.scores[index]), scores[index, group]))
            iou = intersection / (sum(areas) - intersection)
            agreements.append(iou * pair[0] / pair[1])
            confirmed.append(iou * scores[index, group])
        assert result.disagreement[index] == pytest.approx(1 - np.mean(agreements), abs=1e-4)
        assert result.uncertainty[index] == pytest.approx(1 - np.mean(confirmed), abs=1e-4)


def test_a_detector_can_do_both(weights: Path) -> None:
    """Fused detections are compared with all groups."""
    (result,) = Detector(weights, "cpu", uncertainty=True, vote=3).predict(IMAGE, score=0)
    assert result.uncertainty is not None
    assert len(result.uncertainty) == len(result) > 0


def test_predict_writes_the_uncertainty(
    weights: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    IMAGE.save(tmp_path / "a.png")
    options = ["--uncertainty", "--save-json", "--score", "0", "--out", str(tmp_path / "out")]
    assert main(["predict", str(weights), str(tmp_path / "a.png"), *options, "--json"]) == 0
    printed = json.loads(capsys.readouterr().out)
    assert_documented("predict: uncertainty", printed)
    values = [row["uncertainty"] for row in printed[0]["detections"]]
    assert 0 <= min(values) < max(values) <= 1
    coco = json.loads((tmp_path / "out/coco_results.json").read_text())
    assert [row["uncertainty"] for row in coco] == pytest.approx(values, abs=1e-6)


def test_votes_that_are_impossible_are_refused(weights: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="4 groups cannot be fused: this detector has 3"):
        Detector(weights, "cpu", vote=4)
    with pytest.raises(UsageError, match="vote must be"):
        Detector(weights, "cpu", vote=1)
    joint = write_weights(tmp_path / "joint.safetensors", group_attention="attend_across_groups")
    for keywords in ({"uncertainty": True}, {"vote": 2}):
        with pytest.raises(UsageError, match="attend to each other"):
            Detector(joint, "cpu", **keywords)
