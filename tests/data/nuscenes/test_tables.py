"""Claims about tables and splits: what is missing is told, with what to do."""

import json
import math
import shutil

import pytest

from groupdetr.data.nuscenes.names import CAMERAS
from groupdetr.data.nuscenes.samples import read_samples
from groupdetr.data.nuscenes.splits import TRAINVAL
from groupdetr.data.nuscenes.synthetic import VERSION
from groupdetr.data.nuscenes.tables import FIELDS, Tables, scene_names
from groupdetr.data.nuscenes.version import load
from groupdetr.errors import DataError

ALL = [(table, field) for table, fields in FIELDS.items() for field in fields]


def test_there_are_thirteen_tables(root):
    assert len(FIELDS) == len(Tables(root, VERSION)) == 13


@pytest.mark.parametrize("table", FIELDS)
def test_a_missing_table_is_refused_by_name(copy, table):
    (copy / VERSION / f"{table}.json").unlink()
    with pytest.raises(DataError, match=f"(?s)there is no such table.*{table}.json"):
        Tables(copy, VERSION)


@pytest.mark.parametrize(("table", "field"), ALL)
def test_a_missing_field_is_refused_by_name(edit, table, field):
    copy = edit(table, lambda rows: rows[-1].pop(field))
    with pytest.raises(DataError, match=f"(?s)it has no {field}.*{table}.json: record"):
        Tables(copy, VERSION)


@pytest.mark.parametrize("content", ["", "{", "{}", "[1]", "[" * 100_000])
def test_a_table_that_is_no_list_of_records_is_refused(copy, content):
    (copy / VERSION / "sample.json").write_text(content)
    with pytest.raises(DataError, match=r"(?s)it (is not|cannot).*sample.json"):
        Tables(copy, VERSION)


@pytest.mark.parametrize(
    ("table", "of"),
    [
        ("instance", "category_token"),
        ("sample_annotation", "instance_token"),
        ("sample_annotation", "next"),
        ("sample_data", "ego_pose_token"),
        ("sample_data", "calibrated_sensor_token"),
        ("calibrated_sensor", "sensor_token"),
    ],
)
def test_a_token_that_leads_nowhere_is_told_by_who_refers_to_it(edit, table, of):
    tokens = []

    def change(rows):
        rows[0][of] = "nowhere"
        tokens.append(rows[0]["token"])

    with pytest.raises(DataError, match=r"refers to .* 'nowhere', which is not there") as told:
        load(edit(table, change))
    assert f"{table}.json: token '{tokens[0]}'" in told.value.where


def test_an_attribute_that_is_not_there_is_told_by_its_object(edit):
    copy = edit("sample_annotation", lambda rows: rows[0].update(attribute_tokens=["nowhere"]))
    with pytest.raises(
        DataError, match=r"(?s)refers to attribute 'nowhere'.*sample_annotation.json: token"
    ):
        load(copy)


def test_a_key_frame_before_is_of_the_same_scene(edit):
    def change(rows):
        rows[0]["prev"] = rows[-1]["token"]

    with pytest.raises(DataError, match=r"(?s)of another scene.*sample.json: token"):
        load(edit("sample", change))


NUMBERS = {"timestamp", "width", "height", "num_lidar_pts", "num_radar_pts"}
FLOATS = {"translation", "rotation", "size", "camera_intrinsic"}
KINDS = {  # what does not fit into a field; text, for all others
    **dict.fromkeys(NUMBERS, (None, 1.5, 10**400)),
    **dict.fromkeys(FLOATS - {"camera_intrinsic"}, (None, [], [1, 2])),
    **dict.fromkeys(("prev", "next"), (1,)),
    "attribute_tokens": (None, "text", [1]),
    "is_key_frame": (None, 1),
    "camera_intrinsic": (),
}
WRONG = [(*place, value) for place in ALL for value in KINDS.get(place[1], (None, 1, ["a"]))]


@pytest.mark.parametrize(("table", "field", "value"), WRONG, ids=str)
def test_a_value_of_another_kind_is_refused_by_table_record_and_field(edit, table, field, value):
    record = "record 0" if field == "token" else "token '"
    with pytest.raises(DataError, match=f"(?s)its {field} is .*, not .*{table}.json: {record}"):
        load(edit(table, lambda rows: rows[0].update({field: value})))


@pytest.mark.parametrize("table", [name for name, fields in FIELDS.items() if fields])
def test_two_records_of_one_token_are_refused_by_table_and_token(edit, table):
    tokens = []

    def change(rows):
        rows.append(dict(rows[0]))
        tokens.append(rows[0]["token"])

    with pytest.raises(DataError, match="another record has the same token") as told:
        load(edit(table, change))
    assert f"{table}.json: token '{tokens[0]}'" in told.value.where


def test_two_scenes_of_one_name_are_refused(edit):
    with pytest.raises(
        DataError, match=r"(?s)another record has the same name.*scene.json: name 'scene-9001'"
    ):
        load(edit("scene", lambda rows: rows[1].update(name=rows[0]["name"])))


@pytest.mark.parametrize(
    "size", [[1, 2], [1, 2, math.inf], [1, math.nan, 1], [1, "2", 1], [[1, 1, 1]]]
)
def test_a_size_is_three_finite_numbers(edit, size):
    with pytest.raises(
        DataError, match=r"its size is .*, not 3 finite numbers\n.*sample_annotation.json: token '"
    ):
        load(edit("sample_annotation", lambda rows: rows[0].update(size=size)))


def test_what_no_camera_detector_looks_at_is_dropped(edit, root):
    whole = Tables(root, VERSION)

    def demote(rows):
        for row in rows:
            row["is_key_frame"] = False

    thinned = Tables(edit("sample_data", demote), VERSION)
    assert {thinned.channel(row) for row in thinned["sample_data"].values()} == {*CAMERAS}
    assert len(thinned["ego_pose"]) == len(thinned["sample_data"]) < len(whole["sample_data"])


# Splits.


def test_splits_come_from_their_file(root):
    train, val = (read_samples(Tables(root, VERSION), split) for split in ("train", "val"))
    assert (len(train), len(val)) == (6, 3)
    assert not {sample.token for sample in train} & {sample.token for sample in val}


def test_the_splits_of_mini_are_known(tmp_path):
    names = [scene_names(tmp_path / "v1.0-mini")[split] for split in ("mini_train", "mini_val")]
    assert [len(split) for split in names] == [8, 2]
    assert "scene-0916" in names[1]


def test_the_official_splits_of_trainval_are_known(tmp_path):
    train, val = ({*scene_names(tmp_path / "v1.0-trainval")[split]} for split in ("train", "val"))
    assert (len(train), len(val), train & val) == (700, 150, set())
    assert {"scene-0001", "scene-0061", "scene-1110"} <= train
    assert {"scene-0003", "scene-0103", "scene-1073"} <= val
    assert not {"scene-0077", "scene-1043"} & (train | val), "these are of the test set"


@pytest.fixture
def trainval(copy):
    """The drawn scenes as if they were three of trainval, without a list of their own."""
    (copy / VERSION / "splits.json").unlink()
    scenes = json.loads((copy / VERSION / "scene.json").read_text())
    for scene, name in zip(scenes, ("scene-0061", "scene-0103", "scene-0001")):
        scene["name"] = name
    (copy / VERSION / "scene.json").write_text(json.dumps(scenes))
    shutil.move(copy / VERSION, copy / "v1.0-trainval")
    return copy


def test_a_part_of_trainval_is_refused_in_words(trainval):
    with pytest.raises(
        DataError, match=r"(?s)split 'train' has 698 scenes.*'scene-0002'.*here in splits.json"
    ):
        load(trainval)


def test_a_list_of_ones_own_goes_before_the_official_one(trainval):
    (trainval / "v1.0-trainval/splits.json").write_text(
        '{"train": ["scene-0061", "scene-0001"], "val": ["scene-0103"]}'
    )
    splits = load(trainval).splits
    assert {name: {sample.scene for sample in samples} for name, samples in splits.items()} == {
        "train": {"scene-0001", "scene-0061"},
        "val": {"scene-0103"},
    }


def test_the_whole_of_trainval_is_read_without_a_file(trainval):
    """Its tables have all scenes, of which most have no sample here."""
    file = trainval / "v1.0-trainval/scene.json"
    scenes = json.loads(file.read_text())
    others = {name for names in TRAINVAL.values() for name in names} - {
        scene["name"] for scene in scenes
    }
    file.write_text(json.dumps([*scenes, *({"token": name, "name": name} for name in others)]))
    assert {name: len(samples) for name, samples in load(trainval).splits.items()} == {
        "train": 6,
        "val": 3,
    }


def test_mini_is_read_without_a_file(copy):
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


def test_without_a_list_of_scenes_it_is_said_how_to_write_one(copy):
    (copy / VERSION / "splits.json").unlink()
    with pytest.raises(
        DataError, match=r"(?s)split 'train'.*are here: none.*: \{\"train\": \[\"scene-0001\""
    ):
        read_samples(Tables(copy, VERSION), "train")


def test_a_scene_that_is_not_there_is_named(root):
    with pytest.raises(DataError, match="8 scenes that are not there, such as 'scene-0061'"):
        read_samples(Tables(root, VERSION), "mini_train")


def test_an_unknown_split_is_refused_with_the_splits_that_are_here(root, copy):
    with pytest.raises(DataError, match="split 'test'; those that are here: 'train', 'val'\n"):
        load(root, "test")
    (copy / VERSION / "splits.json").unlink()
    shutil.move(copy / VERSION, copy / "v1.0-test")
    with pytest.raises(DataError, match="split 'train'; those that are here: 'test'\n"):
        load(copy)


@pytest.mark.parametrize("name", ["train", "val"])
def test_an_empty_split_is_refused_by_name(copy, name):
    splits = {"train": ["scene-9001"], "val": ["scene-9002"]} | {name: []}
    (copy / VERSION / "splits.json").write_text(json.dumps(splits))
    with pytest.raises(DataError, match=f"(?s)it is empty.*splits.json: split '{name}'"):
        load(copy)


@pytest.mark.parametrize("content", ["[]", '{"train": "scene-0001"}', '{"train": [1]}', "{"])
def test_a_file_of_splits_that_is_something_else_is_refused(copy, content):
    (copy / VERSION / "splits.json").write_text(content)
    with pytest.raises(DataError, match=r"(?s)splits.json\nwrite one object: "):
        Tables(copy, VERSION).scenes("train")
