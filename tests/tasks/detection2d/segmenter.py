"""A detector that needs no training: it finds red, green and blue rectangles on black by their colour."""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional as F

from groupdetr.checkpoints import native
from groupdetr.data.batch import normalised
from groupdetr.detectors.tiny import TinyConditionalDETR
from groupdetr.experiments import EXPERIMENTS, TINY, Experiment
from groupdetr.structures.images import Images
from groupdetr.structures.masks import Canvas, Masks
from groupdetr.structures.outputs import Outputs
from groupdetr.structures.predictions import Predictions
from groupdetr.structures.queries import Queries
from groupdetr.tasks.detection2d.instance_segmentation import InstanceTask

COLOURS = ("red", "green", "blue")
NAME = "colours"


class Segmenter(nn.Module):
    """One query for each colour, sure of its class; its mask is where the colour is."""

    def __init__(self) -> None:
        super().__init__()
        self.content = nn.Parameter(torch.zeros(1, 1, 3, 4))
        nothing = torch.zeros(1, 1, 1, dtype=torch.bool)
        black, white = (
            normalised(torch.full((1, 3, 1, 1), v, dtype=torch.uint8), nothing) for v in (0, 255)
        )
        self.black, self.range = black.pixels, white.pixels - black.pixels

    def forward(self, images: Images) -> Outputs:
        pixels = F.avg_pool2d((images.pixels - self.black) / self.range, 4)
        canvas = Canvas(torch.cat([pixels, torch.ones_like(pixels[:, :1])], 1), self.sizes(images))
        batch = len(images)
        embedding = 40 * torch.cat([2 * torch.eye(3) - 1, torch.full((3, 1), -0.5)], 1).expand(
            batch, 1, 3, 4
        )
        logits = 20 * F.pad(torch.eye(3), (0, 1)).expand(batch, 1, 3, 4)
        queries = Queries(self.content.expand(batch, -1, -1, -1), torch.zeros(1, 1, 3, 0))
        return Outputs([Predictions(logits, masks=Masks(embedding, canvas))], queries)

    @staticmethod
    def sizes(images: Images) -> Tensor:
        seen = ~images.padding
        return torch.stack([seen[:, :, 0].sum(1), seen[:, 0].sum(1)], 1)


@dataclass(frozen=True)
class Colours(TinyConditionalDETR):
    """The recipe of it."""

    num_classes: int = 3
    num_queries: int = 3

    def build(self) -> Segmenter:  # type: ignore[override]
        return Segmenter()


def register(monkeypatch: pytest.MonkeyPatch) -> None:
    """Under its name, as an experiment whose task is to say masks; it has no weights to be loaded."""
    monkeypatch.setattr("groupdetr.tasks.detection2d.prediction.load_weights", lambda *_: None)
    monkeypatch.setitem(
        EXPERIMENTS, NAME, Experiment(Colours(preset=NAME), TINY, task=InstanceTask)
    )


def save(path: Path, imgsz: int) -> Path:
    """A weights file, as a training would leave it."""
    categories = [[10 * number, name] for number, name in enumerate(COLOURS, 1)]
    about = {
        "recipe": dataclasses.asdict(Colours(preset=NAME)),
        "categories": categories,
        "imgsz": imgsz,
    }
    native.save(Segmenter(), path, about)
    return path


def draw(folder: Path, pictures: int = 3) -> Path:
    """A data set of one rectangle of every colour but one in each picture, and a crowd; the last picture is empty."""
    for split in ("train", "val"):
        (folder / "images" / split).mkdir(parents=True)
        images, annotations = [], []
        for image in range(pictures):
            objects = [] if image == pictures - 1 else rectangles(image)
            pixels = np.zeros((48, 64, 3), np.uint8)
            for colour, (x, y, w, h) in objects:
                pixels[y : y + h, x : x + w, colour] = 255
                annotations.append(
                    annotation(len(annotations) + 1, image + 5, colour, (x, y, w, h))
                )
            if objects:
                annotations.append(
                    annotation(len(annotations) + 1, image + 5, 0, (0, 40, 64, 8)) | {"iscrowd": 1}
                )
            Image.fromarray(pixels).save(folder / "images" / split / f"{image}.png")
            images.append({"id": image + 5, "file_name": f"{image}.png", "width": 64, "height": 48})
        categories = [{"id": 10 * number, "name": name} for number, name in enumerate(COLOURS, 1)]
        content = {"images": images, "annotations": annotations, "categories": categories}
        path = folder / "annotations" / f"instances_{split}.json"
        path.parent.mkdir(exist_ok=True)
        path.write_text(json.dumps(content))
    return folder


def rectangles(image: int) -> list[tuple[int, tuple[int, int, int, int]]]:
    """Colour, and x, y, width, height that are multiples of four, as the detector's pixels are."""
    places = ((0, 0, 20, 20), (32, 4, 28, 16), (12, 20, 24, 20))
    return [(colour, places[(colour + image) % 3]) for colour in range(3) if colour != image]


def annotation(key: int, image: int, colour: int, box: tuple[int, int, int, int]) -> dict:
    x, y, w, h = box
    outline = [x, y, x + w, y, x + w, y + h, x, y + h]
    about = {
        "id": key,
        "image_id": image,
        "category_id": 10 * (colour + 1),
        "bbox": [*box],
        "iscrowd": 0,
    }
    return {**about, "segmentation": [outline], "area": w * h}
