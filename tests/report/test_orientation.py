"""Images that EXIF rotates are drawn in the orientation of their boxes."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import groupdetr
from groupdetr.checkpoints import native
from groupdetr.registry import recipe_to_dict
from groupdetr.tasks.detection2d.comparison import group_panel
from groupdetr.tasks.detection2d.prediction import Detector
from groupdetr.tasks.detection2d.report import detection_panel

WIDTH, HEIGHT = 96, 64  # of the stored images
# What the orientation does to the stored image, as numpy shows it.
TURNED = {
    1: lambda image: image,
    2: lambda image: image[:, ::-1],
    3: lambda image: image[::-1, ::-1],
    4: lambda image: image[::-1],
    5: lambda image: image.transpose(1, 0, 2),
    6: lambda image: np.rot90(image, -1),
    7: lambda image: np.rot90(image, 2).transpose(1, 0, 2),
    8: lambda image: np.rot90(image),
}


@pytest.fixture(scope="module")
def detector(tmp_path_factory: pytest.TempPathFactory) -> Detector:
    torch.manual_seed(0)
    model = groupdetr.create_model("conditional-detr-tiny", num_classes=1, num_groups=2)
    path = tmp_path_factory.mktemp("weights") / "model.safetensors"
    metadata = {
        "recipe": recipe_to_dict(model.recipe),
        "categories": [[1, "bar"]],
        "imgsz": 64,
    }
    native.save(model, path, metadata)
    return Detector(path, "cpu")


def write_dataset(root: Path, recorded_turned: bool) -> Path:
    """Write one image for each orientation, with a bright object in its lower left corner.

    The annotations are those of the stored image, or of the image as a viewer shows it.
    """
    for split in ("train", "val"):
        images, annotations = [], []
        folder = root / "images" / split
        folder.mkdir(parents=True)
        for orientation, turn in TURNED.items():
            pixels = np.full((HEIGHT, WIDTH, 3), 70, dtype=np.uint8)
            pixels[40:60, 5:35] = (230, 40, 40)
            exif = Image.Exif()
            exif[0x0112] = orientation
            name = f"{orientation}.jpg"
            Image.fromarray(pixels).save(folder / name, exif=exif, quality=95)
            # Without a change of size, training reads an image as it is stored.
            annotated = turn(pixels) if recorded_turned and orientation >= 5 else pixels
            rows, columns = np.nonzero(annotated[..., 0] > 150)
            box = [
                int(columns.min()),
                int(rows.min()),
                int(np.ptp(columns)) + 1,
                int(np.ptp(rows)) + 1,
            ]
            height, width, _ = annotated.shape
            images.append({"id": orientation, "file_name": name, "width": width, "height": height})
            annotations.append(
                {
                    "id": orientation,
                    "image_id": orientation,
                    "category_id": 1,
                    "bbox": box,
                    "area": box[2] * box[3],
                    "iscrowd": 0,
                }
            )
        content = {
            "images": images,
            "annotations": annotations,
            "categories": [{"id": 1, "name": "bar"}],
        }
        file = root / "annotations" / f"instances_{split}.json"
        file.parent.mkdir(exist_ok=True)
        file.write_text(json.dumps(content), encoding="utf-8")
    return root


@pytest.mark.parametrize("recorded_turned", [True, False])
def test_the_images_of_a_page_are_those_of_the_boxes_and_of_the_evaluation(
    recorded_turned: bool, detector: Detector, tmp_path: Path
) -> None:
    data = write_dataset(tmp_path, recorded_turned)
    task = detector.create_task(detector.task.read(data, None))
    for index, record in enumerate(task.val.records):
        panel = detection_panel(task, {"detector": detector}, index)
        groups = group_panel(task, detector, index)
        x0, y0, x1, y1 = panel.target.boxes[0].int().tolist()
        for image in (panel.image, groups.image):
            assert image.size == (record.width, record.height)
            inside = np.asarray(image)[y0 + 2 : y1 - 2, x0 + 2 : x1 - 2, 0]
            assert inside.min() > 150, record.file_name
        # The network sees the image of the evaluation.
        pixels, _, _ = task.val[index]
        seen = Image.fromarray(pixels.permute(1, 2, 0).numpy())
        (expected,) = detector.predict(seen, score=0.0)
        scores = panel.detections["detector"].scores
        torch.testing.assert_close(scores, expected.detections.scores, atol=1e-3, rtol=0)
