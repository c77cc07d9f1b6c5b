"""Six cameras mounted as on a nuScenes car, and a renderer of boxes for them.

Boxes are rendered from the farthest to the nearest, each face as a polygon.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from groupdetr.data.nuscenes.geometry import pose_matrices
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
# Brightness of the faces: front, rear, the two sides, top and bottom. The front is the lightest, so
# that a detector can recognise it.
SHADES = (1.0, 0.8, 0.88, 0.88, 0.94, 0.7)
NEAR_PLANE = 0.1  # metres in front of a camera: nearer parts of a box are not rendered
IMAGE_SIZE = (1600, 900)  # width and height of the images for which focal lengths are given
PRINCIPAL_POINT = (816, 491)  # x, y in such an image

LIDAR_POSITION = (0.94, 0.0, 1.84)  # on the car, metres
LIDAR_ROTATION = (0.7071, -0.0065, 0.0107, -0.7071)  # w, x, y, z: x to the right, nearly level


@dataclass(frozen=True)
class CameraMount:
    """Position, direction and focal length of a camera on the car."""

    position: tuple[float, float, float]  # metres, x ahead, y left, z up
    yaw: float  # degrees to the left
    focal_length: float  # pixels, of an image of `IMAGE_SIZE`
    lead_time: float  # seconds from the image to the lidar scan that follows it

    @property
    def rotation(self) -> tuple[float, float, float, float]:
        """Quaternion w, x, y, z of the camera, whose axes are right, down and ahead, on the car."""
        half = math.radians(self.yaw) / 2
        # The product of the rotation by the yaw and that from camera axes to car axes.
        total = (math.cos(half) + math.sin(half)) / 2
        difference = (math.cos(half) - math.sin(half)) / 2
        return total, -total, difference, -difference

    def camera_to_ego(self) -> Floats:
        """Return the pose [4,4] of the camera on the car."""
        return pose_matrices(self.position, self.rotation)

    def intrinsic(self, width: int, height: int) -> Floats:
        """Return the intrinsic matrix [3,3] for images of this size."""
        x_scale = width / IMAGE_SIZE[0]
        y_scale = height / IMAGE_SIZE[1]
        fx = self.focal_length * x_scale
        fy = self.focal_length * y_scale
        cx = PRINCIPAL_POINT[0] * x_scale
        cy = PRINCIPAL_POINT[1] * y_scale
        return np.array([[fx, 0, cx], [0, fy, cy], [0, 0, 1]])


MOUNTS = {
    "CAM_FRONT": CameraMount((1.70, 0.02, 1.51), 0, 1266, 0.035),
    "CAM_FRONT_RIGHT": CameraMount((1.55, -0.49, 1.50), -55, 1266, 0.027),
    "CAM_FRONT_LEFT": CameraMount((1.52, 0.49, 1.51), 55, 1266, 0.043),
    "CAM_BACK": CameraMount((0.03, 0.00, 1.58), 180, 809, 0.010),
    "CAM_BACK_LEFT": CameraMount((1.04, 0.48, 1.59), 110, 1266, 0.002),
    "CAM_BACK_RIGHT": CameraMount((1.01, -0.48, 1.56), -110, 1266, 0.018),
}

# Corners of a box in units of its length, width and height (x, y, z). Faces are indices of corners
# in the order of `SHADES`.
_CORNERS = np.array([(x, y, z) for x in (-1, 1) for y in (-1, 1) for z in (-1, 1)]) / 2
_FACES = ((4, 6, 7, 5), (0, 1, 3, 2), (2, 3, 7, 6), (0, 4, 5, 1), (1, 5, 7, 3), (0, 2, 6, 4))


@dataclass(frozen=True)
class RenderedBox:
    """A box in the frame of a camera."""

    name: str  # of its class
    to_camera: Floats  # [4,4] from the frame of the box, with x along its length, to the camera
    size: tuple[float, float, float]  # width, length, height


def render(
    boxes: Iterable[RenderedBox], intrinsic: Floats, width: int, height: int
) -> NDArray[np.uint8]:
    """Return the image [H,W,3] that a level camera takes of boxes."""
    image = Image.new("RGB", (width, height), SKY)
    pen = ImageDraw.Draw(image)
    horizon = round(intrinsic[1, 2])
    pen.rectangle((0, horizon, width, height), GROUND)

    def distance(box: RenderedBox) -> float:
        return float(np.linalg.norm(box.to_camera[:3, 3]))

    # Painter's algorithm: the farthest box first.
    for box in sorted(boxes, key=distance, reverse=True):
        _render_box(pen, box, intrinsic)
    return np.asarray(image)


def _render_box(pen: ImageDraw.ImageDraw, box: RenderedBox, intrinsic: Floats) -> None:
    """Draw the faces of a box that face the camera."""
    width, length, height = box.size
    rotation = box.to_camera[:3, :3]
    centre = box.to_camera[:3, 3]
    corners = _CORNERS * (length, width, height) @ rotation.T + centre
    if corners[:, 2].max() <= NEAR_PLANE:
        return
    for face, shade in zip(_FACES, SHADES):
        polygon = corners[list(face)]
        # A face is visible if its normal points against the ray from the camera to it.
        normal = polygon.mean(0) - centre
        if normal @ polygon[0] < 0:
            colour = tuple(round(shade * channel) for channel in COLOURS[box.name])
            _fill_polygon(pen, _clip_to_near_plane(polygon) @ intrinsic.T, colour)


def _fill_polygon(pen: ImageDraw.ImageDraw, polygon: Floats, colour: tuple[int, ...]) -> None:
    """Fill a polygon [P,3], given as (u d, v d, d)."""
    if len(polygon) > 2:
        pen.polygon([(float(u / d), float(v / d)) for u, v, d in polygon], fill=colour)


def _clip_to_near_plane(polygon: Floats) -> Floats:
    """Return the part of a polygon [P,3] that is beyond the near plane."""
    points: list[Floats] = []
    for start, end in zip(polygon, np.roll(polygon, -1, 0)):
        start_visible = start[2] > NEAR_PLANE
        end_visible = end[2] > NEAR_PLANE
        if start_visible:
            points.append(start)
        if start_visible != end_visible:
            fraction = (NEAR_PLANE - start[2]) / (end[2] - start[2])
            points.append(start + fraction * (end - start))
    return np.array(points).reshape(-1, 3)
