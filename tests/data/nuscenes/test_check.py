"""The check of a version passes a valid set, and reports all problems of another at once."""

import json
import shutil

import pytest

from groupdetr.data.nuscenes.check import check
from groupdetr.data.nuscenes.synthetic import VERSION
from groupdetr.data.nuscenes.version import check_version, is_version, load
from groupdetr.errors import DataError


def codes(findings):
    return [finding.code for finding in findings]


def test_a_valid_set_passes(root):
    report = check(root, VERSION)
    assert report.verdict == "ok", report.render()


def test_all_missing_tables_are_reported_at_once(copy):
    for name in ("sample", "map", "visibility"):
        (copy / VERSION / f"{name}.json").unlink()
    report = check(copy, VERSION)
    assert codes(report.errors) == ["missing-table"] * 3
    assert "sample.json" in report.render()
    assert codes(check(copy, "v1.0-trainval").errors) == ["missing-table"] * 13
    with pytest.raises(DataError, match=r"(?s)there is no such table.*map\.json"):
        load(copy)


def test_missing_scenes_are_a_warning_in_a_listed_split_and_an_error_in_a_required_one(copy):
    (copy / VERSION / "splits.json").write_text('{"train": ["scene-9001"], "test": ["scene-0001"]}')
    report = check(copy, VERSION)
    assert (codes(report.errors), codes(report.warnings)) == ([], ["missing-split"])
    assert codes(check(copy, VERSION, ("train", "test")).errors) == ["unknown-scene"]


def test_a_missing_or_broken_image_or_one_of_another_size_is_reported(edit):
    copy = edit("sample_data", break_three_images)
    (copy / "broken.jpg").write_bytes(b"\xff\xd8\xff" + bytes(50))
    assert sorted(codes(check(copy, VERSION).errors)) == [
        "missing-file",
        "not-an-image",
        "size-mismatch",
    ]


def break_three_images(rows):
    cameras = [row for row in rows if row["fileformat"] == "jpg" and row["is_key_frame"]]
    cameras[0]["filename"] = "gone.jpg"
    cameras[1]["filename"] = "broken.jpg"
    cameras[2]["width"] = 401


def test_scenes_without_images_are_counted_and_not_reported_image_by_image(edit):
    """The tables list all scenes, whichever parts of the images were downloaded."""
    copy = edit("sample_data", rename_images_of_first_scene)
    report = check(copy, VERSION)
    assert codes(report.errors) == ["scenes-without-images"]
    assert "no image of 1 scenes exists, such as 'scene-9001'" in report.render()


def rename_images_of_first_scene(rows):
    """Change the file names of the first third of the images: scenes come one after the other."""
    cameras = [row for row in rows if row["fileformat"] == "jpg"]
    for row in cameras[: len(cameras) // 3]:
        row["filename"] = f"missing/{row['token']}.jpg"


def test_the_report_shows_only_a_few_of_many_missing_images(edit):
    def rename_images(rows):
        for row in rows:
            if row["filename"].startswith("samples/CAM_BACK/"):
                row["filename"] += ".gone"

    report = check(edit("sample_data", rename_images), VERSION)
    assert codes(report.errors) == ["missing-file"] * 9
    assert "missing-file (9)" in report.render()
    assert len(report.render().splitlines()) < 9


@pytest.mark.parametrize(
    ("table", "change", "code"),
    [
        ("calibrated_sensor", {"camera_intrinsic": [[1, 0, 0], [0, 1, 0]]}, "bad-calibration"),
        ("sample_data", {"ego_pose_token": "nowhere"}, "dangling-token"),
    ],
)
def test_invalid_calibrations_and_tokens_are_reported(edit, table, change, code):
    copy = edit(table, lambda rows: rows[-1].update(change))
    assert codes(check(copy, VERSION).errors) == [code]


@pytest.mark.parametrize(
    ("table", "field", "value"),
    [
        ("sample", "timestamp", "soon"),
        ("sample_annotation", "num_lidar_pts", None),
        ("sample_data", "width", 10**400),
        ("scene", "name", {}),
    ],
    ids=("text", "null", "huge", "object"),
)
def test_values_of_another_type_are_refused_without_raising(edit, table, field, value):
    copy = edit(table, lambda rows: rows[-1].update({field: value}))
    report = check(copy, VERSION, ("train", "val"))
    assert report.verdict == "refuse"


def test_objects_that_are_not_trained_on_are_counted(edit):
    def change(rows):
        for row in rows[:3]:
            row["num_lidar_pts"] = 0
        rows[3]["translation"] = [0, 0, 0]

    report = check(edit("sample_annotation", change), VERSION)
    warnings = {finding.code: finding.what for finding in report.warnings}
    assert warnings["objects-without-points"].startswith("3 ")
    assert warnings["objects-out-of-range"].startswith("1 ")


def test_key_frames_in_both_splits_are_a_warning(copy):
    (copy / VERSION / "splits.json").write_text('{"train": ["scene-9001"], "val": ["scene-9001"]}')
    assert codes(check(copy, VERSION).warnings) == ["shared-images"]


def test_splits_without_objects_are_named_with_a_remedy(edit):
    report = check(edit("sample_annotation", lambda rows: rows.clear()), VERSION)
    assert codes(report.errors) == ["split-without-objects"] * 2
    for error, name in zip(report.errors, ("train", "val")):
        assert error.record == f"split '{name}'"
        assert f"no key frame of split '{name}' has an object" in error.message
        assert "annotate objects in it, or list scenes that have objects" in error.message
    assert codes(report.warnings).count("class-without-boxes") == 20


@pytest.mark.parametrize("name", ["train", "val"])
def test_an_empty_split_is_named(copy, name):
    splits = {"train": ["scene-9001"], "val": ["scene-9002"]} | {name: []}
    (copy / VERSION / "splits.json").write_text(json.dumps(splits))
    report = check_version(copy)
    assert [(finding.code, finding.record) for finding in report.errors] == [
        ("empty-split", f"split '{name}'")
    ]
    with pytest.raises(DataError, match=f"(?s)it is empty.*splits.json: split '{name}'"):
        load(copy)


def test_only_detectors_of_two_frames_need_sweeps(copy):
    """The images of earlier frames are in archives of their own, which may not be unpacked."""
    (copy / "sweeps").unlink()
    assert check_version(copy, two_frames=False).verdict == "ok"
    assert {*codes(check_version(copy, two_frames=True).errors)} == {"missing-file"}
    report = check_version(copy)  # The detector is not known yet.
    assert report.errors == []
    assert {*codes(report.warnings)} == {"earlier-frame"}
    assert "PETRv2 cannot be trained" in report.render()
    assert "sweeps" in report.render()


def test_earlier_frames_must_be_earlier(edit):
    """PETRv2 would divide by zero, and its training would end with a loss that is not finite."""

    def without_times(rows):
        for row in rows:
            row["timestamp"] = 0

    root = edit("sample_data", without_times)
    assert check(root, VERSION, two_frames=False).verdict == "ok"
    (error,) = check(root, VERSION, two_frames=True).errors
    assert error.code == "frame-times"
    assert error.file == str(root / VERSION / "sample_data.json")
    report = check(root, VERSION)  # The detector is not known yet.
    assert report.errors == []
    assert codes(report.warnings) == ["earlier-frame"]


def test_images_of_key_frames_are_always_needed(copy):
    (copy / "samples").unlink()
    for two_frames in (False, True, None):
        assert "scenes-without-images" in codes(check_version(copy, two_frames=two_frames).errors)


def test_a_version_of_test_scenes_is_valid_without_annotations_train_and_val(copy):
    (copy / VERSION / "splits.json").unlink()
    for table in ("sample_annotation", "instance"):
        (copy / VERSION / f"{table}.json").write_text("[]")
    shutil.move(copy / VERSION, copy / "v1.0-test")
    report = check_version(copy / "v1.0-test")
    assert report.verdict == "ok", report.render()
    assert {*codes(check_version(copy, two_frames=False).errors)} == {"unknown-split"}, (
        "it cannot be trained on"
    )
    (copy / "samples").unlink()
    assert codes(check_version(copy / "v1.0-test").errors) == ["scenes-without-images"]


def test_a_version_can_be_checked_from_within_its_folder(root, monkeypatch):
    monkeypatch.chdir(root / VERSION)
    assert check_version(".").verdict == "ok"


def test_a_version_without_one_table_is_still_a_version(copy):
    (copy / VERSION / "sample.json").unlink()
    for folder in (copy, copy / VERSION):
        assert is_version(folder)
        assert codes(check_version(folder).errors) == ["missing-table"]
    assert not is_version(copy / "samples")


def test_several_versions_in_a_folder_are_a_finding_with_a_remedy(copy):
    shutil.copytree(copy / VERSION, copy / "v1.0-other")
    report = check_version(copy)
    assert codes(report.errors) == ["not-one-version"]
    assert "the folder has 2 versions: v1.0-other" in report.render()
    assert "pass the folder of one" in report.render()


def test_a_problem_of_a_table_is_reported_once_for_all_splits(edit):
    copy = edit("sample_annotation", lambda rows: rows[0].update(translation=[0, 0]))
    report = check_version(copy)
    assert codes(report.errors) == ["bad-pose"]


def test_the_report_counts_the_trainable_objects_of_each_split(root):
    report = check_version(root)
    for name, samples in load(root).splits.items():
        counts = report.counts[name]
        objects = sum(len(sample.trainable_objects()[1]) for sample in samples)
        assert counts.samples == len(samples)
        assert counts.objects == sum(counts.classes.values()) == objects
        line = f"{name}: {len(samples)} samples (0 without objects), {objects} objects: car "
        assert line in report.render()
        assert report.to_json()["splits"][name]["objects"] == objects
    train = report.counts["train"]
    assert (report.images, report.boxes) == (train.samples, train.objects)


def test_a_report_of_a_version_that_cannot_be_read_has_no_counts(edit):
    copy = edit("sample", lambda rows: rows[0].update(token=1))
    assert check_version(copy).to_json()["splits"] == {}
