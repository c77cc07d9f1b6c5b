"""Matches are those of pycocotools; curves, thresholds and confusions follow from them."""

from __future__ import annotations

import contextlib
import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from groupdetr.data.layouts import load
from groupdetr.data.records import CocoSplit
from groupdetr.evaluation.coco import evaluate, from_coco_results, to_coco_results
from groupdetr.evaluation.error_analysis import ErrorAnalysis, analyse_errors, best_f1
from groupdetr.evaluation.matching import IGNORED, NO_OBJECT, match_image
from groupdetr.structures.detections import Detections
from tests.evaluation.test_coco import random_document, random_results, split_of


def detections(*rows: tuple[float, int, list[float]]) -> Detections:
    """Detections of rows (score, label, box)."""
    scores, labels, boxes = zip(*rows)
    return Detections(torch.tensor(scores), torch.tensor(labels), torch.tensor(boxes).float())


def pycocotools_matches(
    document: dict[str, Any], results: list[dict[str, Any]], image_id: int, category_id: int
) -> list[tuple[float, int]]:
    """Return (score, what is detected) of the detections of a class in an image at IoU 0.5.

    What is detected is the id of an annotation, `NO_OBJECT` or `IGNORED`.
    """
    with contextlib.redirect_stdout(io.StringIO()):
        ground_truth = COCO()
        ground_truth.dataset = {"info": {}, **document}
        ground_truth.createIndex()
        evaluator = COCOeval(ground_truth, ground_truth.loadRes(results), "bbox")
        evaluator.params.imgIds = [image_id]
        evaluator.params.catIds = [category_id]
        evaluator.evaluate()
    of_all_areas = evaluator.evalImgs[0]
    if of_all_areas is None:
        return []
    matches = []
    columns = zip(
        of_all_areas["dtScores"], of_all_areas["dtMatches"][0], of_all_areas["dtIgnore"][0]
    )
    for score, annotation, ignored in columns:
        if ignored:
            matches.append((score, IGNORED))
        else:
            matches.append((score, int(annotation) or NO_OBJECT))
    return matches


def assert_same_matches(
    split: CocoSplit, document: dict[str, Any], predicted: list[Detections]
) -> None:
    results = to_coco_results(split, predicted)
    for record, of_image in zip(split.records, predicted):
        matched = match_image(record, of_image).object
        for label, category in enumerate(split.categories):
            expected = pycocotools_matches(document, results, record.image_id, category.id)
            ours = []
            for index in np.argsort(-of_image.scores.numpy(), kind="stable"):
                if of_image.labels[index] == label:
                    value = int(matched[index])
                    detected = record.annotation_ids[value] if value >= 0 else value
                    ours.append((float(of_image.scores[index]), detected))
            # pycocotools leaves out detections that are not among the hundred best.
            assert ours[: len(expected)] == expected
            assert all(value == IGNORED for _, value in ours[len(expected) :])


def drawn_detections(split: CocoSplit) -> list[Detections]:
    """Annotations, crowds included, that are moved and repeated; every fourth has a wrong class."""
    rng = np.random.default_rng(0)
    predicted = []
    for record in split.records:
        copies = np.arange(len(record.labels)).repeat(3)
        xywh = record.boxes[copies]
        corners = np.concatenate([xywh[:, :2], xywh[:, :2] + xywh[:, 2:]], axis=1)
        corners += rng.normal(0, 0.12, corners.shape) * xywh[:, [2, 3, 2, 3]]
        labels = record.labels[copies]
        is_wrong = rng.random(len(labels)) < 0.25
        labels = np.where(is_wrong, rng.integers(0, len(split.categories), len(labels)), labels)
        # Few different scores, so that many are equal
        scores = rng.integers(1, 40, len(labels)) / 64
        order = np.argsort(-scores, kind="stable")
        predicted.append(
            Detections(
                torch.from_numpy(scores[order]),
                torch.from_numpy(labels[order]),
                torch.from_numpy(corners[order]),
            )
        )
    return predicted


def test_matches_of_real_images_are_those_of_pycocotools(real_data: Path) -> None:
    """Crowds included."""
    document = json.loads((real_data / "tiny_coco/val.json").read_text())
    split = load(real_data / "tiny_coco").splits["val"]
    split = CocoSplit(
        split.name, split.annotation_file, split.images_dir, split.categories, split.records[:12]
    )
    assert_same_matches(split, document, drawn_detections(split))


@settings(max_examples=10)
@given(st.integers(0, 2**31), st.integers(1, 4), st.integers(1, 3), st.sampled_from([0.0, 0.4]))
def test_matches_of_random_boxes_are_those_of_pycocotools(
    seed: int, images: int, classes: int, crowd: float
) -> None:
    document = random_document(seed, images, classes, crowd)
    results = random_results(seed, document)
    if results:  # pycocotools cannot load an empty list
        split = split_of(document)
        assert_same_matches(split, document, from_coco_results(split, results))


def test_only_the_hundred_best_detections_of_a_class_are_evaluated() -> None:
    split = split_with([(0, [0, 0, 10, 10])])
    many = [(0.9 - i / 1000, 0, [50.0, 50, 60, 60]) for i in range(100)]
    predicted = detections(*many, (0.1, 0, [0.0, 0, 10, 10]), (0.05, 1, [0.0, 0, 10, 10]))
    matched = match_image(split.records[0], predicted).object
    assert matched.tolist() == [NO_OBJECT] * 100 + [IGNORED, NO_OBJECT]


def test_the_mean_of_a_curve_is_ap50(real_data: Path) -> None:
    """It is that of faster-coco-eval, on real images with drawn detections."""
    split = load(real_data / "tiny_coco").splits["val"]
    predicted = drawn_detections(split)
    analysis = analyse_errors(split, predicted)
    assert analysis is not None
    curves = {curve.name: np.mean(curve.precision) for curve in analysis.curves}
    rows = [row for row in evaluate(split, predicted).per_class if row.objects]
    assert curves.keys() == {row.name for row in rows}
    for row in rows:
        assert curves[row.name] == pytest.approx(row.AP50, abs=1e-5), row.name


def test_the_best_f1_is_that_of_trying_every_threshold() -> None:
    rng = np.random.default_rng(1)
    scores = -np.sort(-rng.integers(1, 30, 200) / 32)
    is_detected = rng.random(200) < scores
    predicted = best_f1(scores, is_detected, num_objects=120)
    assert predicted is not None

    def f1(threshold: float) -> float:
        kept = scores >= threshold
        precision, recall = is_detected[kept].mean(), is_detected[kept].sum() / 120
        return float(2 * precision * recall / (precision + recall))

    assert pytest.approx(max(f1(score) for score in scores)) == predicted.F1
    assert pytest.approx(f1(predicted.score)) == predicted.F1
    assert 2 / (1 / predicted.precision + 1 / predicted.recall) == pytest.approx(predicted.F1)


def test_without_a_detected_object_there_is_no_best_threshold() -> None:
    assert best_f1(np.array([0.9, 0.5]), np.array([False, False]), 3) is None
    assert best_f1(np.zeros(0), np.zeros(0, dtype=bool), 3) is None


def split_with(*images: list[tuple[int, list[float]]]) -> CocoSplit:
    """A split of three classes. An image is a list of (label, [x, y, width, height])."""
    annotations = []
    for image_id, objects in enumerate(images):
        for label, box in objects:
            row = {"id": len(annotations) + 1, "image_id": image_id, "category_id": label}
            annotations.append({**row, "bbox": box, "area": 100, "iscrowd": 0})
    return split_of(
        {
            "images": [{"id": image_id} for image_id in range(len(images))],
            "annotations": annotations,
            "categories": [{"id": i, "name": name} for i, name in enumerate("abc")],
        }
    )


def test_objects_are_detected_confused_missed_or_made_up() -> None:
    first = [0.0, 0, 10, 10]
    second, third, fourth = ([x, 0.0, 10, 10] for x in (20.0, 40.0, 60.0))
    split = split_with([(0, first), (0, second), (1, third)], [(2, fourth)])
    predicted = [
        detections(
            (0.9, 0, [0, 0, 10, 10]),  # detected
            (0.8, 1, [20, 0, 30, 10]),  # confused: an object of class a
            (0.7, 0, [1, 0, 11, 10]),  # made up: the object is detected already
            (0.2, 1, [40, 0, 50, 10]),  # below the threshold, so the object is missed
        ),
        detections((0.85, 2, [60, 0, 70, 10])),
    ]
    analysis = analyse_errors(split, predicted)
    assert analysis is not None
    assert analysis.best_f1 is not None
    assert analysis.best_f1.score == pytest.approx((0.85 + 0.8) / 2)
    counts = {(row.object, row.detection): row.count for row in analysis.confusions}
    assert counts == {("a", "a"): 1, ("c", "c"): 1, ("a", None): 1, ("b", None): 1}

    # With more objects detected than made up at the lower threshold, it is the better one.
    predicted[0].scores[3] = 0.75
    analysis = analyse_errors(split, predicted)
    assert analysis is not None
    counts = {(row.object, row.detection): row.count for row in analysis.confusions}
    assert counts == {("a", "a"): 1, ("b", "b"): 1, ("c", "c"): 1, ("a", "b"): 1}
    (worst,) = analysis.worst_images
    assert [row.name for row in worst.missed] == ["a"]
    assert [(row.name, row.score) for row in worst.made_up] == [("b", 0.8)]
    assert len(worst.detected) == 2


def test_images_with_the_most_errors_come_first_and_those_without_any_do_not() -> None:
    box = [0.0, 0, 10, 10]
    objects = [[(0, box)] * number for number in (1, 3, 2)]
    predicted = [detections((0.9, 0, [0, 0, 10, 10]))] * 3
    analysis = analyse_errors(split_with(*objects), predicted)
    assert analysis is not None
    assert [len(image.missed) for image in analysis.worst_images] == [2, 1]
    read = ErrorAnalysis.from_json(json.loads(json.dumps(analysis.to_json(), allow_nan=False)))
    assert read == analysis


def test_a_split_without_objects_has_no_errors() -> None:
    none = Detections(torch.zeros(0), torch.zeros(0, dtype=torch.int64), torch.zeros(0, 4))
    assert analyse_errors(split_with([]), [none]) is None
