"""File names in the tables of nuScenes lead to no file outside of the folder of the dataset."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from groupdetr.data.findings import RefusedError
from groupdetr.data.nuscenes.camera_frames import CameraFrames
from groupdetr.data.nuscenes.check import check
from groupdetr.data.nuscenes.synthetic import VERSION
from groupdetr.data.nuscenes.tables import Tables
from groupdetr.data.nuscenes.version import load
from groupdetr.data.paths import are_ordinary, is_unusual, refused_name


def key_frames(rows):
    """Return the records of the images of key frames."""
    return [row for row in rows if row["fileformat"] == "jpg" and row["is_key_frame"]]


@pytest.mark.parametrize(
    ("name", "code"),
    [
        ("samples/../../secret.jpg", "path-outside"),
        ("/etc/secret.jpg", "path-outside"),
        ("C:\\secret.jpg", "path-outside"),
        ("", "bad-file-name"),
        ("samples/\0.jpg", "bad-file-name"),
    ],
)
def test_a_name_that_leads_out_of_the_folder_is_refused(name, code, edit):
    def change(rows):
        key_frames(rows)[3]["filename"] = name

    copy = edit("sample_data", change)
    # The image exists, so nothing but the name can be wrong.
    for folder in (copy.parent, copy):
        (folder / "secret.jpg").write_bytes(min(copy.glob("samples/*/*.jpg")).read_bytes())
    errors = check(copy, VERSION).errors
    assert [error.code for error in errors] == [code]
    assert "sample_data.json" in errors[0].file
    with pytest.raises(RefusedError, match="filename"):
        load(copy / VERSION)


def test_all_names_that_lead_out_are_reported_at_once(edit):
    def change(rows):
        for row in key_frames(rows)[:5]:
            row["filename"] = f"../{row['filename']}"

    errors = check(edit("sample_data", change), VERSION).errors
    assert [error.code for error in errors] == ["path-outside"] * 5


def test_names_with_backslashes_are_read_as_slashes_and_reported(edit):
    def change(rows):
        for row in key_frames(rows)[:2]:
            row["filename"] = row["filename"].replace("/", "\\")

    copy = edit("sample_data", change)
    report = check(copy, VERSION)
    assert (report.verdict, [w.code for w in report.warnings]) == ("warn", ["backslash"] * 2)
    assert all("\\" not in name for name in CameraFrames.from_tables(Tables(copy, VERSION)).names)


@given(
    st.text(max_size=40)
    | st.lists(st.sampled_from(["..", ".", "a", "C:", "\\", "/", "\0", " ", "é", "b.jpg"])).map(
        "".join
    )
)
def test_the_quick_test_finds_every_name_that_is_refused_or_has_a_backslash(name: str) -> None:
    if not is_unusual(name):
        assert refused_name(name, "the folder") is None
        assert "\\" not in name
        # It is one file below the folder.
        assert Path("/root", name).is_relative_to("/root")
        assert Path(name).name


@given(st.lists(st.text("aC1_-.:\\/\0\n é", max_size=4) | st.sampled_from(["b" * 151, "c" * 152])))
def test_names_that_are_called_ordinary_can_be_used(names: list[str]) -> None:
    if are_ordinary(names):
        assert not any(map(is_unusual, names))
        assert not any(refused_name(name, "the folder") for name in names)
