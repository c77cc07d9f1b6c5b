"""Videos: their frames, read one by one with PyAV (the extra ``video``), and videos to be written.

A video of any length takes the memory of a few frames. Rotated videos, as phones record them, are
turned upright. The times of the frames are those of the file, so a frame rate that varies is kept.
"""

from __future__ import annotations

import math
import os
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from fractions import Fraction
from functools import cached_property
from pathlib import Path
from typing import Any

from PIL import Image

from groupdetr.errors import DataError, UsageError
from groupdetr.files.kinds import VIDEO, recognise
from groupdetr.files.missing import as_typed
from groupdetr.files.writing import draft_of, explained

# The endings, in lower case, of videos in folders.
VIDEO_SUFFIXES = (
    *(".mp4", ".m4v", ".mov", ".mkv", ".webm", ".avi", ".mpg", ".mpeg", ".wmv", ".flv"),
    *(".3gp", ".3g2", ".ogv", ".mts", ".m2ts"),
)
MARK = "groupdetr: annotated video"  # the comment in the metadata of the videos that are written
INSTALL = "pip install 'groupdetr[video]'"
# The encoders of H.264 that a build of FFmpeg may have, in the order of preference.
_H264_ENCODERS = ("libx264", "libopenh264", "h264_videotoolbox", "h264_mf")
_LARGEST_UNIT = 65535  # the largest denominator of a unit of time that all encoders take
_TICKS = Fraction(1, 60_000)  # the unit of time of videos whose own one is finer
_POLL = 0.005  # seconds between two attempts to read an image of a camera that has none yet
_TRANSPOSE = {
    90: Image.Transpose.ROTATE_90,
    180: Image.Transpose.ROTATE_180,
    270: Image.Transpose.ROTATE_270,
}


def import_av(where: str) -> Any:
    """Return the module of PyAV. `UsageError` with the video ``where`` if it is not installed."""
    try:
        import av
    except ImportError as error:
        what = "videos and cameras are read with PyAV, which is not installed"
        raise UsageError(what, where, INSTALL) from error
    return av


def has_av() -> bool:
    """True if PyAV is installed."""
    with suppress(UsageError):
        import_av("")
        return True
    return False


def is_video_name(name: str) -> bool:
    """True if a file of this name is a video, as far as the name tells."""
    return name.lower().endswith(VIDEO_SUFFIXES) and not name.startswith("._")


def is_video(path: Path) -> bool:
    """True if a file that a user has named is a video, by its name or by its first bytes."""
    if is_video_name(path.name) or path.name.lower().endswith(".ts"):
        return True
    try:
        return path.is_file() and recognise(path) == VIDEO
    except (OSError, ValueError):
        return False


@dataclass(frozen=True)
class Frame:
    """One frame of a video."""

    decoded: Any  # av.VideoFrame
    index: int  # 0 for the first frame
    ticks: int  # the time since the first frame, in units of `VideoReader.time_base`
    time: float  # the same time in seconds

    @cached_property
    def image(self) -> Image.Image:
        """The image in RGB, upright."""
        image: Image.Image = self.decoded.to_image()
        rotation = round(getattr(self.decoded, "rotation", 0) / 90) * 90 % 360  # anticlockwise
        return image.transpose(_TRANSPOSE[rotation]) if rotation else image

    @property
    def is_turned(self) -> bool:
        """True if width and height of the image are exchanged in the file."""
        return round(getattr(self.decoded, "rotation", 0) / 90) % 2 == 1


class VideoReader:
    """The frames of a video file. It is iterated once, and it is a context manager.

    ``name`` is what messages call the video. `DataError` if the file is not a video. A video that
    ends too early, or that is damaged in between, is no error: `problem` says so after the last
    frame that can be read.
    """

    def __init__(
        self,
        file: str | os.PathLike[str],
        name: str = "",
        container_format: str | None = None,
        options: dict[str, str] | None = None,
    ) -> None:
        self.name = name or as_typed(file)
        self.av = import_av(self.name)
        try:
            self.container = self.av.open(
                os.fspath(file), format=container_format, options=options or {}
            )
        except (self.av.error.FFmpegError, OSError, ValueError) as error:
            raise self._cannot_be_read(error) from error
        # The cover of a piece of music, or of a video, is a stream of one image.
        cover = self.av.stream.Disposition.attached_pic
        streams = [s for s in self.container.streams.video if not s.disposition & cover]
        if not streams:
            self.container.close()
            raise DataError("this file has no video stream", self.name, "pass a video or images")
        self.stream = streams[0]
        self.problem = ""  # why not all frames could be read; known after the last one
        self._closed = False
        self._times = _FrameTimes()
        self._end = Fraction(0)  # of the last packet, seconds
        self._num_packets = 0
        self._num_damaged = 0
        self._num_frames = 0

    def _cannot_be_read(self, error: Exception) -> DataError:
        reason = str(getattr(error, "strerror", "") or error)
        what = f"this video cannot be read: {reason}"
        if isinstance(error, self.av.error.InvalidDataError):
            what = "this video cannot be read: its beginning or its end is missing, or damaged"
        return DataError(what, self.name, "copy or download it again, or convert it to MP4")

    def __enter__(self) -> VideoReader:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the file."""
        self._closed = True
        self.container.close()

    @property
    def rate(self) -> Fraction:
        """Frames per second, on average. 25 if the file does not record it."""
        rate = self.stream.average_rate or self.stream.guessed_rate
        return Fraction(rate) if rate and 0 < rate <= 1000 else Fraction(25)

    @property
    def time_base(self) -> Fraction:
        """The unit of the times of the frames, in seconds."""
        base = Fraction(self.stream.time_base or 1 / self.rate)
        return base if base.denominator <= _LARGEST_UNIT else _TICKS

    @property
    def pixel_shape(self) -> Fraction:
        """The width of a pixel of the file, divided by its height."""
        return Fraction(self.stream.sample_aspect_ratio or 1)

    @property
    def num_frames(self) -> int | None:
        """The number of frames as the file records it, None if that is unknown, as for a camera."""
        if self.stream.frames:
            recorded = int(self.stream.frames)
            if self.stream.duration and self.stream.time_base:
                # A video that was trimmed still contains frames that are not shown.
                seconds = Fraction(self.stream.duration) * Fraction(self.stream.time_base)
                recorded = min(recorded, max(1, math.ceil(seconds * self.rate)))
            return recorded
        if self.container.duration and self.container.duration > 0:
            seconds = Fraction(self.container.duration, self.av.time_base)
            return max(1, round(seconds * self.rate))
        return None

    def __iter__(self) -> Iterator[Frame]:
        """Yield the frames in the order in which they are shown.

        `DataError` if there is none.
        """
        first_time: Fraction | None = None
        for decoded in self._decoded():
            shown_at = self._times.next(decoded, 1 / self.rate)
            if first_time is None:
                first_time = shown_at
            passed = shown_at - first_time
            ticks = round(passed / self.time_base)
            yield Frame(decoded, self._num_frames, ticks, float(passed))
            self._num_frames += 1
        if not self._num_frames:
            raise DataError(
                "this video has no frame that can be decoded",
                self.name,
                "copy or download it again, or convert it to MP4",
            )
        self._find_problem()

    def _decoded(self) -> Iterator[Any]:
        """Yield the decoded frames, as far as the file can be read."""
        packets = self.container.demux(self.stream)
        while True:
            try:
                packet = next(packets, None)
            except BlockingIOError:
                # Cameras of Macs answer so while there is no new image.
                if self._closed:
                    break
                time.sleep(_POLL)
                packets = self.container.demux(self.stream)
                continue
            except (self.av.error.FFmpegError, OSError) as error:
                reason = str(getattr(error, "strerror", "") or error)
                self.problem = f"it can only be read up to there ({reason})"
                packet = None
            if packet is None:
                break
            if packet.size:
                self._num_packets += 1
                self._end = max(self._end, _end_of_packet(packet))
            try:
                yield from packet.decode()
            except (self.av.error.FFmpegError, OSError):
                self._num_damaged += 1  # The next ones may be sound.
        # The decoder keeps frames back until it knows that no other one comes before them.
        with suppress(self.av.error.FFmpegError, OSError):
            yield from self.stream.decode(None)

    def _find_problem(self) -> None:
        recorded = int(self.stream.frames)
        if not self.problem and recorded > self._num_packets and not self._is_complete():
            missing = recorded - self._num_packets
            self.problem = f"the file ends too early: {missing} of {recorded} frames are missing"
        if not self.problem and self._num_damaged:
            self.problem = f"{self._num_damaged} damaged parts were left out"

    def _is_complete(self) -> bool:
        """True if the packets reach the recorded end of the video.

        Programs that trim a video, such as those of phones, may leave all frames in the file, and
        record which part is shown. FFmpeg reads that part only.
        """
        if not self.stream.duration or not self.stream.time_base:
            return False
        end = self.stream.duration + (self.stream.start_time or 0)
        # The recorded end may be rounded up. Half a frame is less than any frame that is missing.
        return self._end >= end * Fraction(self.stream.time_base) - 1 / (2 * self.rate)


def _end_of_packet(packet: Any) -> Fraction:
    """Return the time at which the frame of a packet ends, in seconds; 0 if that is unknown."""
    start = packet.dts if packet.pts is None else packet.pts
    if start is None or packet.time_base is None:
        return Fraction(0)
    return Fraction(start + (packet.duration or 0)) * Fraction(packet.time_base)


class _FrameTimes:
    """The times of decoded frames in seconds. They grow from frame to frame.

    They are the presentation times (pts) of the file. Where these go back, as in H.264 in AVI, the
    decoding times (dts) take their place if they go back less often, as in FFmpeg's own estimate.
    Where the file itself goes back, as one that was joined of several recordings, the next part
    follows the former one.
    """

    def __init__(self) -> None:
        self._last_pts: int | None = None
        self._last_dts: int | None = None
        self._num_wrong_pts = 0
        self._num_wrong_dts = 0
        self._shift = Fraction(0)  # that is added to the times of the file
        self._last_time: Fraction | None = None

    def next(self, frame: Any, interval: Fraction) -> Fraction:
        """Return the time of the next frame. ``interval`` are the usual seconds between two."""
        pts, dts = frame.pts, frame.dts
        if dts is not None:
            self._num_wrong_dts += self._last_dts is not None and dts <= self._last_dts
            self._last_dts = dts
        if pts is not None:
            self._num_wrong_pts += self._last_pts is not None and pts <= self._last_pts
            self._last_pts = pts
        use_pts = dts is None or self._num_wrong_pts <= self._num_wrong_dts
        ticks = pts if pts is not None and use_pts else dts
        following = Fraction(0) if self._last_time is None else self._last_time + interval
        if ticks is None or frame.time_base is None:
            seconds = following
        else:
            seconds = Fraction(ticks) * Fraction(frame.time_base) + self._shift
            if self._last_time is not None and seconds <= self._last_time:
                self._shift += following - seconds
                seconds = following
        self._last_time = seconds
        return seconds


class VideoWriter:
    """Writes images as an MP4 file: H.264 if PyAV has an encoder of it, otherwise MPEG-4 part 2.

    All frames have the size of the first one. A width or height that is odd grows by one pixel,
    because the encoders need even ones. The file is written to a draft: `close` puts it in its
    place, `discard` removes it.
    """

    def __init__(
        self,
        path: Path,
        rate: Fraction,
        time_base: Fraction,
        pixel_shape: Fraction = Fraction(1),
    ) -> None:
        self.path = path
        self.av = import_av(str(path))
        self.rate = rate
        self.time_base = time_base
        self.pixel_shape = pixel_shape
        self.draft = draft_of(path)
        self.container: Any = None
        self.stream: Any = None
        self.last_ticks = -1

    def write(self, image: Image.Image, ticks: int) -> None:
        """Add a frame that is shown ``ticks`` units of ``time_base`` after the first one."""
        with self._explained():
            if self.container is None:
                self._open(image.size)
            size = (self.stream.width, self.stream.height)
            if image.size != size:
                image = _with_size(image, size)
            frame = self.av.VideoFrame.from_image(image)
            # Players need times that grow; damaged files have others.
            self.last_ticks = max(ticks, self.last_ticks + 1)
            frame.pts = self.last_ticks
            frame.time_base = self.time_base
            for packet in self.stream.encode(frame):
                self.container.mux(packet)

    def _open(self, size: tuple[int, int]) -> None:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        # The index is moved to the beginning, so that a browser can show the file while it loads.
        self.container = self.av.open(
            str(self.draft), "w", format="mp4", options={"movflags": "+faststart"}
        )
        self.container.metadata["comment"] = MARK
        encoder = h264_encoder(self.av) or "mpeg4"
        options = {"crf": "20", "preset": "veryfast"} if encoder == "libx264" else {}
        self.stream = self.container.add_stream(encoder, rate=self.rate, options=options)
        self.stream.width, self.stream.height = (side + side % 2 for side in size)
        self.stream.pix_fmt = "yuv420p"
        context = self.stream.codec_context
        context.time_base = self.time_base
        if encoder != "libx264":
            # About what libx264 needs for the same quality; its own rate follows from the images.
            pixels_per_second = self.stream.width * self.stream.height * float(self.rate)
            context.bit_rate = max(500_000, round(0.2 * pixels_per_second))
        if self.pixel_shape != 1:
            context.sample_aspect_ratio = self.pixel_shape

    def close(self) -> None:
        """Write the end of the file, and replace the file. Nothing is written without a frame.

        After an error, the draft is removed.
        """
        if self.container is None:
            return
        try:
            with self._explained():
                for packet in self.stream.encode(None):
                    self.container.mux(packet)
                self.container.close()
                self.draft.replace(self.path)
        except BaseException:
            self.discard()
            raise
        self.container = None

    def discard(self) -> None:
        """Remove what was written."""
        if self.container is not None:
            with suppress(Exception):  # FFmpeg may not be able to write the end, as on a full disk
                self.container.close()
            self.container = None
        with suppress(OSError):
            self.draft.unlink(missing_ok=True)

    def _explained(self) -> Any:
        # The errors of PyAV that the system causes are errors of the system, too.
        return explained(self.path)


def h264_encoder(av: Any) -> str | None:
    """Return the name of the encoder of H.264 that this build of FFmpeg has, None without one."""
    for name in _H264_ENCODERS:
        with suppress(Exception):  # its exception for an unknown name depends on the version
            av.Codec(name, "w")
            return name
    return None


def _with_size(image: Image.Image, size: tuple[int, int]) -> Image.Image:
    """Return an image with the size of the video: one pixel more at the edges, or resized."""
    if size[0] - image.width in (0, 1) and size[1] - image.height in (0, 1):
        padded = Image.new("RGB", size)
        # The last column and row are repeated; black ones would be seen as a frame.
        padded.paste(image, (size[0] - image.width, size[1] - image.height))
        padded.paste(image, (0, 0))
        return padded
    return image.resize(size)


def is_annotated_video(path: Path) -> bool:
    """True if a file is a video that `VideoWriter` wrote. Only its header is read."""
    try:
        av = import_av(str(path))
        with av.open(os.fspath(path)) as container:
            return bool(container.metadata.get("comment") == MARK)
    except Exception:  # any file that is not such a video
        return False
