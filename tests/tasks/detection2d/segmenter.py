"""A detector that needs no training: it finds red, green and blue rectangles by their colour."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional as F

from groupdetr.checkpoints import native
from groupdetr.data.batch import normalise
from groupdetr.detectors.tiny import TinyConditionalDETR
from groupdetr.experiments.by_name import EXPERIMENTS
from groupdetr.experiments.experiment import Experiment
from groupdetr.experiments.training_settings import TINY_SETTINGS
from groupdetr.registry import recipe_to_dict
from groupdetr.structures.images import Images
from groupdetr.structures.masks import MaskFeatures
from groupdetr.structures.outputs import Outputs
from groupdetr.structures.predictions import Predictions
from groupdetr.structures.queries import Queries

COLOURS = ("red", "green", "blue")
PRESET = "colours"


class Segmenter(nn.Module):
    """One query for each colour, certain of its class. Its mask is the area of the colour."""

    def __init__(self) -> None:
        super().__init__()
        self.content = nn.Parameter(torch.zeros(1, 1, 3, 4))
        # A black and a white pixel show how images are normalised.
        no_padding = torch.zeros(1, 1, 1, dtype=torch.bool)
        black = torch.full((1, 3, 1, 1), 0, dtype=torch.uint8)
        white = torch.full((1, 3, 1, 1), 255, dtype=torch.uint8)
        self.black = normalise(black, no_padding).pixels
        self.range = normalise(white, no_padding).pixels - self.black

    def forward(self, images: Images) -> Outputs:
        # The features of a pixel are its red, green and blue in [0,1], and a constant.
        colours = F.avg_pool2d((images.pixels - self.black) / self.range, 4)
        features = torch.cat([colours, torch.ones_like(colours[:, :1])], dim=1)
        mask_features = MaskFeatures(features, self.sizes(images))
        # A mask logit is positive if its colour is stronger than the others by one half.
        batch = len(images)
        weights = torch.cat([2 * torch.eye(3) - 1, torch.full((3, 1), -0.5)], dim=1)
        embedding = 40 * weights.expand(batch, 1, 3, 4)
        logits = 20 * F.pad(torch.eye(3), (0, 1)).expand(batch, 1, 3, 4)
        queries = Queries(self.content.expand(batch, -1, -1, -1), torch.zeros(1, 1, 3, 0))
        return Outputs([Predictions(logits, embedding, mask_features)], queries)

    @staticmethod
    def sizes(images: Images) -> Tensor:
        """Return height and width of each image without its padding, [B,2]."""
        inside = ~images.padding
        return torch.stack([inside[:, :, 0].sum(1), inside[:, 0].sum(1)], dim=1)


@dataclass(frozen=True)
class SegmenterRecipe(TinyConditionalDETR):
    """The recipe that builds a `Segmenter`."""

    num_classes: int = 3
    num_queries: int = 3

    def build(self) -> Segmenter:  # type: ignore[override]
        return Segmenter()


def register_segmenter(monkeypatch: pytest.MonkeyPatch) -> None:
    """Register the preset. Weights are not loaded, because the segmenter has none."""
    monkeypatch.setattr("groupdetr.tasks.trained_detector.load_weights", lambda *_: None)
    experiment = Experiment(
        SegmenterRecipe(preset=PRESET), TINY_SETTINGS, task="instance_segmentation"
    )
    monkeypatch.setitem(EXPERIMENTS, PRESET, experiment)


def save_weights(path: Path, imgsz: int) -> Path:
    """Write a weights file like that of a training."""
    metadata = {
        "recipe": recipe_to_dict(SegmenterRecipe(preset=PRESET)),
        "categories": [[10 * number, name] for number, name in enumerate(COLOURS, 1)],
        "imgsz": imgsz,
    }
    native.save(Segmenter(), path, metadata)
    return path


def write_data(folder: Path, num_images: int = 3) -> Path:
    """Write a dataset. Images have a rectangle of every colour but one, and a crowd.

    The last image is empty. Train and val are the same.
    """
    for split in ("train", "val"):
        _write_split(folder, split, num_images)
    return folder


def _write_split(folder: Path, split: str, num_images: int) -> None:
    (folder / "images" / split).mkdir(parents=True)
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    for index in range(num_images):
        image_id = index + 5
        is_empty = index == num_images - 1
        pixels = np.zeros((48, 64, 3), np.uint8)
        if not is_empty:
            for colour, (x, y, w, h) in rectangles(index):
                pixels[y : y + h, x : x + w, colour] = 255
                annotation_id = len(annotations) + 1
                annotations.append(annotation(annotation_id, image_id, colour, (x, y, w, h)))
            crowd = annotation(len(annotations) + 1, image_id, 0, (0, 40, 64, 8))
            annotations.append(crowd | {"iscrowd": 1})
        file_name = f"{index}.png"
        Image.fromarray(pixels).save(folder / "images" / split / file_name)
        images.append({"id": image_id, "file_name": file_name, "width": 64, "height": 48})
    categories = [{"id": 10 * number, "name": name} for number, name in enumerate(COLOURS, 1)]
    content = {"images": images, "annotations": annotations, "categories": categories}
    path = folder / "annotations" / f"instances_{split}.json"
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps(content))


def rectangles(image: int) -> list[tuple[int, tuple[int, int, int, int]]]:
    """Return colour and x, y, width, height of the rectangles of an image.

    All numbers are multiples of four, the stride of the segmenter.
    """
    boxes = ((0, 0, 20, 20), (32, 4, 28, 16), (12, 20, 24, 20))
    missing_colour = image
    return [
        (colour, boxes[(colour + image) % 3]) for colour in range(3) if colour != missing_colour
    ]


def annotation(
    annotation_id: int, image_id: int, colour: int, box: tuple[int, int, int, int]
) -> dict[str, Any]:
    x, y, w, h = box
    return {
        "id": annotation_id,
        "image_id": image_id,
        "category_id": 10 * (colour + 1),
        "bbox": [*box],
        "iscrowd": 0,
        "segmentation": [[x, y, x + w, y, x + w, y + h, x, y + h]],
        "area": w * h,
    }
