"""The nuScenes detection score of cases whose metrics are known."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest

from groupdetr.errors import DataError
from groupdetr.evaluation.boxes3d import CLASSES, Boxes3D, Pose, predicted_boxes
from groupdetr.evaluation.nuscenes import (
    ERRORS,
    METRICS,
    ClassScore,
    NuScenesEvaluation,
    SampleGroundTruth,
    evaluate,
)
from tests.evaluation.random_samples import (
    boxes,
    quaternions,
    random_predictions,
    random_samples,
)

NAMES = [kind.name for kind in CLASSES]
ATTRIBUTES = [kind.moving_attribute for kind in CLASSES]


def one_of_each_class(**columns: object) -> Boxes3D:
    """A box of every class, 10 m from the ego vehicle and 5 m from the next one."""
    angles = np.arange(10) * 2 * np.pi / 10
    centres = [[10 * math.cos(angle), 10 * math.sin(angle), 0] for angle in angles]
    return boxes(centres, range(10), **{"attributes": ATTRIBUTES} | columns)


def as_predictions(truth: Boxes3D) -> Boxes3D:
    return replace(truth, scores=np.ones(len(truth)), points=None)


def evaluate_one(
    predicted: Boxes3D, truth: Boxes3D, racks: Boxes3D | None = None
) -> NuScenesEvaluation:
    return evaluate([SampleGroundTruth(np.zeros(3), truth, racks)], [predicted])


def close(a: float, b: float, tolerance: float = 1e-9) -> bool:
    return abs(a - b) < tolerance


def row(result: NuScenesEvaluation, name: str) -> ClassScore:
    return result.per_class[NAMES.index(name)]


def test_the_ground_truth_scores_one_and_some_errors_of_cones_and_barriers_are_undefined() -> None:
    result = evaluate_one(as_predictions(one_of_each_class()), one_of_each_class())
    assert list(result.stats.values()) == pytest.approx([1, 1, 0, 0, 0, 0, 0])
    undefined = {}
    for score in result.per_class:
        errors = {error for error in ERRORS if math.isnan(getattr(score, error))}
        if errors:
            undefined[score.name] = errors
    assert undefined == {"traffic_cone": {"AOE", "AVE", "AAE"}, "barrier": {"AVE", "AAE"}}


def test_no_true_positive_scores_zero() -> None:
    predicted = as_predictions(one_of_each_class())
    none = predicted[predicted.scores > 1]
    far = replace(predicted, centres=predicted.centres + 1000)
    for wrong in (none, far):
        result = evaluate_one(wrong, one_of_each_class())
        assert list(result.stats.values()) == [0, 0, 1, 1, 1, 1, 1]


CHANGES: dict[str, Callable[[Boxes3D], Boxes3D]] = {
    "no velocities": lambda predicted: replace(predicted, velocities=predicted.velocities * np.nan),
    "wrong velocities": lambda predicted: replace(predicted, velocities=predicted.velocities + 2),
    "no attributes": lambda predicted: replace(predicted, attributes=np.full(len(predicted), "")),
}


@pytest.mark.parametrize("name", CHANGES)
def test_an_error_of_one_reduces_the_score_by_a_tenth(name: str) -> None:
    predicted = CHANGES[name](as_predictions(one_of_each_class()))
    stats = evaluate_one(predicted, one_of_each_class()).stats
    assert close(stats["mAP"], 1)
    assert close(stats["NDS"], 0.9)


def test_predictions_of_score_zero_have_an_ap_but_their_errors_are_one() -> None:
    predicted = as_predictions(one_of_each_class())
    predicted = replace(predicted, scores=predicted.scores * 0)
    stats = evaluate_one(predicted, one_of_each_class()).stats
    assert close(stats["mAP"], 1)
    assert close(stats["NDS"], 0.5)


def test_a_class_without_objects_counts_as_an_ap_of_zero() -> None:
    truth = one_of_each_class()
    result = evaluate_one(as_predictions(truth), truth[truth.labels != 0])
    car = row(result, "car")
    assert (car.AP, car.ATE, car.AAE, car.objects, car.samples) == (0, 1, 1, 0, 0)
    assert close(result.stats["mAP"], 0.9)


def test_unknown_velocities_and_attributes_of_objects_are_in_no_mean() -> None:
    truth = one_of_each_class()
    truth.velocities[0], truth.attributes[0] = np.nan, ""
    car = row(evaluate_one(as_predictions(one_of_each_class()), truth), "car")
    assert (car.AVE, car.AAE) == (1, 1), "velocity and attribute of the only car are unknown"

    two_cars = boxes(
        [[0, 0, 0], [10, 0, 0]],
        velocities=[[np.nan, np.nan], [0, 0]],
        attributes=["", "vehicle.parked"],
    )
    predicted = replace(
        as_predictions(two_cars),
        velocities=np.full((2, 2), [3.0, 4.0]),
        attributes=np.array(["vehicle.parked"] * 2),
        scores=np.array([0.1, 0.9]),
    )
    car = row(evaluate_one(predicted, two_cars), "car")
    assert (car.AVE, car.AAE) == (5, 0)


def test_a_true_positive_is_nearer_than_the_threshold() -> None:
    """Strictly nearer: a distance of 0.5 m is not enough at 0.5 m."""
    truth = boxes([[0, 0, 0]])
    for distance, num_thresholds in ((0.49, 4), (0.5, 3), (1.5, 2), (3.9, 1), (4.0, 0)):
        predicted = as_predictions(boxes([[distance, 0, 7.0]]))
        car = row(evaluate_one(predicted, truth), "car")
        assert close(sum(car.AP_by_distance), num_thresholds)
        assert close(car.ATE, distance if distance < 2 else 1), "heights do not count"


def test_orientation_has_a_period_of_one_turn_and_of_half_a_turn_for_barriers() -> None:
    truth = one_of_each_class(rotations=quaternions(np.full(10, 3.0), np.zeros((10, 2))))
    rotations = quaternions(np.full(10, 3.0 + 0.9 * np.pi), np.full((10, 2), 0.01))
    result = evaluate_one(as_predictions(replace(truth, rotations=rotations)), truth)
    assert close(row(result, "car").AOE, 0.9 * np.pi, 1e-3)
    assert close(row(result, "barrier").AOE, 0.1 * np.pi, 1e-3)


def test_sizes_are_compared_width_with_width_and_length_with_length() -> None:
    truth = one_of_each_class()
    swapped = replace(truth, sizes=truth.sizes[:, [1, 0, 2]])
    result = evaluate_one(as_predictions(swapped), truth)
    assert close(result.stats["mASE"], 1 - 4 / 12)


def test_the_prediction_of_the_higher_score_takes_an_object_and_of_equal_ones_the_later() -> None:
    """As in the devkit. An object has one true positive."""
    truth = boxes([[0, 0, 0], [10, 0, 0]])
    for scores, distance in (([0.9, 0.8], 0.3), ([0.5, 0.5], 0.1)):
        predicted = boxes([[0.3, 0, 0], [0.1, 0, 0]], scores=scores)
        car = row(evaluate_one(predicted, truth), "car")
        assert close(car.ATE, distance)
        assert car.AP < 0.5


def test_boxes_out_of_range_of_the_ego_vehicle_are_not_evaluated() -> None:
    for label, kind in enumerate(CLASSES):
        inside = boxes([[0, kind.class_range - 0.01, 9.0]], label)
        outside = boxes([[0, kind.class_range, 9.0]], label)
        assert close(row(evaluate_one(as_predictions(inside), inside), kind.name).AP, 1)
        result = row(evaluate_one(as_predictions(inside), outside), kind.name)
        assert (result.objects, result.AP) == (0, 0)
    truth = boxes([[600, 1600, 0]])
    for ego, objects in (([555, 1600, 0], 1), ([0, 0, 0], 0)):
        sample = SampleGroundTruth(np.array(ego), truth)
        assert row(evaluate([sample], [as_predictions(truth)]), "car").objects == objects


def test_a_recall_of_a_tenth_counts_as_none() -> None:
    truth = boxes([[4 * x, 4 * y, 0] for x in range(10) for y in range(10)])
    for true_positives, counts in ((10, False), (12, True)):
        predicted = as_predictions(truth)[np.arange(true_positives)]
        car = row(evaluate_one(predicted, truth), "car")
        assert (car.AP > 0, car.ATE < 1) == (counts, counts)


def test_objects_without_points_are_not_evaluated() -> None:
    truth = boxes([[0, 0, 0], [10, 0, 0], [20, 0, 0]], points=[0, 1, 7])
    assert row(evaluate_one(as_predictions(truth), truth), "car").objects == 2


def test_cycles_in_a_bicycle_rack_are_not_evaluated_but_cars_are() -> None:
    """The rack is 2 m wide and 6 m long, and its heading is the y axis."""
    rack = boxes(
        [[0, 0, 0]],
        sizes=[[2.0, 6.0, 2.0]],
        rotations=quaternions(np.array([np.pi / 2]), np.zeros((1, 2))),
    )
    # Three centres are inside of the rack, two are outside.
    centres = [[0, 2.9, 0], [0, -2.5, 0], [0.9, 0, 0.9], [2.9, 0, 0], [0, 0, 1.1]]
    for name, objects in (("bicycle", 2), ("motorcycle", 2), ("car", 5)):
        truth = boxes(centres, NAMES.index(name))
        result = row(evaluate_one(as_predictions(truth), truth, rack), name)
        assert (result.objects, result.AP) == (objects, pytest.approx(1))


def test_predictions_match_objects_of_their_own_sample_only() -> None:
    truth = boxes([[0, 0, 0]])
    empty = truth[truth.labels > 0]
    samples = [SampleGroundTruth(np.zeros(3), truth), SampleGroundTruth(np.zeros(3), empty)]
    predicted = as_predictions(truth)
    nothing = predicted[truth.labels > 0]
    assert row(evaluate(samples, [nothing, predicted]), "car").AP == 0
    assert close(row(evaluate(samples, [predicted, nothing]), "car").AP, 1)
    with pytest.raises(ValueError, match="predictions of 1 samples for 2"):
        evaluate(samples, [nothing])


@pytest.mark.parametrize("name", ["centres", "sizes", "rotations", "scores"])
def test_predictions_that_are_not_finite_are_refused(name: str) -> None:
    """Their distance to every object is nan, so they would count as false positives or not."""
    predicted = as_predictions(one_of_each_class())
    values = getattr(predicted, name).copy()
    values[3] = math.nan
    with pytest.raises(DataError, match="predicted box 3 is not finite"):
        evaluate_one(replace(predicted, **{name: values}), one_of_each_class())


def test_a_box_of_a_detector_that_is_not_finite_is_refused_and_not_dropped() -> None:
    box = np.array([[10.0, 0, 0, 2, 4, 1.5, 0.3, 0, 0]] * 2)
    pose = Pose(np.eye(4), np.eye(4))
    assert len(predicted_boxes(box, [0, 0], [0.5, 0.5], pose)) == 2
    box[1, 0] = math.nan
    with pytest.raises(DataError, match="predicted box 1 is not finite"):
        predicted_boxes(box, [0, 0], [0.5, 0.5], pose)


def test_an_evaluation_survives_its_file_and_the_deciding_figure_is_first() -> None:
    samples = random_samples(0)
    result = evaluate(samples.ground_truth, random_predictions(0, samples))
    content = json.loads(json.dumps(result.to_json(), allow_nan=False))
    again = NuScenesEvaluation.from_json(content)
    assert again.stats == result.stats
    assert repr(again) == repr(result), "undefined errors, too"
    assert next(iter(result.stats)) == METRICS[0] == "NDS"
