"""An exported detector: the results of `groupdetr.Detector`, from another runtime."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import cast

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from groupdetr.console.text import quote
from groupdetr.data.batch import ImageBatch
from groupdetr.data.dataset import DetectionDataset, to_pixels
from groupdetr.data.image_input import ImageInput, to_rgb
from groupdetr.data.layouts import DatasetSplits
from groupdetr.data.transforms import InputShape, Transform, val_transform
from groupdetr.deployment.runtimes import FORMATS, Outputs, Runtime
from groupdetr.engine.task import Batch
from groupdetr.errors import UsageError
from groupdetr.settings import RANGES, Settings, expect_whole_number
from groupdetr.structures.detections import Detections, encode_masks, masks_to_boxes
from groupdetr.structures.images import Images
from groupdetr.structures.json_object import JsonObject
from groupdetr.structures.masks import STRIDE
from groupdetr.structures.rle import RLE
from groupdetr.tasks.detection2d.image_detector import (
    ImageDetector,
    PendingResult,
    ReadImage,
    inside,
    of_equal_size,
)
from groupdetr.tasks.detection2d.instance_segmentation import (
    BoxAndMaskTask,
    InstanceTask,
    are_inside,
    enlarge,
    resize_to_image,
)
from groupdetr.tasks.detection2d.result import Result
from groupdetr.tasks.detection2d.task import DetectionTask

_MASKS_AT_ONCE = 8  # that are enlarged to the image at once


class ExportedDetector(ImageDetector):
    """A file that `groupdetr export` wrote, opened by its runtime.

    It detects the same objects as the `Detector` that was exported, and has the same methods. It
    computes on the CPU, and has one group of queries.

    ``runtime`` computes the graph, and ``metadata`` are those of the file ``path``.

    >>> file = groupdetr.export("runs/mine", "torch-export").file
    >>> groupdetr.ExportedDetector.load(file).predict("photo.jpg")[0].show()
    """

    def __init__(self, runtime: Runtime, metadata: JsonObject, path: Path | None = None) -> None:
        self.runtime = runtime
        self.metadata = metadata
        self.path = path
        self.device = torch.device("cpu")
        self.categories = [(category_id, name) for category_id, name in metadata["categories"]]
        # Files of earlier versions do not have it.
        self.best_threshold = metadata.get("score_threshold")
        self.task = _task_of(metadata["outputs"])

    @classmethod
    def load(cls, file: str | Path, imgsz: int | None = None) -> ExportedDetector:
        """Open a file.

        ``imgsz`` is the shortest side of the input in pixels; None: that of the export.

        `UsageError` if `groupdetr export` did not write the file, if there is none, or if its input
        has another fixed size than ``imgsz``.
        """
        runtime, metadata = open_exported(file)
        if takes_scenes(metadata):
            what = "this file detects objects in scenes, not in single images"
            module = "groupdetr.deployment.exported_scene_detector"
            remedy = (
                f"open it by ExportedSceneDetector of {module}; its accuracy: "
                f"groupdetr val {quote(file)} --data DATA"
            )
            raise UsageError(what, str(file), remedy)
        return cls.opened(runtime, metadata, Path(file), imgsz)

    @classmethod
    def opened(
        cls, runtime: Runtime, metadata: JsonObject, file: Path, imgsz: int | None
    ) -> ExportedDetector:
        """Return the detector of a file that `open_exported` has opened, with ``imgsz`` as `load`.

        `UsageError` if its input has another fixed size.
        """
        if imgsz is not None:
            expect_whole_number("imgsz", imgsz, *RANGES["imgsz"])
            size = metadata["size"]
            if size is not None and size != [imgsz, imgsz]:
                height, width = size
                raise UsageError(
                    f"the input of this file has a fixed size, {height} x {width} pixels",
                    str(file),
                    f"leave out imgsz, or export it again: groupdetr export RUN --imgsz {imgsz}",
                )
            metadata = metadata | {"imgsz": imgsz}
        return cls(runtime, metadata, file)

    def expect_options(self, score: float, batch: int, show_groups: bool) -> None:
        """Raise `UsageError` for options of `predict` that this detector cannot follow."""
        super().expect_options(score, batch, show_groups)
        if show_groups:
            raise UsageError(
                "an exported file has one group of queries, so there are no others to show",
                str(self.path or ""),
                "predict with the run that was exported",
            )

    def resized(self, image: Image.Image, source: str) -> ReadImage:
        """Return an RGB image with the input of the graph. ``source`` is its path, or ""."""
        pixels = torch.from_numpy(self.input_of(image))
        no_padding = torch.zeros_like(pixels[:, 0], dtype=torch.bool)
        return ReadImage(image, source, Images(pixels, no_padding, padded=False))

    def run_network(self, images: Sequence[ReadImage], show_groups: bool) -> list[PendingResult]:
        """Run the graph on images that `read` returned. Return the result of each, to be called.

        Images whose inputs have equal sizes run together, if the file takes batches.
        """
        inputs = [read.input.pixels for read in images]
        results: list[PendingResult] = []
        for read, pixels, outputs in zip(images, inputs, self._outputs(inputs)):
            results.append(
                partial(self._result, read.image, read.source, outputs, pixels.shape[2:])
            )
        return results

    def _result(
        self,
        image: Image.Image,
        source: str,
        outputs: Outputs,
        input_size: Sequence[int],
        score: float,
        labels: Sequence[int] | None,
    ) -> Result:
        """Return the result of an image, given its outputs, as `detections` takes them."""
        detections = self.detections(outputs, input_size, image.size)
        if labels is not None:
            detections = detections.of_classes(labels)
        return Result(
            image=image,
            detections=detections.above(score),
            categories=self.categories,
            source=source,
            best_score=float(detections.scores[0]) if len(detections) else None,
        )

    def create_task(self, data: DatasetSplits) -> DetectionTask:
        """Return the task of the detector on a dataset that its `task` has read."""
        # The graph chooses the detections, so their number is not needed here.
        task = self.task(data, Settings(imgsz=self.metadata["imgsz"]), num_detections=0)
        task.val = DetectionDataset(data.splits["val"].records, self._transform())
        return task

    def detect_batch(self, task: DetectionTask, batch: Batch) -> list[Detections]:
        """Return the detections in a batch of validation images of ``task``, whatever their score.

        They are those that `groupdetr val` evaluates: boxes may reach outside of the images. The
        graph takes no padding, so only images of equal sizes run together.
        """
        images = cast(ImageBatch, batch)
        inputs = []
        for pixels, (height, width) in zip(images.pixels, images.sizes.tolist()):
            inputs.append(pixels[None, :, :height, :width].float().contiguous())
        detections = []
        for index, pixels, outputs in zip(images.indices, inputs, self._outputs(inputs)):
            record = task.val.records[index]
            size = (record.width, record.height)
            detections.append(self.detections(outputs, pixels.shape[2:], size, clip=False))
        return detections

    @property
    def group_order(self) -> list[int]:
        """The numbers of the groups, of which the graph has one."""
        return [0]

    def detect_each_group(self, image: Image.Image) -> list[Detections]:
        """Return all detections in an RGB image, as those of the only group."""
        return [self.detect(image)]

    def _outputs(self, inputs: Sequence[Tensor]) -> list[Outputs]:
        """Return the outputs of each of the inputs [1,3,H,W].

        Those of equal sizes run together, if the file takes batches.
        """
        batches = [[index] for index in range(len(inputs))]
        if self.metadata["dynamic_batch"]:
            batches = of_equal_size(inputs)
        by_index: dict[int, Outputs] = {}
        for indices in batches:
            pixels = torch.cat([inputs[index] for index in indices])
            outputs = self.runtime(pixels.numpy())
            for position, index in enumerate(indices):
                by_index[index] = {name: value[position:][:1] for name, value in outputs.items()}
        return [by_index[index] for index in range(len(inputs))]

    def detect(self, image: ImageInput) -> Detections:
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
        self,
        outputs: Outputs,
        input_size: Sequence[int],
        image_size: tuple[int, int],
        clip: bool = True,
    ) -> Detections:
        """Return the outputs of one image as detections.

        ``input_size`` is the height and width of the graph's input, ``image_size`` the width and
        height of the image. Boxes end at the border of the image, unless ``clip`` is False.
        """
        tensors = {name: torch.from_numpy(value[0]) for name, value in outputs.items()}
        height, width = input_size
        if "mask_logits" in tensors and "boxes" not in tensors:
            return _mask_detections(tensors, (height, width), image_size)
        scale = torch.tensor([image_size[0] / width, image_size[1] / height] * 2)
        boxes = tensors["boxes"] * scale
        if clip:
            boxes = inside(boxes, image_size)
        masks = None
        if "mask_logits" in tensors:
            masks = _enlarged_masks(tensors["mask_logits"], image_size)
        return Detections(tensors["scores"], tensors["labels"], boxes, masks)


def _task_of(outputs: Sequence[str]) -> type[DetectionTask]:
    """Return the task of a file, given the names of its outputs."""
    if "mask_logits" not in outputs:
        return DetectionTask
    return BoxAndMaskTask if "boxes" in outputs else InstanceTask


def takes_scenes(metadata: JsonObject) -> bool:
    """True if the file with these metadata takes scenes of several cameras."""
    return metadata.get("task") == "box3d"  # the kind of `Detection3DTask`


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
