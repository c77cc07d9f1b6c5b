"""3D boxes in the global frame, with the classes, attributes and ranges of the nuScenes challenge.

Lengths are metres, speeds metres per second, angles radians. A box has a width (across), a length
(along its heading) and a height. Its centre is the geometric centre.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from groupdetr.data.nuscenes import names
from groupdetr.errors import DataError

Floats = NDArray[np.float64]
_MOVING_SPEED = 0.2  # m/s: a faster box counts as moving


class ObjectClass(NamedTuple):
    """One of the ten classes of the nuScenes detection challenge."""

    name: str
    class_range: float  # metres: boxes that are farther from the ego vehicle are not evaluated
    moving_attribute: str  # the most likely attribute of a box that moves
    stationary_attribute: str  # the most likely attribute of a box that does not


_RULES = {  # class -> range, attribute if moving, attribute if stationary
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
CLASSES = tuple(ObjectClass(name, *_RULES[name]) for name in names.CLASSES)  # index = label
CLASS_RANGES = np.array([kind.class_range for kind in CLASSES], dtype=np.float64)


@dataclass(frozen=True)
class Boxes3D:
    """D boxes of one sample in the global frame.

    Ground truth has points, predictions have scores.
    """

    centres: Floats  # [D,3]
    sizes: Floats  # [D,3] width, length, height
    rotations: Floats  # [D,4] quaternions w,x,y,z that rotate the x axis to the heading
    velocities: Floats  # [D,2] x and y; nan if unknown
    labels: NDArray[np.int64]  # [D] indices into CLASSES
    attributes: NDArray[np.str_]  # [D] names of nuScenes attributes, "" for none
    scores: Floats | None = None  # [D]
    points: NDArray[np.int64] | None = None  # [D] number of lidar and radar points inside

    def __len__(self) -> int:
        return len(self.centres)

    def __getitem__(self, index: NDArray[np.bool_] | NDArray[np.int64]) -> Boxes3D:
        """Return the boxes that a boolean mask [D] or an array of indices selects."""
        return Boxes3D(
            centres=self.centres[index],
            sizes=self.sizes[index],
            rotations=self.rotations[index],
            velocities=self.velocities[index],
            labels=self.labels[index],
            attributes=self.attributes[index],
            scores=None if self.scores is None else self.scores[index],
            points=None if self.points is None else self.points[index],
        )

    def yaws(self) -> Floats:
        """Return the headings [D], counter-clockwise from the x axis, seen from above."""
        w, x, y, z = self.rotations.T
        return np.arctan2(2 * (x * y + w * z), w * w + x * x - y * y - z * z)

    def contain(self, points: Floats) -> NDArray[np.bool_]:
        """Return [P] bool, True for points [P,3] inside or on the faces of any of the boxes."""
        if not len(self):
            return np.zeros(len(points), dtype=bool)
        # Imported here: scipy.spatial takes a fifth of the time of PyTorch, and commands for images
        # import this module, too.
        from scipy.spatial.transform import Rotation

        # The columns of a rotation matrix are the axes of its box: length, width, height.
        axes = Rotation.from_quat(self.rotations, scalar_first=True).as_matrix()
        local = np.einsum("pdi,dij->pdj", points[:, None] - self.centres, axes)
        half_extent = self.sizes[:, [1, 0, 2]] / 2
        inside = np.abs(local) <= half_extent
        return np.asarray(inside.all(axis=-1).any(axis=-1))


@dataclass(frozen=True)
class Pose:
    """Poses of the lidar on the vehicle, and of the vehicle in the world, at the lidar's time."""

    lidar_to_ego: ArrayLike  # [4,4]
    ego_to_global: ArrayLike  # [4,4]

    @property
    def lidar_to_global(self) -> Floats:
        """[4,4] transform from the lidar frame to the global frame."""
        lidar_to_ego = np.asarray(self.lidar_to_ego, dtype=np.float64)
        return np.asarray(self.ego_to_global, dtype=np.float64) @ lidar_to_ego

    @property
    def ego(self) -> Floats:
        """[3] position of the ego vehicle in the global frame."""
        return np.asarray(self.ego_to_global, dtype=np.float64)[:3, 3]


def predicted_boxes(boxes: ArrayLike, labels: ArrayLike, scores: ArrayLike, pose: Pose) -> Boxes3D:
    """Return a detector's boxes in the global frame, with attributes chosen by their speeds.

    ``boxes`` [D,9]: x, y, z, width, length, height, yaw, vx, vy in the lidar frame. As in PETR,
    boxes outside of the range of their class are dropped. `DataError` if a box or a score is not
    finite; only velocities may be unknown.
    """
    rows = _as_rows(boxes)
    # A comparison with nan is false, so the range below would drop such boxes silently.
    require_finite_boxes(rows[:, :7], scores)
    lidar_to_global = pose.lidar_to_global
    predictions = Boxes3D(
        centres=_transform(rows[:, :3], lidar_to_global),
        sizes=rows[:, 3:6],
        rotations=_quaternions(rows[:, 6], lidar_to_global),
        velocities=rows[:, 7:9] @ lidar_to_global[:2, :2].T,
        labels=np.array(labels, dtype=np.int64),
        attributes=np.full(len(rows), ""),
        scores=np.array(scores, dtype=np.float64),
    )
    predictions = replace(predictions, attributes=attributes_by_speed(predictions))

    # The range is measured from the ego vehicle, not from the lidar.
    ego_centres = _transform(rows[:, :3], np.asarray(pose.lidar_to_ego, dtype=np.float64))
    distances = np.linalg.norm(ego_centres[:, :2], axis=1)
    return predictions[distances <= CLASS_RANGES[predictions.labels]]


def require_finite_boxes(boxes: ArrayLike, scores: ArrayLike) -> None:
    """Raise `DataError` if a value of predicted boxes [D,.] or of scores [D] is not finite."""
    is_finite = np.isfinite(np.asarray(boxes)).all(axis=1) & np.isfinite(np.asarray(scores))
    if not is_finite.all():
        first = int(np.flatnonzero(~is_finite)[0])
        raise DataError(
            f"predicted box {first} is not finite: its values are "
            f"{np.asarray(boxes)[first].tolist()} and its score is {np.asarray(scores)[first]}",
            remedy="remove the box; if a detector predicted it, its weights are not finite",
        )


def ground_truth_boxes(
    boxes: ArrayLike, labels: ArrayLike, attributes: ArrayLike, points: ArrayLike, pose: Pose
) -> Boxes3D:
    """Return annotated boxes in the global frame.

    ``boxes`` [T,9] are in the lidar frame as in `predicted_boxes`; unknown velocities are nan.

    Annotated boxes stand upright and move horizontally in the world. The lidar is tilted, and yaws
    and velocities in its frame are projections to its x-y plane. The projection is inverted here,
    so that the evaluation uses the values of the annotations.
    """
    rows = _as_rows(boxes)
    lidar_to_global = pose.lidar_to_global
    from_projection = np.linalg.inv(lidar_to_global[:2, :2])
    headings = np.stack([np.cos(rows[:, 6]), np.sin(rows[:, 6])], axis=1) @ from_projection
    global_yaws = np.arctan2(headings[:, 1], headings[:, 0])
    return Boxes3D(
        centres=_transform(rows[:, :3], lidar_to_global),
        sizes=rows[:, 3:6],
        rotations=_quaternions(global_yaws, np.eye(4)),
        velocities=rows[:, 7:9] @ from_projection,
        labels=np.array(labels, dtype=np.int64),
        attributes=np.array(attributes, dtype=np.str_),
        points=np.array(points, dtype=np.int64),
    )


def attributes_by_speed(boxes: Boxes3D) -> NDArray[np.str_]:
    """Return the most likely attribute [D] of each class and speed.

    A box of unknown speed counts as stationary.
    """
    moving = np.linalg.norm(boxes.velocities, axis=1) > _MOVING_SPEED
    attributes = []
    for label, is_moving in zip(boxes.labels, moving):
        kind = CLASSES[label]
        attributes.append(kind.moving_attribute if is_moving else kind.stationary_attribute)
    return np.array(attributes, dtype=np.str_)


def _as_rows(boxes: ArrayLike) -> Floats:
    return np.asarray(boxes, dtype=np.float64).reshape(-1, 9)


def _transform(points: Floats, matrix: Floats) -> Floats:
    return points @ matrix[:3, :3].T + matrix[:3, 3]


def _quaternions(yaws: Floats, matrix: Floats) -> Floats:
    """Return [D,4] quaternions after ``matrix`` [4,4] of boxes that are upright before it."""
    from scipy.spatial.transform import Rotation  # not at the top, as in `Boxes3D.contain`

    w, x, y, z = Rotation.from_matrix(matrix[:3, :3]).as_quat(scalar_first=True)
    # The product of the quaternion of the matrix with that of the yaw, (cos, 0, 0, sin).
    cos, sin = np.cos(yaws / 2), np.sin(yaws / 2)
    product = (w * cos - z * sin, x * cos + y * sin, y * cos - x * sin, w * sin + z * cos)
    return np.stack(product, axis=1)
