"""From a detector's boxes in the lidar frame to the results file, and back."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import fields
from itertools import product
from pathlib import Path

import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from groupdetr.errors import DataError
from groupdetr.evaluation.boxes3d import CLASSES, Pose, ground_truth_boxes, predicted_boxes
from groupdetr.evaluation.nuscenes import SampleGroundTruth
from groupdetr.evaluation.nuscenes_results import (
    MAX_BOXES,
    read_results,
    to_results,
    write_results,
)
from groupdetr.files.writing import WriteError
from tests.evaluation.random_samples import boxes, random_predictions, random_samples

NAMES = [kind.name for kind in CLASSES]
LEVEL = Pose(np.eye(4), np.eye(4))


def transform(yaw: float, translation: list[float], tilt: float = 0.0) -> np.ndarray:
    matrix = np.eye(4)
    matrix[:3, :3] = Rotation.from_euler("zyx", [yaw, tilt, -tilt]).as_matrix()
    matrix[:3, 3] = translation
    return matrix


LIDAR_TO_EGO = transform(-np.pi / 2, [0.94, 0, 1.84])
POSE = Pose(LIDAR_TO_EGO, transform(0.7, [600, 1600, 0.2], tilt=0.02))


def test_a_box_ahead_of_the_lidar_is_ahead_of_the_vehicle() -> None:
    """The lidar of nuScenes points along y and the vehicle along x.

    This vehicle drives against the global x axis.
    """
    pose = Pose(transform(-np.pi / 2, [1, 0, 2]), transform(np.pi, [100, 200, 0]))
    box = predicted_boxes([[0, 20, -1, 2, 4, 1.5, np.pi / 2, 0, 5]], [0], [0.5], pose)
    np.testing.assert_allclose(box.centres, [[79, 200, 1]], atol=1e-9)
    np.testing.assert_allclose(np.abs(box.yaws()), [np.pi])
    np.testing.assert_allclose(box.velocities, [[-5, 0]], atol=1e-9)
    np.testing.assert_array_equal(box.sizes, [[2, 4, 1.5]])


def test_the_corners_of_a_box_are_transformed_from_the_lidar_frame_to_the_global_frame() -> None:
    row = np.array([3.0, -12, 0.5, 2, 4.5, 1.6, 2.1, 1.5, -0.5])
    signs = np.array(list(product((-1, 1), repeat=3)))
    corners = signs * row[[4, 3, 5]] / 2  # length, width, height
    local = corners @ Rotation.from_euler("z", row[6]).as_matrix().T + row[:3]
    expected = local @ POSE.lidar_to_global[:3, :3].T + POSE.lidar_to_global[:3, 3]

    box = predicted_boxes([row], [0], [1.0], POSE)
    rotation = Rotation.from_quat(box.rotations[0], scalar_first=True)
    np.testing.assert_allclose(rotation.apply(corners) + box.centres, expected, atol=1e-9)


def test_predictions_out_of_the_range_of_their_class_are_dropped() -> None:
    """The distance is that to the vehicle, not to the lidar 1 m ahead of its centre."""
    pose = Pose(transform(-np.pi / 2, [1, 0, 2]), transform(1.0, [100, 200, 0]))
    rows = [[0, y, 0, 1, 1, 1, 0, 0, 0] for y in (28.9, 29.1, 39.1, 49.1)]
    counts = {}
    for name in ("barrier", "bicycle", "bus"):
        counts[name] = len(predicted_boxes(rows, [NAMES.index(name)] * 4, [1.0] * 4, pose))
    assert counts == {"barrier": 1, "bicycle": 2, "bus": 3}
    assert len(ground_truth_boxes(rows, [5] * 4, [""] * 4, [1] * 4, pose)) == 4


def test_the_speed_decides_the_attribute() -> None:
    slow, fast, unknown = ([0, 5, 0, 1, 1, 1, 0, speed, 0] for speed in (0.19, 0.21, np.nan))
    vehicle = ["vehicle.parked", "vehicle.moving"]
    cycle = ["cycle.without_rider", "cycle.with_rider"]
    stationary_and_moving = {
        "car": vehicle,
        "truck": vehicle,
        "construction_vehicle": vehicle,
        "trailer": vehicle,
        "bus": ["vehicle.stopped", "vehicle.moving"],
        "motorcycle": cycle,
        "bicycle": cycle,
        "pedestrian": ["pedestrian.standing", "pedestrian.moving"],
        "barrier": ["", ""],
        "traffic_cone": ["", ""],
    }
    assert set(stationary_and_moving) == set(NAMES)
    for name, (stationary, moving) in stationary_and_moving.items():
        labels = [NAMES.index(name)] * 3
        box = predicted_boxes([slow, fast, unknown], labels, [1.0] * 3, LEVEL)
        assert box.attributes.tolist() == [stationary, moving, stationary]


def test_annotations_are_recovered_from_the_lidar_frame() -> None:
    """Centre, yaw and velocity, also unknown ones, although the lidar is tilted."""
    rng = np.random.default_rng(0)
    yaws, velocities = rng.uniform(-3, 3, 9), rng.normal(0, 9, (9, 2))
    centres = rng.uniform(500, 1700, (9, 3))
    velocities[3] = np.nan
    global_to_lidar = np.linalg.inv(POSE.lidar_to_global)
    rotation = global_to_lidar[:3, :3]
    axes = rotation @ Rotation.from_euler("z", yaws[:, None]).as_matrix()
    velocities_3d = np.column_stack([velocities, np.zeros(9)])
    rows = np.column_stack(
        [
            centres @ rotation.T + global_to_lidar[:3, 3],
            rng.uniform(1, 5, (9, 3)),
            np.arctan2(axes[:, 1, 0], axes[:, 0, 0]),
            (velocities_3d @ rotation.T)[:, :2],
        ]
    )
    sample = SampleGroundTruth.from_lidar_frame(
        POSE, rows, np.arange(9), ["vehicle.parked"] * 9, np.arange(9), rows[:4, :7]
    )
    np.testing.assert_allclose(sample.boxes.centres, centres, atol=1e-9)
    np.testing.assert_allclose(sample.boxes.yaws(), yaws, atol=1e-9)
    np.testing.assert_allclose(sample.boxes.velocities, velocities, atol=1e-9)
    assert sample.bicycle_racks is not None
    np.testing.assert_allclose(sample.bicycle_racks.centres, centres[:4], atol=1e-9)
    np.testing.assert_allclose(sample.bicycle_racks.yaws(), yaws[:4], atol=1e-9)
    np.testing.assert_array_equal(sample.ego, [600, 1600, 0.2])


def test_no_boxes_are_transformed_to_no_boxes() -> None:
    assert len(predicted_boxes(np.zeros((0, 9)), [], [], POSE)) == 0
    assert len(ground_truth_boxes([], [], [], [], POSE)) == 0


def test_predictions_survive_the_file(tmp_path: Path) -> None:
    """Every number exactly, with nan velocities, and samples without predictions."""
    samples = random_samples(0)
    predictions = random_predictions(0, samples)
    predictions[2] = predictions[2][predictions[2].scores > 1]
    path = tmp_path / "results.json"
    write_results(path, samples.tokens, predictions)
    for ours, again in zip(predictions, read_results(path, samples.tokens), strict=True):
        for field in fields(ours):
            np.testing.assert_array_equal(getattr(ours, field.name), getattr(again, field.name))


def test_a_file_has_the_keys_of_the_devkit() -> None:
    predicted = boxes(
        [[1, 2, 3]], 8, scores=[0.25], velocities=[[0.5, 0.0]], attributes=["pedestrian.moving"]
    )
    results = to_results(["a", "b"], [predicted, predicted[predicted.scores > 1]])
    content = json.loads(json.dumps(results, allow_nan=False))
    assert content == {
        "meta": {
            "use_camera": True,
            "use_lidar": False,
            "use_radar": False,
            "use_map": False,
            "use_external": True,
        },
        "results": {
            "a": [
                {
                    "sample_token": "a",
                    "translation": [1, 2, 3],
                    "size": [2, 4, 1.5],
                    "rotation": [1, 0, 0, 0],
                    "velocity": [0.5, 0],
                    "detection_name": "pedestrian",
                    "detection_score": 0.25,
                    "attribute_name": "pedestrian.moving",
                }
            ],
            "b": [],
        },
    }


def test_a_sample_keeps_its_best_boxes_in_their_order() -> None:
    scores = np.random.default_rng(0).permutation(MAX_BOXES + 100) / 1000
    predicted = boxes(np.zeros((MAX_BOXES + 100, 3)), scores=scores)
    rows = to_results(["a"], [predicted])["results"]["a"]
    expected = [score for score in scores if score >= 0.1]
    assert [row["detection_score"] for row in rows] == expected


def test_a_file_without_any_box_is_not_written(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no predictions for any of 2 samples"):
        write_results(tmp_path / "results.json", ["a", "b"], [boxes([], scores=[])] * 2)


def delete_meta(content: dict) -> None:
    del content["meta"]


def set_value(key: str, value: object) -> Callable[[dict], None]:
    def change(content: dict) -> None:
        content["results"]["a"][0][key] = value

    return change


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (delete_meta, "no 'meta'"),
        (lambda content: content.update(results=[]), "no 'results'"),
        (lambda content: content["results"].pop("b"), "1 of 2 samples are missing, such as b"),
        (
            lambda content: content["results"].update(c=[]),
            "1 samples are not in this split, such as 'c'",
        ),
        (lambda content: content["results"].update(b={}), r"not a list of boxes\n.*sample b"),
        (
            lambda content: content["results"].update(b=content["results"]["a"] * 501),
            r"501 boxes\n.*sample b",
        ),
        (
            set_value("translation", [1, 2]),
            r"translation needs 3 numbers, not 2\n.*sample a, box 0",
        ),
        (set_value("translation", [1, 2, float("nan")]), "translation is not finite"),
        (set_value("velocity", [float("inf"), 0]), "velocity is not finite"),
        (set_value("size", [1, 0, 2]), "a size must be positive"),
        (set_value("rotation", [0, 0, 0, 0]), "rotation is all zeros"),
        (set_value("detection_score", float("nan")), "detection_score must be a finite number"),
        (set_value("detection_score", -0.5), "detection_score must be a finite number"),
        (set_value("detection_score", None), "a box needs translation"),
        (set_value("detection_name", "tram"), "a box needs .*tram"),
        (set_value("attribute_name", "vehicle.flying"), "no attribute 'vehicle.flying'"),
        (set_value("attribute_name", None), "no attribute None"),
    ],
)
def test_a_file_that_the_devkit_refuses_is_refused(
    tmp_path: Path, change: Callable[[dict], object], message: str
) -> None:
    content = to_results(["a", "b"], [boxes([[1, 2, 3]], scores=[0.5]), boxes([], scores=[])])
    content = json.loads(json.dumps(content))
    change(content)
    path = tmp_path / "results.json"
    path.write_text(json.dumps(content))
    with pytest.raises(DataError, match=message):
        read_results(path, ["a", "b"])


def test_a_file_that_is_not_json_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "results.json"
    with pytest.raises(DataError, match="cannot be read"):
        read_results(path, ["a"])
    path.write_text('{"meta": {')
    with pytest.raises(DataError, match="not JSON"):
        read_results(path, ["a"])


def test_a_results_file_that_cannot_be_written_keeps_its_former_content(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "results.json"
    predicted = boxes([[1, 2, 3]], 8, scores=[0.25])
    write_results(path, ["a"], [predicted])
    before = path.read_bytes()

    def refuse(_descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", refuse)
    with pytest.raises(WriteError):
        write_results(path, ["a"], [predicted])
    assert [file.read_bytes() for file in tmp_path.iterdir()] == [before]
