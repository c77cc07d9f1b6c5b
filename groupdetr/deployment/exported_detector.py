"""An exported detector: the same results as `groupdetr.Detector`, from another runtime."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from groupdetr.data.dataset import to_pixels
from groupdetr.data.image_input import ImageInput, to_rgb
from groupdetr.data.transforms import InputShape, Transform, val_transform
from groupdetr.deployment.runtimes import FORMATS, Outputs, Runtime
from groupdetr.errors import UsageError
from groupdetr.structures.detections import Detections, encode_masks, masks_to_boxes
from groupdetr.structures.json_object import JsonObject
from groupdetr.structures.masks import STRIDE
from groupdetr.structures.rle import RLE
from groupdetr.tasks.detection2d.instance_segmentation import (
    are_inside,
    enlarge,
    resize_to_image,
)

_MASKS_AT_ONCE = 8  # that are enlarged to the image at once


@dataclass(frozen=True)
class ExportedDetector:
    """A file that `groupdetr export` wrote, opened by its runtime.

    It detects the same objects as the `Detector` that was exported.

    >>> exported = groupdetr.ExportedDetector.load("runs/mine/weights/best.onnx")
    >>> detections = exported.predict("photo.jpg").above(0.5)
    """

    runtime: Runtime
    metadata: JsonObject

    @classmethod
    def load(cls, file: str | Path) -> ExportedDetector:
        """Open a file. `UsageError` if `groupdetr export` did not write it, or for no file."""
        runtime, metadata = open_exported(file)
        if metadata.get("task") == "box3d":
            what = "this file detects objects in scenes, not in single images"
            module = "groupdetr.deployment.exported_scene_detector"
            raise UsageError(what, str(file), f"open it by ExportedSceneDetector of {module}")
        return cls(runtime, metadata)

    @property
    def categories(self) -> list[tuple[int | str, str]]:
        """The id in the dataset and the name of every class, in the order of the labels."""
        return [(category_id, name) for category_id, name in self.metadata["categories"]]

    def predict(self, image: ImageInput) -> Detections:
        """Return all detections in an image, in pixels of the image, best first."""
        rgb = to_rgb(image)
        pixels = self.input_of(rgb)
        return self.detections(self.runtime(pixels), pixels.shape[2:], rgb.size)

    def input_of(self, image: Image.Image) -> NDArray[np.float32]:
        """Return an image in RGB as the input [1,3,H,W] of the graph."""
        pixels = to_pixels(image, self._transform()).float().numpy()
        return np.ascontiguousarray(pixels[None])

    def _transform(self) -> Transform:
        """Return the resize to a fixed size, or to the size of a validation."""
        size = self.metadata["size"]
        if size is None:
            # Files of earlier versions do not have it: their detectors take any size.
            shape = InputShape(divisor=self.metadata.get("divisor", 1))
            return val_transform(self.metadata["imgsz"], shape)
        return lambda image, _: image.resized(*size)

    def detections(
        self, outputs: Outputs, input_size: Sequence[int], image_size: tuple[int, int]
    ) -> Detections:
        """Return the outputs of one image as detections.

        ``input_size`` is the height and width of the graph's input, ``image_size`` the width and
        height of the image.
        """
        tensors = {name: torch.from_numpy(value[0]) for name, value in outputs.items()}
        height, width = input_size
        if "mask_logits" in tensors and "boxes" not in tensors:
            return _mask_detections(tensors, (height, width), image_size)
        scale = torch.tensor([image_size[0] / width, image_size[1] / height] * 2)
        limit = torch.tensor([*image_size, *image_size])
        boxes = (tensors["boxes"] * scale).clamp(min=0).minimum(limit)
        masks = None
        if "mask_logits" in tensors:
            masks = _enlarged_masks(tensors["mask_logits"], image_size)
        return Detections(tensors["scores"], tensors["labels"], boxes, masks)


def open_exported(file: str | Path) -> tuple[Runtime, JsonObject]:
    """Open a file, and return it with its metadata.

    `UsageError` if `groupdetr export` did not write it, or for no file.
    """
    path = Path(file)
    if not path.is_file():
        raise UsageError("there is no such file", str(path), "export a detector to it first")
    for export_format in FORMATS.values():
        if path.suffix == export_format.ending:
            export_format.expect_installed()
            return export_format.load(path)
    endings = ", ".join(item.ending for item in FORMATS.values())
    raise UsageError("this is not an exported detector", str(path), f"pass a file of {endings}")


def _enlarged_masks(logits: Tensor, image_size: tuple[int, int]) -> tuple[RLE, ...]:
    """Return the masks with these logits [D,h,w] at the size of the image, (width, height)."""
    width, height = image_size
    masks: list[RLE] = []
    for chunk in logits.split(_MASKS_AT_ONCE):
        masks += encode_masks(are_inside(enlarge(chunk, (height, width))))
    return tuple(masks)


def _mask_detections(
    tensors: dict[str, Tensor], input_size: tuple[int, int], image_size: tuple[int, int]
) -> Detections:
    """Return the detections of masks. Scores are multiplied by the mean probability inside."""
    width, height = image_size
    logits = tensors["mask_logits"]
    padded_size = (STRIDE * logits.shape[1], STRIDE * logits.shape[2])
    mask_scores: list[Tensor] = []
    masks: list[RLE] = []
    for chunk in logits.split(_MASKS_AT_ONCE):
        resized = resize_to_image(chunk, padded_size, input_size, (height, width))
        inside = resized > 0
        mask_scores.append((resized.sigmoid() * inside).sum((1, 2)) / (inside.sum((1, 2)) + 1e-6))
        masks += encode_masks(inside.numpy())
    scores = tensors["class_scores"] * torch.cat(mask_scores)
    scores, order = scores.sort(descending=True, stable=True)
    sorted_masks = tuple(masks[position] for position in order.tolist())
    boxes = masks_to_boxes(sorted_masks).float()
    return Detections(scores, tensors["labels"][order], boxes, sorted_masks)
