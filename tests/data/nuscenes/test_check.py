"""Claims about the check: a sound set passes, and everything that is wrong is told at once."""

import json
import shutil

import pytest

from groupdetr.data.nuscenes.check import check
from groupdetr.data.nuscenes.synthetic import VERSION
from groupdetr.data.nuscenes.version import check_version, is_version, load


def codes(findings):
    return [finding.code for finding in findings]


def test_a_sound_set_passes(root):
    report = check(root, VERSION)
    assert report.verdict == "ok", report.render()


def test_all_missing_tables_are_told_at_once(copy):
    for name in ("sample", "map", "visibility"):
        (copy / VERSION / f"{name}.json").unlink()
    report = check(copy, VERSION)
    assert codes(report.errors) == ["missing-table"] * 3
    assert "sample.json" in report.render()


def test_a_version_that_is_not_there_is_thirteen_missing_tables(tmp_path):
    assert len(check(tmp_path, "v1.0-trainval").errors) == 13


def test_without_a_list_of_scenes_the_check_says_what_to_write(copy):
    (copy / VERSION / "splits.json").unlink()
    assert codes(check(copy, VERSION).errors) == ["unknown-split"]


def test_lists_may_tell_of_scenes_that_are_not_here_but_not_of_a_split_that_is_asked_for(copy):
    (copy / VERSION / "splits.json").write_text('{"train": ["scene-9001"], "test": ["scene-0001"]}')
    report = check(copy, VERSION)
    assert (codes(report.errors), codes(report.warnings)) == ([], ["split-not-here"])
    assert codes(check(copy, VERSION, ("train", "test")).errors) == ["unknown-scene"]


def test_a_picture_that_is_missing_broken_or_of_another_size_is_told(edit):
    copy = edit("sample_data", spoil)
    (copy / "broken.jpg").write_bytes(b"\xff\xd8\xff" + bytes(50))
    assert sorted(codes(check(copy, VERSION).errors)) == [
        "missing-file",
        "not-an-image",
        "size-mismatch",
    ]


def spoil(rows):
    cameras = [row for row in rows if row["fileformat"] == "jpg" and row["is_key_frame"]]
    cameras[0]["filename"] = "gone.jpg"
    cameras[1]["filename"] = "broken.jpg"
    cameras[2]["width"] = 401


def test_scenes_that_were_not_downloaded_are_counted_and_not_told_picture_by_picture(edit):
    """The tables tell of all scenes, whichever parts of the pictures are here."""
    copy = edit("sample_data", without_first_scene)
    report = check(copy, VERSION)
    assert codes(report.errors) == ["scenes-without-pictures"]
    assert "no picture of 1 scenes is here, such as 'scene-9001'" in report.render()


def without_first_scene(rows):
    """Scenes are drawn one after the other."""
    cameras = [row for row in rows if row["fileformat"] == "jpg"]
    for row in cameras[: len(cameras) // 3]:
        row["filename"] = f"not_here/{row['token']}.jpg"


def test_of_many_pictures_that_are_missing_few_lines_are_shown(edit):
    def change(rows):
        for row in rows:
            if row["filename"].startswith("samples/CAM_BACK/"):
                row["filename"] += ".gone"

    report = check(edit("sample_data", change), VERSION)
    assert codes(report.errors) == ["missing-file"] * 9
    assert "missing-file (9)" in report.render()
    assert len(report.render().splitlines()) < 9


@pytest.mark.parametrize(
    ("table", "change", "code"),
    [
        ("calibrated_sensor", {"camera_intrinsic": [[1, 0, 0], [0, 1, 0]]}, "bad-calibration"),
        ("ego_pose", {"rotation": [1, 0, 0]}, "bad-pose"),
        ("sample_data", {"ego_pose_token": "nowhere"}, "dangling-token"),
    ],
)
def test_calibrations_poses_and_tokens_are_looked_at(edit, table, change, code):
    assert codes(check(edit(table, lambda rows: rows[-1].update(change)), VERSION).errors) == [code]


@pytest.mark.parametrize(
    "value", ["soon", None, [], {}, 10**400], ids=("text", "null", "list", "object", "huge")
)
@pytest.mark.parametrize(
    ("table", "field"),
    [
        ("sample", "timestamp"),
        ("sample_annotation", "num_lidar_pts"),
        ("sample_data", "width"),
        ("scene", "name"),
    ],
)
def test_values_of_another_kind_never_raise(edit, table, field, value):
    report = check(
        edit(table, lambda rows: rows[-1].update({field: value})), VERSION, ("train", "val")
    )
    assert report.verdict == "refuse"


def test_objects_that_will_not_be_learned_are_counted(edit):
    def change(rows):
        for row in rows[:3]:
            row["num_lidar_pts"] = 0
        rows[3]["translation"] = [0, 0, 0]

    report = check(edit("sample_annotation", change), VERSION)
    told = {finding.code: finding.what for finding in report.warnings}
    assert told["objects-without-points"].startswith("3 ")
    assert told["objects-out-of-range"].startswith("1 ")


def test_a_split_without_objects_cannot_be_trained_on(edit):
    report = check(edit("sample_annotation", lambda rows: rows.clear()), VERSION)
    assert codes(report.errors) == ["split-without-objects"] * 2
    assert codes(report.warnings).count("class-without-boxes") == 20


def test_key_frames_in_both_splits_are_told(copy):
    (copy / VERSION / "splits.json").write_text('{"train": ["scene-9001"], "val": ["scene-9001"]}')
    assert codes(check(copy, VERSION).warnings) == ["shared-images"]


@pytest.mark.parametrize("name", ["train", "val"])
def test_a_split_without_objects_is_told_by_name_with_what_to_do_about_it(edit, copy, name):
    tokens = {sample.token for sample in load(copy).splits[name]}

    def change(rows):
        rows[:] = [row for row in rows if row["sample_token"] not in tokens]

    edit("sample_annotation", change)
    report = check_version(copy)
    assert [(finding.code, finding.record) for finding in report.errors] == [
        ("split-without-objects", f"split '{name}'")
    ]
    assert f"no key frame of split '{name}' has an object" in report.errors[0].message
    assert "annotate objects in it, or list scenes that have some" in report.errors[0].message


@pytest.mark.parametrize("name", ["train", "val"])
def test_an_empty_split_is_told_by_name(copy, name):
    splits = {"train": ["scene-9001"], "val": ["scene-9002"]} | {name: []}
    (copy / VERSION / "splits.json").write_text(json.dumps(splits))
    report = check_version(copy)
    assert [(finding.code, finding.record) for finding in report.errors] == [
        ("empty-split", f"split '{name}'")
    ]
    assert "it is empty" in report.render()


@pytest.fixture
def still(copy):
    """A version whose pictures of earlier frames were not unpacked."""
    (copy / "sweeps").unlink()
    return copy


def test_who_looks_at_one_frame_needs_no_sweeps(still):
    assert check_version(still, two_frames=False).verdict == "ok"


def test_who_looks_at_two_frames_is_refused_without_sweeps(still):
    assert {*codes(check_version(still, two_frames=True).errors)} == {"missing-file"}


def test_without_a_detector_missing_sweeps_are_a_warning_that_says_who_looks_at_them(still):
    report = check_version(still)
    assert report.errors == []
    assert {*codes(report.warnings)} == {"earlier-frame"}
    assert "PETRv2 cannot be trained" in report.render()
    assert "sweeps" in report.render()


def test_pictures_of_key_frames_are_needed_however_many_frames_are_looked_at(copy):
    (copy / "samples").unlink()
    for two_frames in (False, True, None):
        assert "scenes-without-pictures" in codes(check_version(copy, two_frames=two_frames).errors)


def test_a_version_of_test_scenes_is_sound_without_annotations_train_and_val(copy):
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
    assert codes(check_version(copy / "v1.0-test").errors) == ["scenes-without-pictures"]


def test_a_version_is_found_from_within_its_folder(root, monkeypatch):
    monkeypatch.chdir(root / VERSION)
    assert check_version(".").verdict == "ok"


def test_a_version_without_its_samples_is_still_one(copy):
    (copy / VERSION / "sample.json").unlink()
    for folder in (copy, copy / VERSION):
        assert is_version(folder)
        assert codes(check_version(folder).errors) == ["missing-table"]
    assert not is_version(copy / "samples")


def test_a_bad_list_of_splits_is_a_finding(copy):
    (copy / VERSION / "splits.json").write_text("{train")
    assert codes(check_version(copy).errors) == ["bad-splits"]


def test_several_versions_are_a_finding_with_the_way_out(copy):
    shutil.copytree(copy / VERSION, copy / "v1.0-other")
    report = check_version(copy)
    assert codes(report.errors) == ["which-version"]
    assert "there are 2 versions here: v1.0-other" in report.render()
    assert "pass the folder of one" in report.render()


def test_what_is_wrong_with_a_table_is_told_once_for_all_splits(edit):
    report = check_version(
        edit("sample_annotation", lambda rows: rows[0].update(translation=[0, 0]))
    )
    assert codes(report.errors) == ["bad-pose"]


def test_the_report_counts_what_is_learned_in_each_split(root):
    report = check_version(root)
    for name, samples in load(root).splits.items():
        counts, objects = report.counts[name], sum(len(sample.objects()[1]) for sample in samples)
        assert (counts.samples, counts.objects, sum(counts.classes.values())) == (
            len(samples),
            objects,
            objects,
        )
        assert (
            f"{name}: {len(samples)} samples (0 without objects), {objects} objects: car "
            in report.render()
        )
        assert report.to_json()["splits"][name]["objects"] == objects
    train = report.counts["train"]
    assert (report.images, report.boxes) == (train.samples, train.objects)


def test_a_report_of_a_version_that_cannot_be_read_has_no_figures(edit):
    assert (
        check_version(edit("sample", lambda rows: rows[0].update(token=1))).to_json()["splits"]
        == {}
    )
