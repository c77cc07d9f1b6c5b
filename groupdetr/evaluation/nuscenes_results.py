"""The result file of the nuScenes detection challenge: what was found in every sample, as the devkit reads it."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from groupdetr.data.nuscenes.names import ATTRIBUTES
from groupdetr.errors import DataError
from groupdetr.evaluation.boxes3d import CLASSES, Boxes3D

MOST = 500  # boxes of a sample
INPUTS = {  # of a camera detector whose backbone saw other data, such as PETR's
    "use_camera": True,
    "use_lidar": False,
    "use_radar": False,
    "use_map": False,
    "use_external": True,
}
_NUMBERS = {
    "translation": 3,
    "size": 3,
    "rotation": 4,
    "velocity": 2,
}  # keys of a row, and how many they are
_LABELS = {kind.name: label for label, kind in enumerate(CLASSES)}
_REMEDY = "write the file with groupdetr, or as the detection challenge of nuScenes describes it"


def to_results(
    tokens: Sequence[str], found: Sequence[Boxes3D], inputs: Mapping[str, bool] = INPUTS
) -> dict[str, Any]:
    """The content of a result file: a list for every sample of ``tokens``, with its MOST best boxes."""
    rows = {token: _rows(token, boxes) for token, boxes in zip(tokens, found, strict=True)}
    return {"meta": dict(inputs), "results": rows}


def write_results(path: Path, tokens: Sequence[str], found: Sequence[Boxes3D]) -> None:
    """The result file of a camera detector. DataError where nothing was found at all: the devkit takes no such file."""
    if not any(len(boxes) for boxes in found):
        raise DataError(
            f"nothing was found in any of {len(found)} samples",
            str(path),
            "train the detector first",
        )
    path.write_text(json.dumps(to_results(tokens, found)), encoding="utf-8")


def read_results(path: Path, tokens: Sequence[str]) -> list[Boxes3D]:
    """The reverse: the boxes of every sample of ``tokens``, in the order of the file.

    DataError for what the devkit would refuse, too: samples missing or unknown, too many boxes, values that do not fit.
    """
    results = _content(path).get("results")
    if not isinstance(results, dict):
        raise DataError(
            "it has no 'results': an object with a list of boxes for each sample",
            str(path),
            _REMEDY,
        )
    _check_samples(path, results, tokens)
    return [_boxes(results[token], f"{path}: sample {token}") for token in tokens]


def _rows(token: str, boxes: Boxes3D) -> list[dict[str, Any]]:
    if boxes.scores is None:
        raise ValueError("boxes that were found need scores")
    if len(boxes) > MOST:
        boxes = boxes[np.sort(np.argsort(-boxes.scores, kind="stable")[:MOST])]
    columns = (
        boxes.centres,
        boxes.sizes,
        boxes.rotations,
        boxes.velocities,
        boxes.scores,
        boxes.attributes,
    )
    return [
        {
            "sample_token": token,
            "translation": centre,
            "size": size,
            "rotation": rotation,
            "velocity": velocity,
            "detection_name": CLASSES[label].name,
            "detection_score": score,
            "attribute_name": attribute,
        }
        for label, centre, size, rotation, velocity, score, attribute in zip(
            boxes.labels, *(column.tolist() for column in columns if column is not None)
        )
    ]


def _content(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_bytes())
    except OSError as error:
        raise DataError(
            f"it cannot be read ({error.strerror})", str(path), "check the path"
        ) from error
    except (ValueError, RecursionError) as error:
        raise DataError(f"it is not JSON ({error})", str(path), _REMEDY) from error
    if not isinstance(content, dict) or not isinstance(content.get("meta"), dict):
        raise DataError(
            "it has no 'meta': an object that says which sensors were used", str(path), _REMEDY
        )
    return content


def _check_samples(path: Path, results: Mapping[str, Any], tokens: Sequence[str]) -> None:
    known = set(tokens)
    missing, unknown = (
        [t for t in tokens if t not in results],
        [t for t in results if t not in known],
    )
    if missing:
        remedy = "give every sample of the split a list, if only an empty one"
        raise DataError(
            f"{len(missing)} of {len(tokens)} samples are missing, such as {missing[0]}",
            str(path),
            remedy,
        )
    if unknown:
        remedy = "compare with the split that the file was made for"
        raise DataError(
            f"{len(unknown)} samples are not of this split, such as {unknown[0]!r:.80}",
            str(path),
            remedy,
        )


def _boxes(rows: Any, where: str) -> Boxes3D:
    if not isinstance(rows, list):
        raise DataError("it is not a list of boxes", where, _REMEDY)
    if len(rows) > MOST:
        raise DataError(
            f"it has {len(rows)} boxes", where, f"keep the {MOST} with the highest scores"
        )
    read = [_read(row, f"{where}, box {number}") for number, row in enumerate(rows)]
    values = np.array([row for row, _, _ in read], dtype=np.float64).reshape(-1, 13)
    centres, sizes, rotations, velocities, scores = np.split(values, [3, 6, 10, 12], axis=1)
    return Boxes3D(
        centres=centres,
        sizes=sizes,
        rotations=rotations,
        velocities=velocities,
        labels=np.array([label for _, label, _ in read], dtype=np.int64),
        attributes=np.array([attribute for _, _, attribute in read], dtype=np.str_),
        scores=scores[:, 0],
    )


def _read(row: Any, where: str) -> tuple[list[float], int, str]:
    """The numbers of a box, its label and its attribute."""
    try:
        parts = {key: [float(value) for value in row[key]] for key in _NUMBERS}
        score, attribute = float(row["detection_score"]), row["attribute_name"]
        label = _LABELS[row["detection_name"]]
    except (KeyError, TypeError, ValueError) as error:
        what = (
            f"a box needs {', '.join(_NUMBERS)}, detection_name, detection_score and attribute_name"
        )
        raise DataError(f"{what}: {error!r:.80}", where, _REMEDY) from error
    if problem := _problem(parts, score, attribute):
        raise DataError(problem, where, _REMEDY)
    return [*(value for part in parts.values() for value in part), score], label, attribute


def _problem(parts: Mapping[str, Sequence[float]], score: float, attribute: Any) -> str:
    """What is wrong with the values of a box; only velocities may be nan."""
    for key, values in parts.items():
        if len(values) != _NUMBERS[key]:
            return f"{key} needs {_NUMBERS[key]} numbers, not {len(values)}"
        if np.isinf(values).any() or (key != "velocity" and np.isnan(values).any()):
            return f"{key} is not finite: {values}"
    if min(parts["size"]) <= 0:
        return f"a size must be positive: {parts['size']}"
    if not any(parts["rotation"]):
        return "a rotation of zeros turns nothing"
    if not 0 <= score < np.inf:
        return f"detection_score must be a number from 0: {score}"
    return (
        ""
        if attribute == "" or attribute in ATTRIBUTES
        else f"nuScenes has no attribute {attribute!r:.80}"
    )
