"""How many groups detect an object, and how much their boxes and scores differ."""

from __future__ import annotations

import numpy as np
import pytest

from groupdetr.analysis.group_agreement import object_agreement

BOX, HALF, NONE = [0.0, 0, 10, 10], [0.0, 0, 10, 5], [np.nan] * 4


def test_only_groups_that_detect_the_object_count() -> None:
    """Two boxes with an IoU of 1/2, a box below the threshold, and none."""
    scores = [[0.6, 0.8, 0.2, np.nan]]
    agreement = object_agreement(scores, [[BOX, HALF, BOX, NONE]], min_score=0.5)
    assert agreement.num_groups.tolist() == [2]
    assert agreement.box_spread.tolist() == pytest.approx([0.5])
    assert agreement.score_spread.tolist() == pytest.approx([0.1])


def test_the_spread_of_boxes_is_that_of_all_pairs() -> None:
    """Of three boxes, one pair is equal and two pairs have an IoU of 1/2."""
    agreement = object_agreement([[0.9, 0.9, 0.9]], [[BOX, BOX, HALF]], 0.5)
    assert agreement.box_spread.tolist() == pytest.approx([1 - (1 + 0.5 + 0.5) / 3])
    assert agreement.score_spread.tolist() == pytest.approx([0])


def test_one_group_alone_has_no_spread() -> None:
    agreement = object_agreement([[0.9, 0.1], [0.1, 0.1]], [[BOX, BOX], [BOX, BOX]], 0.5)
    assert agreement.num_groups.tolist() == [1, 0]
    assert np.isnan(agreement.box_spread).all()
    assert np.isnan(agreement.score_spread).all()
