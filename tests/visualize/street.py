"""A street seen by six cameras, and what stands on it."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from PIL import Image

from groupdetr.visualize.scenes import CAMERAS, Solids

SIZE = (320, 180)
YAWS = dict(zip(CAMERAS, (0, -55, 55, 180, 110, -110)))  # degrees, counter-clockwise from ahead


def matrix(yaw: float, focal: float, size: tuple[int, int] = SIZE) -> np.ndarray:
    """lidar_to_image of a level camera 0.3 m below the lidar; lengths in pixels and metres, the angle in degrees."""
    a = np.radians(yaw)
    ahead, right, down = [-np.sin(a), np.cos(a), 0], [np.cos(a), np.sin(a), 0], [0, 0, -1]
    camera = np.eye(4)
    camera[:3, :3] = [right, down, ahead]
    camera[:3, 3] = camera[:3, :3] @ [0, 0, 0.3]
    whole = np.eye(4)
    whole[:2, 2], whole[0, 0], whole[1, 1] = np.divide(size, 2), focal, focal
    return whole @ camera


def matrices(size: tuple[int, int] = SIZE) -> np.ndarray:
    """[6,4,4] with the focal lengths of nuScenes."""
    return np.stack(
        [matrix(yaw, size[0] * (0.51 if yaw == 180 else 0.79), size) for yaw in YAWS.values()]
    )


def pictures(size: tuple[int, int] = SIZE) -> list[Image.Image]:
    """Sky and ground, in greys that differ from camera to camera."""
    images = []
    for grey in range(6):
        rows = np.full((size[1], size[0], 3), 150 + 8 * grey, dtype=np.uint8)
        rows[size[1] // 2 :] = 90 + 5 * grey
        images.append(Image.fromarray(rows))
    return images


GROUND = -1.84  # where the ground is, seen from the lidar


def box(
    x: float, y: float, size: Sequence[float], yaw: float, velocity: Sequence[float] = (0, 0)
) -> list[float]:
    """On the ground; the yaw in degrees, 90 being ahead."""
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
    "walker",
    "cone",
)
CAR, BUS, WALKER, CONE = (1.9, 4.6, 1.6), (2.9, 11.0, 3.4), (0.7, 0.7, 1.75), (0.4, 0.4, 0.9)


def street() -> tuple[Solids, Solids]:
    """What was found, and what is there: cars, a bus, walkers, cones, some beside and behind, one partly too near."""
    rows = [
        (0, box(-1, 18, CAR, 92, (0, 8))),
        (0, box(3.2, 9, CAR, 270, (0, -6))),
        (3, box(-5.5, 30, BUS, 270, (0.2, -5))),
        (0, box(14, 22, CAR, 0, (7, 0))),
        (8, box(6.5, 12, WALKER, 180, (-1.2, 0))),
        (8, box(-6, 9, WALKER, 0, (1.1, 0.2))),
        (9, box(4.8, 20, CONE, 0)),
        (9, box(5.2, 23, CONE, 0)),
        (1, box(-3.6, 1.0, (2.5, 7.0, 2.8), 90, (0, 3))),
        (0, box(1.0, -12, CAR, 90, (0, 4))),
        (0, box(-9, -8, CAR, 45)),
        (6, box(7, -6, (0.8, 2.1, 1.5), 100, (0, 9))),
        (5, box(12, 4, (2.5, 0.5, 1.0), 20)),
        (0, box(-20, 38, CAR, 200, (-3, -1))),
    ]
    labels, boxes = np.array([label for label, _ in rows]), np.array([row for _, row in rows])
    rng = np.random.default_rng(0)
    guessed = boxes + rng.normal(0, 1, boxes.shape) * [
        0.25,
        0.4,
        0.05,
        0.08,
        0.15,
        0.08,
        0.05,
        0.4,
        0.4,
    ]
    captions = [
        f"{NAMES[label]} {score:.2f}"
        for label, score in zip(labels, np.linspace(0.95, 0.4, len(rows)))
    ]
    return Solids(guessed, labels, captions), Solids(boxes)
