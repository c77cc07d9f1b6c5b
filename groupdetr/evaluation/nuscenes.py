"""The nuScenes detection score: AP by distance on the ground, and five errors of what was hit.

As in the challenge (Caesar et al., nuScenes, CVPR 2020; the devkit's configuration ``detection_cvpr_2019``), its
oddities included, because figures are compared with published ones.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from groupdetr.evaluation.boxes3d import CLASSES, REACH, Boxes3D, Floats, Pose, true_boxes
from groupdetr.evaluation.figures import with_nan, without_nan

FIGURES = ("NDS", "mAP", "mATE", "mASE", "mAOE", "mAVE", "mAAE")
ERRORS = (
    "ATE",
    "ASE",
    "AOE",
    "AVE",
    "AAE",
)  # of translation, scale, orientation, velocity, attribute
DISTANCES = (0.5, 1.0, 2.0, 4.0)  # metres: who is nearer has hit
_OF_ERRORS = 2.0  # metres: the errors are of hits at this distance
_RECALLS = np.linspace(0, 1, 101)
_FIRST = 11  # of the recalls, the first that counts
_LEAST = 0.1  # precision below it counts as none
_UNDEFINED = {"traffic_cone": ("AOE", "AVE", "AAE"), "barrier": ("AVE", "AAE")}
_BARRIER = next(label for label, kind in enumerate(CLASSES) if kind.name == "barrier")
_CYCLES = [label for label, kind in enumerate(CLASSES) if kind.name in ("bicycle", "motorcycle")]


@dataclass(frozen=True)
class Scene:
    """What is there at one moment, in the global frame."""

    ego: Floats  # [3] the vehicle, when the lidar looked
    truth: Boxes3D
    racks: Boxes3D | None = (
        None  # bicycle racks: the cycles in them do not count, neither true nor found
    )

    @classmethod
    def seen_from(
        cls,
        pose: Pose,
        boxes: ArrayLike,
        labels: ArrayLike,
        attributes: ArrayLike,
        points: ArrayLike,
        racks: ArrayLike,
    ) -> Scene:
        """From what stands around the lidar: ``boxes`` [T,9] and ``racks`` [R,7] in its frame."""
        standing = np.pad(np.asarray(racks, dtype=np.float64).reshape(-1, 7), ((0, 0), (0, 2)))
        nothing = np.zeros(len(standing), dtype=np.int64)
        return cls(
            ego=pose.ego,
            truth=true_boxes(boxes, labels, attributes, points, pose),
            racks=true_boxes(standing, nothing, nothing.astype(np.str_), nothing, pose),
        )


@dataclass(frozen=True)
class ClassScore:
    """How well one class is found."""

    name: str
    AP: float  # mean over DISTANCES; 0 where there is no object of the class
    AP_by_distance: tuple[float, ...]
    ATE: float  # metres; this and the other errors are 1 where too few objects are hit
    ASE: float  # 1 - IoU of the sizes
    AOE: float  # radians; nan where the class has no such error
    AVE: float  # metres a second
    AAE: float  # share of wrong attributes
    objects: int  # those that count
    samples: int  # with at least one such object


@dataclass(frozen=True)
class Evaluation:
    """The nuScenes detection score, what it is made of, and a row for each class."""

    stats: dict[str, float]  # FIGURES; the first decides which model is best
    per_class: list[ClassScore]

    def to_json(self) -> dict[str, Any]:
        """Plain data for a file; undefined figures are None, because JSON knows no nan."""
        return {
            "kind": "nuscenes",
            **without_nan(self.stats),
            "per_class": [without_nan(asdict(row)) for row in self.per_class],
        }

    @classmethod
    def from_json(cls, content: Mapping[str, Any]) -> Evaluation:
        """The reverse; other keys do no harm."""
        rows = [with_nan(row) for row in content["per_class"]]
        classes = [
            ClassScore(**row | {"AP_by_distance": tuple(row["AP_by_distance"])}) for row in rows
        ]
        return cls(with_nan({name: content[name] for name in FIGURES}), classes)


def evaluate(scenes: Sequence[Scene], found: Sequence[Boxes3D]) -> Evaluation:
    """The score of ``found``, one for each scene and in the same order; no score threshold.

    True boxes without lidar and radar points do not count, nor do boxes beyond the reach of their class. Of equal
    scores those that come later rank higher. Unknown velocities and attributes are in no mean.
    """
    if len(found) != len(scenes):
        raise ValueError(f"the boxes of {len(found)} scenes for {len(scenes)} scenes")
    pairs = [
        (_counted(scene.truth, scene), _counted(boxes, scene))
        for scene, boxes in zip(scenes, found)
    ]
    rows = [_class_score(label, pairs) for label in range(len(CLASSES))]
    return Evaluation(_summary(rows), rows)


def _summary(rows: Sequence[ClassScore]) -> dict[str, float]:
    mean_ap = float(np.mean([row.AP for row in rows]))
    errors = {
        f"m{name}": float(np.nanmean([getattr(row, name) for row in rows])) for name in ERRORS
    }
    score = (5 * mean_ap + sum(max(0.0, 1 - error) for error in errors.values())) / 10
    return {"NDS": score, "mAP": mean_ap, **errors}


def _counted(boxes: Boxes3D, scene: Scene) -> Boxes3D:
    """Those within reach that something was measured of, without cycles in racks."""
    counted = np.linalg.norm(boxes.centres[:, :2] - scene.ego[:2], axis=1) < REACH[boxes.labels]
    if boxes.points is not None:
        counted &= boxes.points != 0
    if scene.racks is not None:
        counted &= ~(np.isin(boxes.labels, _CYCLES) & scene.racks.contain(boxes.centres))
    return boxes[counted]


_Pairs = Sequence[tuple[Boxes3D, Boxes3D]]  # true and found boxes of each scene


def _class_score(label: int, pairs: _Pairs) -> ClassScore:
    name = CLASSES[label].name
    own = [(truth[truth.labels == label], found[found.labels == label]) for truth, found in pairs]
    objects = [len(truth) for truth, _ in own]
    rankings = {distance: _ranked(own, distance) for distance in DISTANCES}
    precisions = tuple(_average_precision(ranking, sum(objects)) for ranking in rankings.values())
    errors: dict[str, Any] = dict(zip(ERRORS, _mean_errors(rankings[_OF_ERRORS], sum(objects))))
    errors |= dict.fromkeys(_UNDEFINED.get(name, ()), math.nan)
    mean, samples = float(np.mean(precisions)), sum(count > 0 for count in objects)
    return ClassScore(name, mean, precisions, **errors, objects=sum(objects), samples=samples)


class _Ranking(NamedTuple):
    """The P boxes of a class found in all scenes, by falling score."""

    scores: Floats  # [P]
    hit: NDArray[np.bool_]  # [P]
    errors: Floats  # [hits, ERRORS]

    def at_recalls(self, figure: Floats, objects: int) -> Floats:
        """[101] a figure [P] that changes with the rank, where each of _RECALLS is reached; 0 where it never is."""
        return np.interp(_RECALLS, self.hit.cumsum() / objects, figure, right=0)


def _ranked(pairs: _Pairs, within: float) -> _Ranking:
    targets = [_hits(truth, found, within) for truth, found in pairs]
    scores = np.concatenate([_scores(found) for _, found in pairs])
    hit = np.concatenate(targets) >= 0
    errors = np.full((len(hit), len(ERRORS)), np.nan)
    errors[hit] = np.concatenate(
        [_errors(truth[i[i >= 0]], found[i >= 0]) for (truth, found), i in zip(pairs, targets)]
    )
    order = _by_falling_score(scores)
    return _Ranking(scores[order], hit[order], errors[order][hit[order]])


def _hits(truth: Boxes3D, found: Boxes3D, within: float) -> NDArray[np.int64]:
    """[D] which true box each found one hits, or -1: the best choose first, each the nearest that is still free."""
    hits = np.full(len(found), -1)
    if not len(truth):
        return hits
    distances = np.linalg.norm(found.centres[:, None, :2] - truth.centres[:, :2], axis=-1)
    order = _by_falling_score(_scores(found))
    for place in order[(distances < within).any(axis=1)[order]]:
        nearest = distances[place].argmin()
        if distances[place, nearest] < within:
            hits[place] = nearest
            distances[:, nearest] = np.inf
    return hits


def _scores(found: Boxes3D) -> Floats:
    if found.scores is None:
        raise ValueError("boxes that were found need scores")
    return found.scores


def _by_falling_score(scores: Floats) -> NDArray[np.int64]:
    """Of equal scores the later ones first, as the devkit sorts."""
    return np.argsort(scores, kind="stable")[::-1]


def _errors(truth: Boxes3D, found: Boxes3D) -> Floats:
    """[D,ERRORS] of D pairs of one class; nan where the truth is not known."""
    overlap = np.minimum(truth.sizes, found.sizes).prod(axis=1)
    union = truth.sizes.prod(axis=1) + found.sizes.prod(axis=1) - overlap
    period = np.where(truth.labels == _BARRIER, np.pi, 2 * np.pi)  # barriers have no front
    turn = (truth.yaws() - found.yaws() + period / 2) % period - period / 2
    wrong = np.where(truth.attributes == "", np.nan, truth.attributes != found.attributes)
    columns = (
        np.linalg.norm(truth.centres[:, :2] - found.centres[:, :2], axis=1),
        1 - overlap / union,
        np.abs(turn),
        np.linalg.norm(truth.velocities - found.velocities, axis=1),
        wrong,
    )
    return np.stack(columns, axis=1)


def _average_precision(ranking: _Ranking, objects: int) -> float:
    if not ranking.hit.any():
        return 0.0
    precision = ranking.at_recalls(
        ranking.hit.cumsum() / np.arange(1, len(ranking.hit) + 1), objects
    )
    return float(np.maximum(precision[_FIRST:] - _LEAST, 0).mean() / (1 - _LEAST))


def _mean_errors(ranking: _Ranking, objects: int) -> list[float]:
    """[ERRORS] each the mean, over the recalls that are reached, of the mean error of all hits up to there."""
    if not ranking.hit.any():
        return [1.0] * len(ERRORS)
    confidence = ranking.at_recalls(ranking.scores, objects)
    last = np.flatnonzero(confidence).max(initial=0)  # a score of zero counts as not reached
    if last < _FIRST:
        return [1.0] * len(ERRORS)
    reached, scores = (
        confidence[last : _FIRST - 1 : -1],
        ranking.scores[ranking.hit][::-1],
    )  # rising, for np.interp
    return [
        float(np.interp(reached, scores, _running_mean(e)[::-1]).mean()) for e in ranking.errors.T
    ]


def _running_mean(errors: Floats) -> Floats:
    """[hits] the mean of the known ones so far: 0 before the first, 1 if there is none, as in the devkit."""
    known = ~np.isnan(errors)
    if not known.any():
        return np.ones(len(errors))
    return np.nancumsum(errors) / np.maximum(known.cumsum(), 1)
