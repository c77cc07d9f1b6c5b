"""Probable errors in the annotations of a dataset, found by the groups of a trained detector.

There are four kinds. An object has no annotation: the groups detect something where nothing is
annotated. An annotation has no object: the groups detect nothing there. Or an annotation has the
wrong class, or the wrong box. All kinds are ranked by one score, which combines two pieces of
evidence.

A detection is evidence if no annotation is at its place. Its strength is the upper quartile of the
scores of the groups, in which a group without the detection counts as zero. So a single group that
is sure of something does not suffice, and a few that miss it do not matter. On blood cells with
planted errors, the mean, the median and the lowest score of the groups ranked errors less well.
The strength falls to zero as the IoU with an annotation rises to the 0.5 from which both are at the
same place, because boxes are never exact.

An annotation is evidence if it is detected less than others of its class. Its strength is the
difference of the two scores. As in confident learning (Northcutt, Jiang and Chuang 2021, arXiv
1911.00068), what is usual for a class is learned from the data: annotations of a class that is hard
to detect are no suspects only because they are not detected.

A wrong class and a wrong box have both: a detection that is not annotated, and at the same place or
beside it an annotation that is not detected. Their score is 1 - (1 - a) * (1 - b) of the two.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray

from groupdetr.analysis.box_fusion import FusedDetections, fuse_groups
from groupdetr.data.records import Record
from groupdetr.evaluation.matching import image_ious
from groupdetr.structures.detections import Detections

MATCH_IOU = 0.5  # a detection and an annotation are at the same place from this IoU
NEAR_IOU = 0.1  # an annotation and a detection of its class may be one object from this IoU
QUANTILE = 0.75  # of the scores of the groups, which is the score of a fused detection
MIN_EVIDENCE = 0.1  # of a detection that makes an annotation one of a wrong class or box
MIN_SCORE = 0.3  # suspects with a lower score are left out

NO_ANNOTATION = "no annotation"  # an object that is not annotated
NO_OBJECT = "no object"  # an annotation where no object is
WRONG_CLASS = "wrong class"
WRONG_BOX = "wrong box"
KINDS = (NO_ANNOTATION, NO_OBJECT, WRONG_CLASS, WRONG_BOX)


@dataclass(frozen=True)
class Suspect:
    """A probable error in the annotations of one image."""

    kind: str  # one of `KINDS`
    score: float  # in [0,1]; the higher, the more probable
    image: int  # index of the record
    annotation: int | None  # index of the annotation in the record; None if it is missing
    label: int | None  # its class
    box: list[float] | None  # its box: x0, y0, x1, y1 in pixels
    detected_label: int | None  # what the groups detect instead; None if they detect nothing
    detected_box: list[float] | None
    group_scores: list[float]  # [K] of the boxes of each group; nan where a group has none
    group_boxes: list[list[float]]  # [K] likewise


@dataclass(frozen=True)
class _Image:
    """The annotations of one image, and the fused detections of the groups."""

    record: Record
    fused: FusedDetections
    ious: NDArray[np.float64]  # [F,T] with a crowd, the part of the detection that lies in it
    support: NDArray[np.float64]  # [T] score of the best detection of the annotation's class
    supporter: NDArray[np.int64]  # [T] index of this detection, -1 if there is none


def find_suspects(
    records: Sequence[Record], groups: Sequence[Sequence[Detections]], max_detections: int = 100
) -> list[Suspect]:
    """Return the probable errors in the annotations of ``records``, by decreasing score.

    ``groups`` has, for each record, all detections of each of the K groups. With one group, the
    scores are those of this group. Labels of records and detections are the same class indices.
    Crowds are no suspects, and neither are detections in them.
    """
    images = []
    for record, of_image in zip(records, groups, strict=True):
        fused = fuse_groups(of_image, max_detections)
        images.append(_compare(record, scored_by_quartile(fused)))
    expected = expected_support(
        np.concatenate([image.record.labels[image.record.trainable] for image in images]),
        np.concatenate([image.support[image.record.trainable] for image in images]),
    )
    suspects = []
    for index, image in enumerate(images):
        suspects += _suspects_of_image(index, image, expected)
    return sorted(suspects, key=lambda suspect: -suspect.score)


def scored_by_quartile(fused: FusedDetections) -> FusedDetections:
    """Return fused detections whose scores are the upper quartiles of those of the groups.

    A group without the detection counts as a score of zero.
    """
    scores = np.quantile(np.nan_to_num(fused.scores), QUANTILE, axis=1)
    order = np.argsort(-scores, kind="stable")
    detections = fused.detections[torch.from_numpy(order)]
    rescored = replace(detections, scores=torch.from_numpy(scores[order]))
    return FusedDetections(rescored, fused.scores[order], fused.boxes[order])


def expected_support(labels: NDArray[np.int64], support: NDArray[np.float64]) -> dict[int, float]:
    """Return the mean score with which annotations of each class are detected, by label."""
    return {int(label): float(support[labels == label].mean()) for label in np.unique(labels)}


def _compare(record: Record, fused: FusedDetections) -> _Image:
    """Return which annotations are detected as what they are."""
    detections = fused.detections
    ious = image_ious(record, detections, "box")
    scores = detections.scores.double().numpy()
    is_same = (detections.labels.numpy()[:, None] == record.labels[None]) & (ious >= MATCH_IOU)
    values = np.where(is_same, scores[:, None], 0.0)
    if len(scores):
        supporter = np.where(is_same.any(axis=0), values.argmax(axis=0), -1)
        support = values.max(axis=0)
    else:
        supporter = np.full(len(record.labels), -1)
        support = np.zeros(len(record.labels))
    return _Image(record, fused, ious, support, supporter)


def _suspects_of_image(index: int, image: _Image, expected: dict[int, float]) -> list[Suspect]:
    """Return the suspects of one image, in any order: at most one for each annotation."""
    record, fused = image.record, image.fused
    labels = fused.detections.labels.numpy()
    trainable = record.trainable
    # How much less than usual for its class each annotation is detected.
    deficit = np.zeros(len(record.labels))
    for row in np.flatnonzero(trainable).tolist():
        usual = expected[int(record.labels[row])]
        deficit[row] = max(0.0, usual - float(image.support[row]))

    # The most probable error of each annotation. That nothing is detected there is the first one.
    of_annotation: dict[int, Suspect] = {}
    for row in np.flatnonzero(trainable).tolist():
        of_annotation[row] = _suspect(NO_OBJECT, deficit[row], index, image, row, None)

    not_annotated: list[Suspect] = []
    for detection, score in enumerate(fused.detections.scores.double().tolist()):
        overlap = image.ious[detection]
        if (overlap[record.crowd] >= MATCH_IOU).any():
            continue
        is_same_class = record.labels == labels[detection]
        is_at_place = trainable & (overlap >= MATCH_IOU)
        if (is_at_place & is_same_class).any():
            continue
        if is_at_place.any():
            # Only annotations of other classes are here.
            annotation = int(np.where(is_at_place, overlap, -1).argmax())
            evidence = score * (1 - float(image.support[annotation]))
            kind = WRONG_CLASS
        else:
            highest = float(overlap[trainable].max(initial=0))
            evidence = score * (1 - highest / MATCH_IOU)
            # An annotation of the class beside it may be that of this object, if nothing is
            # detected where it is.
            is_near = trainable & is_same_class & (overlap >= NEAR_IOU) & (deficit > 0)
            if evidence < MIN_EVIDENCE or not is_near.any():
                not_annotated.append(
                    _suspect(NO_ANNOTATION, evidence, index, image, None, detection)
                )
                continue
            annotation = int(np.where(is_near, deficit, -1).argmax())
            kind = WRONG_BOX
        if evidence < MIN_EVIDENCE:
            continue
        combined = 1 - (1 - evidence) * (1 - deficit[annotation])
        if combined > of_annotation[annotation].score:
            of_annotation[annotation] = _suspect(
                kind, combined, index, image, annotation, detection
            )
    suspects = [*of_annotation.values(), *not_annotated]
    return [suspect for suspect in suspects if suspect.score >= MIN_SCORE]


def _suspect(
    kind: str,
    score: float,
    index: int,
    image: _Image,
    annotation: int | None,
    detection: int | None,
) -> Suspect:
    record, fused = image.record, image.fused
    # For an annotation without an object: what is left of its detection, if there is any.
    shown = int(image.supporter[annotation]) if detection is None else detection
    num_groups = fused.scores.shape[1]
    has_boxes = shown >= 0
    return Suspect(
        kind=kind,
        score=float(score),
        image=index,
        annotation=annotation,
        label=None if annotation is None else int(record.labels[annotation]),
        box=None if annotation is None else record.corners[annotation].tolist(),
        detected_label=None if detection is None else int(fused.detections.labels[detection]),
        detected_box=None if detection is None else fused.detections.boxes[detection].tolist(),
        group_scores=fused.scores[shown].tolist() if has_boxes else [np.nan] * num_groups,
        group_boxes=fused.boxes[shown].tolist() if has_boxes else [[np.nan] * 4] * num_groups,
    )
