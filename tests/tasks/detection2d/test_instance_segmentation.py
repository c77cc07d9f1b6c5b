"""Instance segmentation: from predictions to masks of the original image, and their evaluation."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from groupdetr.data.layouts import load
from groupdetr.evaluation.coco import BOX_METRICS, METRICS
from groupdetr.settings import Settings
from groupdetr.structures.detections import decode_mask, mask_areas
from groupdetr.structures.masks import MaskFeatures
from groupdetr.structures.predictions import Predictions
from groupdetr.tasks.detection2d.instance_segmentation import (
    BoxAndMaskTask,
    InstanceTask,
    postprocess_boxes_and_masks,
    postprocess_masks,
    resize_to_image,
)
from groupdetr.tasks.detection2d.task import DetectionTask, postprocess_boxes

from .segmenter import write_data

IMAGE_SIZES = [(37, 61), (90, 40)]  # width, height of the original images
UNPADDED_SIZES = [(29, 20), (32, 44)]  # height, width of the resized images
PADDED_SIZE = (32, 44)
MODULE = "groupdetr.tasks.detection2d.instance_segmentation"


def random_predictions(queries: int = 7, classes: int = 3) -> Predictions:
    """Return predictions of two images with smooth masks of all sizes."""
    generator = torch.Generator().manual_seed(3)
    coarse = torch.randn(2, 5, 3, 4, generator=generator)
    pixels = F.interpolate(coarse, (8, 11), mode="bicubic")
    embedding = torch.randn(2, queries, 5, generator=generator)
    mask_features = MaskFeatures(pixels, torch.tensor(UNPADDED_SIZES))
    logits = 2 * torch.randn(2, queries, classes + 1, generator=generator)
    return Predictions(logits, embedding, mask_features)


def expected_detections(predictions: Predictions, image: int) -> list[tuple[float, int, Tensor]]:
    """Return (score, class, mask) of the 10 best pairs, by the steps of the published code.

    A pair is a query and a class. The masks are computed one by one.
    """
    pixels = predictions.masks.mask_features.pixels[image]
    mask_logits = torch.einsum("qc,chw->qhw", predictions.masks.embedding[image], pixels)
    probabilities = torch.softmax(predictions.logits[image], -1)[:, :-1]
    pairs = []
    for query, row in enumerate(probabilities):
        for label, probability in enumerate(row):
            pairs.append((float(probability), query, label))
    pairs.sort(reverse=True)

    height, width = UNPADDED_SIZES[image]
    image_width, image_height = IMAGE_SIZES[image]
    detections = []
    for probability, query, label in pairs[:10]:
        padded = F.interpolate(mask_logits[None, None, query], PADDED_SIZE, mode="bilinear")
        unpadded = padded[:, :, :height, :width]
        logits = F.interpolate(unpadded, (image_height, image_width), mode="bilinear")[0, 0]
        mask = logits > 0
        mask_score = float(logits.sigmoid()[mask].sum() / (mask.sum() + 1e-6))
        detections.append((probability * mask_score, label, mask))
    return sorted(detections, key=lambda detection: -detection[0])


def test_masks_equal_those_of_the_published_steps() -> None:
    predictions = random_predictions()
    results = postprocess_masks(predictions, IMAGE_SIZES, num_detections=10)
    for image, detections in enumerate(results):
        expected = expected_detections(predictions, image)
        assert len(detections) == 10
        assert detections.scores.tolist() == pytest.approx(
            [score for score, _, _ in expected], rel=1e-5
        )
        assert detections.labels.tolist() == [label for _, label, _ in expected]
        masks = detections.masks or ()
        for rle, (_, _, mask) in zip(masks, expected):
            assert np.array_equal(decode_mask(rle), mask)
        assert len(set(mask_areas(masks))) > 3, "masks of different sizes are tested"


def test_the_chunk_size_does_not_change_the_result(monkeypatch: pytest.MonkeyPatch) -> None:
    at_once = postprocess_masks(random_predictions(), IMAGE_SIZES, num_detections=10)
    monkeypatch.setattr(f"{MODULE}.MAX_PIXELS", 2 * 61 * 37)
    in_chunks = postprocess_masks(random_predictions(), IMAGE_SIZES, num_detections=10)
    for a, b in zip(at_once, in_chunks):
        assert a.masks == b.masks
        torch.testing.assert_close(a.scores, b.scores)


def test_a_chunk_has_no_more_pixels_than_the_maximum(monkeypatch: pytest.MonkeyPatch) -> None:
    pixels_of_chunks: list[int] = []

    def recording_resize(
        logits: Tensor,
        padded_size: tuple[int, int],
        unpadded_size: Sequence[int],
        image_size: tuple[int, int],
    ) -> Tensor:
        resized = resize_to_image(logits, padded_size, unpadded_size, image_size)
        pixels_of_chunks.append(resized.numel())
        return resized

    monkeypatch.setattr(f"{MODULE}.MAX_PIXELS", 3 * 4000)
    monkeypatch.setattr(f"{MODULE}.resize_to_image", recording_resize)
    postprocess_masks(random_predictions(), IMAGE_SIZES, num_detections=10)
    assert max(pixels_of_chunks) <= 3 * 4000
    assert sum(pixels_of_chunks) == 10 * sum(width * height for width, height in IMAGE_SIZES)


def test_boxes_are_tight_and_empty_masks_have_neither_box_nor_score() -> None:
    predictions = random_predictions()
    # A logit of zero is not inside of a mask, so the mask of this query is empty.
    predictions.masks.embedding[0, 2] = 0
    detections, _ = postprocess_masks(predictions, IMAGE_SIZES, num_detections=21)
    masks = detections.masks or ()
    for box, rle in zip(detections.boxes.tolist(), masks):
        rows, columns = decode_mask(rle).nonzero()
        if len(rows):
            assert box == [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]
        else:
            assert box == [0, 0, 0, 0]
    is_empty = torch.from_numpy(mask_areas(masks) == 0)
    assert is_empty.sum() >= 3, "one for each class"
    assert not detections.scores[is_empty].any()


def predictions_of_boxes_and_masks() -> Predictions:
    """Return predictions of two images, without "no object" and with a bias for every mask."""
    of_masks = random_predictions()
    generator = torch.Generator().manual_seed(4)
    boxes = torch.rand(*of_masks.logits.shape[:2], 4, generator=generator)
    bias = torch.randn(*of_masks.logits.shape[:2], 1, generator=generator)
    embedding = torch.cat([of_masks.location, bias], dim=-1)
    return Predictions(of_masks.logits, boxes, of_masks.mask_features, embedding)


def test_predicted_boxes_and_scores_are_those_of_a_detector_without_masks() -> None:
    predictions = predictions_of_boxes_and_masks()
    of_boxes = Predictions(predictions.logits, predictions.boxes)
    results = postprocess_boxes_and_masks(predictions, IMAGE_SIZES, num_detections=10)
    expected = postprocess_boxes(of_boxes, IMAGE_SIZES, num_detections=10)
    for ours, theirs in zip(results, expected):
        assert torch.equal(ours.scores, theirs.scores)
        assert torch.equal(ours.labels, theirs.labels)
        assert torch.equal(ours.boxes, theirs.boxes)


def test_masks_beside_boxes_are_enlarged_in_one_step() -> None:
    """As in RF-DETR: without the padding, bilinear, and where the logit is positive."""
    predictions = predictions_of_boxes_and_masks()
    pixels = predictions.masks.mask_features.pixels
    probabilities = predictions.logits.sigmoid()
    results = postprocess_boxes_and_masks(predictions, IMAGE_SIZES, num_detections=10)
    for image, detections in enumerate(results):
        # Of the features that have a part of the image of 29 x 20, or 32 x 44, pixels
        rows, columns = ((8, 5), (8, 11))[image]
        width, height = IMAGE_SIZES[image]
        best = probabilities[image].flatten().topk(10).indices
        embedding = predictions.embeddings_of_masks[image, best // probabilities.shape[-1]]
        masks = torch.einsum("qc,chw->qhw", embedding[:, :-1], pixels[image, :, :rows, :columns])
        masks = masks + embedding[:, -1, None, None]
        enlarged = F.interpolate(masks[:, None], (height, width), mode="bilinear")[:, 0] > 0
        for rle, expected in zip(detections.masks or (), enlarged, strict=True):
            assert np.array_equal(decode_mask(rle), expected)


@pytest.fixture(scope="module")
def task(tmp_path_factory: pytest.TempPathFactory) -> InstanceTask:
    folder = write_data(tmp_path_factory.mktemp("colours"))
    return InstanceTask(load(folder, masks=True), Settings(imgsz=48), num_detections=10)


def test_the_ground_truth_has_masks_and_no_crowds(task: InstanceTask) -> None:
    target = task.ground_truth(0)
    masks = target.masks or ()
    assert len(target) == len(masks) == 2
    assert mask_areas(masks).tolist() == [28 * 16, 24 * 20]


def test_images_without_objects_are_evaluated_but_not_trained_on(task: InstanceTask) -> None:
    assert (len(task.train), len(task.val)) == (2, 3)


def test_a_detector_of_boxes_and_masks_is_trained_on_images_without_objects(
    task: InstanceTask,
) -> None:
    of_both = BoxAndMaskTask(load(task.data.root, masks=True), Settings(imgsz=48), 10)
    assert len(of_both.train) > len(task.train)


def test_the_evaluation_has_ap_of_masks_and_of_boxes(task: InstanceTask) -> None:
    detections = [task.ground_truth(index) for index in range(3)]
    perfect = task.evaluate(detections)
    assert perfect.kind == "mask"
    assert list(perfect.stats) == [*METRICS, *BOX_METRICS]
    assert perfect.stats["AP"] == perfect.stats["box_AP"] == perfect.stats["box_AP75"] == 1
    assert list(perfect.by_kind()) == ["mask", "box"]

    for of_image in detections:
        of_image.boxes += 40
    moved_boxes = task.evaluate(detections)
    assert moved_boxes.stats["AP"] == 1
    assert moved_boxes.stats["box_AP"] == 0


def test_a_data_set_that_was_read_without_masks_is_refused(tmp_path: Path) -> None:
    data = load(write_data(tmp_path))
    task = InstanceTask(data, Settings(imgsz=48), num_detections=10)
    with pytest.raises(ValueError, match="were not read"):
        task.evaluate([DetectionTask.ground_truth(task, index) for index in range(3)])
