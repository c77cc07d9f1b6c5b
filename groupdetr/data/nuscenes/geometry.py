"""Poses as 4x4 matrices that act on columns. Leading axes are a batch; everything is float64."""

from __future__ import annotations

from typing import Any

import numpy as np

from groupdetr.data.records import Floats


def rotations(quaternions: Any) -> Floats:
    """Quaternions [...,4] as w, x, y, z, of any length but 0, to matrices [...,3,3]."""
    q = np.asarray(quaternions, dtype=np.float64)
    w, x, y, z = np.moveaxis(q / np.linalg.norm(q, axis=-1, keepdims=True), -1, 0)
    rows = [
        [1 - 2 * (y * y + z * z), 2 * (x * y - w * z), 2 * (x * z + w * y)],
        [2 * (x * y + w * z), 1 - 2 * (x * x + z * z), 2 * (y * z - w * x)],
        [2 * (x * z - w * y), 2 * (y * z + w * x), 1 - 2 * (x * x + y * y)],
    ]
    return np.stack([np.stack(row, -1) for row in rows], -2)


def poses(translations: Any, quaternions: Any) -> Floats:
    """From translations [...,3] in metres and quaternions [...,4]: [...,4,4], from a body to its surroundings."""
    matrices = embedded(rotations(quaternions))
    matrices[..., :3, 3] = translations
    return matrices


def embedded(matrices: Any) -> Floats:
    """[...,3,3] in the upper left of [...,4,4]."""
    matrices = np.asarray(matrices, dtype=np.float64)
    whole = np.zeros((*matrices.shape[:-2], 4, 4))
    whole[..., :3, :3] = matrices
    whole[..., 3, 3] = 1
    return whole


def inverse(matrices: Floats) -> Floats:
    """Of poses [...,4,4]: exact up to rounding, as rotations are inverted by transposing."""
    turned = matrices[..., :3, :3].swapaxes(-1, -2)
    back = embedded(turned)
    back[..., :3, 3] = -(turned @ matrices[..., :3, 3:])[..., 0]
    return back


def yaw(matrices: Floats) -> Floats:
    """Where the x axis of rotations [...,3,3] points in the x-y plane, counter-clockwise in radians: [...]."""
    return np.asarray(np.arctan2(matrices[..., 1, 0], matrices[..., 0, 0]))


def about_z(angle: Any) -> Floats:
    """Rotations [...,3,3] by angles [...] in radians, counter-clockwise seen from above."""
    angle = np.asarray(angle, dtype=np.float64)
    half = np.zeros((*angle.shape, 4))
    half[..., 0], half[..., 3] = np.cos(angle / 2), np.sin(angle / 2)
    return rotations(half)


def projected(lidar_to_image: Floats, points: Floats) -> Floats:
    """Points [T,3] in a view [4,4]: [T,3] as u, v in pixels and depth in metres; in front of it where depth > 0."""
    seen = points @ lidar_to_image[:3, :3].T + lidar_to_image[:3, 3]
    depth = seen[:, 2:]
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.concatenate([seen[:, :2] / depth, depth], axis=1)
