"""The box of each group for each detection: one-to-one, of the same class, at the same place."""

from __future__ import annotations

import numpy as np
import torch

from groupdetr.structures.detections import Detections
from groupdetr.tasks.detection2d.group_detections import best_of_each_group


def detections(*rows: tuple[float, int, list[float]]) -> Detections:
    scores, labels, boxes = zip(*rows)
    return Detections(torch.tensor(scores), torch.tensor(labels), torch.tensor(boxes))


LEFT, RIGHT = [0.0, 0, 10, 10], [3.0, 0, 13, 10]  # neighbours with an IoU of 7/13
FAR = [50.0, 50, 60, 60]


def test_neighbours_do_not_share_the_box_of_a_group() -> None:
    """Although the best box of the group for both of them is the same one."""
    primary = detections((0.9, 0, LEFT), (0.8, 0, RIGHT))
    group = detections((0.9, 0, LEFT), (0.5, 0, RIGHT))
    matched = best_of_each_group(primary, [group, primary])
    np.testing.assert_allclose(matched.scores, [[0.9, 0.9], [0.5, 0.8]], rtol=1e-6)
    np.testing.assert_array_equal(matched.boxes[:, 0], [LEFT, RIGHT])


def test_a_group_without_a_box_of_the_class_at_the_place_has_none() -> None:
    primary = detections((0.9, 0, LEFT), (0.8, 1, FAR))
    group = detections((0.9, 1, LEFT), (0.9, 0, FAR), (0.3, 1, FAR))
    matched = best_of_each_group(primary, [group])
    assert np.isnan(matched.boxes[0]).all()
    assert matched.to_json(0) == []
    assert matched.to_json(1) == [{"group": 0, "score": 0.3, "box": FAR}]


def test_of_several_boxes_at_the_place_the_one_that_is_sure_and_close_is_taken() -> None:
    near = [0.0, 0, 10, 9.5]
    group = detections((0.9, 0, near), (0.01, 0, LEFT), (0.6, 0, RIGHT))
    matched = best_of_each_group(detections((0.9, 0, LEFT)), [group])
    np.testing.assert_allclose(matched.boxes[0, 0], near)


def test_an_image_without_detections_has_no_boxes_of_groups() -> None:
    none = Detections(torch.zeros(0), torch.zeros(0, dtype=torch.int64), torch.zeros(0, 4))
    assert best_of_each_group(none, [detections((0.9, 0, LEFT))] * 3).boxes.shape == (0, 3, 4)
