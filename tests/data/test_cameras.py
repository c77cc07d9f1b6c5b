"""Cameras. No machine of the tests has one: FFmpeg's test pattern takes its place."""

from __future__ import annotations

import errno
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import cast

import av
import pytest

from groupdetr.data import cameras
from groupdetr.data.cameras import (
    CameraSource,
    LatestFrames,
    camera_named,
    camera_source,
    open_camera,
)
from groupdetr.data.video import Frame, VideoReader
from groupdetr.errors import DataError, UsageError
from tests.videos import needs_test_pattern, write_video

PATTERN = CameraSource("testsrc=size=64x48:rate=50,realtime", "lavfi", {})


@pytest.fixture
def camera(monkeypatch: pytest.MonkeyPatch) -> Iterator[VideoReader]:
    """A camera with 50 images in a second."""
    monkeypatch.setattr(cameras, "camera_source", lambda *_: PATTERN)
    with open_camera("0") as reader:
        yield reader


def test_numbers_and_names_of_cameras_are_recognised() -> None:
    assert [camera_named(text) for text in ("0", "12", "camera:0", "camera:Front door")] == [
        *("0", "12", "0", "Front door")
    ]
    assert [camera_named(text) for text in ("2024", "a.jpg", "camera:", "-1")] == [None] * 4


def test_every_system_has_its_own_way_to_open_a_camera() -> None:
    linux = camera_source("1", "linux", [])
    assert (linux.file, linux.format) == ("/dev/video1", "v4l2")
    assert camera_source("/dev/v4l/by-id/x", "linux", []).file == "/dev/v4l/by-id/x"
    mac = camera_source("0", "darwin", ["FaceTime HD"])
    assert (mac.file, mac.format) == ("0:none", "avfoundation")
    windows = camera_source("0", "win32", ["Integrated Camera"])
    assert (windows.file, windows.format) == ("video=Integrated Camera", "dshow")
    assert camera_source("USB Video", "win32", []).file == "video=USB Video"


class FastCamera:
    """Sends ten images at once, and then no other one until it is closed."""

    name = "a fast camera"

    def __init__(self) -> None:
        self.sent, self.closed = threading.Event(), threading.Event()
        self.problem = ""

    def __iter__(self) -> Iterator[Frame]:
        for index in range(10):
            yield Frame(None, index, index, index / 50)
        self.sent.set()
        self.closed.wait(60)


def test_a_slow_detector_sees_the_latest_image_and_not_an_old_one() -> None:
    camera = FastCamera()
    seen = []
    for frame in LatestFrames(cast(VideoReader, camera), stopped=lambda: seen[-1:] == [9]):
        seen.append(frame.index)
        camera.sent.wait(60)  # The detector is at work meanwhile.
        if seen[-1] == 9:
            camera.closed.set()
    assert seen[-1] == 9
    assert len(seen) <= 2


@needs_test_pattern
def test_a_camera_ends_when_the_user_wants_it(camera: VideoReader) -> None:
    stop = threading.Event()
    for number, _ in enumerate(LatestFrames(camera, stop.is_set), 1):
        if number == 3:
            stop.set()
    assert number == 3


@needs_test_pattern
def test_a_camera_that_sends_nothing_is_given_up(
    camera: VideoReader, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cameras, "_SILENT_SECONDS", 0.4)
    monkeypatch.setattr(LatestFrames, "_read", lambda self: time.sleep(0.6))
    with pytest.raises(DataError, match="the camera sent no image"):
        list(LatestFrames(camera))


def test_a_camera_that_falls_silent_ends_and_keeps_what_it_sent(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(cameras, "_SILENT_SECONDS", 0.4)
    camera = FastCamera()
    # The silence begins when all images were sent, however long their thread has waited.
    frames = LatestFrames(cast(VideoReader, camera), stopped=lambda: not camera.sent.wait(60))
    assert [frame.index for frame in frames] == [9]
    camera.closed.set()
    assert camera.problem == "the camera sent no image for 0.4 seconds"


def test_a_camera_that_has_no_new_image_yet_is_asked_again(tmp_path: Path) -> None:
    # As FFmpeg's avfoundation does on a Mac.
    reader = VideoReader(write_video(tmp_path / "a.mp4", 10))
    container = reader.container

    class WaitingContainer:
        """Has no packet at every other attempt, which ends the iterator."""

        attempts = 0

        def demux(self, stream: object) -> Iterator[object]:
            while True:
                self.attempts += 1
                if self.attempts % 2:
                    raise av.error.BlockingIOError(errno.EAGAIN, "no new image")
                packet = next(container.demux(stream), None)
                if packet is None or not packet.size:
                    return
                yield packet

    reader.container = WaitingContainer()
    assert [frame.index for frame in reader] == list(range(10))
    assert reader.problem == ""
    container.close()


@needs_test_pattern
def test_an_error_of_the_camera_reaches_the_user(
    camera: VideoReader, monkeypatch: pytest.MonkeyPatch
) -> None:
    def unplugged(self: VideoReader) -> Iterator[object]:
        yield from ()
        raise DataError("it was unplugged")

    monkeypatch.setattr(VideoReader, "__iter__", unplugged)
    with pytest.raises(DataError, match="it was unplugged"):
        list(LatestFrames(camera))


@needs_test_pattern
def test_a_camera_that_does_not_exist_is_an_error_that_says_what_to_check(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    missing = CameraSource("/dev/video-of-nobody", "lavfi", {})
    monkeypatch.setattr(cameras, "camera_source", lambda *_: missing)
    monkeypatch.setattr(cameras, "list_cameras", lambda _: ["FaceTime HD"])
    with pytest.raises(UsageError) as refused:
        open_camera("7")
    assert "there is no such camera, or it cannot be used" in refused.value.what
    assert "camera 7" in refused.value.where
    assert "FaceTime HD" in refused.value.remedy


def test_a_build_of_pyav_without_cameras_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cameras, "camera_source", lambda *_: CameraSource("0", "nothing", {}))
    with pytest.raises(UsageError, match="cannot read cameras: it has no nothing"):
        open_camera("0")
