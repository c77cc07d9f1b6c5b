"""Poses and projections as 4x4 matrices that multiply column vectors.

Leading axes are batch axes. Everything is float64.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike

from groupdetr.data.records import Floats


def rotation_matrices(quaternions: ArrayLike) -> Floats:
    """Return the matrices [...,3,3] of quaternions [...,4] as w, x, y, z, of any length but 0."""
    q = np.asarray(quaternions, dtype=np.float64)
    q = q / np.linalg.norm(q, axis=-1, keepdims=True)
    w, x, y, z = q[..., 0], q[..., 1], q[..., 2], q[..., 3]
    matrices = np.empty((*q.shape[:-1], 3, 3))
    matrices[..., 0, 0] = 1 - 2 * (y * y + z * z)
    matrices[..., 0, 1] = 2 * (x * y - w * z)
    matrices[..., 0, 2] = 2 * (x * z + w * y)
    matrices[..., 1, 0] = 2 * (x * y + w * z)
    matrices[..., 1, 1] = 1 - 2 * (x * x + z * z)
    matrices[..., 1, 2] = 2 * (y * z - w * x)
    matrices[..., 2, 0] = 2 * (x * z - w * y)
    matrices[..., 2, 1] = 2 * (y * z + w * x)
    matrices[..., 2, 2] = 1 - 2 * (x * x + y * y)
    return matrices


def pose_matrices(translations: ArrayLike, quaternions: ArrayLike) -> Floats:
    """Return the poses [...,4,4] of translations [...,3] in metres and quaternions [...,4].

    A pose maps coordinates of a body to coordinates of the frame that the body is in.
    """
    matrices = to_homogeneous(rotation_matrices(quaternions))
    matrices[..., :3, 3] = translations
    return matrices


def to_homogeneous(matrices: ArrayLike) -> Floats:
    """Return matrices [...,4,4] whose upper left block is ``matrices`` [...,3,3]."""
    matrices = np.asarray(matrices, dtype=np.float64)
    homogeneous = np.zeros((*matrices.shape[:-2], 4, 4))
    homogeneous[..., :3, :3] = matrices
    homogeneous[..., 3, 3] = 1
    return homogeneous


def invert_poses(poses: Floats) -> Floats:
    """Return the inverses of poses [...,4,4], exact up to rounding.

    The inverse of a rotation is its transpose, so nothing has to be solved.
    """
    rotations = poses[..., :3, :3].swapaxes(-1, -2)
    inverses = to_homogeneous(rotations)
    inverses[..., :3, 3] = -(rotations @ poses[..., :3, 3:])[..., 0]
    return inverses


def yaw(matrices: Floats) -> Floats:
    """Return the yaw [...] of rotations [...,3,3] or poses [...,4,4].

    It is the direction of the x axis in the x-y plane, counter-clockwise, in radians.
    """
    return np.asarray(np.arctan2(matrices[..., 1, 0], matrices[..., 0, 0]))


def rotation_about_z(angle: ArrayLike) -> Floats:
    """Return rotations [...,3,3] by angles [...] in radians, counter-clockwise seen from above."""
    angle = np.asarray(angle, dtype=np.float64)
    quaternions = np.zeros((*angle.shape, 4))
    quaternions[..., 0] = np.cos(angle / 2)
    quaternions[..., 3] = np.sin(angle / 2)
    return rotation_matrices(quaternions)


def project_points(lidar_to_image: Floats, points: Floats) -> Floats:
    """Project points [T,3] with one matrix [4,4]: [T,3] as u, v in pixels and depth in metres.

    A point is in front of the camera if its depth is positive.
    """
    projected = points @ lidar_to_image[:3, :3].T + lidar_to_image[:3, 3]
    depth = projected[:, 2:]
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.concatenate([projected[:, :2] / depth, depth], axis=1)
