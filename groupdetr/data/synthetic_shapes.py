"""Outlines of the synthetic classes, and the pixels that a shape covers.

An outline is a polygon [P,2] inside the unit circle, y pointing down; a second polygon is a hole.
No shape becomes another one by rotation and a slight stretch, so a shape identifies its class.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

Floats = NDArray[np.float64]

SUPERSAMPLING = 4
STRETCH = (0.87, 1.15)  # range of the factor of one axis; the other axis gets the inverse


def _rounded(corners: Floats, radius: float = 0.12) -> Floats:
    """Return a polygon [P,2] with rounded corners, [5P,2].

    Sharp corners look torn in a small image. Each corner becomes a quadratic Bezier curve.
    """
    to_previous = np.roll(corners, 1, axis=0) - corners
    to_next = np.roll(corners, -1, axis=0) - corners
    start = corners + radius * to_previous / np.linalg.norm(to_previous, axis=1, keepdims=True)
    end = corners + radius * to_next / np.linalg.norm(to_next, axis=1, keepdims=True)
    t = np.linspace(0, 1, 5)[None, :, None]
    from_start = (1 - t) ** 2 * start[:, None]
    from_corner = 2 * t * (1 - t) * corners[:, None]
    from_end = t**2 * end[:, None]
    return (from_start + from_corner + from_end).reshape(-1, 2)


def _arc(start: float, end: float, radius: float = 1.0, x: float = 0.0) -> Floats:
    """Return 40 points of a circle around (x, 0), from angle ``start`` to ``end``."""
    angles = np.linspace(start, end, 40)
    return np.stack([x + radius * np.cos(angles), radius * np.sin(angles)], axis=1)


def _star_polygon(count: int, *radii: float) -> Floats:
    """Return ``count`` corners at equal angles from the top, with these radii in turn."""
    angles = np.arange(count) * math.tau / count - math.pi / 2
    directions = np.stack([np.cos(angles), np.sin(angles)], axis=1)
    return np.resize(radii, count)[:, None] * directions


def _heart() -> Floats:
    t = np.linspace(0, math.tau, 48, endpoint=False)
    x = 16 * np.sin(t) ** 3
    y = 13 * np.cos(t) - 5 * np.cos(2 * t) - 2 * np.cos(3 * t) - np.cos(4 * t)
    return _centred(np.stack([x, -y], axis=1))


def _drop() -> Floats:
    t = np.linspace(0, math.tau, 48, endpoint=False)
    x = np.sin(t) * np.abs(np.sin(t / 2)) ** 1.6
    y = -1.15 * np.cos(t)
    return _centred(np.stack([x, y], axis=1))


def _crescent() -> Floats:
    """Return the unit circle without a circle around (x, 0)."""
    x = 0.5
    tip = 0.8  # angle at which the two circles meet
    tip_x, tip_y = math.cos(tip) - x, math.sin(tip)  # relative to the centre of the inner circle
    inner_angle = math.atan2(tip_y, tip_x)
    inner_radius = math.hypot(tip_y, tip_x)
    outer = _arc(tip, math.tau - tip)
    inner = _arc(-inner_angle, inner_angle - math.tau, inner_radius, x)
    return _centred(np.concatenate([outer, inner]))


def _cross() -> Floats:
    quarter = np.array([(-1, -3), (1, -3), (1, -1)])
    quarter_turn = np.array([(0, 1), (-1, 0)])
    quarters = [quarter @ np.linalg.matrix_power(quarter_turn, times) for times in range(4)]
    return _centred(np.concatenate(quarters))


def _arrow() -> Floats:
    corners = [
        (0, -3),
        (2.4, -0.3),
        (0.95, -0.3),
        (0.95, 3),
        (-0.95, 3),
        (-0.95, -0.3),
        (-2.4, -0.3),
    ]
    return _centred(np.array(corners))


def _square() -> Floats:
    return _centred(np.array([(-1, -1), (1, -1), (1, 1), (-1, 1)]))


def _centred(outline: Floats) -> Floats:
    """Move the centre of the bounding box to the origin, and scale into the unit circle."""
    outline = outline - (outline.min(0) + outline.max(0)) / 2
    return outline / np.linalg.norm(outline, axis=1).max()


SHAPES: dict[str, tuple[Floats, ...]] = {
    "circle": (_arc(0, math.tau),),
    "square": (_rounded(_square()),),  # stretched, it is a rectangle
    "triangle": (_rounded(_star_polygon(3, 1.0)),),
    "star": (_rounded(_star_polygon(10, 1.0, 0.45), 0.08),),
    "cross": (_rounded(_cross(), 0.08),),
    "ring": (_arc(0, math.tau), _arc(0, math.tau, 0.52)),
    "heart": (_heart(),),
    "crescent": (_crescent(),),
    # A slim rhombus. One that is as high as wide would be a rotated square.
    "diamond": (_rounded(_star_polygon(4, 1.0, 0.5), 0.1),),
    "arrow": (_rounded(_arrow(), 0.08),),
    "drop": (_drop(),),
    "pentagon": (_rounded(_star_polygon(5, 1.0)),),
}


@dataclass(frozen=True)
class SyntheticObject:
    """An object of an image, with its position."""

    label: int
    coverage: NDArray[np.uint8]  # [h,w] uint8: how much of each pixel it covers, 0 to 255
    top: int
    left: int

    @property
    def mask(self) -> NDArray[np.bool_]:
        """[h,w] bool, True for pixels of which the object covers at least half."""
        return self.coverage >= 128

    @property
    def window(self) -> tuple[slice, slice]:
        """The rows and columns of the image in which ``coverage`` lies."""
        height, width = self.coverage.shape
        return slice(self.top, self.top + height), slice(self.left, self.left + width)


def random_coverage(label: int, diameter: float, rng: np.random.Generator) -> NDArray[np.uint8]:
    """Return the coverage of a shape that is rotated and stretched at random, [h,w] uint8."""
    side = math.ceil(diameter * STRETCH[1]) + 2
    angle = rng.uniform(0, math.tau)
    stretch = rng.uniform(*STRETCH)
    cos, sin = math.cos(angle), math.sin(angle)
    rotation = np.array([(cos, sin), (-sin, cos)])
    transform = np.diag([stretch, 1 / stretch]) @ rotation * (diameter / 2)
    # The shape is drawn at several times its size and reduced, which gives partial coverage.
    canvas = Image.new("L", (side * SUPERSAMPLING, side * SUPERSAMPLING))
    outlines = tuple(SHAPES.values())[label]
    for outline, value in zip(outlines, (255, 0)):  # the second outline is a hole
        points = (outline @ transform + side / 2) * SUPERSAMPLING
        ImageDraw.Draw(canvas).polygon(points.ravel().tolist(), fill=value)
    return np.asarray(canvas.reduce(SUPERSAMPLING))
