"""Samples: their order, their earlier frames, and their trainable boxes."""

from dataclasses import replace

import numpy as np
import pytest

from groupdetr.data.nuscenes.names import CAMERAS, CLASSES
from groupdetr.data.nuscenes.objects import estimate_velocity
from groupdetr.data.nuscenes.samples import read_samples
from groupdetr.data.nuscenes.synthetic import VERSION, SyntheticNuScenesConfig, write
from groupdetr.data.nuscenes.tables import Tables
from groupdetr.errors import DataError


def test_samples_are_in_order_of_time_with_six_cameras_in_the_published_order(samples):
    assert [sample.time for sample in samples] == sorted(sample.time for sample in samples)
    assert {sample.scene for sample in samples} == {"scene-9001", "scene-9002"}
    for sample in samples:
        assert [path.parent.name for path in sample.frame().paths] == [*CAMERAS]
        assert np.abs(sample.frame().ages(sample.time)).max() < 0.05


def test_labels_are_indices_of_the_published_classes():
    assert CLASSES[0] == "car"
    assert CLASSES[-2:] == ("pedestrian", "traffic_cone")
    assert len(CLASSES) == 10


# Earlier frames.


def test_earlier_frames_reach_back_thirty_images_in_steps_of_a_twelfth_of_a_second(
    long_samples, samples
):
    sample = long_samples[-1]
    assert sample.earlier_indices.shape == (30, 6)
    frames = [sample.earlier_frame(index) for index in range(30)]
    for index, frame in enumerate(frames):
        ages = frame.ages(sample.time) - sample.frame().ages(sample.time)
        assert np.allclose(ages, (index + 1) / 12, atol=1e-5)
    # Every sixth one is a key frame.
    folders = [{path.parts[-3] for path in frame.paths} for frame in frames]
    assert folders == ([{"sweeps"}] * 5 + [{"samples"}]) * 5
    # They end with the scene.
    assert [len(sample.earlier_indices) for sample in long_samples] == [
        0,
        6,
        12,
        18,
        24,
        30,
        30,
        30,
    ]
    first_of_scenes = [sample for sample in samples if not len(sample.earlier_indices)]
    assert len(first_of_scenes) == 2


@pytest.mark.parametrize(("last", "end"), [(1, 5), (5, 11), (7, 11)])
def test_the_last_frame_is_repeated_if_a_camera_has_none_left(long_samples, last, end):
    sample = long_samples[-1]
    complete = sample.earlier_indices
    previous = sample.camera_frames.previous.copy()
    previous[complete[last][2]] = -1  # one camera has no image before this one
    camera_frames = replace(sample.camera_frames, previous=previous)
    key_frames = [key_frame.image_indices for key_frame in reversed(long_samples[-6:])]
    frames = camera_frames.earlier_frames(key_frames)
    assert (frames[: last + 1] == complete[: last + 1]).all()
    assert (frames[last:end] == complete[last]).all()
    assert (frames[end:] == complete[end:]).all()


def test_without_sweeps_earlier_frames_are_repeated_key_frames(tmp_path):
    write(SyntheticNuScenesConfig(samples=3, width=32, height=32, sweeps=False), tmp_path)
    first, second, third = read_samples(Tables(tmp_path, VERSION), "train")
    expected = np.stack([second.image_indices] * 6 + [first.image_indices] * 6)
    assert (third.earlier_indices == expected).all()
    assert not (tmp_path / "sweeps").exists()


def test_without_any_sweep_only_the_previous_key_frame_is_left(long_samples):
    current = long_samples[-1].image_indices
    previous = long_samples[-2].image_indices
    camera_frames = long_samples[0].camera_frames
    without_previous = replace(camera_frames, previous=np.full(len(camera_frames.names), -1))
    assert (without_previous.earlier_frames([current, previous]) == previous).all()


# Boxes.


def annotations_of(samples, root):
    tables = Tables(root, VERSION)
    rows = [
        row
        for row in tables["sample_annotation"].values()
        if row["sample_token"] == samples[1].token
    ]
    return tables, rows


def test_velocity_is_the_difference_of_the_positions_before_and_after(samples, root):
    tables, rows = annotations_of(samples, root)
    before = tables["sample_annotation"][rows[0]["prev"]]
    after = tables["sample_annotation"][rows[0]["next"]]
    difference = np.subtract(after["translation"], before["translation"])
    assert np.allclose(estimate_velocity(tables, rows[0]), difference / 1.0)
    # Two neighbours may span three seconds.
    sample = tables["sample"][after["sample_token"]]
    sample["timestamp"] += 2_000_000
    assert np.allclose(estimate_velocity(tables, rows[0]), difference / 3.0)
    sample["timestamp"] += 1
    assert np.isnan(estimate_velocity(tables, rows[0])).all()


@pytest.mark.parametrize(("missing", "sign"), [("prev", 1), ("next", -1)])
def test_velocity_from_one_neighbour_needs_it_within_a_second_and_a_half(
    samples, root, missing, sign
):
    tables, rows = annotations_of(samples, root)
    row = rows[-1] | {missing: ""}
    other = tables["sample_annotation"][row["next"] or row["prev"]]
    distance = np.subtract(other["translation"], row["translation"]) * sign
    assert np.allclose(estimate_velocity(tables, row), distance / 0.5)
    tables["sample"][other["sample_token"]]["timestamp"] += sign * 1_000_000
    assert np.allclose(estimate_velocity(tables, row), distance / 1.5)
    tables["sample"][other["sample_token"]]["timestamp"] += sign
    assert np.isnan(estimate_velocity(tables, row)).all()


def test_an_object_annotated_once_has_no_velocity_and_is_trained_on_as_standing(edit, samples):
    def remove_neighbours(rows):
        for row in rows:
            row["prev"] = row["next"] = ""

    sample = read_samples(Tables(edit("sample_annotation", remove_neighbours), VERSION), "train")[0]
    assert np.isnan(sample.truth.boxes[:, 7:]).all()
    boxes, labels = sample.trainable_objects()
    assert (boxes[:, 7:] == 0).all()
    assert (boxes[:, :7] == samples[0].truth.boxes[:, :7]).all()
    assert len(labels) == len(boxes) == 16


def test_velocity_is_without_its_vertical_part(edit, samples):
    """The lidar is not level, so the vertical part would change x and y."""

    def lift_all_but_the_first(rows):
        for row in rows:
            row["translation"][2] += 5 * (not row["prev"])

    copy = edit("sample_annotation", lift_all_but_the_first)
    truth = read_samples(Tables(copy, VERSION), "train")[1].truth
    assert (truth.boxes[:, 7:] == samples[1].truth.boxes[:, 7:]).all()


def test_boxes_in_the_lidar_frame_equal_those_in_the_global_frame(samples, root):
    tables, rows = annotations_of(samples, root)
    sample = samples[1]
    boxes = sample.truth.boxes
    centres = np.c_[boxes[:, :3], np.ones(16)] @ sample.lidar_to_global.T
    assert np.allclose(centres[:, :3], [row["translation"] for row in rows])
    assert np.allclose(boxes[:, 3:6], [row["size"] for row in rows])
    # The lidar is not level, so yaws and velocities are equal only approximately.
    directions = np.stack([np.cos(boxes[:, 6]), np.sin(boxes[:, 6]), np.zeros(16)], 1)
    global_directions = directions @ sample.lidar_to_global[:3, :3].T
    yaws = [2 * np.arctan2(row["rotation"][3], row["rotation"][0]) for row in rows]
    expected = np.stack([np.cos(yaws), np.sin(yaws)], 1)
    assert np.allclose(global_directions[:, :2], expected, atol=2e-3)
    speeds = np.linalg.norm(boxes[:, 7:], axis=1)
    velocities = np.stack([estimate_velocity(tables, row) for row in rows])
    assert np.allclose(speeds, np.linalg.norm(velocities, axis=1), atol=1e-2)


def test_objects_without_points_or_out_of_range_are_kept_but_not_trainable(edit, samples):
    out_of_range = samples[0].lidar_to_global @ np.array([51.2001, 0, 0, 1])

    def change(rows):
        first_sample = [row for row in rows if row["sample_token"] == samples[0].token]
        first_sample[0]["num_lidar_pts"] = 0
        first_sample[1] |= {"num_lidar_pts": 0, "num_radar_pts": 1}
        first_sample[2]["translation"] = out_of_range[:3].tolist()

    truth = read_samples(Tables(edit("sample_annotation", change), VERSION), "train")[0].truth
    assert len(truth.boxes) == 16
    assert truth.trainable.tolist() == [False, True, False] + [True] * 13


def test_the_height_of_an_object_does_not_matter(edit):
    def lift(rows):
        for row in rows:
            row["translation"][2] += 60

    samples = read_samples(Tables(edit("sample_annotation", lift), VERSION), "train")
    assert samples[0].truth.trainable.all()


def test_other_categories_are_dropped_and_bicycle_racks_are_separate(edit, samples):
    def change(rows):
        rows[0] |= {"name": "static_object.bicycle_rack"}  # the barriers
        next(row for row in rows if row["name"] == "vehicle.trailer")["name"] = "animal"

    truth = read_samples(Tables(edit("category", change), VERSION), "train")[0].truth
    before = samples[0].truth
    barriers = before.labels == CLASSES.index("barrier")
    trailers = before.labels == CLASSES.index("trailer")
    assert (truth.racks == before.boxes[barriers, :7]).all()
    assert (truth.boxes == before.boxes[~barriers & ~trailers]).all()


def test_a_key_frame_without_a_camera_is_refused_with_its_name(edit, samples):
    token = samples[0].token

    def change(rows):
        rows[:] = [
            row
            for row in rows
            if not (row["sample_token"] == token and "samples/CAM_BACK/" in row["filename"])
        ]

    with pytest.raises(DataError, match=f"(?s)it lacks CAM_BACK.*sample {token}"):
        read_samples(Tables(edit("sample_data", change), VERSION), "train")


@pytest.mark.parametrize(
    ("table", "field", "value", "message"),
    [
        ("ego_pose", "rotation", [0, 0, 0, 0], "length 0"),
        ("ego_pose", "translation", [1, 2, float("nan")], "not 3 finite numbers"),
        ("calibrated_sensor", "camera_intrinsic", [], "not 3 x 3 finite numbers"),
        (
            "calibrated_sensor",
            "camera_intrinsic",
            [[0, 0, 1], [0, 1, 1], [0, 0, 1]],
            "not that of a camera",
        ),
        ("sample_annotation", "size", [0, 1, 1], "its size is not positive"),
    ],
)
def test_invalid_poses_calibrations_and_sizes_are_refused(edit, table, field, value, message):
    def change(rows):
        rows[-1 if table != "sample_annotation" else 0][field] = value

    with pytest.raises(DataError, match=message):
        read_samples(Tables(edit(table, change), VERSION), "train")
