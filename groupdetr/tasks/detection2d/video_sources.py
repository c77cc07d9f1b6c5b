"""What a user may name as a video, a file, an address or a camera, and the annotated video."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path

from PIL import Image

from groupdetr.data.cameras import LatestFrames, camera_named, open_camera
from groupdetr.data.video import (
    Frame,
    VideoReader,
    VideoWriter,
    import_av,
    is_annotated_video,
    is_video_name,
)
from groupdetr.errors import DataError, UsageError
from groupdetr.files.downloads import MAX_VIDEO_BYTES, downloaded, is_address, name_in_address
from groupdetr.files.missing import as_typed, describe_missing
from groupdetr.files.replacing import expect_replaceable, same_file


@dataclass(frozen=True)
class VideoSource:
    """An open video file or camera."""

    name: str  # what the user calls it
    reader: VideoReader
    is_camera: bool = False

    def frames(
        self, limit: int | None = None, stopped: Callable[[], bool] = lambda: False
    ) -> Iterator[Frame]:
        """Yield the frames, ``limit`` at most, until ``stopped`` returns True.

        Those of a camera are the latest ones. They are numbered without those that were left out.
        """
        frames = iter(LatestFrames(self.reader, stopped) if self.is_camera else self.reader)
        try:
            for index, frame in enumerate(islice(frames, limit)):
                if stopped():
                    return
                yield replace(frame, index=index)
        finally:
            frames.close()  # type: ignore[attr-defined]


@contextmanager
def open_source(source: str | os.PathLike[str]) -> Iterator[VideoSource]:
    """Open a video file, the address of one, or a camera. An existing path is always a file.

    `DataError` or `UsageError` if it cannot be read.
    """
    text = os.fsdecode(source)
    import_av(as_typed(text))
    with ExitStack() as stack:
        exists = os.path.exists(text)
        camera = None if exists else camera_named(text)
        if camera is not None:
            reader = stack.enter_context(open_camera(camera))
            yield VideoSource(f"camera:{camera}", reader, is_camera=True)
            return
        name = as_typed(text)
        if not exists and is_address(text):
            path = stack.enter_context(downloaded(text, MAX_VIDEO_BYTES))
        elif exists:
            path = Path(text)
        else:
            what, remedy = describe_missing(text)
            raise DataError(what or "there is no such video", name, remedy or "check the path")
        yield VideoSource(name, stack.enter_context(VideoReader(path, name)))


def is_video_address(argument: str) -> bool:
    """True if an argument is the address of a video, as far as its name tells."""
    return is_address(argument) and is_video_name(name_in_address(argument))


class AnnotatedVideo(VideoWriter):
    """The annotated copy of a video. It is a context manager: the end of the block completes it.

    After an error nothing is left, except that what a user stopped is kept.
    """

    def __init__(self, path: Path, original: VideoReader) -> None:
        if path.suffix.lower() != ".mp4":
            raise UsageError(
                f"an annotated video is an MP4 file, and this name ends with {path.suffix!r}",
                str(path),
                "use .mp4",
            )
        if same_file(path, Path(original.name)):
            raise UsageError(
                "the annotated video would replace the original video",
                str(path),
                "write it under another name",
            )
        expect_replaceable([path], is_annotated_video, "choose another name")
        super().__init__(path, original.rate, original.time_base)
        self.original = original

    def add(self, image: Image.Image, frame: Frame) -> None:
        """Add the annotated image of a frame."""
        if frame.index == 0:
            shape = self.original.pixel_shape
            self.pixel_shape = 1 / shape if frame.is_turned else shape
        self.write(image, frame.ticks)

    def __enter__(self) -> AnnotatedVideo:
        return self

    def __exit__(self, kind: type[BaseException] | None, *error: object) -> None:
        # A user who needs no more results closes their iterator, which raises GeneratorExit here.
        if kind is None or issubclass(kind, GeneratorExit | KeyboardInterrupt):
            self.close()
        else:
            self.discard()
