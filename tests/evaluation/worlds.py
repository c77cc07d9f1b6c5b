"""Random nuScenes samples: what is there, and what a mediocre detector would find."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from scipy.spatial.transform import Rotation

from groupdetr.data.nuscenes.names import ATTRIBUTES
from groupdetr.evaluation.boxes3d import CLASSES, Boxes3D
from groupdetr.evaluation.nuscenes import Scene

SECONDS = 0.5  # between samples


@dataclass(frozen=True)
class World:
    """Successive samples of one drive."""

    tokens: list[str]
    scenes: list[Scene]
    instances: list[np.ndarray]  # [T] of each sample: which object a true box is of


def quaternions(yaws: np.ndarray, tilt: np.ndarray) -> np.ndarray:
    """[D,4] w,x,y,z; the ground is never quite level."""
    return Rotation.from_euler("zyx", np.column_stack([yaws, tilt])).as_quat(scalar_first=True)


def boxes(
    centres: Sequence[Sequence[float]], label: int | Sequence[int] = 0, **columns: object
) -> Boxes3D:
    """Boxes of 2 x 4 x 1.5 m that stand still and look along x, unless ``columns`` say otherwise."""
    count = len(centres)
    plain = Boxes3D(
        centres=np.array(centres, dtype=float).reshape(count, 3),
        sizes=np.tile([2.0, 4.0, 1.5], (count, 1)),
        rotations=np.tile([1.0, 0, 0, 0], (count, 1)),
        velocities=np.zeros((count, 2)),
        labels=np.broadcast_to(label, count).astype(np.int64),
        attributes=np.full(count, ""),
    )
    return replace(plain, **{name: np.array(column) for name, column in columns.items()})


def random_world(
    seed: int, samples: int = 6, objects: int = 90, classes: Sequence[int] = range(10)
) -> World:
    """Objects come, move and go; some are out of reach, without points or attribute, or cycles in a rack."""
    rng = np.random.default_rng(seed)
    egos = np.array([[600 + 2.0 * i, 1600 + 0.5 * i, 0.3] for i in range(samples)])
    labels = rng.choice(classes, objects)
    start, velocity = rng.uniform(-45, 45, (objects, 2)), rng.normal(0, 4, (objects, 2))
    places = (
        egos[0, :2] + start + velocity * SECONDS * np.arange(samples)[:, None, None]
    )  # [samples,objects,2]
    places += rng.normal(0, 0.1, places.shape)
    born = rng.integers(0, samples, objects)
    alive = (np.arange(samples)[:, None] >= born) & (
        np.arange(samples)[:, None] < born + rng.integers(1, samples + 1, objects)
    )
    sizes, yaws = rng.uniform(0.5, 5, (objects, 3)), rng.uniform(-np.pi, np.pi, objects)
    rotations = quaternions(yaws, rng.normal(0, 0.03, (objects, 2)))
    scenes, instances = [], []
    for i in range(samples):
        there = np.flatnonzero(alive[i])
        truth = Boxes3D(
            centres=np.column_stack([places[i, there], rng.normal(0.8, 0.3, len(there))]),
            sizes=sizes[there],
            rotations=rotations[there],
            velocities=speeds(places, alive, i)[there],
            labels=labels[there],
            attributes=rng.choice([*ATTRIBUTES, ""], len(there)),
            points=rng.choice([0, 1, 40], len(there), p=[0.1, 0.4, 0.5]),
        )
        scenes.append(Scene(egos[i], truth, racks(rng, truth)))
        instances.append(there)
    return World([f"sample{i}" for i in range(samples)], scenes, instances)


def speeds(places: np.ndarray, alive: np.ndarray, i: int) -> np.ndarray:
    """[objects,2] from the samples before and after, as nuScenes defines them; nan of objects that are seen once."""
    before = np.where(alive[i - 1] & (i > 0), i - 1, i)
    after = np.where(alive[min(i + 1, len(alive) - 1)], min(i + 1, len(alive) - 1), i)
    objects = np.arange(places.shape[1])
    with np.errstate(invalid="ignore"):
        return (places[after, objects] - places[before, objects]) / ((after - before) * SECONDS)[
            :, None
        ]


def racks(rng: np.random.Generator, truth: Boxes3D) -> Boxes3D:
    """Two racks, each about a cycle."""
    cycles = np.flatnonzero(
        np.isin([CLASSES[label].name for label in truth.labels], ["bicycle", "motorcycle"])
    )
    around = truth.centres[rng.permutation(cycles)[:2]]
    turned = quaternions(
        rng.uniform(-np.pi, np.pi, len(around)), rng.normal(0, 0.03, (len(around), 2))
    )
    return boxes(
        around + rng.normal(0, 0.5, around.shape),
        sizes=np.tile([3, 8, 2], (len(around), 1)),
        rotations=turned,
    )


def guesses(seed: int, world: World, noise: float = 1.0) -> list[Boxes3D]:
    """What is there, moved, turned, resized, doubled and mistaken; scores tie often."""
    rng = np.random.default_rng(seed + 1000)
    return [_guess(rng, scene.truth, noise) for scene in world.scenes]


def _guess(rng: np.random.Generator, truth: Boxes3D, noise: float) -> Boxes3D:
    copies = truth[rng.integers(0, max(len(truth), 1), 2 * len(truth))]
    count = len(copies)
    yaws = copies.yaws() + rng.normal(0, 0.5 * noise, count) + np.pi * (rng.random(count) < 0.1)
    velocities = copies.velocities + rng.normal(0, 1, (count, 2))
    velocities[rng.random(count) < 0.2] = np.nan
    mistaken = rng.random(count) < 0.1
    return replace(
        copies,
        centres=copies.centres + rng.normal(0, noise, (count, 3)),
        sizes=copies.sizes * np.exp(rng.normal(0, 0.2, (count, 3))),
        rotations=quaternions(yaws, rng.normal(0, 0.03, (count, 2))),
        velocities=velocities,
        labels=np.where(mistaken, rng.integers(0, 10, count), copies.labels),
        attributes=np.where(
            rng.random(count) < 0.5, copies.attributes, rng.choice([*ATTRIBUTES, ""], count)
        ),
        scores=rng.integers(0, 21, count) / 20,
        points=None,
    )
