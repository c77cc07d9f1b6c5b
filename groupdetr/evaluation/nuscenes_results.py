"""The results file of the nuScenes detection challenge: predicted boxes in the devkit's format."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from groupdetr.data.nuscenes.names import ATTRIBUTES
from groupdetr.errors import DataError
from groupdetr.evaluation.boxes3d import CLASSES, Boxes3D
from groupdetr.files.writing import write_atomically
from groupdetr.structures.json_object import JsonObject

MAX_BOXES = 500  # boxes per sample
# The sensors of a camera detector. Its backbone was pretrained on other data, as PETR's was.
INPUTS = {
    "use_camera": True,
    "use_lidar": False,
    "use_radar": False,
    "use_map": False,
    "use_external": True,
}
_NUM_VALUES = {"translation": 3, "size": 3, "rotation": 4, "velocity": 2}  # key of a box -> numbers
_LABELS = {kind.name: label for label, kind in enumerate(CLASSES)}
_REMEDY = "write the file with groupdetr, or as the detection challenge of nuScenes describes it"


def to_results(
    tokens: Sequence[str], predictions: Sequence[Boxes3D], inputs: Mapping[str, bool] = INPUTS
) -> JsonObject:
    """Return the content of a results file.

    It has a list for every sample of ``tokens``, with its `MAX_BOXES` best boxes.
    """
    results = {}
    for token, boxes in zip(tokens, predictions, strict=True):
        results[token] = _to_rows(token, boxes)
    return {"meta": dict(inputs), "results": results}


def write_results(path: Path, tokens: Sequence[str], predictions: Sequence[Boxes3D]) -> None:
    """Write the results file of a camera detector.

    `DataError` if there are no predictions at all, because the devkit does not accept such a file.
    """
    if not any(len(boxes) for boxes in predictions):
        raise DataError(
            f"there are no predictions for any of {len(predictions)} samples",
            str(path),
            "train the detector first",
        )
    content = json.dumps(to_results(tokens, predictions))
    write_atomically(path, lambda file: file.write(content.encode()))


def read_results(path: Path, tokens: Sequence[str]) -> list[Boxes3D]:
    """Read the boxes of every sample of ``tokens``, in the order of the file.

    `DataError` also for what the devkit refuses: missing or unknown samples, too many boxes, and
    invalid values.
    """
    results = _read_json(path).get("results")
    if not isinstance(results, dict):
        raise DataError(
            "it has no 'results': an object with a list of boxes for each sample",
            str(path),
            _REMEDY,
        )
    _check_samples(path, results, tokens)
    return [_to_boxes(results[token], f"{path}: sample {token}") for token in tokens]


def _to_rows(token: str, boxes: Boxes3D) -> list[JsonObject]:
    """Return the rows of one sample."""
    if boxes.scores is None:
        raise ValueError("predicted boxes need scores")
    if len(boxes) > MAX_BOXES:
        best = np.argsort(-boxes.scores, kind="stable")[:MAX_BOXES]
        boxes = boxes[np.sort(best)]  # the sort keeps the original order
    assert boxes.scores is not None
    rows = []
    for label, centre, size, rotation, velocity, score, attribute in zip(
        boxes.labels.tolist(),
        boxes.centres.tolist(),
        boxes.sizes.tolist(),
        boxes.rotations.tolist(),
        boxes.velocities.tolist(),
        boxes.scores.tolist(),
        boxes.attributes.tolist(),
    ):
        row = {
            "sample_token": token,
            "translation": centre,
            "size": size,
            "rotation": rotation,
            "velocity": velocity,
            "detection_name": CLASSES[label].name,
            "detection_score": score,
            "attribute_name": attribute,
        }
        rows.append(row)
    return rows


def _read_json(path: Path) -> JsonObject:
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
            "it has no 'meta': an object that lists which sensors were used", str(path), _REMEDY
        )
    return content


def _check_samples(path: Path, results: JsonObject, tokens: Sequence[str]) -> None:
    """Raise `DataError` unless the file has exactly the samples of ``tokens``."""
    known = set(tokens)
    missing = [token for token in tokens if token not in results]
    unknown = [token for token in results if token not in known]
    if missing:
        raise DataError(
            f"{len(missing)} of {len(tokens)} samples are missing, such as {missing[0]}",
            str(path),
            "give every sample of the split a list, even if it is empty",
        )
    if unknown:
        raise DataError(
            f"{len(unknown)} samples are not in this split, such as {unknown[0]!r:.80}",
            str(path),
            "compare with the split that the file was made for",
        )


def _to_boxes(rows: object, where: str) -> Boxes3D:
    """Return the boxes of one sample."""
    if not isinstance(rows, list):
        raise DataError("it is not a list of boxes", where, _REMEDY)
    if len(rows) > MAX_BOXES:
        raise DataError(
            f"it has {len(rows)} boxes", where, f"keep the {MAX_BOXES} with the highest scores"
        )
    parsed = [_parse_box(row, f"{where}, box {number}") for number, row in enumerate(rows)]
    # The reshape gives an empty sample the right number of columns.
    values = np.array([box.values for box in parsed], dtype=np.float64).reshape(-1, 13)
    centres, sizes, rotations, velocities, scores = np.split(values, [3, 6, 10, 12], axis=1)
    return Boxes3D(
        centres=centres,
        sizes=sizes,
        rotations=rotations,
        velocities=velocities,
        labels=np.array([box.label for box in parsed], dtype=np.int64),
        attributes=np.array([box.attribute for box in parsed], dtype=np.str_),
        scores=scores[:, 0],
    )


class _ParsedBox(NamedTuple):
    values: list[float]  # [13]: translation, size, rotation, velocity, score
    label: int
    attribute: str


def _parse_box(row: Any, where: str) -> _ParsedBox:
    try:
        parts = {key: [float(value) for value in row[key]] for key in _NUM_VALUES}
        score = float(row["detection_score"])
        attribute = row["attribute_name"]
        label = _LABELS[row["detection_name"]]
    except (KeyError, TypeError, ValueError) as error:
        keys = ", ".join(_NUM_VALUES)
        what = f"a box needs {keys}, detection_name, detection_score and attribute_name"
        raise DataError(f"{what}: {error!r:.80}", where, _REMEDY) from error
    if problem := _find_problem(parts, score, attribute):
        raise DataError(problem, where, _REMEDY)
    values = [*parts["translation"], *parts["size"], *parts["rotation"], *parts["velocity"], score]
    return _ParsedBox(values, label, attribute)


def _find_problem(parts: Mapping[str, Sequence[float]], score: float, attribute: object) -> str:
    """Return what is wrong with the values of a box, or "". Only velocities may be nan."""
    for key, values in parts.items():
        if len(values) != _NUM_VALUES[key]:
            return f"{key} needs {_NUM_VALUES[key]} numbers, not {len(values)}"
        has_nan = key != "velocity" and np.isnan(values).any()
        if has_nan or np.isinf(values).any():
            return f"{key} is not finite: {values}"
    if min(parts["size"]) <= 0:
        return f"a size must be positive: {parts['size']}"
    if not any(parts["rotation"]):
        return "the rotation is all zeros, which is no quaternion of a rotation"
    if not 0 <= score < np.inf:
        return f"detection_score must be a finite number of at least 0: {score}"
    if attribute != "" and attribute not in ATTRIBUTES:
        return f"nuScenes has no attribute {attribute!r:.80}"
    return ""
