"""Claims about where things are, proven on the pixels of drawn pictures."""

import json

import numpy as np
import pytest
import torch
from PIL import Image
from scipy.spatial.transform import Rotation

from groupdetr.data.nuscenes.dataset import placed
from groupdetr.data.nuscenes.geometry import about_z, inverse, poses, projected, rotations, yaw
from groupdetr.data.nuscenes.names import CAMERAS, CLASSES
from groupdetr.data.nuscenes.synthetic import VERSION
from groupdetr.data.nuscenes.transforms import Augmentation, published
from tests.data.nuscenes.conftest import corners_of, in_sight, painted


def seen_centres(boxes, labels, lidar_to_image, pictures):
    """(class, colour) of every centre in sight of each view: what it should be and what it is."""
    pairs = []
    for matrix, picture in zip(lidar_to_image, pictures):
        eye = np.linalg.solve(matrix[:3, :3], -matrix[:3, 3])
        height, width = picture.shape[:2]
        for which, (u, v, depth) in enumerate(projected(matrix, boxes[:, :3])):
            if depth > 1 and 0 <= u < width and 0 <= v < height and in_sight(eye, boxes, which):
                pairs.append(
                    (CLASSES[labels[which]], painted(picture[int(v), int(u)].astype(float)))
                )
    return pairs


def agreement(pairs):
    return np.mean([wanted == found for wanted, found in pairs])


def loaded(frame):
    return [np.asarray(Image.open(path)) for path in frame.paths]


def test_the_centres_of_boxes_in_sight_have_the_colour_of_their_class(samples):
    pairs = []
    for sample in samples:
        frame = sample.frame()
        pairs += seen_centres(
            sample.truth.boxes, sample.truth.labels, frame.lidar_to_image, loaded(frame)
        )
    assert len(pairs) > 40
    assert {wanted for wanted, _ in pairs} == {*CLASSES}
    assert agreement(pairs) > 0.97


def test_they_have_it_after_augmentation_too(samples):
    generator, pairs, flips = torch.Generator().manual_seed(0), [], set()
    for sample in samples:
        augmentation = published(generator)
        flips.add(augmentation.flip)
        pixels, matrices = placed(sample.frame(), augmentation, (160, 400))
        boxes = augmentation.boxes(sample.truth.boxes)
        pairs += seen_centres(
            boxes, sample.truth.labels, matrices, pixels.permute(0, 2, 3, 1).numpy()
        )
    assert flips == {True, False}
    assert len(pairs) > 30
    assert agreement(pairs) > 0.95


def test_earlier_frames_are_seen_from_the_lidar_of_now(samples):
    """What stands is where it was, although the car has driven on; what moves is put back to where it was then."""
    sample, pairs = samples[2], []
    for index in range(len(sample.earlier)):
        frame = sample.frame_before(index)
        then = sample.truth.boxes.copy()
        then[:, :2] -= then[:, 7:] * frame.ages(sample.time).mean()
        pairs += seen_centres(then, sample.truth.labels, frame.lidar_to_image, loaded(frame))
    assert len(pairs) > 50
    assert agreement(pairs) > 0.95


def test_the_chain_of_poses_is_that_of_the_tables(root, samples):
    """lidar, vehicle at the lidar's time, world, vehicle at the camera's time, camera, picture."""
    tables = {
        name: {
            row["token"]: row for row in json.loads((root / VERSION / f"{name}.json").read_text())
        }
        for name in ("sample_data", "ego_pose", "calibrated_sensor", "sensor")
    }
    sample, points = samples[1], np.random.default_rng(0).uniform(-40, 40, (20, 3))
    data = {
        tables["sensor"][
            tables["calibrated_sensor"][row["calibrated_sensor_token"]]["sensor_token"]
        ]["channel"]: row
        for row in tables["sample_data"].values()
        if row["sample_token"] == sample.token and row["is_key_frame"]
    }

    def steps(row):
        records = (
            tables["calibrated_sensor"][row["calibrated_sensor_token"]],
            tables["ego_pose"][row["ego_pose_token"]],
        )
        return [
            (Rotation.from_quat(r["rotation"], scalar_first=True), np.array(r["translation"]))
            for r in records
        ]

    world = points
    for rotation, translation in steps(data["LIDAR_TOP"]):
        world = rotation.apply(world) + translation
    for camera, matrix in zip(CAMERAS, sample.frame().lidar_to_image):
        seen = world
        for rotation, translation in reversed(steps(data[camera])):
            seen = rotation.inv().apply(seen - translation)
        intrinsic = tables["calibrated_sensor"][data[camera]["calibrated_sensor_token"]][
            "camera_intrinsic"
        ]
        seen = seen @ np.array(intrinsic).T
        assert np.allclose(points @ matrix[:3, :3].T + matrix[:3, 3], seen, atol=1e-7)


@pytest.mark.parametrize("seed", range(3))
def test_turning_and_scaling_the_world_leaves_every_corner_on_its_pixel(samples, seed):
    generator = torch.Generator().manual_seed(seed)
    drawn = published(generator)
    augmentation = Augmentation(turn=drawn.turn, scale=drawn.scale)
    assert abs(drawn.turn) > 0.01
    boxes, matrices = samples[0].truth.boxes, samples[0].frame().lidar_to_image
    put = augmentation.boxes(boxes)
    for before, after in zip(matrices, augmentation.views(matrices)):
        for box, moved in zip(boxes, put):
            old, new = projected(before, corners_of(box)), projected(after, corners_of(moved))
            front = old[:, 2] > 0.5
            assert np.abs(old - new)[front].max(initial=0) < 1e-9


def test_velocity_turns_and_scales_with_the_world():
    boxes = np.array([[3.0, 4, 0, 1, 2, 1, 0.5, 2 * np.cos(0.5), 2 * np.sin(0.5)]])
    (put,) = Augmentation(turn=0.3, scale=1.05).boxes(boxes)
    assert np.allclose(put[7:], 2.1 * np.array([np.cos(0.8), np.sin(0.8)]))
    assert np.allclose(put[3:7], [1.05, 2.1, 1.05, 0.8])


def test_quaternions_become_the_matrices_that_others_make_of_them():
    quaternions = np.random.default_rng(0).normal(size=(5, 4))
    assert np.allclose(
        rotations(quaternions), Rotation.from_quat(quaternions, scalar_first=True).as_matrix()
    )


def test_the_inverse_of_a_pose_undoes_it():
    rng = np.random.default_rng(0)
    pose = poses(rng.normal(size=(5, 3)), rng.normal(size=(5, 4)))
    assert np.allclose(inverse(pose) @ pose, np.eye(4))


def test_yaw_is_the_angle_about_z():
    angles = np.linspace(-3, 3, 7)
    assert np.allclose(yaw(about_z(angles)), angles)
