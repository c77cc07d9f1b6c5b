"""The nuScenes detection score (NDS): AP by centre distance, and five true-positive errors.

It is computed as in the challenge (Caesar et al., nuScenes, CVPR 2020; the devkit's configuration
``detection_cvpr_2019``), peculiarities included, because the metrics are compared with published
ones.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from groupdetr.evaluation.boxes3d import (
    CLASS_RANGES,
    CLASSES,
    Boxes3D,
    Floats,
    Pose,
    ground_truth_boxes,
    require_finite_boxes,
)
from groupdetr.evaluation.nan_json import nan_to_none, none_to_nan
from groupdetr.structures.json_object import JsonObject

METRICS = ("NDS", "mAP", "mATE", "mASE", "mAOE", "mAVE", "mAAE")
# Errors of translation, scale, orientation, velocity, attribute.
ERRORS = ("ATE", "ASE", "AOE", "AVE", "AAE")
# Metres: a prediction is a true positive if its centre is nearer than this to that of an object.
DISTANCE_THRESHOLDS = (0.5, 1.0, 2.0, 4.0)
_ERROR_THRESHOLD = 2.0  # metres: errors are averaged over the true positives at this threshold
_RECALLS = np.linspace(0, 1, 101)
_FIRST_RECALL = 11  # index of the first recall that counts: those up to 0.1 are ignored
_MIN_PRECISION = 0.1  # a lower precision counts as zero
_UNDEFINED_ERRORS = {"traffic_cone": ("AOE", "AVE", "AAE"), "barrier": ("AVE", "AAE")}
_LABELS = {kind.name: label for label, kind in enumerate(CLASSES)}
_BARRIER = _LABELS["barrier"]
_CYCLES = [_LABELS["motorcycle"], _LABELS["bicycle"]]


@dataclass(frozen=True)
class SampleGroundTruth:
    """The ground truth of one sample (keyframe) in the global frame."""

    ego: Floats  # [3] position of the ego vehicle at the time of the lidar
    boxes: Boxes3D
    # Bicycles and motorcycles in these racks are ignored, both in ground truth and in predictions.
    bicycle_racks: Boxes3D | None = None

    @classmethod
    def from_lidar_frame(
        cls,
        pose: Pose,
        boxes: ArrayLike,
        labels: ArrayLike,
        attributes: ArrayLike,
        points: ArrayLike,
        bicycle_racks: ArrayLike,
    ) -> SampleGroundTruth:
        """Create from boxes [T,9] and bicycle racks [R,7] in the lidar frame."""
        racks = np.asarray(bicycle_racks, dtype=np.float64).reshape(-1, 7)
        # A rack has no velocity, class, attribute or points: zeros in their place.
        racks = np.pad(racks, ((0, 0), (0, 2)))
        zeros = np.zeros(len(racks), dtype=np.int64)
        return cls(
            ego=pose.ego,
            boxes=ground_truth_boxes(boxes, labels, attributes, points, pose),
            bicycle_racks=ground_truth_boxes(racks, zeros, zeros.astype(np.str_), zeros, pose),
        )


@dataclass(frozen=True)
class ClassScore:
    """AP and errors of one class."""

    name: str
    AP: float  # mean over DISTANCE_THRESHOLDS; 0 if there is no object of the class
    AP_by_distance: tuple[float, ...]
    ATE: float  # metres; this and the other errors are 1 if the recall stays too low
    ASE: float  # 1 - IoU of the sizes, with centres and orientations aligned
    AOE: float  # radians; nan if the class has no such error
    AVE: float  # metres per second
    AAE: float  # fraction of wrong attributes
    objects: int  # that are evaluated
    samples: int  # with at least one such object


@dataclass(frozen=True)
class NuScenesEvaluation:
    """The nuScenes detection score, its parts, and one row per class."""

    stats: dict[str, float]  # METRICS; the first decides which model is the best
    per_class: list[ClassScore]

    def to_json(self) -> JsonObject:
        """Return plain data for a file. Undefined metrics are None, because JSON has no nan."""
        return {
            "kind": "nuscenes",
            **nan_to_none(self.stats),
            "per_class": [nan_to_none(asdict(row)) for row in self.per_class],
        }

    def details(self) -> None:
        """Return None: the page shows the metrics only."""
        return

    @classmethod
    def from_json(cls, content: JsonObject) -> NuScenesEvaluation:
        """Create from what `to_json` returned. Other keys are ignored."""
        per_class = []
        for row in content["per_class"]:
            fields = none_to_nan(row)
            fields["AP_by_distance"] = tuple(fields["AP_by_distance"])
            per_class.append(ClassScore(**fields))
        return cls(none_to_nan({name: content[name] for name in METRICS}), per_class)


def evaluate(
    ground_truth: Sequence[SampleGroundTruth], predictions: Sequence[Boxes3D]
) -> NuScenesEvaluation:
    """Return the nuScenes detection score of predictions.

    ``predictions`` has one entry for each sample of ``ground_truth``, in the same order. There is
    no score threshold. Objects without lidar and radar points are not evaluated, nor are boxes
    outside of the range of their class. Of predictions with equal scores, the later ones rank
    higher. Unknown velocities and attributes are in no mean. `DataError` if another value of a
    prediction is not finite.
    """
    if len(predictions) != len(ground_truth):
        raise ValueError(f"predictions of {len(predictions)} samples for {len(ground_truth)}")
    for predicted in predictions:
        if predicted.scores is None:
            raise ValueError("predicted boxes need scores")
        values = [predicted.centres, predicted.sizes, predicted.rotations]
        require_finite_boxes(np.concatenate(values, axis=1), predicted.scores)
    samples = []
    for truth, predicted in zip(ground_truth, predictions):
        samples.append((_evaluated(truth.boxes, truth), _evaluated(predicted, truth)))
    rows = [_class_score(label, samples) for label in range(len(CLASSES))]
    return NuScenesEvaluation(_summary(rows), rows)


def _summary(rows: Sequence[ClassScore]) -> dict[str, float]:
    mean_ap = float(np.mean([row.AP for row in rows]))
    mean_errors = {}
    for name in ERRORS:
        mean_errors[f"m{name}"] = float(np.nanmean([getattr(row, name) for row in rows]))
    # The mAP counts five times, and each of the five errors, turned into a score in [0,1], once.
    error_scores = sum(max(0.0, 1 - error) for error in mean_errors.values())
    nds = (5 * mean_ap + error_scores) / 10
    return {"NDS": nds, "mAP": mean_ap, **mean_errors}


def _evaluated(boxes: Boxes3D, truth: SampleGroundTruth) -> Boxes3D:
    """Return the boxes that are evaluated: in range, with points, and not a cycle in a rack."""
    distances = np.linalg.norm(boxes.centres[:, :2] - truth.ego[:2], axis=1)
    evaluated = distances < CLASS_RANGES[boxes.labels]
    if boxes.points is not None:
        evaluated &= boxes.points != 0
    if truth.bicycle_racks is not None:
        is_cycle = np.isin(boxes.labels, _CYCLES)
        evaluated &= ~(is_cycle & truth.bicycle_racks.contain(boxes.centres))
    return boxes[evaluated]


_Samples = Sequence[tuple[Boxes3D, Boxes3D]]  # ground truth and predictions of each sample


def _class_score(label: int, samples: _Samples) -> ClassScore:
    name = CLASSES[label].name
    class_samples = []
    for truth, predicted in samples:
        class_samples.append((truth[truth.labels == label], predicted[predicted.labels == label]))
    objects_by_sample = [len(truth) for truth, _ in class_samples]
    objects = sum(objects_by_sample)

    rankings = {threshold: _rank(class_samples, threshold) for threshold in DISTANCE_THRESHOLDS}
    precisions = tuple(_average_precision(ranking, objects) for ranking in rankings.values())
    errors = dict(zip(ERRORS, _mean_errors(rankings[_ERROR_THRESHOLD], objects)))
    for error in _UNDEFINED_ERRORS.get(name, ()):
        errors[error] = math.nan
    return ClassScore(
        name=name,
        AP=float(np.mean(precisions)),
        AP_by_distance=precisions,
        ATE=errors["ATE"],
        ASE=errors["ASE"],
        AOE=errors["AOE"],
        AVE=errors["AVE"],
        AAE=errors["AAE"],
        objects=objects,
        samples=sum(count > 0 for count in objects_by_sample),
    )


class _Ranking(NamedTuple):
    """The P predictions of one class in all samples, sorted by decreasing score."""

    scores: Floats  # [P]
    true_positive: NDArray[np.bool_]  # [P]
    errors: Floats  # [true positives, ERRORS]

    def at_recalls(self, values: Floats, objects: int) -> Floats:
        """Interpolate values [P] at the _RECALLS, [101]. They are 0 at recalls never reached."""
        recall = self.true_positive.cumsum() / objects
        return np.interp(_RECALLS, recall, values, right=0)


def _rank(samples: _Samples, threshold: float) -> _Ranking:
    """Match and rank the predictions of one class. ``threshold``: metres."""
    scores = []
    true_positive = []
    errors = []
    for truth, predicted in samples:
        target = _match(truth, predicted, threshold)
        matched = target >= 0
        sample_errors = np.full((len(predicted), len(ERRORS)), np.nan)
        sample_errors[matched] = _errors(truth[target[matched]], predicted[matched])
        scores.append(_scores(predicted))
        true_positive.append(matched)
        errors.append(sample_errors)

    all_scores = np.concatenate(scores)
    order = _decreasing_order(all_scores)
    ranked_positive = np.concatenate(true_positive)[order]
    ranked_errors = np.concatenate(errors)[order]
    return _Ranking(all_scores[order], ranked_positive, ranked_errors[ranked_positive])


def _match(truth: Boxes3D, predicted: Boxes3D, threshold: float) -> NDArray[np.int64]:
    """Return the index of the object that each prediction is matched to, [D], -1 for none.

    In the order of decreasing score, each prediction is matched to the nearest object that has no
    match yet.
    """
    target = np.full(len(predicted), -1)
    if not len(truth):
        return target
    offsets = predicted.centres[:, None, :2] - truth.centres[:, :2]
    distances = np.linalg.norm(offsets, axis=-1)
    # Only predictions that are near at least one object enter the Python loop.
    near_object = (distances < threshold).any(axis=1)
    order = _decreasing_order(_scores(predicted))
    for prediction in order[near_object[order]]:
        nearest = distances[prediction].argmin()
        if distances[prediction, nearest] < threshold:
            target[prediction] = nearest
            distances[:, nearest] = np.inf  # the object is matched
    return target


def _scores(predicted: Boxes3D) -> Floats:
    if predicted.scores is None:
        raise ValueError("predicted boxes need scores")
    return predicted.scores


def _decreasing_order(scores: Floats) -> NDArray[np.int64]:
    """Return the indices that sort scores in decreasing order.

    Of equal scores, the later one comes first, as in the devkit.
    """
    return np.argsort(scores, kind="stable")[::-1]


def _errors(truth: Boxes3D, predicted: Boxes3D) -> Floats:
    """Return the errors [D,5] of D pairs of one class; nan if the ground truth is unknown."""
    translation = np.linalg.norm(truth.centres[:, :2] - predicted.centres[:, :2], axis=1)

    # IoU of two boxes with the same centre and orientation.
    intersection = np.minimum(truth.sizes, predicted.sizes).prod(axis=1)
    union = truth.sizes.prod(axis=1) + predicted.sizes.prod(axis=1) - intersection

    # The smallest difference of the angles. A barrier has no front, so its period is half a turn.
    period = np.where(truth.labels == _BARRIER, np.pi, 2 * np.pi)
    angle = (truth.yaws() - predicted.yaws() + period / 2) % period - period / 2

    velocity = np.linalg.norm(truth.velocities - predicted.velocities, axis=1)
    wrong_attribute = truth.attributes != predicted.attributes
    attribute = np.where(truth.attributes == "", np.nan, wrong_attribute)
    return np.stack([translation, 1 - intersection / union, np.abs(angle), velocity, attribute], 1)


def _average_precision(ranking: _Ranking, objects: int) -> float:
    if not ranking.true_positive.any():
        return 0.0
    num_predictions = np.arange(1, len(ranking.true_positive) + 1)
    precision = ranking.true_positive.cumsum() / num_predictions
    counted = ranking.at_recalls(precision, objects)[_FIRST_RECALL:]
    # Precision above the minimum is averaged and scaled so that a perfect detector has an AP of 1.
    return float(np.maximum(counted - _MIN_PRECISION, 0).mean() / (1 - _MIN_PRECISION))


def _mean_errors(ranking: _Ranking, objects: int) -> list[float]:
    """Return the five mean errors.

    At every recall that is reached, the error is the mean over the true positives up to that
    recall. The result is the mean over these recalls.
    """
    if not ranking.true_positive.any():
        return [1.0] * len(ERRORS)
    confidence = ranking.at_recalls(ranking.scores, objects)
    # A score of zero counts as not reached, as in the devkit.
    last_recall = np.flatnonzero(confidence).max(initial=0)
    if last_recall < _FIRST_RECALL:
        return [1.0] * len(ERRORS)

    # Errors are interpolated at the confidence of each recall. np.interp needs increasing scores,
    # so the order is reversed.
    confidence_at_recalls = confidence[_FIRST_RECALL : last_recall + 1][::-1]
    increasing_scores = ranking.scores[ranking.true_positive][::-1]
    mean_errors = []
    for errors in ranking.errors.T:
        running_mean = _running_mean(errors)[::-1]
        mean_errors.append(
            float(np.interp(confidence_at_recalls, increasing_scores, running_mean).mean())
        )
    return mean_errors


def _running_mean(errors: Floats) -> Floats:
    """Return the mean of the known errors up to each true positive, [true positives].

    It is 0 before the first known one, and 1 everywhere if there is none, as in the devkit.
    """
    known = ~np.isnan(errors)
    if not known.any():
        return np.ones(len(errors))
    return np.nancumsum(errors) / np.maximum(known.cumsum(), 1)
