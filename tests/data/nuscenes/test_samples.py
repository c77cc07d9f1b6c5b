"""Claims about key frames: their order, their frames before, and which boxes are learned."""

from dataclasses import replace

import numpy as np
import pytest

from groupdetr.data.nuscenes.names import CAMERAS, CLASSES
from groupdetr.data.nuscenes.objects import velocity
from groupdetr.data.nuscenes.samples import read_samples
from groupdetr.data.nuscenes.synthetic import VERSION, SyntheticConfig, write
from groupdetr.data.nuscenes.tables import Tables
from groupdetr.errors import DataError


def first_of(samples):
    """Of each scene, the first key frame."""
    return [sample for sample in samples if not len(sample.earlier)]


def test_samples_come_by_time_with_six_cameras_in_the_published_order(samples):
    assert [sample.time for sample in samples] == sorted(sample.time for sample in samples)
    assert {sample.scene for sample in samples} == {"scene-9001", "scene-9002"}
    for sample in samples:
        assert [path.parent.name for path in sample.frame().paths] == [*CAMERAS]
        assert np.abs(sample.frame().ages(sample.time)).max() < 0.05


def test_labels_are_indices_of_the_published_classes():
    assert CLASSES[0] == "car"
    assert CLASSES[-2:] == ("pedestrian", "traffic_cone")
    assert len(CLASSES) == 10


# Frames before.


def test_earlier_frames_reach_back_thirty_pictures_in_steps_of_a_twelfth_of_a_second(long_samples):
    sample = long_samples[-1]
    assert sample.earlier.shape == (30, 6)
    for index in range(30):
        ages = sample.frame_before(index).ages(sample.time) - sample.frame().ages(sample.time)
        assert np.allclose(ages, (index + 1) / 12, atol=1e-5)


def test_earlier_frames_end_with_the_scene(long_samples, samples):
    assert [len(sample.earlier) for sample in long_samples] == [0, 6, 12, 18, 24, 30, 30, 30]
    assert len(first_of(samples)) == 2


def test_every_sixth_earlier_frame_is_a_key_frame(long_samples):
    frames = [long_samples[-1].frame_before(index) for index in range(30)]
    folders = [{path.parts[-3] for path in frame.paths} for frame in frames]
    assert folders == ([{"sweeps"}] * 5 + [{"samples"}]) * 5


@pytest.mark.parametrize(("last", "until"), [(1, 5), (5, 11), (7, 11)])
def test_the_last_frame_is_repeated_where_a_camera_has_none_left(long_samples, last, until):
    sample = long_samples[-1]
    broken = sample.footage.previous.copy()
    broken[sample.earlier[last][2]] = -1  # one camera took no picture before this one
    walked = replace(sample.footage, previous=broken).earlier(
        [s.views for s in reversed(long_samples[-6:])]
    )
    assert (walked[: last + 1] == sample.earlier[: last + 1]).all()
    assert (walked[last:until] == sample.earlier[last]).all()
    assert (walked[until:] == sample.earlier[until:]).all()


def test_without_sweeps_earlier_frames_wait_at_key_frames(tmp_path):
    write(SyntheticConfig(samples=3, width=32, height=32, sweeps=False), tmp_path)
    first, second, third = read_samples(Tables(tmp_path, VERSION), "train")
    assert (third.earlier == np.stack([second.views] * 6 + [first.views] * 6)).all()
    assert not (tmp_path / "sweeps").exists()


def test_a_camera_without_a_picture_before_leaves_the_key_frame_before(long_samples):
    now, before = (long_samples[i].views for i in (-1, -2))
    footage = replace(
        long_samples[0].footage, previous=np.full(len(long_samples[0].footage.names), -1)
    )
    assert (footage.earlier([now, before]) == before).all()


# Boxes.


def annotations_of(samples, root):
    tables = Tables(root, VERSION)
    rows = [
        row
        for row in tables["sample_annotation"].values()
        if row["sample_token"] == samples[1].token
    ]
    return tables, rows


def test_velocity_is_the_difference_of_both_neighbours(samples, root):
    tables, rows = annotations_of(samples, root)
    before = tables["sample_annotation"][rows[0]["prev"]]["translation"]
    after = tables["sample_annotation"][rows[0]["next"]]["translation"]
    assert np.allclose(velocity(tables, rows[0]), np.subtract(after, before) / 1.0)


@pytest.mark.parametrize(("cut", "sign"), [("prev", 1), ("next", -1)])
def test_velocity_is_told_by_one_neighbour_within_a_second_and_a_half(samples, root, cut, sign):
    tables, rows = annotations_of(samples, root)
    row = rows[-1] | {cut: ""}
    other = tables["sample_annotation"][row["next"] or row["prev"]]
    gap = np.subtract(other["translation"], row["translation"]) * sign
    assert np.allclose(velocity(tables, row), gap / 0.5)
    tables["sample"][other["sample_token"]]["timestamp"] += sign * 1_000_000
    assert np.allclose(velocity(tables, row), gap / 1.5)
    tables["sample"][other["sample_token"]]["timestamp"] += sign
    assert np.isnan(velocity(tables, row)).all()


def test_velocity_of_two_neighbours_may_span_three_seconds(samples, root):
    tables, rows = annotations_of(samples, root)
    time = tables["sample"][tables["sample_annotation"][rows[0]["next"]]["sample_token"]]
    time["timestamp"] += 2_000_000
    assert np.isfinite(velocity(tables, rows[0])).all()
    time["timestamp"] += 1
    assert np.isnan(velocity(tables, rows[0])).all()


def test_what_is_seen_once_has_no_velocity_and_is_learned_as_standing(edit, samples):
    def alone(rows):
        for row in rows:
            row["prev"] = row["next"] = ""

    sample = read_samples(Tables(edit("sample_annotation", alone), VERSION), "train")[0]
    assert np.isnan(sample.truth.boxes[:, 7:]).all()
    boxes, labels = sample.objects()
    assert (boxes[:, 7:] == 0).all()
    assert (boxes[:, :7] == samples[0].truth.boxes[:, :7]).all()
    assert len(labels) == len(boxes) == 16


def test_velocity_is_told_without_its_height(edit, samples):
    """Which would leak into x and y, since the lidar is not level."""

    def climb(rows):
        for row in rows:
            row["translation"][2] += 5 * (not row["prev"])

    climbing = read_samples(Tables(edit("sample_annotation", climb), VERSION), "train")[1].truth
    assert (climbing.boxes[:, 7:] == samples[1].truth.boxes[:, 7:]).all()


def test_boxes_in_the_lidar_frame_are_those_of_the_world(samples, root):
    tables, rows = annotations_of(samples, root)
    sample = samples[1]
    centres = np.c_[sample.truth.boxes[:, :3], np.ones(16)] @ sample.lidar_to_global.T
    assert np.allclose(centres[:, :3], [row["translation"] for row in rows])
    assert np.allclose(sample.truth.boxes[:, 3:6], [row["size"] for row in rows])
    heading = np.stack(
        [np.cos(sample.truth.boxes[:, 6]), np.sin(sample.truth.boxes[:, 6]), np.zeros(16)], 1
    )
    turned = heading @ sample.lidar_to_global[:3, :3].T
    yaws = [2 * np.arctan2(row["rotation"][3], row["rotation"][0]) for row in rows]
    assert np.allclose(
        turned[:, :2], np.stack([np.cos(yaws), np.sin(yaws)], 1), atol=2e-3
    )  # the lidar is not level
    speeds = np.stack([velocity(tables, row) for row in rows])
    assert np.allclose(
        np.linalg.norm(sample.truth.boxes[:, 7:], axis=1), np.linalg.norm(speeds, axis=1), atol=1e-2
    )


def test_objects_without_points_and_beyond_the_range_are_kept_but_not_learned(edit, samples):
    target = samples[0].lidar_to_global @ np.array([51.2001, 0, 0, 1])

    def change(rows):
        mine = [row for row in rows if row["sample_token"] == samples[0].token]
        mine[0]["num_lidar_pts"] = 0
        mine[1] |= {"num_lidar_pts": 0, "num_radar_pts": 1}
        mine[2]["translation"] = target[:3].tolist()

    truth = read_samples(Tables(edit("sample_annotation", change), VERSION), "train")[0].truth
    assert len(truth.boxes) == 16
    assert truth.learned.tolist() == [False, True, False] + [True] * 13


def test_height_does_not_matter(edit):
    def lift(rows):
        for row in rows:
            row["translation"][2] += 60

    assert read_samples(Tables(edit("sample_annotation", lift), VERSION), "train")[
        0
    ].truth.learned.all()


def test_other_categories_are_dropped_and_bicycle_racks_stand_apart(edit, samples):
    def change(rows):
        rows[0] |= {"name": "static_object.bicycle_rack"}  # the barriers
        next(row for row in rows if row["name"] == "vehicle.trailer")["name"] = "animal"

    truth = read_samples(Tables(edit("category", change), VERSION), "train")[0].truth
    before = samples[0].truth
    barriers, trailers = (before.labels == CLASSES.index(name) for name in ("barrier", "trailer"))
    assert (truth.racks == before.boxes[barriers, :7]).all()
    assert (truth.boxes == before.boxes[~barriers & ~trailers]).all()


def test_a_key_frame_without_a_camera_is_refused_by_name(edit, samples):
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
        ("ego_pose", "translation", [1, 2], "its translation is .*, not 3 finite numbers"),
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
def test_poses_calibrations_and_sizes_that_cannot_be_are_refused(
    edit, table, field, value, message
):
    def change(rows):
        rows[-1 if table != "sample_annotation" else 0][field] = value

    with pytest.raises(DataError, match=message):
        read_samples(Tables(edit(table, change), VERSION), "train")
