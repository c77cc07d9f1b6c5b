"""Projections and boxes agree: at the centre of a visible box, the image has the box's colour."""

import json

import numpy as np
import torch
from PIL import Image
from scipy.spatial.transform import Rotation

from groupdetr.data.nuscenes.dataset import load_augmented
from groupdetr.data.nuscenes.geometry import project_points, rotation_matrices
from groupdetr.data.nuscenes.names import CAMERAS, CLASSES
from groupdetr.data.nuscenes.synthetic import VERSION
from groupdetr.data.nuscenes.transforms import Augmentation, petr_augmentation
from tests.data.nuscenes.conftest import class_of_pixel, corners_of, is_visible


def classes_at_centres(boxes, labels, lidar_to_image, images):
    """Return (class of the box, class by colour) of the centre of every visible box."""
    pairs = []
    for matrix, image in zip(lidar_to_image, images):
        camera = np.linalg.solve(matrix[:3, :3], -matrix[:3, 3])
        height, width = image.shape[:2]
        for index, (u, v, depth) in enumerate(project_points(matrix, boxes[:, :3])):
            in_image = depth > 1 and 0 <= u < width and 0 <= v < height
            if in_image and is_visible(camera, boxes, index):
                pixel = image[int(v), int(u)].astype(float)
                pairs.append((CLASSES[labels[index]], class_of_pixel(pixel)))
    return pairs


def agreement(pairs):
    return np.mean([expected == actual for expected, actual in pairs])


def load_images(frame):
    return [np.asarray(Image.open(path)) for path in frame.paths]


def test_the_centres_of_visible_boxes_have_the_colour_of_their_class(samples):
    pairs = []
    for sample in samples:
        frame = sample.frame()
        boxes, labels = sample.truth.boxes, sample.truth.labels
        pairs += classes_at_centres(boxes, labels, frame.lidar_to_image, load_images(frame))
    assert len(pairs) > 40
    assert {expected for expected, _ in pairs} == {*CLASSES}
    assert agreement(pairs) > 0.97


def test_they_have_it_after_augmentation_too(samples):
    generator = torch.Generator().manual_seed(0)
    pairs = []
    flips = set()
    for sample in samples:
        augmentation = petr_augmentation(generator)
        flips.add(augmentation.flip)
        pixels, matrices = load_augmented(sample.frame(), augmentation, (160, 400))
        boxes = augmentation.transform_boxes(sample.truth.boxes)
        images = pixels.permute(0, 2, 3, 1).numpy()
        pairs += classes_at_centres(boxes, sample.truth.labels, matrices, images)
    assert flips == {True, False}
    assert len(pairs) > 30
    assert agreement(pairs) > 0.95


def test_earlier_frames_are_projected_from_the_lidar_of_the_key_frame(samples):
    """Boxes that stand are at the same place, although the car has moved.

    Boxes that move are shifted back to where they were at the time of the earlier frame.
    """
    sample = samples[2]
    pairs = []
    for index in range(len(sample.earlier_indices)):
        frame = sample.earlier_frame(index)
        boxes = sample.truth.boxes.copy()
        boxes[:, :2] -= boxes[:, 7:] * frame.ages(sample.time).mean()
        labels = sample.truth.labels
        pairs += classes_at_centres(boxes, labels, frame.lidar_to_image, load_images(frame))
    assert len(pairs) > 50
    assert agreement(pairs) > 0.95


def test_projections_are_the_chain_of_poses_in_the_tables(root, samples):
    """From the lidar over the ego pose at its time, the global frame, the ego pose at the camera's
    time and the camera to the image."""
    tables = {}
    for name in ("sample_data", "ego_pose", "calibrated_sensor", "sensor"):
        rows = json.loads((root / VERSION / f"{name}.json").read_text())
        tables[name] = {row["token"]: row for row in rows}
    sample = samples[1]
    points = np.random.default_rng(0).uniform(-40, 40, (20, 3))
    data_by_channel = {}
    for row in tables["sample_data"].values():
        if row["sample_token"] == sample.token and row["is_key_frame"]:
            calibration = tables["calibrated_sensor"][row["calibrated_sensor_token"]]
            channel = tables["sensor"][calibration["sensor_token"]]["channel"]
            data_by_channel[channel] = row

    def rotations_and_translations(row):
        """From the sensor to the vehicle, and from the vehicle to the global frame."""
        calibration = tables["calibrated_sensor"][row["calibrated_sensor_token"]]
        ego_pose = tables["ego_pose"][row["ego_pose_token"]]
        steps = []
        for record in (calibration, ego_pose):
            rotation = Rotation.from_quat(record["rotation"], scalar_first=True)
            steps.append((rotation, np.array(record["translation"])))
        return steps

    global_points = points
    for rotation, translation in rotations_and_translations(data_by_channel["LIDAR_TOP"]):
        global_points = rotation.apply(global_points) + translation
    for camera, matrix in zip(CAMERAS, sample.frame().lidar_to_image):
        row = data_by_channel[camera]
        camera_points = global_points
        for rotation, translation in reversed(rotations_and_translations(row)):
            camera_points = rotation.inv().apply(camera_points - translation)
        calibration = tables["calibrated_sensor"][row["calibrated_sensor_token"]]
        expected = camera_points @ np.array(calibration["camera_intrinsic"]).T
        assert np.allclose(points @ matrix[:3, :3].T + matrix[:3, 3], expected, atol=1e-7)


def test_rotating_and_scaling_the_world_leaves_every_corner_on_its_pixel(samples):
    random_values = petr_augmentation(torch.Generator().manual_seed(0))
    augmentation = Augmentation(rotation=random_values.rotation, scale=random_values.scale)
    assert abs(augmentation.rotation) > 0.01
    boxes, matrices = samples[0].truth.boxes, samples[0].frame().lidar_to_image
    augmented_boxes = augmentation.transform_boxes(boxes)
    for before, after in zip(matrices, augmentation.transform_projections(matrices)):
        for box, augmented_box in zip(boxes, augmented_boxes):
            old = project_points(before, corners_of(box))
            new = project_points(after, corners_of(augmented_box))
            in_front = old[:, 2] > 0.5
            assert np.abs(old - new)[in_front].max(initial=0) < 1e-9


def test_velocity_is_rotated_and_scaled_with_the_world():
    boxes = np.array([[3.0, 4, 0, 1, 2, 1, 0.5, 2 * np.cos(0.5), 2 * np.sin(0.5)]])
    (box,) = Augmentation(rotation=0.3, scale=1.05).transform_boxes(boxes)
    assert np.allclose(box[7:], 2.1 * np.array([np.cos(0.8), np.sin(0.8)]))
    assert np.allclose(box[3:7], [1.05, 2.1, 1.05, 0.8])


def test_rotation_matrices_equal_those_of_scipy():
    quaternions = np.random.default_rng(0).normal(size=(5, 4))
    expected = Rotation.from_quat(quaternions, scalar_first=True).as_matrix()
    assert np.allclose(rotation_matrices(quaternions), expected)
