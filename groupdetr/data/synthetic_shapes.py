"""The shapes that are the synthetic classes: their outlines, and the pixels that one covers.

Arrays are polygons inside the unit circle, y down; a second one is a hole. No shape can be turned and slightly
stretched into another, so that the name is in the shape.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw

Array = npt.NDArray[Any]

SUPERSAMPLING = 4
STRETCH = (0.87, 1.15)  # of one axis; the other axis gets the inverse


def _rounded(corners: Array, radius: float = 0.12) -> Array:
    """Polygon [P,2] with its corners cut round [5P,2]: sharp ones look torn in a small picture."""
    before, after = np.roll(corners, 1, 0) - corners, np.roll(corners, -1, 0) - corners
    start = corners + radius * before / np.linalg.norm(before, axis=1, keepdims=True)
    end = corners + radius * after / np.linalg.norm(after, axis=1, keepdims=True)
    t = np.linspace(0, 1, 5)[None, :, None]
    curve = (1 - t) ** 2 * start[:, None] + 2 * t * (1 - t) * corners[:, None] + t**2 * end[:, None]
    return curve.reshape(-1, 2)


def _arc(start: float, end: float, radius: float = 1.0, x: float = 0.0) -> Array:
    angles = np.linspace(start, end, 40)
    return np.stack([x + radius * np.cos(angles), radius * np.sin(angles)], axis=1)


def _spokes(count: int, *radii: float) -> Array:
    """Corners at ``count`` equal angles from the top, at these radii in turn."""
    angles = np.arange(count) * math.tau / count - math.pi / 2
    return np.resize(radii, count)[:, None] * np.stack([np.cos(angles), np.sin(angles)], axis=1)


def _heart() -> Array:
    t = np.linspace(0, math.tau, 48, endpoint=False)
    y = 13 * np.cos(t) - 5 * np.cos(2 * t) - 2 * np.cos(3 * t) - np.cos(4 * t)
    return _centred(np.stack([16 * np.sin(t) ** 3, -y], axis=1))


def _drop() -> Array:
    t = np.linspace(0, math.tau, 48, endpoint=False)
    return _centred(np.stack([np.sin(t) * np.abs(np.sin(t / 2)) ** 1.6, -1.15 * np.cos(t)], axis=1))


def _crescent() -> Array:
    tip, x = (
        0.8,
        0.5,
    )  # the angle at which the unit circle meets the circle around (x, 0) that is cut from it
    inner, radius = (
        math.atan2(math.sin(tip), math.cos(tip) - x),
        math.hypot(math.sin(tip), math.cos(tip) - x),
    )
    return _centred(
        np.concatenate([_arc(tip, math.tau - tip), _arc(-inner, inner - math.tau, radius, x)])
    )


def _cross() -> Array:
    quarter = np.array([(-1, -3), (1, -3), (1, -1)])
    turn = np.array([(0, 1), (-1, 0)])
    return _centred(
        np.concatenate([quarter @ np.linalg.matrix_power(turn, times) for times in range(4)])
    )


def _arrow() -> Array:
    return _centred(
        np.array(
            [(0, -3), (2.4, -0.3), (0.95, -0.3), (0.95, 3), (-0.95, 3), (-0.95, -0.3), (-2.4, -0.3)]
        )
    )


def _centred(outline: Array) -> Array:
    outline = outline - (outline.min(0) + outline.max(0)) / 2
    return outline / np.linalg.norm(outline, axis=1).max()


SHAPES: dict[str, tuple[Array, ...]] = {
    "circle": (_arc(0, math.tau),),
    "square": (
        _rounded(_centred(np.array([(-1, -1), (1, -1), (1, 1), (-1, 1)]))),
    ),  # stretched, it is a rectangle
    "triangle": (_rounded(_spokes(3, 1.0)),),
    "star": (_rounded(_spokes(10, 1.0, 0.45), 0.08),),
    "cross": (_rounded(_cross(), 0.08),),
    "ring": (_arc(0, math.tau), _arc(0, math.tau, 0.52)),
    "heart": (_heart(),),
    "crescent": (_crescent(),),
    "diamond": (
        _rounded(_spokes(4, 1.0, 0.5), 0.1),
    ),  # a slim rhombus: one as high as wide is a turned square
    "arrow": (_rounded(_arrow(), 0.08),),
    "drop": (_drop(),),
    "pentagon": (_rounded(_spokes(5, 1.0)),),
}


@dataclass(frozen=True)
class Piece:
    """An object at its place."""

    label: int
    coverage: Array  # [h,w] uint8: how much of each pixel it covers
    top: int
    left: int

    @property
    def mask(self) -> Array:
        mask: Array = self.coverage >= 128
        return mask

    @property
    def window(self) -> tuple[slice, slice]:
        height, width = self.coverage.shape
        return slice(self.top, self.top + height), slice(self.left, self.left + width)


def coverage(label: int, diameter: float, rng: np.random.Generator) -> Array:
    """The shape turned and stretched at random, [h,w] uint8."""
    side = math.ceil(diameter * STRETCH[1]) + 2
    angle, stretch = rng.uniform(0, math.tau), rng.uniform(*STRETCH)
    rotation = np.array([(math.cos(angle), math.sin(angle)), (-math.sin(angle), math.cos(angle))])
    transform = np.diag([stretch, 1 / stretch]) @ rotation * (diameter / 2)
    canvas = Image.new("L", (side * SUPERSAMPLING, side * SUPERSAMPLING))
    for outline, ink in zip(tuple(SHAPES.values())[label], (255, 0)):
        points = (outline @ transform + side / 2) * SUPERSAMPLING
        ImageDraw.Draw(canvas).polygon(points.ravel().tolist(), fill=ink)
    return np.asarray(canvas.reduce(SUPERSAMPLING))
