"""The file of a detector of scenes has the detections of `groupdetr.SceneDetector`."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from groupdetr.cli.main import main
from groupdetr.data.nuscenes.names import CLASSES
from groupdetr.deployment import verification
from groupdetr.deployment.exported_detector import ExportedDetector
from groupdetr.deployment.exported_scene_detector import ExportedSceneDetector, load_exported
from groupdetr.errors import UsageError
from groupdetr.tasks.detection3d.prediction import SceneDetector
from groupdetr.workflows.export import export
from tests.deployment import exports
from tests.deployment.exports import SMALL, write_weights

SIZES = {name: value for name, value in SMALL.items() if name != "encoder_layers"}


@pytest.fixture
def weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(exports, "CATEGORIES", [list(item) for item in enumerate(CLASSES)])
    return write_weights(tmp_path / "scenes.safetensors", "petrv2-tiny", **SIZES)


@pytest.mark.slow
def test_an_exported_detector_of_scenes_detects_the_same(
    weights: Path, scenes: Path, tmp_path: Path
) -> None:
    result = export(weights, "torch-export", check=scenes)
    assert result.agreement.detections > 0
    assert result.ap is not None
    assert result.metric == "NDS"
    assert result.ap[0] == pytest.approx(result.ap[1], abs=1e-4)

    detector = SceneDetector(weights, "cpu")
    exported = ExportedSceneDetector.load(result.file)
    samples = detector.samples(scenes)
    expected = detector.predict_sample(samples, 1, score=0.0).detections
    detections = exported.predict(samples.collate([samples[1]]))
    assert torch.allclose(detections.scores, expected.scores, atol=1e-5)
    assert torch.equal(detections.labels, expected.labels)
    assert torch.allclose(detections.boxes, expected.boxes, atol=1e-3)

    # The comparison notices cameras that are somewhere else.
    scene = samples.collate([samples[1]])
    moved = ExportedSceneDetector(
        lambda images, matrices, elapsed: exported.runtime(images, 1.2 * matrices, elapsed),
        exported.metadata,
    )
    agreement = verification.compare_scenes(moved, exported, [scene], dynamic_batch=False)
    assert not agreement.is_within(verification.TOLERANCE)

    with pytest.raises(UsageError, match="in scenes, not in single images") as error:
        ExportedDetector.load(result.file)
    assert "ExportedSceneDetector" in error.value.remedy

    # `groupdetr val` evaluates both alike.
    metrics = {}
    for name, source in (("file", result.file), ("weights", weights)):
        arguments = ["val", str(source), "--data", str(scenes), "--workers", "0", "--batch", "3"]
        assert main([*arguments, "--out", str(tmp_path / name)]) == 0
        metrics[name] = json.loads((tmp_path / name / "metrics.json").read_text())
        assert (tmp_path / name / "predictions.json").is_file()
    assert metrics["file"].pop("milliseconds") > 0
    assert metrics["file"].pop("weights") == str(result.file)
    del metrics["weights"]["weights"]
    assert metrics["file"].keys() == metrics["weights"].keys()
    for name in ("NDS", "mAP", "mATE"):
        assert metrics["file"][name] == pytest.approx(metrics["weights"][name], abs=1e-4)
    with pytest.raises(UsageError, match="a fixed size, 64 x"):
        load_exported(result.file, imgsz=32)
