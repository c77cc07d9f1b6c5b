"""Claims about the synthetic nuScenes: it repeats, holds all classes within reach, and destroys nothing."""

import json

import numpy as np
import pytest
from PIL import Image

from groupdetr.data.nuscenes.names import CLASSES
from groupdetr.data.nuscenes.synthetic import VERSION, SyntheticConfig, write
from groupdetr.data.nuscenes.synthetic_cameras import COLOURS, Solid, picture
from groupdetr.data.nuscenes.synthetic_world import SIZES, Orbit, Thing
from groupdetr.data.nuscenes.tables import FIELDS
from groupdetr.errors import DataError

TINY = SyntheticConfig(samples=2, width=64, height=36)
REACH = dict.fromkeys(CLASSES, 50) | {"pedestrian": 40, "motorcycle": 40, "bicycle": 40}
REACH |= {"traffic_cone": 30, "barrier": 30}


def content(folder):
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file()
    }


def table(folder, name):
    return json.loads((folder / VERSION / f"{name}.json").read_text())


def test_the_same_seed_writes_the_same_bytes_and_another_seed_others(tmp_path):
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        write(SyntheticConfig(samples=2, width=64, height=36, seed=seed), tmp_path / name)
    a, b, c = (content(tmp_path / name) for name in "abc")
    assert a == b
    assert not {*a} & {name for name in c if name.endswith("jpg")}
    assert a[f"{VERSION}/ego_pose.json"] != c[f"{VERSION}/ego_pose.json"]


def test_what_is_there_is_kept(tmp_path):
    write(TINY, tmp_path)
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")}
    write(TINY, tmp_path)
    assert before == {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")}


def test_another_set_is_not_overwritten(tmp_path):
    write(TINY, tmp_path)
    before = content(tmp_path)
    with pytest.raises(DataError, match=r"(?s)holds another data set.*delete this one"):
        write(SyntheticConfig(samples=3, width=64, height=36), tmp_path)
    assert content(tmp_path) == before


def test_a_real_version_is_not_overwritten(tmp_path):
    (tmp_path / VERSION).mkdir()
    (tmp_path / VERSION / "category.json").write_text("[]")
    with pytest.raises(DataError, match="holds another data set"):
        write(TINY, tmp_path)
    assert [*content(tmp_path)] == [f"{VERSION}/category.json"]


def test_what_was_interrupted_is_completed(tmp_path):
    write(TINY, tmp_path)
    whole = content(tmp_path)
    (tmp_path / VERSION / "sample.json").unlink()
    next(tmp_path.rglob("*.jpg")).unlink()
    write(TINY, tmp_path)
    assert content(tmp_path) == whole


def test_every_key_frame_has_all_classes_within_reach_and_half_of_the_things_move(
    samples, long_samples
):
    for sample in [*samples, *long_samples]:
        truth = sample.truth
        assert {*truth.labels.tolist()} == {*range(len(CLASSES))}
        away = np.linalg.norm(
            truth.boxes[:, :2] @ sample.lidar_to_ego[:2, :2].T + sample.lidar_to_ego[:2, 3], axis=1
        )
        assert (away < [REACH[CLASSES[label]] for label in truth.labels]).all()
        assert (np.linalg.norm(truth.boxes[:, 7:], axis=1) > 0.2).mean() == 0.5
        assert truth.learned.all()


ATTRIBUTES = {  # class: moving, standing
    "bus": ("vehicle.moving", "vehicle.stopped"),
    "bicycle": ("cycle.with_rider", "cycle.without_rider"),
    "motorcycle": ("cycle.with_rider", "cycle.without_rider"),
    "pedestrian": ("pedestrian.moving", "pedestrian.standing"),
    "barrier": ("", ""),
    "traffic_cone": ("", ""),
}


@pytest.mark.parametrize("name", CLASSES)
def test_attributes_are_those_that_are_guessed_from_the_speed(name):
    things = [Thing(name, SIZES[name], Orbit(20, 0, speed)) for speed in (2, 0)]
    assert tuple(thing.attribute for thing in things) == ATTRIBUTES.get(
        name, ("vehicle.moving", "vehicle.parked")
    )


def test_the_tables_say_which_things_move(samples):
    truth = samples[1].truth
    moves = np.linalg.norm(truth.boxes[:, 7:], axis=1) > 0.2
    for label, moving, attribute in zip(truth.labels, moves, truth.attributes):
        moved, stood = ATTRIBUTES.get(CLASSES[label], ("vehicle.moving", "vehicle.parked"))
        assert attribute == (moved if moving else stood)


def test_what_moves_looks_where_it_goes(samples):
    boxes = samples[1].truth.boxes
    moving = np.linalg.norm(boxes[:, 7:], axis=1) > 0.2
    directions = np.arctan2(boxes[:, 8], boxes[:, 7])
    assert np.abs(np.exp(1j * directions) - np.exp(1j * boxes[:, 6]))[moving].max() < 0.02


@pytest.mark.parametrize(("towards", "shade"), [(1, 1.0), (-1, 0.8)])
def test_the_face_that_looks_at_the_camera_is_drawn_and_a_front_is_lighter_than_a_rear(
    towards, shade
):
    to_camera = np.eye(4)
    to_camera[:3, :3] = np.array([(0, 0, -towards), (towards, 0, 0), (0, -1, 0)]).T
    to_camera[2, 3] = 10
    image = picture(
        [Solid("car", to_camera, (2, 4, 2))],
        np.array([[50, 0, 32], [0, 50, 18], [0, 0, 1]]),
        64,
        36,
    )
    assert image[18, 32].tolist() == [round(shade * channel) for channel in COLOURS["car"]]


def test_a_box_behind_the_camera_is_not_drawn():
    to_camera = np.eye(4)
    to_camera[2, 3] = -10
    intrinsic = np.array([[50, 0, 32], [0, 50, 18], [0, 0, 1]])
    assert (
        picture([Solid("car", to_camera, (2, 4, 2))], intrinsic, 64, 36)
        == picture([], intrinsic, 64, 36)
    ).all()


def test_all_files_are_there_at_their_recorded_size(root):
    assert {path.stem for path in (root / VERSION).glob("*.json")} == {
        *FIELDS,
        "splits",
        "synthetic",
    }
    assert all((root / row["filename"]).is_file() for row in table(root, "map"))
    for data in table(root, "sample_data"):
        if data["fileformat"] == "jpg":
            with Image.open(root / data["filename"]) as image:
                assert image.size == (data["width"], data["height"]) == (400, 225)


@pytest.mark.parametrize("name", ["sample", "sample_data", "sample_annotation"])
def test_records_of_a_chain_point_at_each_other(root, name):
    rows = {row["token"]: row for row in table(root, name)}
    assert len(rows) == len(table(root, name))
    for token, row in rows.items():
        assert not row["next"] or rows[row["next"]]["prev"] == token
        assert not row["prev"] or rows[row["prev"]]["next"] == token


def test_tables_refer_to_records_that_are_there(root):
    tokens = {name: {row["token"] for row in table(root, name)} for name in FIELDS}
    for name in FIELDS:
        for row in table(root, name):
            for key, value in row.items():
                other = key.removesuffix("s").removesuffix("_token")
                if other in tokens and other != key:
                    assert {*(value if isinstance(value, list) else [value])} <= tokens[other], (
                        name,
                        key,
                    )


def test_pictures_between_key_frames_belong_to_the_next_one(root):
    times = {row["token"]: row["timestamp"] for row in table(root, "sample")}
    for data in table(root, "sample_data"):
        wait = times[data["sample_token"]] - data["timestamp"]
        assert 0 <= wait < (50_000 if data["is_key_frame"] else 500_000)


@pytest.mark.parametrize("wrong", [{"samples": 1}, {"train_scenes": 0}, {"width": 8}, {"seed": -1}])
def test_a_config_that_cannot_be_drawn_is_refused_by_name(wrong):
    with pytest.raises(ValueError, match=next(iter(wrong))):
        SyntheticConfig(**wrong)
