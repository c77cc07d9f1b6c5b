"""Weighted boxes fusion of groups, against an example computed by hand."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from groupdetr.analysis.box_fusion import fuse_groups
from tests.analysis.handmade import detections

LEFT, RIGHT = [0.0, 0, 10, 10], [2.0, 0, 12, 10]  # neighbours with an IoU of 2/3


def test_a_fused_box_is_the_mean_weighted_by_scores_and_missing_groups_count_as_zero() -> None:
    """The boxes (0,0,10,10) of score 0.8 and (2,0,12,10) of score 0.4, and a third group without.

    x0 is (0.8 * 0 + 0.4 * 2) / 1.2 = 2/3, and the score (0.8 + 0.4 + 0) / 3 = 0.4.
    """
    groups = [detections((0.8, 1, LEFT)), detections((0.4, 1, RIGHT)), detections()]
    fused = fuse_groups(groups, max_detections=10)
    assert len(fused.detections) == 1
    assert fused.detections.boxes[0].tolist() == pytest.approx([2 / 3, 0, 10 + 2 / 3, 10])
    assert float(fused.detections.scores[0]) == pytest.approx(0.4)
    assert int(fused.detections.labels[0]) == 1
    np.testing.assert_array_equal(fused.scores, [[0.8, 0.4, np.nan]])
    np.testing.assert_array_equal(fused.boxes[0, 1], RIGHT)


def test_a_box_joins_by_its_iou_with_the_fused_box_and_not_with_the_first_one() -> None:
    """After two boxes, the fused box is (1,0,11,10). The third one overlaps it with 7/11 > 0.55.

    With the first box alone its IoU is 6/12.
    """
    first, second, third = [0.0, 0, 10, 10], [2.0, 0, 12, 10], [4.0, 0, 12, 10]
    groups = [
        detections((0.5, 0, first)),
        detections((0.5, 0, second)),
        detections((0.4, 0, third)),
    ]
    fused = fuse_groups(groups, 10)
    assert len(fused.detections) == 1
    assert float(fused.detections.boxes[0, 0]) == pytest.approx((0.5 * 2 + 0.4 * 4) / 1.4)


def test_identical_groups_are_fused_to_the_detections_of_one_group() -> None:
    """Also where neighbours of one class overlap by more than the threshold."""
    one = detections((0.9, 0, LEFT), (0.7, 0, RIGHT), (0.6, 1, LEFT), (0.1, 0, [50.0, 50, 60, 60]))
    fused = fuse_groups([one] * 5, 10).detections
    torch.testing.assert_close(fused.scores.double(), one.scores, rtol=1e-6, atol=0)
    torch.testing.assert_close(fused.boxes.double(), one.boxes, rtol=1e-6, atol=1e-6)
    assert fused.labels.tolist() == one.labels.tolist()


def test_classes_are_not_fused_and_only_the_best_clusters_are_kept() -> None:
    groups = [detections((0.9, 0, LEFT), (0.2, 1, LEFT)), detections((0.8, 1, LEFT))]
    fused = fuse_groups(groups, max_detections=1).detections
    assert (fused.labels.tolist(), fused.scores.tolist()) == ([1], pytest.approx([0.5]))


def test_groups_without_detections_have_no_fused_ones() -> None:
    fused = fuse_groups([detections(), detections()], 10)
    assert len(fused.detections) == 0
    assert fused.boxes.shape == (0, 2, 4)
