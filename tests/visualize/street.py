"""A street recorded by six cameras, and boxes on it."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from PIL import Image

from groupdetr.visualize.scenes import CAMERAS, DrawableBoxes3D

SIZE = (320, 180)  # width and height of an image
YAWS = dict(zip(CAMERAS, (0, -55, 55, 180, 110, -110)))  # degrees, counter-clockwise from ahead


def projection(yaw: float, focal_length: float, size: tuple[int, int] = SIZE) -> np.ndarray:
    """Return lidar_to_image [4,4] of a level camera 0.3 m below the lidar.

    The yaw is in degrees, the focal length in pixels.
    """
    angle = np.radians(yaw)
    ahead = [-np.sin(angle), np.cos(angle), 0]
    right = [np.cos(angle), np.sin(angle), 0]
    down = [0, 0, -1]
    lidar_to_camera = np.eye(4)
    lidar_to_camera[:3, :3] = [right, down, ahead]
    lidar_to_camera[:3, 3] = lidar_to_camera[:3, :3] @ [0, 0, 0.3]
    intrinsic = np.eye(4)
    intrinsic[0, 0] = focal_length
    intrinsic[1, 1] = focal_length
    intrinsic[:2, 2] = np.divide(size, 2)
    return intrinsic @ lidar_to_camera


def projections(size: tuple[int, int] = SIZE) -> np.ndarray:
    """Return lidar_to_image [6,4,4] with the focal lengths of nuScenes."""
    matrices = []
    for yaw in YAWS.values():
        focal_length = size[0] * (0.51 if yaw == 180 else 0.79)
        matrices.append(projection(yaw, focal_length, size))
    return np.stack(matrices)


def images(size: tuple[int, int] = SIZE) -> list[Image.Image]:
    """Return six images of sky and ground, in greys that differ from camera to camera."""
    images = []
    for camera in range(6):
        pixels = np.full((size[1], size[0], 3), 150 + 8 * camera, dtype=np.uint8)
        pixels[size[1] // 2 :] = 90 + 5 * camera
        images.append(Image.fromarray(pixels))
    return images


GROUND = -1.84  # z of the ground in the lidar frame


def box(
    x: float, y: float, size: Sequence[float], yaw: float, velocity: Sequence[float] = (0, 0)
) -> list[float]:
    """Return a box that stands on the ground. The yaw is in degrees, 90 for ahead."""
    return [x, y, GROUND + size[2] / 2, *size, np.radians(yaw), *velocity]


NAMES = (
    "car",
    "truck",
    "crane",
    "bus",
    "trailer",
    "barrier",
    "motorcycle",
    "bicycle",
    "pedestrian",
    "cone",
)
CAR, BUS, PEDESTRIAN, CONE = (1.9, 4.6, 1.6), (2.9, 11.0, 3.4), (0.7, 0.7, 1.75), (0.4, 0.4, 0.9)


def street() -> tuple[DrawableBoxes3D, DrawableBoxes3D]:
    """Return detections and annotated objects.

    They are cars, a bus, pedestrians and cones, some of them beside and behind the vehicle, and one
    partly too near to a camera.
    """
    objects = [
        (0, box(-1, 18, CAR, 92, (0, 8))),
        (0, box(3.2, 9, CAR, 270, (0, -6))),
        (3, box(-5.5, 30, BUS, 270, (0.2, -5))),
        (0, box(14, 22, CAR, 0, (7, 0))),
        (8, box(6.5, 12, PEDESTRIAN, 180, (-1.2, 0))),
        (8, box(-6, 9, PEDESTRIAN, 0, (1.1, 0.2))),
        (9, box(4.8, 20, CONE, 0)),
        (9, box(5.2, 23, CONE, 0)),
        (1, box(-3.6, 1.0, (2.5, 7.0, 2.8), 90, (0, 3))),
        (0, box(1.0, -12, CAR, 90, (0, 4))),
        (0, box(-9, -8, CAR, 45)),
        (6, box(7, -6, (0.8, 2.1, 1.5), 100, (0, 9))),
        (5, box(12, 4, (2.5, 0.5, 1.0), 20)),
        (0, box(-20, 38, CAR, 200, (-3, -1))),
    ]
    labels = np.array([label for label, _ in objects])
    boxes = np.array([row for _, row in objects])
    noise = np.array([0.25, 0.4, 0.05, 0.08, 0.15, 0.08, 0.05, 0.4, 0.4])
    predicted = boxes + np.random.default_rng(0).normal(0, 1, boxes.shape) * noise
    scores = np.linspace(0.95, 0.4, len(objects))
    captions = [f"{NAMES[label]} {score:.2f}" for label, score in zip(labels, scores)]
    return DrawableBoxes3D(predicted, labels, captions), DrawableBoxes3D(boxes)
