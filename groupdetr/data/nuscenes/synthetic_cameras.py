"""Six cameras as they sit on a nuScenes car, and what they see of boxes: farthest first, each face a polygon."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from groupdetr.data.nuscenes.geometry import poses
from groupdetr.data.records import Floats

COLOURS = {  # class: red, green, blue of the lightest face
    "car": (230, 60, 60),
    "truck": (60, 120, 230),
    "construction_vehicle": (240, 200, 40),
    "bus": (150, 70, 210),
    "trailer": (60, 200, 210),
    "barrier": (245, 245, 245),
    "motorcycle": (70, 200, 90),
    "bicycle": (180, 230, 60),
    "pedestrian": (240, 120, 190),
    "traffic_cone": (250, 140, 30),
}
SKY, GROUND = (165, 180, 190), (84, 84, 88)
SHADES = (
    1.0,
    0.8,
    0.88,
    0.88,
    0.94,
    0.7,
)  # front, rear, sides, top and bottom: so that a front can be told
NEAR = 0.1  # metres in front of a camera, from where on things are drawn
PICTURE = (1600, 900)  # width and height that focal lengths are told for

LIDAR_PLACE = (0.94, 0.0, 1.84)  # on the car, metres
LIDAR_ROTATION = (0.7071, -0.0065, 0.0107, -0.7071)  # w, x, y, z: x to the right, nearly level


@dataclass(frozen=True)
class Mount:
    """How a camera sits on the car."""

    place: tuple[float, float, float]  # metres, x ahead, y left, z up
    yaw: float  # degrees to the left
    focal: float  # pixels, of a picture as large as PICTURE
    delay: float  # seconds before the lidar

    @property
    def rotation(self) -> tuple[float, float, float, float]:
        """w, x, y, z of the camera, x to its right, y down, z ahead, on the car."""
        half = math.radians(self.yaw) / 2
        plus, minus = (math.cos(half) + math.sin(half)) / 2, (math.cos(half) - math.sin(half)) / 2
        return plus, -plus, minus, -minus

    def camera_to_ego(self) -> Floats:
        """[4,4]"""
        return poses(self.place, self.rotation)

    def intrinsic(self, width: int, height: int) -> Floats:
        """[3,3]"""
        wide, high = width / PICTURE[0], height / PICTURE[1]
        return np.array(
            [[self.focal * wide, 0, 816 * wide], [0, self.focal * high, 491 * high], [0, 0, 1]]
        )


MOUNTS = {
    "CAM_FRONT": Mount((1.70, 0.02, 1.51), 0, 1266, 0.035),
    "CAM_FRONT_RIGHT": Mount((1.55, -0.49, 1.50), -55, 1266, 0.027),
    "CAM_FRONT_LEFT": Mount((1.52, 0.49, 1.51), 55, 1266, 0.043),
    "CAM_BACK": Mount((0.03, 0.00, 1.58), 180, 809, 0.010),
    "CAM_BACK_LEFT": Mount((1.04, 0.48, 1.59), 110, 1266, 0.002),
    "CAM_BACK_RIGHT": Mount((1.01, -0.48, 1.56), -110, 1266, 0.018),
}

# Corners of a box as halves of its length, width and height (x, y, z); faces as seen from outside.
_CORNERS = np.array([(x, y, z) for x in (-1, 1) for y in (-1, 1) for z in (-1, 1)]) / 2
_FACES = ((4, 6, 7, 5), (0, 1, 3, 2), (2, 3, 7, 6), (0, 4, 5, 1), (1, 5, 7, 3), (0, 2, 6, 4))


@dataclass(frozen=True)
class Solid:
    """A box to be drawn."""

    name: str  # of its class
    to_camera: Floats  # [4,4] from the box, x along its length
    size: tuple[float, float, float]  # width, length, height


def picture(
    solids: Iterable[Solid], intrinsic: Floats, width: int, height: int
) -> NDArray[np.uint8]:
    """What a level camera sees: [H,W,3]."""
    image = Image.new("RGB", (width, height), SKY)
    pen = ImageDraw.Draw(image)
    pen.rectangle((0, round(intrinsic[1, 2]), width, height), GROUND)
    for solid in sorted(solids, key=lambda solid: -float(np.linalg.norm(solid.to_camera[:3, 3]))):
        _draw(pen, solid, intrinsic)
    return np.asarray(image)


def _draw(pen: ImageDraw.ImageDraw, solid: Solid, intrinsic: Floats) -> None:
    """The faces that look at the camera."""
    width, length, height = solid.size
    corners = (
        _CORNERS * (length, width, height) @ solid.to_camera[:3, :3].T + solid.to_camera[:3, 3]
    )
    if corners[:, 2].max() <= NEAR:
        return
    for face, shade in zip(_FACES, SHADES):
        polygon = corners[list(face)]
        outwards = polygon.mean(0) - solid.to_camera[:3, 3]
        if outwards @ polygon[0] < 0:
            _fill(
                pen,
                _clipped(polygon) @ intrinsic.T,
                tuple(round(shade * c) for c in COLOURS[solid.name]),
            )


def _fill(pen: ImageDraw.ImageDraw, polygon: Floats, colour: tuple[int, ...]) -> None:
    """A polygon [P,3] as (u d, v d, d)."""
    if len(polygon) > 2:
        pen.polygon([(float(u / d), float(v / d)) for u, v, d in polygon], fill=colour)


def _clipped(polygon: Floats) -> Floats:
    """What is in front of the near plane of a polygon [P,3]."""
    points: list[Floats] = []
    for here, there in zip(polygon, np.roll(polygon, -1, 0)):
        if here[2] > NEAR:
            points.append(here)
        if (here[2] > NEAR) != (there[2] > NEAR):
            points.append(here + (NEAR - here[2]) / (there[2] - here[2]) * (there - here))
    return np.array(points).reshape(-1, 3)
