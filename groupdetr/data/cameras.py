"""Cameras of this machine, read with PyAV: Linux (v4l2), macOS (avfoundation), Windows (dshow)."""

from __future__ import annotations

import re
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass

from groupdetr.data.video import Frame, VideoReader, import_av
from groupdetr.errors import DataError, UsageError

# `0`, as other tools call the first camera, or the longer form, which may also have a name.
_CAMERA = re.compile(r"(\d{1,2})|camera:(.+)")
_WAIT = 0.2  # seconds between two looks whether the user wants to stop
_SILENT_SECONDS = 10.0  # after which a camera without a frame is given up
CAMERA_REMEDY = "check its cable, and that no other program uses it"


@dataclass(frozen=True)
class CameraSource:
    """How FFmpeg opens a camera."""

    file: str
    format: str
    options: dict[str, str]


def camera_named(argument: str) -> str | None:
    """Return the number or name of the camera that an argument names, None for another argument.

    >>> camera_named("0"), camera_named("camera:1"), camera_named("photo.jpg")
    ('0', '1', None)
    """
    match = _CAMERA.fullmatch(argument)
    return match[1] or match[2] if match else None


def open_camera(camera: str) -> VideoReader:
    """Open a camera, given its number or its name. `UsageError` if there is no such camera."""
    name = f"camera {camera}"
    av = import_av(name)
    source = camera_source(camera, sys.platform, list_cameras(av))
    if source.format not in " ".join(av.formats_available).replace(",", " ").split():
        raise UsageError(
            f"this build of PyAV cannot read cameras: it has no {source.format}",
            name,
            "install the wheel of PyAV from the package index, or record a video file first",
        )
    try:
        return VideoReader(source.file, name, source.format, source.options)
    except DataError as error:
        cameras = ", ".join(list_cameras(av))
        found = f"the cameras of this machine: {cameras}" if cameras else "no camera was found"
        raise UsageError(
            f"there is no such camera, or it cannot be used: {error.__cause__}",
            f"{name} ({source.file})",
            f"{found}; check that it is plugged in, that no other program uses it, and that this "
            "program may use it",
        ) from error


def camera_source(camera: str, system: str, names: list[str]) -> CameraSource:
    """Return how FFmpeg opens a camera on a system, whose name is that of `sys.platform`.

    ``names`` are those of all cameras: on Windows, a camera can only be opened by its name.
    """
    number = int(camera) if camera.isdecimal() else None
    if system == "darwin":
        # Most cameras of Macs refuse the default of 29.97 frames per second.
        return CameraSource(f"{camera}:none", "avfoundation", {"framerate": "30"})
    if system == "win32":
        is_known = number is not None and number < len(names)
        return CameraSource(f"video={names[number] if is_known else camera}", "dshow", {})  # type: ignore[index]
    return CameraSource(f"/dev/video{number}" if number is not None else camera, "v4l2", {})


def list_cameras(av: object) -> list[str]:
    """Return the names of the cameras, in the order of their numbers, as far as PyAV tells them."""
    kind = {"darwin": "avfoundation", "win32": "dshow"}.get(sys.platform, "v4l2")
    names: list[str] = []
    with suppress(Exception):  # older versions of PyAV, and systems without such devices
        from av.device import enumerate_input_devices

        for device in enumerate_input_devices(kind):
            if "video" in str(getattr(device, "media_types", "video")):
                names.append(str(device.name))
    return names


class LatestFrames:
    """The frames of a camera, without those that came while the last one was processed.

    A camera does not wait. Without this, a detector that is slower than the camera would see it
    with a growing delay. A thread reads the camera. The iteration ends with the camera, and when
    ``stopped`` returns True. It also ends if the camera sends nothing more, and `problem` of the
    reader says so. `DataError` if the camera has sent nothing at all.
    """

    def __init__(self, reader: VideoReader, stopped: Callable[[], bool] = lambda: False) -> None:
        self.reader = reader
        self.stopped = stopped
        self._arrived = threading.Condition()
        self._latest: Frame | None = None
        self._ended = False
        self._closing = False
        self._error: Exception | None = None

    def __iter__(self) -> Iterator[Frame]:
        thread = threading.Thread(target=self._read, daemon=True)
        thread.start()
        silent = 0.0
        has_sent = False
        try:
            while not self.stopped():
                with self._arrived:
                    if self._latest is None and not self._ended:
                        self._arrived.wait(_WAIT)
                    frame, self._latest = self._latest, None
                    ended = self._ended
                if frame is not None:
                    silent = 0.0
                    has_sent = True
                    yield frame
                elif ended:
                    if self._error is not None:
                        raise self._error
                    break
                else:
                    silent += _WAIT
                    if silent >= _SILENT_SECONDS:
                        what = f"the camera sent no image for {_SILENT_SECONDS:g} seconds"
                        if not has_sent:
                            raise DataError(what, self.reader.name, CAMERA_REMEDY)
                        # No error, so that the recording is kept.
                        self.reader.problem = what
                        break
        finally:
            self._closing = True
            # The file must not be closed while the thread reads it. It waits for one image at most.
            thread.join(_SILENT_SECONDS)

    def _read(self) -> None:
        error: Exception | None = None
        try:
            for frame in self.reader:
                with self._arrived:
                    self._latest = frame
                    self._arrived.notify()
                if self._closing:
                    break
        except Exception as reason:  # It is raised again in the thread of the user.
            error = reason
        with self._arrived:
            self._error = error
            self._ended = True
            self._arrived.notify()
