"""Tables and splits: errors name what is missing, and how to repair it."""

import json
import math
import shutil

import pytest

from groupdetr.data.nuscenes.names import CAMERAS
from groupdetr.data.nuscenes.samples import read_samples
from groupdetr.data.nuscenes.splits import TRAINVAL
from groupdetr.data.nuscenes.synthetic import VERSION
from groupdetr.data.nuscenes.tables import Tables, scenes_by_split
from groupdetr.data.nuscenes.version import check_version, load
from groupdetr.errors import DataError


@pytest.mark.parametrize(
    ("table", "field"),
    [("scene", "token"), ("calibrated_sensor", "camera_intrinsic"), ("sample_data", "prev")],
)
def test_a_missing_field_is_refused_by_name(edit, table, field):
    copy = edit(table, lambda rows: rows[-1].pop(field))
    with pytest.raises(DataError, match=f"(?s)it has no {field}.*{table}.json: record"):
        Tables(copy, VERSION)


@pytest.mark.parametrize("content", ["", "{", "{}", "[1]", "[" * 100_000])
def test_a_table_that_is_not_a_list_of_records_is_refused(copy, content):
    (copy / VERSION / "sample.json").write_text(content)
    with pytest.raises(DataError, match=r"(?s)it (is not|cannot).*sample.json"):
        Tables(copy, VERSION)


@pytest.mark.parametrize(
    ("table", "field"),
    [
        ("instance", "category_token"),
        ("sample_annotation", "instance_token"),
        ("sample_annotation", "next"),
        ("sample_annotation", "attribute_tokens"),
        ("sample_data", "ego_pose_token"),
        ("sample_data", "calibrated_sensor_token"),
        ("calibrated_sensor", "sensor_token"),
    ],
)
def test_an_error_about_a_dangling_token_names_the_record_with_it(edit, table, field):
    tokens = []

    def change(rows):
        rows[0][field] = ["nowhere"] if field == "attribute_tokens" else "nowhere"
        tokens.append(rows[0]["token"])

    with pytest.raises(DataError, match=r"refers to .* 'nowhere', which does not exist") as error:
        load(edit(table, change))
    assert f"{table}.json: token '{tokens[0]}'" in error.value.where


def test_the_previous_key_frame_must_be_of_the_same_scene(edit):
    def change(rows):
        rows[0]["prev"] = rows[-1]["token"]

    with pytest.raises(DataError, match=r"(?s)belongs to another scene.*sample.json: token"):
        load(edit("sample", change))


# A value of each type of field that a record may have by mistake.
INVALID_VALUES = [
    ("scene", "token", None),
    ("scene", "name", ["a"]),
    ("sample_data", "filename", 1),
    ("sample", "timestamp", 1.5),
    ("sample_data", "width", None),
    ("sample_annotation", "num_lidar_pts", 10**400),
    ("sample_annotation", "next", 1),
    ("sample_annotation", "attribute_tokens", "text"),
    ("sample_annotation", "attribute_tokens", [1]),
    ("sample_data", "is_key_frame", 1),
    ("ego_pose", "rotation", None),
    ("sample_annotation", "size", [1, 2]),
    ("sample_annotation", "size", [1, math.nan, 1]),
    ("sample_annotation", "size", [1, "2", 1]),
    ("sample_annotation", "size", [[1, 1, 1]]),
]


@pytest.mark.parametrize(("table", "field", "value"), INVALID_VALUES, ids=str)
def test_an_error_about_a_value_of_another_type_names_table_record_and_field(
    edit, table, field, value
):
    record = "record 0" if field == "token" else "token '"
    with pytest.raises(DataError, match=f"(?s)its {field} is .*, not .*{table}.json: {record}"):
        load(edit(table, lambda rows: rows[0].update({field: value})))


@pytest.mark.parametrize("table", ["category", "sample_data"])
def test_an_error_about_records_with_the_same_token_names_table_and_token(edit, table):
    tokens = []

    def change(rows):
        rows.append(dict(rows[0]))
        tokens.append(rows[0]["token"])

    with pytest.raises(DataError, match="another record has the same token") as error:
        load(edit(table, change))
    assert f"{table}.json: token '{tokens[0]}'" in error.value.where


def test_two_scenes_with_the_same_name_are_refused(edit):
    with pytest.raises(
        DataError, match=r"(?s)another record has the same name.*scene.json: name 'scene-9001'"
    ):
        load(edit("scene", lambda rows: rows[1].update(name=rows[0]["name"])))


def test_records_that_no_camera_detector_needs_are_dropped(edit, root):
    """Lidar records that are not of key frames, and their ego poses."""

    def clear_key_frames(rows):
        for row in rows:
            row["is_key_frame"] = False

    original = Tables(root, VERSION)
    reduced = Tables(edit("sample_data", clear_key_frames), VERSION)
    assert {reduced.channel(row) for row in reduced["sample_data"].values()} == {*CAMERAS}
    num_records = len(reduced["sample_data"])
    assert len(reduced["ego_pose"]) == num_records < len(original["sample_data"])


# Splits.


def test_the_official_splits_of_trainval_are_known(tmp_path):
    splits = scenes_by_split(tmp_path / "v1.0-trainval")
    train, val = {*splits["train"]}, {*splits["val"]}
    assert (len(train), len(val), train & val) == (700, 150, set())
    assert {"scene-0001", "scene-0061", "scene-1110"} <= train
    assert {"scene-0003", "scene-0103", "scene-1073"} <= val
    assert not {"scene-0077", "scene-1043"} & (train | val), "they are in the test set"


@pytest.fixture
def trainval(copy):
    """The synthetic scenes under the names of three scenes of trainval, without splits.json."""
    (copy / VERSION / "splits.json").unlink()
    scenes = json.loads((copy / VERSION / "scene.json").read_text())
    for scene, name in zip(scenes, ("scene-0061", "scene-0103", "scene-0001")):
        scene["name"] = name
    (copy / VERSION / "scene.json").write_text(json.dumps(scenes))
    shutil.move(copy / VERSION, copy / "v1.0-trainval")
    return copy


def test_a_part_of_trainval_is_refused_with_a_remedy(trainval):
    with pytest.raises(
        DataError,
        match=r"(?s)split 'train' has 698 scenes.*'scene-0002'.*existing scenes in splits.json",
    ):
        load(trainval)


def test_splits_json_takes_precedence_over_the_official_splits(trainval):
    (trainval / "v1.0-trainval/splits.json").write_text(
        '{"train": ["scene-0061", "scene-0001"], "val": ["scene-0103"]}'
    )
    splits = load(trainval).splits
    assert {name: {sample.scene for sample in samples} for name, samples in splits.items()} == {
        "train": {"scene-0001", "scene-0061"},
        "val": {"scene-0103"},
    }


def test_all_of_trainval_is_read_without_splits_json(trainval):
    """The table of scenes has all scenes. Most of them have no sample in this test."""
    file = trainval / "v1.0-trainval/scene.json"
    scenes = json.loads(file.read_text())
    names = {*TRAINVAL["train"], *TRAINVAL["val"]}
    for name in names - {scene["name"] for scene in scenes}:
        scenes.append({"token": name, "name": name})
    file.write_text(json.dumps(scenes))
    splits = load(trainval).splits
    assert len(splits["train"]) == 6
    assert len(splits["val"]) == 3


def test_mini_is_read_without_splits_json(copy):
    (copy / VERSION / "splits.json").unlink()
    scenes = json.loads((copy / VERSION / "scene.json").read_text())
    for scene, name in zip(scenes, ("scene-0103", "scene-0916", "scene-0061")):
        scene["name"] = name
    (copy / VERSION / "scene.json").write_text(json.dumps(scenes))
    shutil.move(copy / VERSION, copy / "v1.0-mini")
    assert {sample.scene for sample in read_samples(Tables(copy, "v1.0-mini"), "mini_val")} == {
        "scene-0103",
        "scene-0916",
    }


def test_a_version_of_test_scenes_is_one_split_without_annotations(copy):
    (copy / VERSION / "splits.json").unlink()
    for table in ("sample_annotation", "instance"):
        (copy / VERSION / f"{table}.json").write_text("[]")
    shutil.move(copy / VERSION, copy / "v1.0-test")
    samples = load(copy / "v1.0-test", "test").splits["val"]
    assert len(samples) == 9
    assert not any(len(sample.truth.labels) for sample in samples)


def test_an_error_about_a_missing_list_of_scenes_says_how_to_write_one(copy):
    (copy / VERSION / "splits.json").unlink()
    with pytest.raises(
        DataError,
        match=r"(?s)split 'train'.*available splits: none.*: \{\"train\": \[\"scene-0001\"",
    ):
        read_samples(Tables(copy, VERSION), "train")


def test_a_missing_scene_is_named(root):
    with pytest.raises(
        DataError, match="8 scenes that are not in this version, such as 'scene-0061'"
    ):
        read_samples(Tables(root, VERSION), "mini_train")


def test_an_error_about_an_unknown_split_names_the_available_splits(root, copy):
    with pytest.raises(DataError, match="split 'test'; available splits: 'train', 'val'\n"):
        load(root, "test")
    (copy / VERSION / "splits.json").unlink()
    shutil.move(copy / VERSION, copy / "v1.0-test")
    with pytest.raises(DataError, match="split 'train'; available splits: 'test'\n"):
        load(copy)


def test_a_splits_json_of_another_form_is_refused(copy):
    for content in ("[]", '{"train": "scene-0001"}', '{"train": [1]}', "{"):
        (copy / VERSION / "splits.json").write_text(content)
        with pytest.raises(DataError, match=r"(?s)splits.json\nwrite one object: "):
            Tables(copy, VERSION).scenes("train")
        assert [error.code for error in check_version(copy).errors] == ["bad-splits"], content
