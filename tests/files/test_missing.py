"""An argument that is no path is described, and the path that was meant is named."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from groupdetr.files.missing import as_typed, describe_missing, similar_path


@pytest.fixture
def runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "runs/coco-dino-11g").mkdir(parents=True)
    (tmp_path / "runs/coco-dino-11g/best.safetensors").touch()
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_a_mistyped_path_is_corrected(runs: Path) -> None:
    for typed in (
        "runs/coco-dino-11",
        "runs/coco_dino_11g",
        "run/coco-dino-11g",
        "Runs/Coco-Dino-11g",
        "runs/coco-dino-11g ",
        "'runs/coco-dino-11g'",
        "runs\\coco-dino-11g",
    ):
        assert describe_missing(typed) == ("", f"did you mean {Path('runs/coco-dino-11g')}?")
    # Every part of a path is corrected.
    expected = Path("runs/coco-dino-11g/best.safetensors")
    assert similar_path("run/coco-dino-11G/best.safetensor") == str(expected)


@pytest.mark.parametrize("typed", ["", " ", "nowhere", "a" * 5000, "\0", "x/" * 500])
def test_nothing_is_guessed_where_nothing_is_similar(typed: str, runs: Path) -> None:
    assert describe_missing(typed) == ("", "")


def test_an_address_is_recognised() -> None:
    for scheme in ("http", "https", "ftp", "s3", "gs", "hf"):
        address = f"{scheme}://example.org/weights.pth"
        for typed in (address, Path(address)):  # A path has one slash of two.
            what, remedy = describe_missing(typed)
            assert "URL" in what, typed
            assert "download" in remedy, typed
            assert as_typed(typed) == address
    what, remedy = describe_missing("rtsp://192.168.0.7:554/stream1")
    assert "video stream" in what
    assert "ffmpeg" in remedy


@pytest.mark.skipif(os.name != "posix", reason="other systems have no such files")
def test_links_and_devices_are_not_taken_for_mistyped_paths(runs: Path) -> None:
    Path("broken").symlink_to("gone")
    Path("circle").symlink_to("circle")
    for name in ("broken", "circle"):
        assert describe_missing(name)[0] == "this is a link that leads nowhere"
    os.mkfifo("pipe")
    for name in ("pipe", "/dev/null"):
        assert describe_missing(name)[0] == "this is a device or a pipe, and not a file"


def test_for_a_name_of_the_hub_the_command_to_download_it_is_named(runs: Path) -> None:
    what, remedy = describe_missing("microsoft/conditional-detr-resnet-50")
    assert what == ""
    assert "hf download microsoft/conditional-detr-resnet-50" in remedy


@pytest.mark.skipif(os.name == "nt", reason="there, it is the path of a drive")
def test_a_drive_is_no_address() -> None:
    assert describe_missing("C:/weights.pth") == ("", "")
    assert as_typed("C:/weights.pth") == "C:/weights.pth"
