"""The synthetic nuScenes: reproducible, complete, and never written over other data."""

import json

import numpy as np
import pytest
from PIL import Image

from groupdetr.data.nuscenes.names import CLASSES
from groupdetr.data.nuscenes.synthetic import VERSION, SyntheticNuScenesConfig, write
from groupdetr.data.nuscenes.synthetic_cameras import COLOURS, RenderedBox, render
from groupdetr.data.nuscenes.synthetic_world import SIZES, Orbit, WorldObject
from groupdetr.data.nuscenes.tables import FIELDS
from groupdetr.errors import DataError

TINY = SyntheticNuScenesConfig(samples=2, width=64, height=36)
# Distance from the ego vehicle up to which nuScenes evaluates a class, in metres.
CLASS_RANGES = dict.fromkeys(CLASSES, 50)
CLASS_RANGES |= {"pedestrian": 40, "motorcycle": 40, "bicycle": 40}
CLASS_RANGES |= {"traffic_cone": 30, "barrier": 30}


def content(folder):
    """Return the content of all files in a folder, by name."""
    files = {}
    for path in folder.rglob("*"):
        if path.is_file():
            files[str(path.relative_to(folder))] = path.read_bytes()
    return files


def table(folder, name):
    return json.loads((folder / VERSION / f"{name}.json").read_text())


def test_the_same_seed_writes_the_same_bytes_and_another_seed_others(tmp_path):
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        write(SyntheticNuScenesConfig(samples=2, width=64, height=36, seed=seed), tmp_path / name)
    a, b, c = (content(tmp_path / name) for name in "abc")
    assert a == b
    assert not {*a} & {name for name in c if name.endswith("jpg")}
    assert a[f"{VERSION}/ego_pose.json"] != c[f"{VERSION}/ego_pose.json"]


def test_an_existing_set_is_not_written_again(tmp_path):
    write(TINY, tmp_path)
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")}
    write(TINY, tmp_path)
    assert before == {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")}


def test_other_data_is_not_overwritten(tmp_path):
    write(TINY, tmp_path / "other")
    (tmp_path / "real" / VERSION).mkdir(parents=True)
    (tmp_path / "real" / VERSION / "category.json").write_text("[]")
    before = content(tmp_path)
    other = SyntheticNuScenesConfig(samples=3, width=64, height=36)
    for name in ("other", "real"):
        with pytest.raises(DataError, match=r"(?s)holds another dataset.*delete this one"):
            write(other, tmp_path / name)
    assert content(tmp_path) == before


def test_an_interrupted_set_is_completed(tmp_path):
    write(TINY, tmp_path)
    complete = content(tmp_path)
    (tmp_path / VERSION / "sample.json").unlink()
    min(tmp_path.rglob("*.jpg")).unlink()
    write(TINY, tmp_path)
    assert content(tmp_path) == complete


def test_every_key_frame_has_all_classes_in_range_and_half_of_the_objects_move(
    samples, long_samples
):
    for sample in [*samples, *long_samples]:
        truth = sample.truth
        assert {*truth.labels.tolist()} == {*range(len(CLASSES))}
        rotation, translation = sample.lidar_to_ego[:2, :2], sample.lidar_to_ego[:2, 3]
        distances = np.linalg.norm(truth.boxes[:, :2] @ rotation.T + translation, axis=1)
        ranges = [CLASS_RANGES[CLASSES[label]] for label in truth.labels]
        assert (distances < ranges).all()
        speeds = np.linalg.norm(truth.boxes[:, 7:], axis=1)
        assert (speeds > 0.2).mean() == 0.5
        assert truth.trainable.all()


ATTRIBUTES = {  # class: attribute of an object that moves, and of one that stands
    "bus": ("vehicle.moving", "vehicle.stopped"),
    "bicycle": ("cycle.with_rider", "cycle.without_rider"),
    "motorcycle": ("cycle.with_rider", "cycle.without_rider"),
    "pedestrian": ("pedestrian.moving", "pedestrian.standing"),
    "barrier": ("", ""),
    "traffic_cone": ("", ""),
}
OTHER_VEHICLES = ("vehicle.moving", "vehicle.parked")


def test_attributes_are_those_that_the_evaluation_derives_from_the_speed():
    for name in CLASSES:
        attributes = []
        for speed in (2, 0):
            attributes.append(WorldObject(name, SIZES[name], Orbit(20, 0, speed)).attribute)
        assert tuple(attributes) == ATTRIBUTES.get(name, OTHER_VEHICLES), name


def test_attributes_in_the_tables_agree_with_the_velocities(samples):
    truth = samples[1].truth
    is_moving = np.linalg.norm(truth.boxes[:, 7:], axis=1) > 0.2
    for label, moves, attribute in zip(truth.labels, is_moving, truth.attributes):
        moving, standing = ATTRIBUTES.get(CLASSES[label], OTHER_VEHICLES)
        assert attribute == (moving if moves else standing)


def test_objects_move_in_the_direction_of_their_yaw(samples):
    boxes = samples[1].truth.boxes
    is_moving = np.linalg.norm(boxes[:, 7:], axis=1) > 0.2
    directions = np.arctan2(boxes[:, 8], boxes[:, 7])
    difference = np.abs(np.exp(1j * directions) - np.exp(1j * boxes[:, 6]))
    assert difference[is_moving].max() < 0.02


INTRINSIC = np.array([[50, 0, 32], [0, 50, 18], [0, 0, 1]])


@pytest.mark.parametrize(("direction", "shade"), [(1, 1.0), (-1, 0.8)])
def test_the_face_that_faces_the_camera_is_rendered_and_a_front_is_lighter_than_a_rear(
    direction, shade
):
    to_camera = np.eye(4)
    to_camera[:3, :3] = np.array([(0, 0, -direction), (direction, 0, 0), (0, -1, 0)]).T
    to_camera[2, 3] = 10
    rendered = render([RenderedBox("car", to_camera, (2, 4, 2))], INTRINSIC, 64, 36)
    assert rendered[18, 32].tolist() == [round(shade * channel) for channel in COLOURS["car"]]


def test_a_box_behind_the_camera_is_not_rendered():
    to_camera = np.eye(4)
    to_camera[2, 3] = -10
    rendered = render([RenderedBox("car", to_camera, (2, 4, 2))], INTRINSIC, 64, 36)
    assert (rendered == render([], INTRINSIC, 64, 36)).all()


def test_all_files_exist_and_images_have_their_recorded_size(root):
    names = {path.stem for path in (root / VERSION).glob("*.json")}
    assert names == {*FIELDS, "splits", "synthetic"}
    assert all((root / row["filename"]).is_file() for row in table(root, "map"))
    for data in table(root, "sample_data"):
        if data["fileformat"] == "jpg":
            with Image.open(root / data["filename"]) as image:
                assert image.size == (data["width"], data["height"]) == (400, 225)


def test_next_and_previous_records_refer_to_each_other(root):
    for name in ("sample", "sample_data", "sample_annotation"):
        rows = {row["token"]: row for row in table(root, name)}
        assert len(rows) == len(table(root, name))
        for token, row in rows.items():
            assert not row["next"] or rows[row["next"]]["prev"] == token
            assert not row["prev"] or rows[row["prev"]]["next"] == token


def test_tables_refer_only_to_existing_records(root):
    tokens = {name: {row["token"] for row in table(root, name)} for name in FIELDS}
    for name in FIELDS:
        for row in table(root, name):
            for key, value in row.items():
                # "sensor_token" and "log_tokens" refer to the tables "sensor" and "log".
                other = key.removesuffix("s").removesuffix("_token")
                if other in tokens and other != key:
                    references = value if isinstance(value, list) else [value]
                    assert {*references} <= tokens[other], (name, key)


def test_images_between_key_frames_belong_to_the_next_one(root):
    times = {row["token"]: row["timestamp"] for row in table(root, "sample")}
    for data in table(root, "sample_data"):
        time_to_key_frame = times[data["sample_token"]] - data["timestamp"]
        assert 0 <= time_to_key_frame < (50_000 if data["is_key_frame"] else 500_000)


def test_an_error_about_a_value_that_is_too_small_names_it():
    for too_small in ({"samples": 1}, {"train_scenes": 0}, {"width": 8}, {"seed": -1}):
        with pytest.raises(ValueError, match=next(iter(too_small))):
            SyntheticNuScenesConfig(**too_small)
