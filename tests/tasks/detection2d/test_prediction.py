"""`Detector.predict` and `Detector.stream`: which images, scores and devices they take."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torchvision.transforms.v2 import functional as F

from groupdetr.checkpoints import native
from groupdetr.data.batch import normalise
from groupdetr.errors import UsageError
from groupdetr.ops.boxes import cxcywh_to_xyxy
from groupdetr.registry import create_model, recipe_to_dict
from groupdetr.tasks.detection2d.prediction import Detector

IMAGE = np.random.default_rng(0).integers(0, 256, (30, 40, 3), dtype=np.uint8)


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A weights file of a detector with random weights."""
    torch.manual_seed(0)
    model = create_model("conditional-detr-tiny", num_classes=2, num_groups=1)
    path = tmp_path_factory.mktemp("weights") / "model.safetensors"
    metadata = {"recipe": recipe_to_dict(model.recipe), "categories": [[1, "a"], [2, "b"]]}
    native.save(model, path, {**metadata, "imgsz": 48})
    return path


@pytest.fixture(scope="module")
def detector(weights: Path) -> Detector:
    return Detector(weights, "cpu")


def test_a_stream_of_one_image_is_one_result_and_not_one_of_each_row(detector: Detector) -> None:
    (streamed,) = detector.stream(IMAGE, score=0)
    (predicted,) = detector.predict(IMAGE, score=0)
    assert streamed.image.size == (40, 30)
    assert torch.equal(streamed.detections.scores, predicted.detections.scores)


@pytest.mark.parametrize("image", ["", None, {"image": IMAGE}])
def test_what_is_no_image_is_refused_by_a_stream_as_by_predict(
    image: Any, detector: Detector
) -> None:
    for predict in (detector.predict, lambda image: list(detector.stream(image))):
        with pytest.raises(UsageError, match="is not an image"):
            predict(image)


def test_a_score_that_is_not_from_0_to_1_is_refused(detector: Detector) -> None:
    scores: list[Any] = ["0.5", float("nan"), -0.1, 1.5, True]
    for score in scores:
        with pytest.raises(UsageError, match="score must be a number from 0 to 1"):
            detector.predict(IMAGE, score=score)


def test_only_detections_of_the_classes_that_are_named_are_returned(detector: Detector) -> None:
    (all_classes,) = detector.predict(IMAGE, score=0)
    assert set(all_classes.names) == {"a", "b"}
    (result,) = detector.predict(IMAGE, score=0, classes=["b"])
    is_b = all_classes.detections.labels == 1
    assert torch.equal(result.detections.scores, all_classes.detections.scores[is_b])
    assert torch.equal(result.detections.boxes, all_classes.detections.boxes[is_b])
    assert (set(result.names), result.best_score) == ({"b"}, float(result.scores[0]))
    assert len(detector.predict(IMAGE, score=0, classes=["b", "a"])[0].names) == len(is_b)


@pytest.mark.parametrize(
    ("classes", "what"),
    [(["bb"], "no class 'bb'"), ([], "no class was named"), ("b", "is not a list")],
)
def test_classes_that_the_detector_does_not_have_are_refused(
    classes: Any, what: str, detector: Detector
) -> None:
    with pytest.raises(UsageError, match=what):
        detector.predict(IMAGE, classes=classes)


def test_an_image_size_that_cannot_be_used_is_refused(weights: Path) -> None:
    sizes: list[Any] = [0, 48.5, "48", float("nan"), 10**9]
    for imgsz in sizes:
        with pytest.raises(UsageError, match="imgsz must be"):
            Detector(weights, "cpu", imgsz)


def test_a_device_that_does_not_exist_is_refused(weights: Path) -> None:
    devices: list[Any] = ["cpu:1", "cpu:x", "cpu:", "", "tpu", None, 0]
    for device in devices:
        with pytest.raises(UsageError, match="this machine has no device"):
            Detector(weights, device)


def test_a_device_may_be_one_of_torch(weights: Path) -> None:
    assert Detector(weights, torch.device("cpu")).device == torch.device("cpu")
    assert Detector(weights, "cpu:0").device.type == "cpu"


def test_a_detector_of_squares_stretches_images_and_scales_boxes_by_two_factors(
    tmp_path: Path,
) -> None:
    torch.manual_seed(0)
    recipe = {"num_classes": 2, "num_groups": 1, "square_images": True}
    model = create_model("conditional-detr-tiny", **recipe).eval()
    path = tmp_path / "model.safetensors"
    metadata = {"recipe": recipe_to_dict(model.recipe), "categories": [[1, "a"], [2, "b"]]}
    native.save(model, path, {**metadata, "imgsz": 48})
    (result,) = Detector(path, "cpu").predict(IMAGE, score=0)

    pixels = torch.from_numpy(IMAGE).permute(2, 0, 1)
    square = F.resize(pixels, [48, 48])[None]
    inputs = normalise(square, torch.zeros(1, 48, 48, dtype=torch.bool), padded=False)
    with torch.no_grad():
        final = model(inputs).final
    in_pixels = cxcywh_to_xyxy(final.boxes[0]) * torch.tensor([40, 30, 40, 30])
    in_image = in_pixels.clamp(min=0).minimum(torch.tensor([40, 30, 40, 30]))
    scores, query = final.logits[0].sigmoid().flatten().sort(descending=True)
    number = len(result.detections)
    torch.testing.assert_close(result.detections.scores, scores[:number])
    torch.testing.assert_close(result.detections.boxes, in_image[query[:number] // 2])


def test_bf16_has_nearly_the_detections_of_fp32(weights: Path, detector: Detector) -> None:
    image = np.random.default_rng(0).integers(0, 256, (60, 80, 3), dtype=np.uint8)
    (expected,) = detector.predict(image, 0.0)
    in_bf16 = Detector(weights, "cpu", precision="bf16")
    dtypes = []
    head = in_bf16.model.decoder.heads[-1]
    head.register_forward_hook(lambda _, inputs, output: dtypes.append(output.logits.dtype))
    (result,) = in_bf16.predict(image, 0.0)
    assert set(dtypes) == {torch.bfloat16}
    assert result.boxes.dtype == expected.boxes.dtype
    np.testing.assert_allclose(result.scores, expected.scores, atol=0.02)


def test_the_measured_precision_is_used(weights: Path) -> None:
    detector = Detector(weights, "cpu", precision="auto")
    assert detector.precision_choice is not None
    assert detector.precision == detector.precision_choice.precision
    with pytest.raises(UsageError, match="double"):
        Detector(weights, "cpu", precision="double")


def test_commands_without_training_do_not_import_what_takes_long() -> None:
    """Only matching and the division of datasets need SciPy, and only what is shown needs IPython.

    timm is needed by some backbones, and torchvision by some augmentations.
    """
    program = """
import sys
import groupdetr.workflows.predict, groupdetr.workflows.validate, groupdetr.workflows.check
slow = {"scipy", "IPython", "timm", "torchvision", "torch._dynamo", "sympy"}
print(slow & set(sys.modules))
"""
    output = subprocess.run([sys.executable, "-c", program], capture_output=True, check=True)
    assert output.stdout.strip() == b"set()"
