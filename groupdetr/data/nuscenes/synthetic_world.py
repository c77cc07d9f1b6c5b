"""The world of the synthetic nuScenes: a town square around which the car and objects drive.

Everything that moves drives in circles, so all objects stay within the evaluated range of their
class for any length of a scene. Lengths are in metres, angles in radians, times in seconds.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from groupdetr.data.nuscenes.geometry import rotation_about_z, to_homogeneous
from groupdetr.data.nuscenes.names import CLASSES
from groupdetr.data.records import Floats

CAR_RADIUS = 9.0  # of the circle on which the car with the cameras drives
# Smallest and largest distance from the middle of the square, of objects that stand and of objects
# that move. Traffic cones are evaluated up to 30 m from the car.
STANDING_RADII = (13.5, 16.5)
MOVING_RADII = (18.5, 24.0)
STATIC_CLASSES = ("barrier", "traffic_cone")  # these never move

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
# Smallest and largest speed in metres per second.
SPEEDS = {"pedestrian": (0.8, 1.6), "bicycle": (2.0, 4.0)}
_DEFAULT_SPEEDS = (2.0, 6.0)


@dataclass(frozen=True)
class Orbit:
    """A circle around the square on which something moves. With speed 0 it is a position."""

    radius: float
    angle: float  # at time 0
    speed: float  # counter-clockwise

    def pose(self, time: float, height: float = 0.0) -> Floats:
        """Return the pose [4,4] at a time, with x along the direction of motion."""
        angle = self.angle + self.speed / self.radius * time
        pose = to_homogeneous(rotation_about_z(angle + math.pi / 2))
        pose[:3, 3] = self.radius * math.cos(angle), self.radius * math.sin(angle), height
        return pose


@dataclass(frozen=True)
class WorldObject:
    """An object of a scene."""

    name: str  # one of CLASSES
    size: tuple[float, float, float]  # width, length, height
    orbit: Orbit
    heading: float = 0.0  # angle from the direction of motion to the x axis of the object

    @property
    def moves(self) -> bool:
        return self.orbit.speed != 0

    @property
    def attribute(self) -> str:
        """The attribute that nuScenes gives to such an object; empty for static classes."""
        if self.name in ("bicycle", "motorcycle"):
            return "cycle.with_rider" if self.moves else "cycle.without_rider"
        if self.name == "pedestrian":
            return "pedestrian.moving" if self.moves else "pedestrian.standing"
        if self.name in STATIC_CLASSES:
            return ""
        if self.moves:
            return "vehicle.moving"
        return "vehicle.stopped" if self.name == "bus" else "vehicle.parked"

    def pose(self, time: float) -> Floats:
        """Return the pose [4,4] of its centre in the square, with x along its length."""
        heading = to_homogeneous(rotation_about_z(self.heading))
        return self.orbit.pose(time, self.size[2] / 2) @ heading


@dataclass(frozen=True)
class World:
    """The car and the objects of a scene, on a square that is somewhere in the global frame."""

    car: Orbit
    objects: tuple[WorldObject, ...]
    square_to_global: Floats  # [4,4]

    def car_pose(self, time: float) -> Floats:
        """Return the pose [4,4] of the car in the global frame, with x ahead."""
        return self.square_to_global @ self.car.pose(time)

    def object_pose(self, world_object: WorldObject, time: float) -> Floats:
        """Return the pose [4,4] of an object in the global frame."""
        return self.square_to_global @ world_object.pose(time)


def random_world(rng: np.random.Generator) -> World:
    """Return a world with objects of all ten classes.

    Half of the objects move, one of each class that can.
    """
    movable = [name for name in CLASSES if name not in STATIC_CLASSES]
    parked = rng.choice(movable, len(movable) - len(STATIC_CLASSES)).tolist()
    standing = [*STATIC_CLASSES, *parked]
    square_to_global = to_homogeneous(rotation_about_z(rng.uniform(-math.pi, math.pi)))
    square_to_global[:2, 3] = rng.uniform(400, 1800, 2)
    car = Orbit(CAR_RADIUS, rng.uniform(0, math.tau), rng.uniform(2, 5))
    objects = [
        *_random_ring(standing, False, rng),
        *_random_ring(movable, True, rng),
    ]
    return World(car, tuple(objects), square_to_global)


def _random_ring(names: list[str], moving: bool, rng: np.random.Generator) -> list[WorldObject]:
    """Return objects of the given classes at equal angles around the square, in random order."""
    slots = rng.permutation(len(names))
    # A common random offset turns all slots. The scalar draw comes after the permutation.
    angles = math.tau * (slots + rng.uniform(0, 1)) / len(names)
    return [_random_object(name, float(angle), moving, rng) for name, angle in zip(names, angles)]


def _random_object(name: str, angle: float, moving: bool, rng: np.random.Generator) -> WorldObject:
    width, length, height = (float(side * rng.uniform(0.9, 1.1)) for side in SIZES[name])
    if moving:
        speed = rng.uniform(*SPEEDS.get(name, _DEFAULT_SPEEDS))
        heading = 0.0
        radius = rng.uniform(*MOVING_RADII)
    else:
        speed = 0.0
        heading = rng.uniform(-math.pi, math.pi)
        radius = rng.uniform(*STANDING_RADII)
    return WorldObject(name, (width, length, height), Orbit(radius, angle, speed), heading)
