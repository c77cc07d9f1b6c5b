"""A folder that was written for transformers has the same answers there, on real images."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from groupdetr.checkpoints.native import read
from groupdetr.data.batch import normalise
from groupdetr.data.dataset import to_pixels
from groupdetr.data.transforms import val_transform
from groupdetr.deployment.transformers_folder import (
    WEIGHTS,
    compare_with_transformers,
    double_precision,
)
from groupdetr.structures.predictions import Predictions
from groupdetr.tasks.detection2d.prediction import Detector
from groupdetr.weights.huggingface_backbone import huggingface_backbone
from groupdetr.weights.importing import import_weights
from groupdetr.workflows.export import export
from tests.deployment.exports import CATEGORIES, write_weights

transformers = pytest.importorskip("transformers")

TOLERANCE = 1e-5
# The -lite presets have the shift of the position embedding that transformers does not have, and a
# backbone that needs padded images.
SIZES: dict[str, dict[str, Any]] = {
    "conditional-detr-lite": {"offset": 0.0},
    "dab-detr-lite": {"offset": 0.0, "temperature": 20.0, "eps": 1e-5, "num_patterns": 2},
    "mask2former-lite": {},
}
COMMON: dict[str, Any] = {
    "backbone": "test_resnet",
    "num_groups": 3,
    "num_queries": 12,
    "channels": 32,
}


@pytest.fixture(scope="module", params=SIZES)
def weights(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("weights")
    return write_weights(
        folder / "weights.safetensors", request.param, **{**COMMON, **SIZES[request.param]}
    )


@pytest.fixture(scope="module")
def folder(weights: Path) -> Path:
    result = export(weights, "transformers")
    assert result.differences is not None, "the command compares the answers itself"
    assert result.differences.images == 8
    return result.file


@pytest.fixture(scope="module")
def images(real_data: Path) -> list[Image.Image]:
    files = sorted((real_data / "tiny_coco").rglob("*.jpg"))[:3]
    assert len(files) == 3
    return [Image.open(file).convert("RGB") for file in files]


def our_answers(detector: Detector, image: Image.Image) -> Predictions:
    pixels = to_pixels(image, val_transform(detector.imgsz))[None]
    batch = normalise(pixels, torch.zeros(1, *pixels.shape[-2:]).bool(), False)
    batch.pixels = batch.pixels.double()
    with torch.no_grad(), double_precision(detector.model):
        return detector.model(batch).final


def test_transformers_alone_has_the_same_answers(
    weights: Path, folder: Path, images: list[Image.Image]
) -> None:
    """Its Auto classes load the folder, and its image processor prepares the images."""
    detector = Detector(weights, "cpu")
    processor = transformers.AutoImageProcessor.from_pretrained(folder)
    has_masks = detector.task.kind == "mask"
    auto = "AutoModelForUniversalSegmentation" if has_masks else "AutoModelForObjectDetection"
    model = getattr(transformers, auto).from_pretrained(folder).eval()
    assert model.config.id2label == {row: name for row, (_, name) in enumerate(CATEGORIES)}
    for image in images:
        ours = our_answers(detector, image)
        pixels = processor(images=image, return_tensors="pt")["pixel_values"]
        if has_masks:
            # Our network pads images, and theirs takes them as they are.
            height, width = pixels.shape[-2:]
            pixels = nn.functional.pad(pixels, (0, -width % 32, 0, -height % 32))
        with torch.no_grad(), double_precision(model):
            theirs = model(pixel_values=pixels.double())
        # Queries must differ, or equal outputs would prove little.
        assert ours.logits.std(1).mean() > 0.02
        if has_masks:
            masks = ours.masks.full()
            assert distance(theirs.class_queries_logits, ours.logits) < TOLERANCE
            assert distance(theirs.masks_queries_logits, masks) < TOLERANCE * masks.abs().max()
        else:
            assert distance(theirs.logits, ours.logits) < TOLERANCE
            assert distance(theirs.pred_boxes, ours.boxes) < TOLERANCE


def distance(x: Tensor, y: Tensor) -> float:
    assert x.shape == y.shape
    return float((x - y).abs().max())


def test_an_import_of_the_folder_gives_the_same_weights_and_classes(
    weights: Path, folder: Path, tmp_path: Path
) -> None:
    import_weights(folder, tmp_path / "again.safetensors")
    before, metadata = read(weights)
    after, metadata_after = read(tmp_path / "again.safetensors")
    assert after.keys() == before.keys()
    for name, value in after.items():
        if value.shape != before[name].shape:  # rows of all groups, of which one was kept
            assert torch.equal(value, before[name][:1]), name
        elif not name.endswith("num_batches_tracked"):
            assert torch.equal(value, before[name]), name
    assert metadata_after["categories"] == metadata["categories"]
    assert metadata_after["imgsz"] == metadata["imgsz"]
    fields = metadata["recipe"]
    for name in ("backbone", "strides", "channels", "num_heads", "num_queries", "num_detections"):
        assert metadata_after["recipe"][name] == fields[name], name
    assert metadata_after["recipe"]["num_groups"] == 1


def test_other_weights_are_noticed(
    weights: Path, folder: Path, images: list[Image.Image], tmp_path: Path
) -> None:
    """The command compares with what transformers loads, and not with what was to be written."""
    folder = shutil.copytree(folder, tmp_path / "folder")
    file = folder / WEIGHTS
    state, detector = load_file(file), Detector(weights, "cpu")
    name = next(
        name for name in state if "decoder.layers.0" in name and name.endswith("fc1.weight")
    )
    save_file(state | {name: 1.1 * state[name]}, file, metadata={"format": "pt"})
    unused = huggingface_backbone(detector.model, "here").unused
    differences = compare_with_transformers(folder, detector, images[:1], unused)
    assert differences.logits > 10 * TOLERANCE
