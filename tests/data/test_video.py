"""Videos: which frames are read at which times, what a damaged file gives, what is written."""

from __future__ import annotations

import gc
import struct
import sys
import weakref
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
from PIL import Image

from groupdetr.data.video import VideoReader, VideoWriter, is_annotated_video, is_video
from groupdetr.errors import DataError, UsageError
from tests.videos import pixels, write_video


def times_of(path: Path) -> list[float]:
    return [round(frame.time, 3) for frame in VideoReader(path)]


@pytest.mark.parametrize("name", ["a.mp4", "a.mkv", "a.avi", "a.ts"])
def test_all_frames_are_read_in_their_order_with_their_times(name: str, tmp_path: Path) -> None:
    codec = "mpeg4" if name.endswith(".avi") else "libx264"
    reader = VideoReader(write_video(tmp_path / name, 10, codec=codec))
    frames = list(reader)
    assert [frame.index for frame in frames] == list(range(10))
    np.testing.assert_allclose([frame.time for frame in frames], np.arange(10) / 25, atol=1e-3)
    assert reader.problem == ""
    assert reader.rate == 25
    for frame in frames:
        difference = np.asarray(frame.image).astype(int) - pixels(frame.index)
        assert np.abs(difference).mean() < 4


def test_the_times_of_a_frame_rate_that_varies_are_kept_in_the_copy(tmp_path: Path) -> None:
    times = [0, 40, 80, 500, 520, 1000]
    reader = VideoReader(write_video(tmp_path / "a.mp4", 6, times=times))
    writer = VideoWriter(tmp_path / "b.mp4", reader.rate, reader.time_base)
    for frame in reader:
        writer.write(frame.image, frame.ticks)
    writer.close()
    assert times_of(tmp_path / "b.mp4") == times_of(tmp_path / "a.mp4") == [t / 1000 for t in times]


# The matrix of a phone that is held upright: the file is to be turned clockwise by 90 degrees.
UPRIGHT_PHONE = struct.pack(">9i", 0, 1 << 16, 0, -1 << 16, 0, 0, 48 << 16, 0, 1 << 30)
IDENTITY = struct.pack(">9i", 1 << 16, 0, 0, 0, 1 << 16, 0, 0, 0, 1 << 30)


def test_a_video_of_a_phone_is_turned_upright(tmp_path: Path) -> None:
    content = write_video(tmp_path / "a.mp4", 1).read_bytes()
    position = content.index(IDENTITY, content.index(b"tkhd"))
    turned = content[:position] + UPRIGHT_PHONE + content[position + len(IDENTITY) :]
    (tmp_path / "turned.mp4").write_bytes(turned)
    (stored,) = VideoReader(tmp_path / "a.mp4")
    (upright,) = VideoReader(tmp_path / "turned.mp4")
    assert upright.image.size == (48, 64)
    assert upright.is_turned
    clockwise = np.rot90(np.asarray(stored.image), -1)
    np.testing.assert_array_equal(np.asarray(upright.image), clockwise)


def test_a_video_that_was_cut_off_gives_the_frames_before_and_says_so(tmp_path: Path) -> None:
    content = write_video(tmp_path / "a.mp4", 100, index_first=True).read_bytes()
    (tmp_path / "a.mp4").write_bytes(content[: len(content) * 6 // 10])
    reader = VideoReader(tmp_path / "a.mp4")
    frames = list(reader)
    assert 10 < len(frames) < 90
    assert reader.problem.startswith("the file ends too early: ")
    assert reader.problem.endswith(" of 100 frames are missing")


@pytest.mark.parametrize("first", [0, 40])
def test_a_trimmed_video_is_complete(first: int, tmp_path: Path) -> None:
    # Phones trim a video by its edit list (elst), and all frames remain in the file.
    path = write_video(tmp_path / "a.mp4", 100, options={"g": "10"})
    content = bytearray(path.read_bytes())
    entry = content.index(b"elst") + 12  # duration in milliseconds, and first unit of 1/12800 s
    _, start = struct.unpack(">Ii", content[entry : entry + 8])
    content[entry : entry + 8] = struct.pack(">Ii", 20 * 40, start + first * 512)
    path.write_bytes(content)
    reader = VideoReader(path)
    frames = list(reader)
    assert reader.problem == ""
    assert len(frames) == reader.num_frames == 20
    assert np.abs(np.asarray(frames[0].image).astype(int) - pixels(first)).mean() < 4


def test_times_never_go_back(tmp_path: Path) -> None:
    write_video(tmp_path / "a.ts", 10)
    # Two recordings that were joined, each with its own times
    (tmp_path / "joined.ts").write_bytes(2 * (tmp_path / "a.ts").read_bytes())
    np.testing.assert_allclose(times_of(tmp_path / "joined.ts"), np.arange(20) / 25, atol=1e-3)
    # AVI records the order of decoding only.
    write_video(tmp_path / "a.avi", 20, options={"bf": "2"})
    times = np.array(times_of(tmp_path / "a.avi"))
    assert len(times) == 20
    assert (np.diff(times) > 0).all()
    assert np.abs(times - np.arange(20) / 25).max() <= 2 / 25


def test_damage_in_the_middle_leaves_out_some_frames_and_is_said(tmp_path: Path) -> None:
    content = bytearray(write_video(tmp_path / "a.mp4", 100, index_first=True).read_bytes())
    first = content.index(b"mdat")  # The images are behind it.
    middle = (first + len(content)) // 2
    content[middle : middle + 400] = bytes(range(200)) * 2
    (tmp_path / "a.mp4").write_bytes(content)
    reader = VideoReader(tmp_path / "a.mp4")
    frames = list(reader)
    assert 50 < len(frames) < 100
    assert "damaged" in reader.problem


def test_files_without_frames_are_refused_by_what_they_lack(tmp_path: Path) -> None:
    content = write_video(tmp_path / "a.mp4").read_bytes()
    (tmp_path / "index-lost.mp4").write_bytes(content[: len(content) // 2])
    (tmp_path / "text.mp4").write_text("no video")
    for name in ("index-lost.mp4", "text.mp4"):
        with pytest.raises(DataError, match="this video cannot be read"):
            VideoReader(tmp_path / name)
    with av.open(str(tmp_path / "sound.wav"), "w") as container:
        stream = container.add_stream("pcm_s16le", rate=8000)
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 800), dtype=np.int16), layout="mono")
        frame.rate = 8000
        container.mux(stream.encode(frame))
    with pytest.raises(DataError, match="no video stream"):
        VideoReader(tmp_path / "sound.wav")
    # Music with a cover, which is a stream of one image.
    with av.open(str(tmp_path / "cover.mp3"), "w") as container:
        sound = container.add_stream("mp3", rate=8000)
        cover = container.add_stream("png")
        cover.width, cover.height, cover.pix_fmt = 64, 48, "rgb24"
        image = av.VideoFrame.from_ndarray(pixels(0), "rgb24")
        container.mux([*cover.encode(image), *cover.encode(None)])
        container.mux([*sound.encode(frame), *sound.encode(None)])
    with pytest.raises(DataError, match="no video stream"):
        VideoReader(tmp_path / "cover.mp3")
    # A video whose header is sound, and which has no frame behind it.
    content = write_video(tmp_path / "b.mp4", 3, index_first=True).read_bytes()
    (tmp_path / "b.mp4").write_bytes(content[: content.index(b"mdat") + 4])
    with pytest.raises(DataError, match="no frame that can be decoded"):
        list(VideoReader(tmp_path / "b.mp4"))


def test_a_long_video_is_never_in_memory_as_a_whole(tmp_path: Path) -> None:
    images: list[weakref.ref[Image.Image]] = []
    most = 0
    for frame in VideoReader(write_video(tmp_path / "a.mp4", 200)):
        images.append(weakref.ref(frame.image))
        del frame
        gc.collect(0)
        most = max(most, sum(image() is not None for image in images))
    assert len(images) == 200
    assert most <= 2


@pytest.mark.parametrize("size", [(63, 47), (1, 1)])
def test_a_video_has_the_size_of_its_frames_made_even(
    size: tuple[int, int], tmp_path: Path
) -> None:
    writer = VideoWriter(tmp_path / "a.mp4", Fraction(30000, 1001), Fraction(1001, 30000))
    image = Image.fromarray(pixels(0)).resize(size)
    for index in range(4):
        writer.write(image, index)
    assert not (tmp_path / "a.mp4").exists()
    writer.close()
    with av.open(str(tmp_path / "a.mp4")) as container:
        stream = container.streams.video[0]
        assert (stream.width, stream.height) == (size[0] + size[0] % 2, size[1] + size[1] % 2)
        assert stream.average_rate == Fraction(30000, 1001)
        assert stream.frames == 4
        assert stream.codec_context.name == "h264"
    assert is_annotated_video(tmp_path / "a.mp4")
    assert [path.name for path in tmp_path.iterdir()] == ["a.mp4"]


def test_without_an_encoder_of_h264_a_video_is_mpeg4(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("groupdetr.data.video.h264_encoder", lambda av: None)
    writer = VideoWriter(tmp_path / "a.mp4", Fraction(25), Fraction(1, 25))
    for index in range(5):
        writer.write(Image.fromarray(pixels(index)), index)
    writer.close()
    with av.open(str(tmp_path / "a.mp4")) as container:
        assert container.streams.video[0].codec_context.name == "mpeg4"
    assert times_of(tmp_path / "a.mp4") == [0.0, 0.04, 0.08, 0.12, 0.16]


def test_a_video_that_is_discarded_or_cannot_be_written_leaves_no_draft(tmp_path: Path) -> None:
    def writer(path: Path) -> VideoWriter:
        writer = VideoWriter(path, Fraction(25), Fraction(1, 25))
        writer.write(Image.fromarray(pixels(0)), 0)
        return writer

    (tmp_path / "a.mp4").write_bytes(b"former")
    writer(tmp_path / "a.mp4").discard()
    assert [path.read_bytes() for path in tmp_path.iterdir()] == [b"former"]
    unfinished = writer(tmp_path / "b.mp4")
    (tmp_path / "b.mp4").mkdir()
    with pytest.raises(UsageError, match="could not be written"):
        unfinished.close()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.mp4", "b.mp4"]


def test_videos_are_known_by_their_name_or_their_first_bytes(tmp_path: Path) -> None:
    video = write_video(tmp_path / "a.mp4", 2)
    (tmp_path / "download").write_bytes(video.read_bytes())
    Image.new("RGB", (8, 8)).save(tmp_path / "a.png")
    assert is_video(video)
    assert is_video(tmp_path / "download")
    assert not is_video(tmp_path / "a.png")
    assert not is_annotated_video(video)


def test_without_pyav_the_command_to_install_it_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "av", None)
    with pytest.raises(UsageError) as refused:
        VideoReader(tmp_path / "a.mp4")
    assert refused.value.remedy == "pip install 'groupdetr[video]'"
