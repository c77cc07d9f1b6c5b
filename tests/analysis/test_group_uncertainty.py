"""The disagreement of the groups about a detection."""

from __future__ import annotations

import numpy as np
import pytest

from groupdetr.analysis.group_uncertainty import group_uncertainty

BOX = [0.0, 0, 10, 10]
HALF = [0.0, 0, 10, 5]  # with an IoU of 1/2
NONE = [np.nan] * 4


def test_identical_groups_do_not_disagree_whatever_the_score_is() -> None:
    scores = np.array([0.9, 0.01, 0.0])
    boxes = np.array([BOX, HALF, BOX])
    group_scores, group_boxes = scores[:, None].repeat(5, 1), boxes[:, None].repeat(5, 1)
    result = group_uncertainty(scores, boxes, group_scores, group_boxes)
    assert result.disagreement.tolist() == [0, 0, 0]
    assert result.total.tolist() == pytest.approx((1 - scores).tolist())


def test_a_detection_that_no_other_group_has() -> None:
    result = group_uncertainty([0.9], [BOX], [[np.nan, np.nan]], [[NONE, NONE]])
    assert result.disagreement.tolist() == [1]
    assert result.total.tolist() == pytest.approx([1 - 0.9 / 3])


def test_both_by_hand() -> None:
    """Half of the box with the same score, the box with half of the score, and nothing."""
    result = group_uncertainty([0.8], [BOX], [[0.8, 0.4, np.nan]], [[HALF, BOX, NONE]])
    assert result.disagreement.tolist() == pytest.approx([1 - (0.5 + 0.5 + 0) / 3])
    assert result.total.tolist() == pytest.approx([1 - (0.8 + 0.8 * 0.5 + 0.4 + 0) / 4])


def test_a_higher_score_of_another_group_is_a_disagreement_and_lowers_the_uncertainty() -> None:
    result = group_uncertainty([0.4], [BOX], [[0.8]], [[BOX]])
    assert result.disagreement.tolist() == pytest.approx([0.5])
    assert result.total.tolist() == pytest.approx([0.4])


def test_an_image_without_detections_and_a_detector_of_one_group() -> None:
    empty = np.zeros((0, 4))
    assert group_uncertainty([], empty, np.zeros((0, 2)), np.zeros((0, 2, 4))).total.shape == (0,)
    with pytest.raises(ValueError, match="another group"):
        group_uncertainty([0.5], [BOX], np.zeros((1, 0)), np.zeros((1, 0, 4)))
