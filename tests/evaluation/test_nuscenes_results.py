"""From what a detector says in the lidar frame to the result file, and back."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path

import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from groupdetr.errors import DataError
from groupdetr.evaluation.boxes3d import CLASSES, Pose, found_boxes, true_boxes
from groupdetr.evaluation.nuscenes import Scene
from groupdetr.evaluation.nuscenes_results import MOST, read_results, to_results, write_results
from tests.evaluation.worlds import boxes, guesses, random_world

NAMES = [kind.name for kind in CLASSES]
LEVEL = Pose(np.eye(4), np.eye(4))


def matrix(yaw: float, translation: list[float], tilt: float = 0.0) -> np.ndarray:
    whole = np.eye(4)
    whole[:3, :3] = Rotation.from_euler("zyx", [yaw, tilt, -tilt]).as_matrix()
    whole[:3, 3] = translation
    return whole


POSE = Pose(matrix(-np.pi / 2, [0.94, 0, 1.84]), matrix(0.7, [600, 1600, 0.2], tilt=0.02))


def test_a_box_ahead_of_the_lidar_is_ahead_of_the_vehicle() -> None:
    """The lidar of nuScenes looks along y, the vehicle along x, and this one drives against the global x."""
    pose = Pose(matrix(-np.pi / 2, [1, 0, 2]), matrix(np.pi, [100, 200, 0]))
    box = found_boxes([[0, 20, -1, 2, 4, 1.5, np.pi / 2, 0, 5]], [0], [0.5], pose)
    np.testing.assert_allclose(box.centres, [[79, 200, 1]], atol=1e-9)
    np.testing.assert_allclose(np.abs(box.yaws()), [np.pi])
    np.testing.assert_allclose(box.velocities, [[-5, 0]], atol=1e-9)
    np.testing.assert_array_equal(box.sizes, [[2, 4, 1.5]])


def test_corners_stay_where_they_are_in_the_world() -> None:
    """What a box looks like in the global frame, by its quaternion, are its corners in the lidar frame, moved."""
    row = np.array([3.0, -12, 0.5, 2, 4.5, 1.6, 2.1, 1.5, -0.5])
    corners = (
        np.array([[x, y, z] for x in (-1, 1) for y in (-1, 1) for z in (-1, 1)])
        * row[[4, 3, 5]]
        / 2
    )
    local = corners @ Rotation.from_euler("z", row[6]).as_matrix().T + row[:3]
    expected = local @ POSE.lidar_to_global[:3, :3].T + POSE.lidar_to_global[:3, 3]
    box = found_boxes([row], [0], [1.0], POSE)
    turned = Rotation.from_quat(box.rotations[0], scalar_first=True).apply(corners) + box.centres
    np.testing.assert_allclose(turned, expected, atol=1e-9)


def test_found_boxes_beyond_the_reach_of_their_class_drop_out() -> None:
    """By the distance to the vehicle, not to the lidar that stands 1 m ahead of its middle."""
    pose = Pose(matrix(-np.pi / 2, [1, 0, 2]), matrix(1.0, [100, 200, 0]))
    rows = [[0, y, 0, 1, 1, 1, 0, 0, 0] for y in (28.9, 29.1, 39.1, 49.1)]
    kept = {
        name: len(found_boxes(rows, [NAMES.index(name)] * 4, [1.0] * 4, pose))
        for name in ("barrier", "bicycle", "bus")
    }
    assert kept == {"barrier": 1, "bicycle": 2, "bus": 3}
    assert len(true_boxes(rows, [5] * 4, [""] * 4, [1] * 4, pose)) == 4


def test_speed_suggests_the_attribute() -> None:
    rows = [[0, 5, 0, 1, 1, 1, 0, speed, 0] for speed in (0.19, 0.21, np.nan)]
    guessed = {
        name: found_boxes(rows, [NAMES.index(name)] * 3, [1.0] * 3, LEVEL).attributes.tolist()
        for name in NAMES
    }
    parked, ridden = (
        ["vehicle.parked", "vehicle.moving"],
        ["cycle.without_rider", "cycle.with_rider"],
    )
    expected = dict.fromkeys(["car", "truck", "construction_vehicle", "trailer"], parked)
    expected |= {
        "bus": ["vehicle.stopped", "vehicle.moving"],
        "motorcycle": ridden,
        "bicycle": ridden,
    }
    expected |= {"pedestrian": ["pedestrian.standing", "pedestrian.moving"], "barrier": ["", ""]}
    expected |= {"traffic_cone": ["", ""]}
    assert guessed == {name: [*pair, pair[0]] for name, pair in expected.items()}


def test_annotations_come_back_from_the_lidar_frame() -> None:
    """Although the lidar is not level: to the centre, the yaw and the velocity, unknown ones included."""
    rng = np.random.default_rng(0)
    yaws, velocities, centres = (
        rng.uniform(-3, 3, 9),
        rng.normal(0, 9, (9, 2)),
        rng.uniform(500, 1700, (9, 3)),
    )
    velocities[3] = np.nan
    inside = np.linalg.inv(POSE.lidar_to_global)
    axes = inside[:3, :3] @ Rotation.from_euler("z", yaws[:, None]).as_matrix()
    rows = np.column_stack(
        [
            centres @ inside[:3, :3].T + inside[:3, 3],
            rng.uniform(1, 5, (9, 3)),
            np.arctan2(axes[:, 1, 0], axes[:, 0, 0]),
            (np.column_stack([velocities, np.zeros(9)]) @ inside[:3, :3].T)[:, :2],
        ]
    )
    scene = Scene.seen_from(
        POSE, rows, np.arange(9), ["vehicle.parked"] * 9, np.arange(9), rows[:4, :7]
    )
    np.testing.assert_allclose(scene.truth.centres, centres, atol=1e-9)
    np.testing.assert_allclose(scene.truth.yaws(), yaws, atol=1e-9)
    np.testing.assert_allclose(scene.truth.velocities, velocities, atol=1e-9)
    np.testing.assert_allclose(scene.racks.centres, centres[:4], atol=1e-9)
    np.testing.assert_allclose(scene.racks.yaws(), yaws[:4], atol=1e-9)
    np.testing.assert_array_equal(scene.ego, [600, 1600, 0.2])


def test_no_boxes_are_no_boxes() -> None:
    assert len(found_boxes(np.zeros((0, 9)), [], [], POSE)) == 0
    assert len(true_boxes([], [], [], [], POSE)) == 0


def test_a_file_says_what_was_found(tmp_path: Path) -> None:
    """Every number to the last bit, velocities that are nan, and samples in which nothing was found."""
    world = random_world(0)
    found = guesses(0, world)
    found[2] = found[2][found[2].scores > 1]
    write_results(tmp_path / "results.json", world.tokens, found)
    for ours, again in zip(
        found, read_results(tmp_path / "results.json", world.tokens), strict=True
    ):
        for field in fields(ours):
            np.testing.assert_array_equal(getattr(ours, field.name), getattr(again, field.name))


def test_a_file_holds_what_the_devkit_asks_for() -> None:
    found = boxes(
        [[1, 2, 3]], 8, scores=[0.25], velocities=[[0.5, 0.0]], attributes=["pedestrian.moving"]
    )
    content = json.loads(
        json.dumps(to_results(["a", "b"], [found, found[found.scores > 1]]), allow_nan=False)
    )
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
    scores = np.random.default_rng(0).permutation(MOST + 100) / 1000
    found = boxes(np.zeros((MOST + 100, 3)), scores=scores)
    kept = [row["detection_score"] for row in to_results(["a"], [found])["results"]["a"]]
    assert kept == [score for score in scores if score >= 0.1]


def test_a_file_without_any_box_is_not_written(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="nothing was found in any of 2 samples"):
        write_results(tmp_path / "results.json", ["a", "b"], [boxes([], scores=[])] * 2)


def no_meta(content: dict) -> None:
    del content["meta"]


def put(key: str, value: object) -> Callable[[dict], None]:
    def change(content: dict) -> None:
        content["results"]["a"][0][key] = value

    return change


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (no_meta, "no 'meta'"),
        (lambda content: content.update(results=[]), "no 'results'"),
        (lambda content: content["results"].pop("b"), "1 of 2 samples are missing, such as b"),
        (
            lambda content: content["results"].update(c=[]),
            "1 samples are not of this split, such as 'c'",
        ),
        (lambda content: content["results"].update(b={}), r"not a list of boxes\n.*sample b"),
        (
            lambda content: content["results"].update(b=content["results"]["a"] * 501),
            r"501 boxes\n.*sample b",
        ),
        (put("translation", [1, 2]), r"translation needs 3 numbers, not 2\n.*sample a, box 0"),
        (put("translation", [1, 2, float("nan")]), "translation is not finite"),
        (put("velocity", [float("inf"), 0]), "velocity is not finite"),
        (put("size", [1, 0, 2]), "a size must be positive"),
        (put("rotation", [0, 0, 0, 0]), "turns nothing"),
        (put("detection_score", float("nan")), "detection_score must be a number from 0"),
        (put("detection_score", -0.5), "detection_score must be a number from 0"),
        (put("detection_score", None), "a box needs translation"),
        (put("detection_name", "tram"), "a box needs .*tram"),
        (put("attribute_name", "vehicle.flying"), "no attribute 'vehicle.flying'"),
        (put("attribute_name", None), "no attribute None"),
    ],
)
def test_a_file_that_the_devkit_would_refuse_is_refused(
    tmp_path: Path, change: Callable[[dict], object], message: str
) -> None:
    content = to_results(["a", "b"], [boxes([[1, 2, 3]], scores=[0.5]), boxes([], scores=[])])
    content = json.loads(json.dumps(content))
    change(content)
    path = tmp_path / "results.json"
    path.write_text(json.dumps(content))
    with pytest.raises(DataError, match=message):
        read_results(path, ["a", "b"])


def test_what_is_no_json_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "results.json"
    with pytest.raises(DataError, match="cannot be read"):
        read_results(path, ["a"])
    path.write_text('{"meta": {')
    with pytest.raises(DataError, match="not JSON"):
        read_results(path, ["a"])
