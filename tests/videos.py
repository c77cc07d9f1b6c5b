"""Small videos for the tests, written with PyAV itself: a bright square that moves to the right."""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
from numpy.typing import NDArray

# FFmpeg's test pattern takes the place of a camera.
needs_test_pattern = pytest.mark.skipif(
    "lavfi" not in av.formats_available, reason="this build of PyAV has no test pattern"
)


def write_video(
    path: Path,
    num_frames: int = 10,
    size: tuple[int, int] = (64, 48),
    rate: Fraction = Fraction(25),
    *,
    times: Sequence[int] | None = None,
    codec: str = "libx264",
    index_first: bool = False,
    options: dict[str, str] | None = None,
) -> Path:
    """Write a video. ``times`` are those of the frames in milliseconds, if they are irregular.

    With ``index_first``, an MP4 file can be read up to the place where it was cut off. ``options``
    are those of the encoder.
    """
    container_options = {"movflags": "+faststart"} if index_first else {}
    container = av.open(str(path), "w", options=container_options)
    stream = container.add_stream(codec, rate=rate, options=options)
    stream.width, stream.height = size
    stream.pix_fmt = "yuv420p"
    time_base = Fraction(1, 1000) if times else 1 / rate
    stream.codec_context.time_base = time_base
    for index in range(num_frames):
        frame = av.VideoFrame.from_ndarray(pixels(index, size), format="rgb24")
        frame.pts = times[index] if times else index
        frame.time_base = time_base
        container.mux(stream.encode(frame))
    container.mux(stream.encode(None))
    container.close()
    return path


def pixels(index: int, size: tuple[int, int] = (64, 48)) -> NDArray[np.uint8]:
    """The pixels [H,W,3] of a frame, before they are compressed."""
    width, height = size
    image = np.full((height, width, 3), 60, dtype=np.uint8)
    left = 2 * index % max(1, width - 16)
    image[height // 4 : height // 2, left : left + 16] = (230, 40, 40)
    return image
