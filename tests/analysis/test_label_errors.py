"""Planted label errors in constructed cases come first, and right annotations are no suspects."""

from __future__ import annotations

import numpy as np
import pytest

from groupdetr.analysis.label_errors import (
    NO_ANNOTATION,
    NO_OBJECT,
    WRONG_BOX,
    WRONG_CLASS,
    Suspect,
    find_suspects,
)
from groupdetr.data.records import Record
from groupdetr.structures.detections import Detections
from tests.analysis.handmade import detections, record

LEFT, RIGHT, LOW = [0.0, 0, 20, 20], [60.0, 0, 80, 20], [30.0, 60, 50, 80]
SHIFTED = [12.0, 0, 32, 20]  # of LEFT, with an IoU of 1/4
RIGHT_IMAGE = record((0, LEFT), (1, RIGHT))


def groups(
    *boxes: tuple[int, list[float]], scores: tuple[float, ...] = (0.9, 0.8, 0.85)
) -> list[Detections]:
    """Return three groups that detect the same boxes, each with a score of its own."""
    return [detections(*((score, label, box) for label, box in boxes)) for score in scores]


def suspects_of(image: Record, *boxes: tuple[int, list[float]]) -> list[Suspect]:
    """Return the suspects in ``image`` among three right images."""
    right = groups((0, LEFT), (1, RIGHT))
    records = [RIGHT_IMAGE, RIGHT_IMAGE, image, RIGHT_IMAGE]
    suspects = find_suspects(records, [right, right, groups(*boxes), right])
    assert {suspect.image for suspect in suspects} <= {2}, "a right annotation is a suspect"
    return suspects


def test_right_annotations_are_no_suspects() -> None:
    assert suspects_of(RIGHT_IMAGE, (0, LEFT), (1, RIGHT)) == []


def test_a_deleted_box_is_the_only_suspect() -> None:
    (suspect,) = suspects_of(record((1, RIGHT)), (0, LEFT), (1, RIGHT))
    assert (suspect.kind, suspect.detected_label, suspect.annotation) == (NO_ANNOTATION, 0, None)
    assert suspect.detected_box == pytest.approx(LEFT)
    assert suspect.score == pytest.approx(np.quantile([0.9, 0.8, 0.85], 0.75))


def test_a_box_on_nothing_is_the_only_suspect() -> None:
    (suspect,) = suspects_of(record((0, LEFT), (1, RIGHT), (1, LOW)), (0, LEFT), (1, RIGHT))
    assert (suspect.kind, suspect.annotation, suspect.label) == (NO_OBJECT, 2, 1)
    assert suspect.detected_box is None
    # Four of the five annotations of the class are detected.
    assert suspect.score == pytest.approx(4 / 5 * np.quantile([0.9, 0.8, 0.85], 0.75))


def test_a_wrong_class_is_the_only_suspect_and_outranks_either_evidence_alone() -> None:
    (suspect,) = suspects_of(record((1, LEFT), (1, RIGHT)), (0, LEFT), (1, RIGHT))
    assert (suspect.kind, suspect.annotation) == (WRONG_CLASS, 0)
    assert (suspect.label, suspect.detected_label) == (1, 0)
    assert suspect.score > np.quantile([0.9, 0.8, 0.85], 0.75)


def test_a_moved_box_is_one_suspect_with_the_place_of_the_object() -> None:
    (suspect,) = suspects_of(record((0, SHIFTED), (1, RIGHT)), (0, LEFT), (1, RIGHT))
    assert (suspect.kind, suspect.annotation) == (WRONG_BOX, 0)
    assert (suspect.box, suspect.detected_box) == (SHIFTED, pytest.approx(LEFT))


def test_what_most_groups_detect_outranks_what_one_group_is_sure_of() -> None:
    """Although the one group is surer than any of the others."""
    most = [detections((0.6, 0, LEFT)) for _ in range(3)]
    alone = [detections((0.6, 0, LEFT), (0.99, 0, RIGHT)), *most]
    (first, *others) = find_suspects([record()], [alone])
    assert first.detected_box == pytest.approx(LEFT)
    assert all(suspect.score < first.score for suspect in others)


def test_the_score_falls_as_a_box_comes_close_to_an_annotation() -> None:
    """It is continuous: from an IoU of 0.5, the box is at the place of the annotation."""
    scores = []
    for shift in (20.0, 14, 10, 7, 6.7, 6):
        box = [shift, 0, 20 + shift, 20]
        suspects = find_suspects([record((0, LEFT))], [groups((0, box), (0, LEFT))])
        scores.append(max((suspect.score for suspect in suspects), default=0.0))
    assert scores == sorted(scores, reverse=True)
    assert scores[0] == pytest.approx(np.quantile([0.9, 0.8, 0.85], 0.75))
    assert scores[-1] == 0


def test_classes_that_are_hard_to_detect_are_no_suspects_for_that_alone() -> None:
    """All annotations of class 0 have the score 0.2, so none of them is an error."""
    image = record((0, LEFT))
    hard = groups((0, LEFT), scores=(0.2, 0.2, 0.2))
    assert find_suspects([image] * 4, [hard] * 4) == []


def test_crowds_and_detections_in_them_are_no_suspects() -> None:
    image = record((1, RIGHT), (0, [0.0, 0, 50, 50]), crowds=1)
    assert find_suspects([image], [groups((0, LEFT), (1, RIGHT))]) == []


def test_one_group_and_images_without_annotations_or_detections() -> None:
    nothing = detections()
    assert find_suspects([record()], [[nothing]]) == []
    (suspect,) = find_suspects([record()], [[detections((0.7, 0, LEFT))]])
    assert suspect.score == pytest.approx(0.7)
    # Nothing of the class is ever detected, so nothing is expected of it.
    assert find_suspects([record((0, LEFT))], [[nothing]]) == []
