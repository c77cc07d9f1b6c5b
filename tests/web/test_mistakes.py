"""The errors that the page lists are those of the evaluation, at every score threshold."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from groupdetr.data.layouts import load
from groupdetr.data.records import CocoSplit
from groupdetr.evaluation.error_analysis import analyse_errors
from groupdetr.evaluation.matching import match_image
from groupdetr.structures.detections import Detections
from groupdetr.web.mistakes import KINDS, MistakeTable


def noisy_detections(split: CocoSplit, seed: int) -> list[Detections]:
    """Three detections near each object, some of which have another class or lie elsewhere."""
    random = np.random.default_rng(seed)
    results = []
    for record in split.records:
        corners = np.repeat(record.corners, 3, axis=0)
        boxes = corners + random.normal(0, 2.5, corners.shape)
        boxes[:, 2:] = np.maximum(boxes[:, 2:], boxes[:, :2] + 1)
        labels = np.repeat(record.labels, 3)
        is_wrong = np.repeat(random.random(len(record.labels)) < 0.3, 3)
        labels[is_wrong] = (labels[is_wrong] + 1) % len(split.categories)
        scores = np.sort(random.random(len(labels)))[::-1].copy()
        order = random.permutation(len(labels))
        results.append(
            Detections(
                torch.from_numpy(scores),
                torch.from_numpy(labels[order]),
                torch.from_numpy(boxes[order]),
            )
        )
    return results


@pytest.fixture(scope="module")
def split(shapes: Path) -> CocoSplit:
    """Images with objects, every fifth of which is a crowd, and one without objects."""
    train = load(shapes).splits["train"]
    records = []
    for index, record in enumerate(train.records):
        crowd = np.arange(len(record.labels)) % 5 == index % 5
        records.append(replace(record, crowd=crowd))
    nothing = np.zeros(0, dtype=np.int64)
    empty = replace(
        records[0],
        boxes=np.zeros((0, 4)),
        labels=nothing,
        areas=np.zeros(0),
        crowd=nothing.astype(bool),
        annotation_ids=(),
    )
    return replace(train, records=(*records, empty))


def table_of(split: CocoSplit, detections: list[Detections]) -> MistakeTable:
    pairs = zip(split.records, detections)
    return MistakeTable(split, detections, [match_image(record, other) for record, other in pairs])


@pytest.mark.parametrize("seed", range(2))
def test_at_the_best_threshold_there_are_the_errors_and_the_f1_of_the_analysis(
    split: CocoSplit, seed: int
) -> None:
    detections = noisy_detections(split, seed)
    analysis = analyse_errors(split, detections)
    assert analysis is not None
    assert analysis.best_f1 is not None
    mistakes = table_of(split, detections).at(analysis.threshold)
    names = [category.name for category in split.categories]
    counts = Counter[tuple[str | None, str | None]]()
    counts.update((names[label], names[label]) for label in mistakes.detected_label)
    for item in mistakes.items():
        of_object = None if item.object is None else names[item.object]
        of_detection = None if item.detection is None else names[item.detection]
        counts[of_object, of_detection] += 1
    assert counts == {(row.object, row.detection): row.count for row in analysis.confusions}
    assert {item.kind for item in mistakes.items()} == set(KINDS)
    summary = mistakes.summary()
    best = analysis.best_f1
    assert (summary["F1"], summary["precision"], summary["recall"]) == pytest.approx(
        (best.F1, best.precision, best.recall)
    )


def test_the_errors_of_each_image_are_those_of_the_analysis(split: CocoSplit) -> None:
    detections = noisy_detections(split, 0)
    analysis = analyse_errors(split, detections)
    assert analysis is not None
    items = table_of(split, detections).at(analysis.threshold).items()
    # The image without objects has the id of the first one.
    ids = [record.image_id for record in split.records[:-1]]
    assert len(analysis.worst_images) > 1
    for errors in analysis.worst_images:
        of_image = [item for item in items if item.image == ids.index(errors.image_id)]
        kinds = Counter(item.kind for item in of_image)
        assert len(errors.missed) == kinds["missed"] + kinds["confused"]
        boxes = [item.box for item in of_image if item.kind != "missed"]
        expected = sorted(box.box for box in errors.made_up)
        assert np.array(sorted(boxes)) == pytest.approx(np.array(expected), abs=0.01)


def test_errors_are_sorted_by_score_and_missed_objects_without_any_detection_come_first(
    split: CocoSplit,
) -> None:
    table = table_of(split, noisy_detections(split, 0))
    mistakes = table.at(0.5)
    scores = {kind: mistakes.of_kind(kind).score.tolist() for kind in KINDS}
    assert scores["false_positive"] == sorted(scores["false_positive"], reverse=True)
    assert scores["confused"] == sorted(scores["confused"], reverse=True)
    assert scores["missed"] == sorted(scores["missed"])
    assert scores["missed"][0] == 0 < scores["missed"][-1] < 0.5
    # An object with a detection below the threshold is detected at the score of that detection.
    item = mistakes.of_kind("missed").items()[-1]
    lower = table.at(item.score).of_kind("missed").items()
    assert (item.image, item.box) not in [(other.image, other.box) for other in lower]


def test_the_errors_of_a_class_are_those_with_an_object_or_a_detection_of_it(
    split: CocoSplit,
) -> None:
    mistakes = table_of(split, noisy_detections(split, 0)).at(0.3)
    for label in range(3):
        of_class = mistakes.of_class(label)
        expected = [item for item in mistakes.items() if label in (item.object, item.detection)]
        assert of_class.items() == expected
        assert of_class.summary()["detected"] == mistakes.detected_label.tolist().count(label)


def test_without_a_detection_every_object_is_missed(split: CocoSplit) -> None:
    nothing = Detections(torch.zeros(0), torch.zeros(0, dtype=torch.long), torch.zeros(0, 4))
    mistakes = table_of(split, [nothing] * len(split)).at(0.0)
    num_objects = sum(int((~record.crowd).sum()) for record in split.records)
    summary = mistakes.summary()
    assert summary["missed"] == len(mistakes) == num_objects > 0
    assert summary["precision"] is None
    assert summary["recall"] == 0
