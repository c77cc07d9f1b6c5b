"""Arguments that are no dataset or no image: the error says what they are, and what to pass."""

from __future__ import annotations

import pickle
from pathlib import Path

import pytest
from PIL import Image

from groupdetr.data.findings import Finding, RefusedError
from groupdetr.data.wrong_inputs import (
    PASS_IMAGES,
    describe_missing_image,
    describe_run,
    expect_annotation_file,
    missing_data,
    wrong_image,
)
from groupdetr.errors import DataError

POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n"
WEB_PAGE = b"<!DOCTYPE html><html></html>"
ARCHIVE = b"\x1f\x8b\x08\0" + bytes(20)
VIDEO = b"\0\0\0\x20ftypisom\0\0\2\0isomiso2avc1mp41"
WEIGHTS = pickle.dumps({"model": {}}, protocol=2)


def write(path: Path, content: bytes) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    return path


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """The folder of a run."""
    write(tmp_path / "run/config.yaml", b"model: dino-tiny\n")
    write(tmp_path / "run/weights/best.safetensors", b"x")
    return tmp_path / "run"


# datasets


def test_what_may_be_an_annotation_file_is_left_to_its_reader(tmp_path: Path) -> None:
    for content in (b"", b"{", b"[1]", b'{"model_type": 1}', b"a,b\n1,2\n"):
        expect_annotation_file(write(tmp_path / "a.json", content))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (POINTER, "a Git LFS pointer, .*: fetch the file itself: git lfs pull"),
        (WEB_PAGE, "a web page .*: download the file itself"),
        (ARCHIVE, "a compressed archive: unpack it, and pass the file that is inside"),
        (VIDEO, "a video, and not an annotation file"),
        (WEIGHTS, "a file of weights, and not an annotation file"),
        (b"%PDF-1.7", "a PDF document, and not an annotation file"),
    ],
)
def test_a_file_that_is_no_annotation_file_is_named(
    content: bytes, message: str, tmp_path: Path
) -> None:
    with pytest.raises(RefusedError, match=f"it is {message}") as refused:
        expect_annotation_file(write(tmp_path / "a.json", content))
    assert refused.value.finding.code == "no-dataset"


@pytest.mark.parametrize("name", ["val/metrics.json", "config.yaml", "val/images/a.json"])
def test_a_file_of_a_run_is_not_taken_for_annotations(name: str, run: Path) -> None:
    write(run / name, b"{}")
    with pytest.raises(RefusedError, match="a file of a run, and not a dataset"):
        expect_annotation_file(run / name)


def test_a_run_is_described_and_another_folder_is_not(run: Path) -> None:
    assert "groupdetr train" in describe_run(run)
    assert describe_run(run / "weights") == ""


def test_a_missing_dataset_is_described(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "shapes").mkdir()
    monkeypatch.chdir(tmp_path)
    for argument, what in (
        ("https://example.org/a.zip", "an address on the internet (URL)"),
        ("shape", "did you mean shapes?"),
        ("nowhere", "there is no such file or folder"),
    ):
        error = missing_data(Path(argument))
        assert what in error.what
        assert error.where == argument


# images


def refused(code: str) -> RefusedError:
    """Return the error of reading an image of a dataset."""
    return RefusedError(Finding(code, "x", "", "it cannot be read"))


@pytest.mark.parametrize(
    ("content", "what", "remedy"),
    [
        (POINTER, "a Git LFS pointer", "git lfs pull"),
        (WEB_PAGE, "a web page", "download the file itself"),
        (ARCHIVE, "a compressed archive", "unpack it"),
        (VIDEO, "a video", "ffmpeg -i VIDEO"),
        (WEIGHTS, "a file of weights", "groupdetr predict RUN IMAGES"),
        (b"{}", "a JSON file", PASS_IMAGES),
        (b"some text\n", "a text file", PASS_IMAGES),
    ],
)
def test_a_file_that_is_no_image_is_named(
    content: bytes, what: str, remedy: str, tmp_path: Path
) -> None:
    path = write(tmp_path / "a.jpg", content)
    error = wrong_image(path, refused("unreadable-image"))
    assert type(error) is DataError
    assert error.what.startswith(f"this is {what}")
    assert error.what.endswith(", and not an image")
    assert error.where == str(path)
    assert remedy in error.remedy


@pytest.mark.parametrize(
    ("code", "remedy"),
    [
        ("truncated-image", "copy or download the image again"),
        ("image-too-large", "cut it into tiles"),
    ],
)
def test_the_remedy_for_a_faulty_image_is_not_about_a_dataset(
    code: str, remedy: str, tmp_path: Path
) -> None:
    Image.new("RGB", (8, 8)).save(tmp_path / "a.png")
    error = wrong_image(tmp_path / "a.png", refused(code))
    assert error.what == "it cannot be read"
    assert remedy in error.remedy


def test_a_missing_image_is_described(tmp_path: Path) -> None:
    error = wrong_image("https://example.org/a.jpg", refused("missing-file"))
    assert "URL" in error.what
    error = wrong_image(tmp_path / "a.jpg", refused("missing-file"))
    assert (error.what, error.remedy) == ("it cannot be read", "check the path")


def test_streams_are_not_images() -> None:
    assert "video stream" in describe_missing_image("rtsp://192.168.0.7/stream1")[0]
    assert describe_missing_image("2024") == ("", PASS_IMAGES)
