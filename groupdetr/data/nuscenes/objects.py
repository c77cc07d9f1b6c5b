"""Annotated 3D boxes of a sample in its lidar frame, and which of them are used for training.

The rules are those of PETR's code: objects within 51.2 m that have a lidar or radar point.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from groupdetr.data.nuscenes.camera_frames import read_poses
from groupdetr.data.nuscenes.geometry import invert_poses, pose_matrices, yaw
from groupdetr.data.nuscenes.names import BICYCLE_RACK, CATEGORIES, CLASSES
from groupdetr.data.nuscenes.tables import Row, Tables, describe_record, read_floats, refusal
from groupdetr.data.records import Bools, Floats, Ints

RANGE = 51.2  # metres: objects are trained on if their |x| and |y| in the lidar frame are less
# Seconds between two annotations from which a velocity is computed, at most. If there is an
# annotation both before and after, they may be twice as far apart.
MAX_TIME_DIFFERENCE = 1.5


@dataclass(frozen=True, eq=False)
class Objects3D:
    """The T annotated objects of a sample that are of a detection class, and the bicycle racks."""

    # [T,9] centre x, y, z, width, length, height in metres, yaw of the length in radians, velocity
    # x, y in metres per second (nan if unknown), all in the lidar frame
    boxes: Floats
    labels: Ints  # [T] indices into CLASSES
    points: Ints  # [T] number of lidar and radar points on the object
    attributes: tuple[str, ...]  # [T] empty if the object has none
    racks: Floats  # [R,7] bicycle racks, as boxes without velocity

    @property
    def in_range(self) -> Bools:
        """[T] True for objects strictly within `RANGE`. Height does not matter."""
        return np.asarray((np.abs(self.boxes[:, :2]) < RANGE).all(1), dtype=bool)

    @property
    def trainable(self) -> Bools:
        """[T] True for objects to train on: in range, and with at least one point."""
        return self.in_range & (self.points > 0)


def read_objects(tables: Tables, rows: Sequence[Row], lidar_to_global: Floats) -> Objects3D:
    """Return the objects of one sample, from its records of sample_annotation."""
    categories = [_category(tables, row) for row in rows]
    boxes = _read_boxes(tables, rows, lidar_to_global)
    detected = [i for i, category in enumerate(categories) if category in CATEGORIES]
    racks = [i for i, category in enumerate(categories) if category == BICYCLE_RACK]
    labels = [CLASSES.index(CATEGORIES[categories[i]]) for i in detected]
    points = [rows[i]["num_lidar_pts"] + rows[i]["num_radar_pts"] for i in detected]
    return Objects3D(
        boxes=boxes[detected],
        labels=np.array(labels, dtype=np.int64),
        points=np.array(points, dtype=np.int64),
        attributes=tuple(_attribute(tables, rows[i]) for i in detected),
        racks=boxes[racks, :7],
    )


def estimate_velocity(tables: Tables, row: Row) -> list[float]:
    """Return the velocity x, y, z of an annotation in the global frame, nan if it is unknown.

    As in the devkit, it is the difference of the positions in the previous and in the next key
    frame, divided by the time between them. If one of the two does not exist, the current position
    takes its place. The velocity is unknown if the two are too far apart in time.
    """
    before = _neighbour(tables, row, "prev")
    after = _neighbour(tables, row, "next")
    seconds = (_timestamp(tables, after) - _timestamp(tables, before)) * 1e-6
    has_both = bool(row["prev"] and row["next"])
    longest = 2 * MAX_TIME_DIFFERENCE if has_both else MAX_TIME_DIFFERENCE
    if not 0 < seconds <= longest:
        return [math.nan] * 3
    return [
        (end - start) / seconds for start, end in zip(before["translation"], after["translation"])
    ]


def _neighbour(tables: Tables, row: Row, direction: str) -> Row:
    """Return the same object one key frame before ("prev") or after ("next").

    If there is none, it is the record itself.
    """
    if not row[direction]:
        return row
    return tables.lookup("sample_annotation", row[direction], "sample_annotation", row)


def _timestamp(tables: Tables, row: Row) -> int:
    return int(tables.lookup("sample", row["sample_token"], "sample_annotation", row)["timestamp"])


def _category(tables: Tables, row: Row) -> str:
    instance = tables.lookup("instance", row["instance_token"], "sample_annotation", row)
    category = tables.lookup("category", instance["category_token"], "instance", instance)
    return str(category["name"])


def _attribute(tables: Tables, row: Row) -> str:
    """Return the attribute of an object, which has at most one, or an empty string."""
    for token in row["attribute_tokens"]:
        return str(tables.lookup("attribute", token, "sample_annotation", row)["name"])
    return ""


def _read_boxes(tables: Tables, rows: Sequence[Row], lidar_to_global: Floats) -> Floats:
    """Return the boxes [T,9] of annotations in the lidar frame. `DataError` if one is invalid."""
    table = tables["sample_annotation"]
    translations, rotations = read_poses(table, rows)
    poses = invert_poses(lidar_to_global) @ pose_matrices(translations, rotations)
    sizes = read_floats(table, "bad-object", rows, "size")
    not_positive = (sizes <= 0).any(1)
    if not_positive.any():
        record = describe_record(rows[int(not_positive.argmax())])
        raise refusal("bad-object", table.file, record, "its size is not positive")
    velocities = [estimate_velocity(tables, row) for row in rows]
    velocity = np.array(velocities, dtype=np.float64).reshape(-1, 3)
    # The vertical velocity is dropped in the global frame. The lidar is not level, so it would leak
    # into x and y.
    velocity[:, 2] = 0
    velocity = velocity @ lidar_to_global[:3, :3]  # on row vectors: the inverse rotation
    centres = poses[:, :3, 3]
    return np.concatenate([centres, sizes, yaw(poses)[:, None], velocity[:, :2]], axis=1)
