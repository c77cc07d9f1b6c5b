"""Images and detections as the web page reads them: JPEG files and plain data."""

from __future__ import annotations

import io
from collections.abc import Sequence

import numpy as np
from PIL import Image

from groupdetr.evaluation.matching import MATCH_IOU
from groupdetr.structures.detections import Detections
from groupdetr.structures.json_object import JsonObject
from groupdetr.structures.rle import rle_to_json
from groupdetr.tasks.detection2d.group_detections import MIN_IOU

MIN_SCORE = 0.01  # the page's lowest score threshold: masks below it are not sent
MAX_SIDE = 1600  # pixels of the longer side of an image that the page shows
QUALITY = 88  # of JPEG files


def encode_jpeg(image: Image.Image, max_side: int = MAX_SIDE) -> bytes:
    """Return an RGB image as a JPEG file whose longer side has at most ``max_side`` pixels."""
    shown = image
    if max(image.size) > max_side:
        shown = image.copy()
        shown.thumbnail((max_side, max_side), Image.Resampling.LANCZOS)
    buffer = io.BytesIO()
    # Without subsampling, thin coloured lines stay clean.
    shown.save(buffer, "JPEG", quality=QUALITY, subsampling=0)
    return buffer.getvalue()


def detections_to_json(detections: Detections) -> list[JsonObject]:
    """Return one object for each of the D detections, in their order.

    Boxes are x0, y0, x1, y1 in pixels. Masks are COCO's compressed run lengths, of detections with
    a score of at least `MIN_SCORE`.
    """
    columns = zip(detections.labels.tolist(), detections.scores.tolist(), detections.boxes.tolist())
    rows: list[JsonObject] = []
    for label, score, box in columns:
        rows.append({"label": label, "score": round(score, 6), "box": _rounded(box)})
    for row, mask in zip(rows, detections.masks or ()):
        if row["score"] >= MIN_SCORE:
            row["mask"] = rle_to_json(mask)
    return rows


def group_pairs(
    detections: Detections, groups: Sequence[Detections]
) -> list[list[tuple[int, int, float]]]:
    """Return which detections of each group may show the object of a detection.

    There is a list for each group of (index of the detection, index in the group, IoU): those of
    the same class with an IoU of at least `MIN_IOU`. The page assigns them as `best_of_each_group`
    does, to the detections that its score threshold keeps.
    """
    pairs = []
    for candidates in groups:
        ious = detections.iou(candidates)
        same_class = detections.labels.numpy()[:, None] == candidates.labels.numpy()[None]
        rows, columns = np.nonzero(same_class & (ious >= MIN_IOU))
        values = ious[rows, columns]
        pairs.append(list(zip(rows.tolist(), columns.tolist(), values.tolist())))
    return pairs


def overlaps(ious: np.ndarray) -> list[tuple[int, int, float]]:
    """Return (detection, object, IoU) where the IoU [D,T] is enough for a match.

    The largest IoU is first, and of equal ones the order is that of the evaluation.
    """
    rows, columns = np.nonzero(ious >= MATCH_IOU)
    values = ious[rows, columns]
    order = np.argsort(-values, kind="stable")
    return [(int(rows[i]), int(columns[i]), float(values[i])) for i in order]


def _rounded(box: Sequence[float]) -> list[float]:
    return [round(coordinate, 2) for coordinate in box]
