"""The network that is exported: one group of queries, with its pre-processing and post-processing.

The input of every graph are images as bytes in floats, so a user needs no constants. Detectors of
scenes take the geometry of the cameras, too.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor, nn

from groupdetr.data.nuscenes.dataset import MEAN, STD
from groupdetr.detectors.recipe import Recipe
from groupdetr.errors import UsageError
from groupdetr.modeling.backbones.vit import ViT
from groupdetr.modeling.detr import DetectionTransformer
from groupdetr.ops.boxes import cxcywh_to_xyxy
from groupdetr.ops.boxes3d import decode_boxes3d
from groupdetr.ops.masks import mask_logits
from groupdetr.structures.camera_images import CameraImages
from groupdetr.structures.images import IMAGENET_MEAN, IMAGENET_STD, Images
from groupdetr.structures.predictions import Predictions
from groupdetr.tasks.detection2d.instance_segmentation import BoxAndMaskTask, InstanceTask
from groupdetr.tasks.detection2d.task import DetectionTask
from groupdetr.tasks.detection3d.task import Detection3DTask
from groupdetr.tasks.postprocessing import best_pairs
from groupdetr.tasks.trained_detector import TrainedDetector
from groupdetr.weights.loading import load_weights

INPUT = "images"  # the name of the first input
SCENE_INPUTS = (INPUT, "image_to_lidar", "elapsed")  # `elapsed` with two frames only


@dataclass(frozen=True)
class GraphOptions:
    """How a detector is exported."""

    num_detections: int  # D, the detections of an image
    half: bool = False  # weights and computation in 16 bits; inputs and outputs have 32


class DetectionGraph(nn.Module):
    """Images [B,3,H,W] -> the D best detections of each.

    The images are float32 in RGB, from 0 to 255, without padding. ``outputs`` are the names of the
    tensors that are returned.
    """

    mean: Tensor
    std: Tensor
    outputs: tuple[str, ...]

    def __init__(self, model: DetectionTransformer, options: GraphOptions) -> None:
        super().__init__()
        self.model = model.half() if options.half else model
        self.options = options
        self.register_buffer("mean", 255 * torch.tensor(IMAGENET_MEAN).view(3, 1, 1))
        self.register_buffer("std", 255 * torch.tensor(IMAGENET_STD).view(3, 1, 1))
        self.eval()

    def predictions(self, images: Tensor) -> Predictions:
        """Return the predictions [B,N,.] of the last decoder layer, in 32 bits."""
        pixels = (images - self.mean) / self.std
        if self.options.half:
            pixels = pixels.half()
        no_padding = torch.zeros_like(images[:, 0], dtype=torch.bool)
        return self.model(Images(pixels, no_padding, padded=False)).final

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        """Return the tensors ``outputs``."""
        raise NotImplementedError


class BoxGraph(DetectionGraph):
    """Images -> scores [B,D], labels [B,D] and boxes [B,D,4].

    Boxes are x0, y0, x1, y1 in pixels of the input. Labels are indices of classes. Detections are
    sorted by decreasing score.
    """

    outputs = ("scores", "labels", "boxes")

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        predictions = self.predictions(images)
        probabilities = predictions.logits.float().sigmoid()
        scores, query, labels = best_pairs(probabilities, self.options.num_detections)
        return scores, labels, boxes_in_pixels(predictions, query, images)


class MaskGraph(DetectionGraph):
    """Images -> class scores [B,D], labels [B,D] and mask logits [B,D,H/4,W/4].

    A mask is where its logits are positive, after they were enlarged to the image. The final score
    of a detection is its class score times the mean probability of the pixels of its mask, so it
    can only be computed at that size.
    """

    outputs = ("class_scores", "labels", "mask_logits")

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        predictions = self.predictions(images)
        # The last class is "no object".
        probabilities = predictions.logits.float().softmax(-1)[..., :-1]
        scores, query, labels = best_pairs(probabilities, self.options.num_detections)
        return scores, labels, masks_of_queries(predictions, query)


class BoxAndMaskGraph(DetectionGraph):
    """Images -> scores [B,D], labels [B,D], boxes [B,D,4] and mask logits [B,D,H/4,W/4].

    Scores, labels and boxes are those of `BoxGraph`. A mask is where its logits are positive, after
    they were enlarged to the image.
    """

    outputs = ("scores", "labels", "boxes", "mask_logits")

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        predictions = self.predictions(images)
        probabilities = predictions.logits.float().sigmoid()
        scores, query, labels = best_pairs(probabilities, self.options.num_detections)
        boxes = boxes_in_pixels(predictions, query, images)
        return scores, labels, boxes, masks_of_queries(predictions, query)


def boxes_in_pixels(predictions: Predictions, query: Tensor, images: Tensor) -> Tensor:
    """Return the boxes of the queries [B,D], x0, y0, x1, y1 in pixels of the images: [B,D,4]."""
    boxes = cxcywh_to_xyxy(predictions.boxes.float())
    boxes = boxes.gather(1, query.unsqueeze(-1).expand(-1, -1, 4))
    height, width = images.shape[2:]
    # A tensor of these two would fix the size of the input in the graph.
    x, y = width * boxes[..., 0::2], height * boxes[..., 1::2]
    corners = torch.stack([x, y], -1)  # [B,D,2,2]: two corners, each x and y
    return corners.flatten(2)


def masks_of_queries(predictions: Predictions, query: Tensor) -> Tensor:
    """Return the logits of the masks of the queries [B,D], [B,D,H/4,W/4]."""
    masks = predictions.masks
    index = query.unsqueeze(-1).expand(-1, -1, masks.embedding.shape[-1])
    best = masks.embedding.gather(1, index).float()
    pixels = masks.mask_features.pixels.float()
    return mask_logits(best, pixels.flatten(2)).unflatten(2, pixels.shape[2:])


class SceneGraph(DetectionGraph):
    """Scenes -> scores [B,D], labels [B,D] and boxes [B,D,9], as in `Detections3D`.

    A scene are V images [B,V,3,H,W] in RGB, from 0 to 255, and the matrices `image_to_lidar`
    [B,V,4,4] of `CameraImages`; with two frames also the seconds between them, ``elapsed`` [B].
    """

    outputs = ("scores", "labels", "boxes")

    def __init__(self, model: DetectionTransformer, options: GraphOptions) -> None:
        super().__init__(model, options)
        self.mean = torch.tensor(MEAN).view(3, 1, 1)  # of blue, green and red
        self.std = torch.tensor(STD).view(3, 1, 1)

    def forward(  # type: ignore[override]
        self, images: Tensor, image_to_lidar: Tensor, elapsed: Tensor | None = None
    ) -> tuple[Tensor, ...]:
        pixels = (images.flip(2) - self.mean) / self.std
        if elapsed is None:
            elapsed = torch.zeros_like(images[:, 0, 0, 0, 0])
        predictions = self.model(CameraImages(pixels, image_to_lidar, elapsed)).final
        scores, query, labels = best_pairs(
            predictions.logits.float().sigmoid(), self.options.num_detections
        )
        boxes = decode_boxes3d(predictions.boxes.float())
        return scores, labels, boxes.gather(1, query.unsqueeze(-1).expand(-1, -1, 9))


GRAPHS: dict[type, type[DetectionGraph]] = {
    DetectionTask: BoxGraph,
    InstanceTask: MaskGraph,
    BoxAndMaskTask: BoxAndMaskGraph,
    Detection3DTask: SceneGraph,
}


def create_graph(detector: TrainedDetector, options: GraphOptions) -> DetectionGraph:
    """Return the graph of a detector, with the one group of queries that runs at inference."""
    return graph_of(detector, single_group(detector.recipe, detector.path), options)


def graph_of(
    detector: TrainedDetector, model: DetectionTransformer, options: GraphOptions
) -> DetectionGraph:
    """Return the graph of a ``model`` for the task of a detector.

    It is that of the task, or of the nearest of the tasks that it inherits from.
    """
    graph = next(GRAPHS[task] for task in detector.task.__mro__ if task in GRAPHS)
    return graph(model, options)


def expect_exportable(graph: DetectionGraph, *, dynamic_batch: bool, fixed_size: bool) -> None:
    """Raise `UsageError`, with the reason, for what a graph cannot be written as."""
    if isinstance(graph, SceneGraph) and graph.options.half:
        raise UsageError(
            "a detector of scenes cannot compute in 16 bits: positions of distant points would be "
            "wrong by decimetres",
            remedy="leave out --half",
        )
    has_vit = any(isinstance(module, ViT) for module in graph.modules())
    if has_vit and not fixed_size:
        raise UsageError(
            "a detector with a plain ViT cannot be exported for images of any size: the number of "
            "its windows is fixed when the graph is recorded",
            remedy="choose a size, such as --size 800 1216",
        )
    if has_vit and dynamic_batch:
        raise UsageError(
            "a detector with a plain ViT cannot be exported for any number of images: the number "
            "of its windows is fixed when the graph is recorded",
            remedy="leave out --dynamic-batch",
        )


def single_group(recipe: Recipe, path: Path) -> DetectionTransformer:
    """Return the detector in a weights file with its inference group alone, on the CPU.

    If all groups answer together, it has all of them.
    """
    if recipe.inference_group is not None:
        # In a model of one group, the group that answers in the file becomes group 0.
        recipe = replace(recipe, num_groups=1, inference_group=0)
    model = recipe.build()
    load_weights(model, path)
    for module in model.modules():
        if isinstance(getattr(module, "fused_attn", None), bool):
            # timm's ViT calls PyTorch's attention with three axes, and ONNX's has four. Otherwise
            # it multiplies the same matrices by itself.
            module.fused_attn = False  # type: ignore[assignment]
    return model.eval()
