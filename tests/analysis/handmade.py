"""Detections and records that are made by hand."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

from groupdetr.data.records import Record
from groupdetr.structures.detections import Detections

Row = tuple[float, int, list[float]]  # score, label, x0, y0, x1, y1


def detections(*rows: Row) -> Detections:
    """Return detections in double precision, in the order of the rows."""
    return Detections(
        torch.tensor([score for score, _, _ in rows], dtype=torch.float64),
        torch.tensor([label for _, label, _ in rows], dtype=torch.int64),
        torch.tensor([box for _, _, box in rows], dtype=torch.float64).reshape(-1, 4),
    )


def record(*rows: tuple[int, list[float]], crowds: int = 0) -> Record:
    """Return an image of 100 x 100 pixels with annotations (label, x0, y0, x1, y1).

    The last ``crowds`` of them are crowds.
    """
    corners = np.array([box for _, box in rows], dtype=float).reshape(-1, 4)
    boxes = np.concatenate([corners[:, :2], corners[:, 2:] - corners[:, :2]], axis=1)
    is_crowd = np.arange(len(rows)) >= len(rows) - crowds
    return Record(
        image_id=1,
        path=Path("image.jpg"),
        file_name="image.jpg",
        width=100,
        height=100,
        boxes=boxes,
        labels=np.array([label for label, _ in rows], dtype=np.int64),
        areas=boxes[:, 2] * boxes[:, 3],
        crowd=is_crowd,
        annotation_ids=tuple(range(len(rows))),
    )
