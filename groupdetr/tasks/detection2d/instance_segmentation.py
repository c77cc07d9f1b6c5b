"""Instance segmentation in images: post-processing of masks, with or without boxes, evaluation."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from groupdetr.data.layouts import DatasetSplits
from groupdetr.data.transforms import ANY_SHAPE, InputShape
from groupdetr.evaluation.coco import CocoEvaluation, evaluate
from groupdetr.evaluation.error_analysis import analyse_errors
from groupdetr.ops.masks import mask_logits
from groupdetr.settings import Settings
from groupdetr.structures.detections import Detections, encode_masks, masks_to_boxes
from groupdetr.structures.masks import STRIDE, MaskFeatures
from groupdetr.structures.predictions import Predictions
from groupdetr.structures.rle import RLE
from groupdetr.tasks.detection2d.task import DetectionTask, select_boxes
from groupdetr.tasks.postprocessing import best_pairs

MAX_PIXELS = 1 << 24  # of all masks that are computed at once


@torch.no_grad()
def postprocess_masks(
    predictions: Predictions, sizes: Sequence[tuple[int, int]], num_detections: int
) -> list[Detections]:
    """Return the ``num_detections`` best (query, class) pairs of each image.

    They are sorted by decreasing score. Predictions have the axes [B,N,.], and ``sizes`` are
    (width, height) of the B original images. As in Mask2Former: scores by softmax, no threshold, no
    non-maximum suppression; a query may appear with several classes. A score is multiplied by the
    mean probability of the pixels inside of the mask. Boxes are the tightest ones around the masks.
    """
    # The last class is "no object".
    probabilities = predictions.logits.float().softmax(-1)[..., :-1]
    class_scores, query, label = best_pairs(probabilities, num_detections)
    embedding = predictions.masks.embedding
    index = query.unsqueeze(-1).expand(-1, -1, embedding.shape[-1])
    best_embedding = embedding.gather(1, index).float()
    mask_features = predictions.masks.mask_features
    results = []
    for image, size in enumerate(sizes):
        mask_scores, masks = compute_masks(best_embedding[image], mask_features, image, size)
        scores = class_scores[image] * mask_scores
        scores, order = scores.sort(descending=True, stable=True)
        sorted_masks = tuple(masks[position] for position in order.tolist())
        results.append(
            Detections(
                scores=scores.cpu(),
                labels=label[image, order].cpu(),
                boxes=masks_to_boxes(sorted_masks).float(),
                masks=sorted_masks,
            )
        )
    return results


@torch.no_grad()
def postprocess_boxes_and_masks(
    predictions: Predictions, sizes: Sequence[tuple[int, int]], num_detections: int
) -> list[Detections]:
    """Return the ``num_detections`` best (query, class) pairs of each image, with their masks.

    Predictions have boxes and masks with the axes [B,N,.], and ``sizes`` are (width, height) of the
    B original images. Scores and boxes are those of `postprocess_boxes`: as in RF-DETR, a mask does
    not change the score, and a box is the predicted one. A mask is enlarged to the original image
    in one step, and it is where its logits are positive.
    """
    scores, query, label = best_pairs(predictions.logits.float().sigmoid(), num_detections)
    boxes = select_boxes(predictions.boxes, query, sizes)
    embedding = predictions.embeddings_of_masks
    index = query.unsqueeze(-1).expand(-1, -1, embedding.shape[-1])
    best_embedding = embedding.gather(1, index).float()
    mask_features = predictions.masks.mask_features
    results = []
    for image, size in enumerate(sizes):
        masks = enlarge_masks(best_embedding[image], mask_features, image, size)
        results.append(
            Detections(
                scores=scores[image].cpu(),
                labels=label[image].cpu(),
                boxes=boxes[image].cpu(),
                masks=masks,
            )
        )
    return results


def enlarge_masks(
    embedding: Tensor, mask_features: MaskFeatures, image: int, size: tuple[int, int]
) -> tuple[RLE, ...]:
    """Return the masks of mask embeddings [D,C|C+1] in image ``image`` of a batch: [D].

    ``size`` is (width, height) of the original image.
    """
    width, height = size
    unpadded_height, unpadded_width = mask_features.sizes[image].tolist()
    pixels = mask_features.pixels[image].float()
    # The padding has no part of the image.
    rows, columns = math.ceil(unpadded_height / STRIDE), math.ceil(unpadded_width / STRIDE)
    pixels = pixels[:, :rows, :columns]
    masks: list[RLE] = []
    for chunk in embedding.split(max(1, MAX_PIXELS // (width * height))):
        logits = mask_logits(chunk, pixels.flatten(1)).unflatten(1, pixels.shape[1:])
        masks += encode_masks(are_inside(enlarge(logits, (height, width))))
    return tuple(masks)


def enlarge(logits: Tensor, image_size: tuple[int, int]) -> Tensor:
    """Resize mask logits [D,h,w] to an image of (height, width), [D,H,W]."""
    enlarged = F.interpolate(logits.unsqueeze(1), image_size, mode="bilinear", align_corners=False)
    return enlarged.squeeze(1)


def are_inside(logits: Tensor) -> NDArray[np.bool_]:
    """Return where mask logits [D,H,W] are positive. The columns are contiguous in memory.

    Run lengths go down the columns, so encoding is fastest in this layout.
    """
    columns: NDArray[np.bool_] = (logits > 0).transpose(1, 2).contiguous().cpu().numpy()
    return columns.transpose(0, 2, 1)


def compute_masks(
    embedding: Tensor, mask_features: MaskFeatures, image: int, size: tuple[int, int]
) -> tuple[Tensor, list[RLE]]:
    """Compute the masks of mask embeddings [D,C] in image ``image`` of a batch.

    ``size`` is (width, height) of the original image. Returns the mean probability of the pixels
    inside of each mask [D], and the masks at the size of the original image. Masks are computed in
    chunks of at most `MAX_PIXELS` pixels.
    """
    width, height = size
    padded_height, padded_width = mask_features.shape
    # A mask is interpolated to the padded image first, so the larger of both sizes counts.
    pixels_of_mask = max(width * height, padded_height * padded_width)
    chunk_size = max(1, MAX_PIXELS // pixels_of_mask)
    pixels = mask_features.pixels[image].float()
    unpadded_size = mask_features.sizes[image].tolist()

    scores: list[Tensor] = []
    masks: list[RLE] = []
    for chunk in embedding.split(chunk_size):
        low_resolution = mask_logits(chunk, pixels.flatten(1)).unflatten(1, pixels.shape[1:])
        logits = resize_to_image(
            low_resolution, mask_features.shape, unpadded_size, (height, width)
        )
        mask = logits > 0
        area = mask.sum((1, 2))
        scores.append((logits.sigmoid() * mask).sum((1, 2)) / (area + 1e-6))
        masks += encode_masks(are_inside(logits))
    return torch.cat(scores), masks


def resize_to_image(
    logits: Tensor,
    padded_size: tuple[int, int],
    unpadded_size: Sequence[int],
    image_size: tuple[int, int],
) -> Tensor:
    """Resize mask logits [D,h,w] of a padded image to the original image, [D,H,W].

    All sizes are (height, width): of the network's input with and without its padding, and of the
    original image.
    """
    logits = F.interpolate(logits.unsqueeze(1), padded_size, mode="bilinear", align_corners=False)
    height, width = unpadded_size
    logits = logits[..., :height, :width]
    logits = F.interpolate(logits, image_size, mode="bilinear", align_corners=False)
    return logits.squeeze(1)


class InstanceTask(DetectionTask):
    """Instance segmentation on a dataset with the splits ``train`` and ``val``, with masks."""

    kind: ClassVar[str] = "mask"
    reads_masks: ClassVar[bool] = True
    # False: images without objects are left out of the training, as in detectron2
    trains_on_empty_images: ClassVar[bool] = False

    def __init__(
        self,
        data: DatasetSplits,
        settings: Settings,
        num_detections: int,
        workers: int = 0,
        shape: InputShape = ANY_SHAPE,
    ) -> None:
        if not self.trains_on_empty_images:
            splits = {**data.splits, "train": data.splits["train"].with_objects()}
            data = DatasetSplits(data.root, splits)
        super().__init__(data, settings, num_detections, workers, shape)

    @staticmethod
    def postprocess(
        predictions: Predictions, sizes: Sequence[tuple[int, int]], num_detections: int
    ) -> list[Detections]:
        return postprocess_masks(predictions, sizes, num_detections)

    def evaluate(self, detections: Sequence[Detections]) -> CocoEvaluation:
        """Return AP of the masks, and the main metrics of the boxes of the detections."""
        val = self.data.splits["val"]
        mask_evaluation = evaluate(val, detections, self.kind)
        errors = analyse_errors(val, detections, self.kind)
        box_evaluation = evaluate(val, detections)
        return replace(mask_evaluation.with_box_metrics(box_evaluation), errors=errors)

    def ground_truth(self, index: int) -> Detections:
        record = self.val.records[index]
        object_masks = record.object_masks()
        assert object_masks is not None, "the dataset was read without masks"
        masks = tuple(mask.to_rle(record.height, record.width) for mask in object_masks)
        return replace(super().ground_truth(index), masks=masks)


class BoxAndMaskTask(InstanceTask):
    """Instance segmentation by a detector that predicts boxes and masks, such as RF-DETR-Seg.

    The images without objects are trained on, as in Roboflow's code.
    """

    trains_on_empty_images: ClassVar[bool] = True

    @staticmethod
    def postprocess(
        predictions: Predictions, sizes: Sequence[tuple[int, int]], num_detections: int
    ) -> list[Detections]:
        return postprocess_boxes_and_masks(predictions, sizes, num_detections)
