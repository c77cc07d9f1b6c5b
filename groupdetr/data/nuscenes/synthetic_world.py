"""A small town square that never ends: a car drives around it, and everything that moves goes around it too.

So all objects stay within the reach of their class for as long as a scene lasts. Lengths are metres, angles radians,
times seconds.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from groupdetr.data.nuscenes.geometry import about_z, embedded
from groupdetr.data.nuscenes.names import CLASSES
from groupdetr.data.records import Floats

DRIVING = 9.0  # radius of the circle that the car with the cameras drives on
RINGS = {
    "near": (13.5, 16.5),
    "far": (18.5, 24.0),
}  # what stands, and what moves: cones are seen 30 m far
STANDING = ("barrier", "traffic_cone")

SIZES = {  # width, length, height
    "car": (1.9, 4.6, 1.7),
    "truck": (2.5, 6.9, 2.8),
    "construction_vehicle": (2.8, 6.4, 3.2),
    "bus": (2.9, 10.5, 3.5),
    "trailer": (2.8, 9.0, 3.6),
    "barrier": (2.5, 0.6, 1.0),
    "motorcycle": (0.8, 2.1, 1.5),
    "bicycle": (0.6, 1.7, 1.3),
    "pedestrian": (0.7, 0.7, 1.8),
    "traffic_cone": (0.5, 0.5, 1.1),
}
SPEEDS = {"pedestrian": (0.8, 1.6), "bicycle": (2.0, 4.0)}
_SPEED = (2.0, 6.0)  # of vehicles, metres a second


@dataclass(frozen=True)
class Orbit:
    """A way around the square; at speed 0 a place."""

    radius: float
    angle: float  # at time 0
    speed: float  # counter-clockwise

    def pose(self, time: float, height: float = 0.0) -> Floats:
        """[4,4] with x along the way."""
        angle = self.angle + self.speed / self.radius * time
        pose = embedded(about_z(angle + math.pi / 2))
        pose[:3, 3] = self.radius * math.cos(angle), self.radius * math.sin(angle), height
        return pose


@dataclass(frozen=True)
class Thing:
    """An object of a scene."""

    name: str  # of CLASSES
    size: tuple[float, float, float]  # width, length, height
    orbit: Orbit
    heading: float = 0.0  # how it stands, turned from along its way

    @property
    def moves(self) -> bool:
        return self.orbit.speed != 0

    @property
    def attribute(self) -> str:
        """What is said of it; empty for what cannot move."""
        if self.name in ("bicycle", "motorcycle"):
            return "cycle.with_rider" if self.moves else "cycle.without_rider"
        if self.name == "pedestrian":
            return "pedestrian.moving" if self.moves else "pedestrian.standing"
        if self.name in STANDING:
            return ""
        return (
            "vehicle.moving"
            if self.moves
            else "vehicle.stopped"
            if self.name == "bus"
            else "vehicle.parked"
        )

    def pose(self, time: float) -> Floats:
        """[4,4] of its centre in the square, x along its length."""
        return self.orbit.pose(time, self.size[2] / 2) @ embedded(about_z(self.heading))


@dataclass(frozen=True)
class World:
    """A scene: the car and the things around it, in a frame that lies somewhere in the world."""

    car: Orbit
    things: tuple[Thing, ...]
    place: Floats  # [4,4]

    def vehicle(self, time: float) -> Floats:
        """[4,4] of the car in the world, x ahead."""
        return self.place @ self.car.pose(time)

    def pose(self, thing: Thing, time: float) -> Floats:
        """[4,4] of a thing in the world."""
        return self.place @ thing.pose(time)


def world(rng: np.random.Generator) -> World:
    """All ten classes; half of the things move, one of each class that can."""
    movable = [name for name in CLASSES if name not in STANDING]
    still = [*STANDING, *rng.choice(movable, len(movable) - len(STANDING)).tolist()]
    place = embedded(about_z(rng.uniform(-math.pi, math.pi)))
    place[:2, 3] = rng.uniform(400, 1800, 2)
    car = Orbit(DRIVING, rng.uniform(0, math.tau), rng.uniform(2, 5))
    things = [*_ring(still, "near", False, rng), *_ring(movable, "far", True, rng)]
    return World(car, tuple(things), place)


def _ring(names: list[str], ring: str, moving: bool, rng: np.random.Generator) -> list[Thing]:
    """Things in slots around the square."""
    slots = math.tau * (rng.permutation(len(names)) + rng.uniform(0, 1)) / len(names)
    return [_thing(name, float(slot), ring, moving, rng) for name, slot in zip(names, slots)]


def _thing(name: str, angle: float, ring: str, moving: bool, rng: np.random.Generator) -> Thing:
    width, length, height = (float(side * rng.uniform(0.9, 1.1)) for side in SIZES[name])
    speed = rng.uniform(*SPEEDS.get(name, _SPEED)) if moving else 0.0
    heading = 0.0 if moving else rng.uniform(-math.pi, math.pi)
    return Thing(
        name, (width, length, height), Orbit(rng.uniform(*RINGS[ring]), angle, speed), heading
    )
