"""Boxes in the world, and what nuScenes wants to know of them: frames, classes, attributes.

Lengths are metres, speeds metres a second, angles radians. A box has a width (across), a length (along its heading) and
a height; its centre is that of gravity.
"""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.spatial.transform import Rotation

from groupdetr.data.nuscenes import names

Floats = NDArray[np.float64]
_MOVING = 0.2  # m/s: what is faster moves


class ObjectClass(NamedTuple):
    """One of the ten classes of the nuScenes detection challenge."""

    name: str
    reach: float  # boxes that far from the ego vehicle do not count
    moving: str  # the attribute of a box that moves
    still: str  # and of one that does not


_RULES = {  # of the challenge: reach, attributes
    "car": (50, "vehicle.moving", "vehicle.parked"),
    "truck": (50, "vehicle.moving", "vehicle.parked"),
    "construction_vehicle": (50, "vehicle.moving", "vehicle.parked"),
    "bus": (50, "vehicle.moving", "vehicle.stopped"),
    "trailer": (50, "vehicle.moving", "vehicle.parked"),
    "barrier": (30, "", ""),
    "motorcycle": (40, "cycle.with_rider", "cycle.without_rider"),
    "bicycle": (40, "cycle.with_rider", "cycle.without_rider"),
    "pedestrian": (40, "pedestrian.moving", "pedestrian.standing"),
    "traffic_cone": (30, "", ""),
}
CLASSES = tuple(
    ObjectClass(name, *_RULES[name]) for name in names.CLASSES
)  # in the order of labels
REACH = np.array([kind.reach for kind in CLASSES], dtype=np.float64)


@dataclass(frozen=True)
class Boxes3D:
    """Boxes of one sample in the global frame: true ones have points, found ones have scores."""

    centres: Floats  # [D,3]
    sizes: Floats  # [D,3] width, length, height
    rotations: Floats  # [D,4] quaternions w,x,y,z that turn the x axis to the heading
    velocities: Floats  # [D,2]; nan where unknown
    labels: NDArray[np.int64]  # [D] indices into CLASSES
    attributes: NDArray[np.str_]  # [D] as nuScenes calls them, or empty
    scores: Floats | None = None  # [D]
    points: NDArray[np.int64] | None = None  # [D] of lidar and radar, inside

    def __len__(self) -> int:
        return len(self.centres)

    def __getitem__(self, which: NDArray[np.bool_] | NDArray[np.int64]) -> Boxes3D:
        """Some of them: indices, or a bool for each."""
        columns = {field.name: getattr(self, field.name) for field in fields(self)}
        chosen: dict[str, Any] = {
            name: column[which] for name, column in columns.items() if column is not None
        }
        return Boxes3D(**chosen)

    def yaws(self) -> Floats:
        """[D] headings, counter-clockwise from the x axis, seen from above."""
        w, x, y, z = self.rotations.T
        return np.arctan2(2 * (x * y + w * z), w * w + x * x - y * y - z * z)

    def contain(self, points: Floats) -> NDArray[np.bool_]:
        """[P] which of the points [P,3] lie in one of the boxes, its faces included."""
        if not len(self):
            return np.zeros(len(points), dtype=bool)
        axes = Rotation.from_quat(
            self.rotations, scalar_first=True
        ).as_matrix()  # columns: the axes of each box
        local = np.einsum("pdi,dij->pdj", points[:, None] - self.centres, axes)
        inside = np.abs(local) <= self.sizes[:, [1, 0, 2]] / 2
        return np.asarray(inside.all(axis=-1).any(axis=-1))


@dataclass(frozen=True)
class Pose:
    """Where the lidar stands on the vehicle, and the vehicle in the world, when the lidar looks."""

    lidar_to_ego: ArrayLike  # [4,4]
    ego_to_global: ArrayLike  # [4,4]

    @property
    def lidar_to_global(self) -> Floats:
        return np.asarray(self.ego_to_global, dtype=np.float64) @ np.asarray(
            self.lidar_to_ego, dtype=np.float64
        )

    @property
    def ego(self) -> Floats:
        """[3] the vehicle in the global frame."""
        return np.asarray(self.ego_to_global, dtype=np.float64)[:3, 3]


def found_boxes(boxes: ArrayLike, labels: ArrayLike, scores: ArrayLike, pose: Pose) -> Boxes3D:
    """What a detector found, with the attributes that its speeds suggest; boxes beyond the reach of their class drop
    out, as in PETR.

    ``boxes`` [D,9]: x, y, z, width, length, height, yaw, vx, vy in the lidar frame.
    """
    rows, matrix = _rows(boxes), pose.lidar_to_global
    found = Boxes3D(
        centres=_moved(rows[:, :3], matrix),
        sizes=rows[:, 3:6],
        rotations=_turned(rows[:, 6], matrix),
        velocities=rows[:, 7:9] @ matrix[:2, :2].T,
        labels=np.array(labels, dtype=np.int64),
        attributes=np.full(len(rows), ""),
        scores=np.array(scores, dtype=np.float64),
    )
    found = replace(found, attributes=guessed_attributes(found))
    places = _moved(rows[:, :3], np.asarray(pose.lidar_to_ego, dtype=np.float64))
    return found[np.linalg.norm(places[:, :2], axis=1) <= REACH[found.labels]]


def true_boxes(
    boxes: ArrayLike, labels: ArrayLike, attributes: ArrayLike, points: ArrayLike, pose: Pose
) -> Boxes3D:
    """What is there; ``boxes`` [T,9] as in :func:`found_boxes`, and nan for velocities that nobody knows.

    Annotated boxes stand upright and move level in the world, which the lidar does not: their yaws and velocities are
    what is left of them in its x-y plane. That is undone, so that figures are those of the annotations.
    """
    rows, matrix = _rows(boxes), pose.lidar_to_global
    levelled = np.linalg.inv(matrix[:2, :2])
    headings = np.stack([np.cos(rows[:, 6]), np.sin(rows[:, 6])], axis=1) @ levelled
    return Boxes3D(
        centres=_moved(rows[:, :3], matrix),
        sizes=rows[:, 3:6],
        rotations=_turned(np.arctan2(headings[:, 1], headings[:, 0]), np.eye(4)),
        velocities=rows[:, 7:9] @ levelled,
        labels=np.array(labels, dtype=np.int64),
        attributes=np.array(attributes, dtype=np.str_),
        points=np.array(points, dtype=np.int64),
    )


def guessed_attributes(boxes: Boxes3D) -> NDArray[np.str_]:
    """[D] the most likely attribute of a box of such a class and speed; what has no known speed stands."""
    moves = np.linalg.norm(boxes.velocities, axis=1) > _MOVING
    kinds = [CLASSES[label] for label in boxes.labels]
    return np.array(
        [kind.moving if fast else kind.still for kind, fast in zip(kinds, moves)], dtype=np.str_
    )


def _rows(boxes: ArrayLike) -> Floats:
    return np.asarray(boxes, dtype=np.float64).reshape(-1, 9)


def _moved(points: Floats, matrix: Floats) -> Floats:
    return points @ matrix[:3, :3].T + matrix[:3, 3]


def _turned(yaws: Floats, matrix: Floats) -> Floats:
    """[D,4] the quaternions of boxes that stand upright in a frame, seen from another."""
    w, x, y, z = Rotation.from_matrix(matrix[:3, :3]).as_quat(scalar_first=True)
    c, s = np.cos(yaws / 2), np.sin(yaws / 2)
    return np.stack([w * c - z * s, x * c + y * s, y * c - x * s, w * s + z * c], axis=1)
