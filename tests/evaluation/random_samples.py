"""Random nuScenes samples: ground truth, and the predictions of a mediocre detector."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from scipy.spatial.transform import Rotation

from groupdetr.data.nuscenes.names import ATTRIBUTES
from groupdetr.evaluation.boxes3d import CLASSES, Boxes3D
from groupdetr.evaluation.nuscenes import SampleGroundTruth

SECONDS = 0.5  # between samples


@dataclass(frozen=True)
class RandomSamples:
    """Successive samples of one drive."""

    tokens: list[str]
    ground_truth: list[SampleGroundTruth]
    instances: list[np.ndarray]  # [T] of each sample: the object that each box belongs to


def quaternions(yaws: np.ndarray, tilt: np.ndarray) -> np.ndarray:
    """Return [D,4] w,x,y,z. ``tilt`` [D,2] is that of the ground, which is never quite level."""
    return Rotation.from_euler("zyx", np.column_stack([yaws, tilt])).as_quat(scalar_first=True)


def boxes(
    centres: Sequence[Sequence[float]], label: int | Sequence[int] = 0, **columns: object
) -> Boxes3D:
    """Return boxes of 2 x 4 x 1.5 m that stand still and head along x, except for ``columns``."""
    count = len(centres)
    default = Boxes3D(
        centres=np.array(centres, dtype=float).reshape(count, 3),
        sizes=np.tile([2.0, 4.0, 1.5], (count, 1)),
        rotations=np.tile([1.0, 0, 0, 0], (count, 1)),
        velocities=np.zeros((count, 2)),
        labels=np.broadcast_to(label, count).astype(np.int64),
        attributes=np.full(count, ""),
    )
    return replace(default, **{name: np.array(column) for name, column in columns.items()})


def random_samples(
    seed: int, samples: int = 6, objects: int = 90, classes: Sequence[int] = range(10)
) -> RandomSamples:
    """Return objects that appear, move and disappear.

    Some are out of range, without points or attribute, or cycles in a rack.
    """
    rng = np.random.default_rng(seed)
    egos = np.array([[600 + 2.0 * i, 1600 + 0.5 * i, 0.3] for i in range(samples)])
    labels = rng.choice(classes, objects)
    first_positions = egos[0, :2] + rng.uniform(-45, 45, (objects, 2))
    velocity = rng.normal(0, 4, (objects, 2))
    times = SECONDS * np.arange(samples)
    positions = first_positions + velocity * times[:, None, None]  # [samples,objects,2]
    positions += rng.normal(0, 0.1, positions.shape)

    first_sample = rng.integers(0, samples, objects)
    end_sample = first_sample + rng.integers(1, samples + 1, objects)
    indices = np.arange(samples)[:, None]
    present = (indices >= first_sample) & (indices < end_sample)  # [samples,objects]

    sizes = rng.uniform(0.5, 5, (objects, 3))
    yaws = rng.uniform(-np.pi, np.pi, objects)
    rotations = quaternions(yaws, rng.normal(0, 0.03, (objects, 2)))
    ground_truth, instances = [], []
    for i in range(samples):
        objects_of_sample = np.flatnonzero(present[i])
        count = len(objects_of_sample)
        truth = Boxes3D(
            centres=np.column_stack([positions[i, objects_of_sample], rng.normal(0.8, 0.3, count)]),
            sizes=sizes[objects_of_sample],
            rotations=rotations[objects_of_sample],
            velocities=annotated_velocities(positions, present, i)[objects_of_sample],
            labels=labels[objects_of_sample],
            attributes=rng.choice([*ATTRIBUTES, ""], count),
            points=rng.choice([0, 1, 40], count, p=[0.1, 0.4, 0.5]),
        )
        ground_truth.append(SampleGroundTruth(egos[i], truth, bicycle_racks(rng, truth)))
        instances.append(objects_of_sample)
    return RandomSamples([f"sample{i}" for i in range(samples)], ground_truth, instances)


def annotated_velocities(positions: np.ndarray, present: np.ndarray, i: int) -> np.ndarray:
    """Return [objects,2] from the samples before and after, as nuScenes defines velocities.

    The velocity of an object that is in a single sample is nan.
    """
    next_sample = min(i + 1, len(present) - 1)
    before = np.where(present[i - 1] & (i > 0), i - 1, i)
    after = np.where(present[next_sample], next_sample, i)
    objects = np.arange(positions.shape[1])
    distance = positions[after, objects] - positions[before, objects]
    seconds = (after - before) * SECONDS
    with np.errstate(invalid="ignore"):
        return distance / seconds[:, None]


def bicycle_racks(rng: np.random.Generator, truth: Boxes3D) -> Boxes3D:
    """Return two racks, each around a cycle."""
    names = [CLASSES[label].name for label in truth.labels]
    cycles = np.flatnonzero(np.isin(names, ["bicycle", "motorcycle"]))
    centres = truth.centres[rng.permutation(cycles)[:2]]
    count = len(centres)
    rotations = quaternions(rng.uniform(-np.pi, np.pi, count), rng.normal(0, 0.03, (count, 2)))
    return boxes(
        centres + rng.normal(0, 0.5, centres.shape),
        sizes=np.tile([3, 8, 2], (count, 1)),
        rotations=rotations,
    )


def random_predictions(seed: int, samples: RandomSamples, noise: float = 1.0) -> list[Boxes3D]:
    """Return noisy copies of the ground truth. Some have a wrong class, and scores tie often."""
    rng = np.random.default_rng(seed + 1000)
    return [_noisy_copies(rng, truth.boxes, noise) for truth in samples.ground_truth]


def _noisy_copies(rng: np.random.Generator, truth: Boxes3D, noise: float) -> Boxes3D:
    copies = truth[rng.integers(0, max(len(truth), 1), 2 * len(truth))]
    count = len(copies)
    yaws = copies.yaws() + rng.normal(0, 0.5 * noise, count) + np.pi * (rng.random(count) < 0.1)
    velocities = copies.velocities + rng.normal(0, 1, (count, 2))
    velocities[rng.random(count) < 0.2] = np.nan
    wrong_class = rng.random(count) < 0.1
    return replace(
        copies,
        centres=copies.centres + rng.normal(0, noise, (count, 3)),
        sizes=copies.sizes * np.exp(rng.normal(0, 0.2, (count, 3))),
        rotations=quaternions(yaws, rng.normal(0, 0.03, (count, 2))),
        velocities=velocities,
        labels=np.where(wrong_class, rng.integers(0, 10, count), copies.labels),
        attributes=np.where(
            rng.random(count) < 0.5, copies.attributes, rng.choice([*ATTRIBUTES, ""], count)
        ),
        scores=rng.integers(0, 21, count) / 20,
        points=None,
    )
