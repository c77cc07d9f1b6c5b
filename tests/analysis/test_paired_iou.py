"""The IoU of pairs of boxes, against pycocotools' definition."""

from __future__ import annotations

import numpy as np
from faster_coco_eval.core import mask as coco_mask

from groupdetr.analysis.paired_iou import paired_iou


def test_it_is_the_diagonal_of_all_ious_of_coco() -> None:
    random = np.random.default_rng(0)
    low = random.uniform(0, 50, (2, 40, 2))
    boxes = np.concatenate([low, low + random.uniform(0.1, 40, (2, 40, 2))], axis=-1)
    xywh = np.concatenate([boxes[..., :2], boxes[..., 2:] - boxes[..., :2]], axis=-1)
    expected = np.diag(np.asarray(coco_mask.iou(xywh[0], xywh[1], [0] * 40)))
    assert (expected > 0).any()
    np.testing.assert_allclose(paired_iou(boxes[0], boxes[1]), expected, atol=1e-12)


def test_boxes_without_area_have_no_iou_and_missing_boxes_are_nan() -> None:
    point = [3.0, 3, 3, 3]
    assert paired_iou(point, point) == 0
    assert np.isnan(paired_iou([point, [np.nan] * 4], point)).tolist() == [False, True]
