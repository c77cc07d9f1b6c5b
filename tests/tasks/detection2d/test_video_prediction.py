"""`groupdetr predict` and `Detector.video` with videos, addresses and cameras."""

from __future__ import annotations

import http.server
import json
import signal
import sys
import threading
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
import torch
from PIL import Image

import groupdetr
from groupdetr.checkpoints import native
from groupdetr.cli.main import main
from groupdetr.data import cameras
from groupdetr.data.cameras import CameraSource
from groupdetr.data.video import VideoReader
from groupdetr.errors import DataError, UsageError
from groupdetr.registry import create_model, recipe_to_dict
from groupdetr.tasks.detection2d.prediction_command import stop_on_interrupt
from tests.json_docs import assert_documented
from tests.videos import needs_test_pattern, write_video

PATTERN = CameraSource("testsrc=size=64x48:rate=50,realtime", "lavfi", {})


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A weights file of a detector with two groups and random weights."""
    torch.manual_seed(0)
    model = create_model("conditional-detr-tiny", num_classes=2, num_groups=2, num_queries=4)
    path = tmp_path_factory.mktemp("weights") / "model.safetensors"
    metadata = {"recipe": recipe_to_dict(model.recipe), "categories": [[1, "a"], [2, "b"]]}
    native.save(model, path, {**metadata, "imgsz": 48})
    return path


@pytest.fixture
def clip(tmp_path: Path) -> Path:
    return write_video(tmp_path / "clip.mp4", 6)


def predict(weights: Path, out: Path, *arguments: object, code: int = 0) -> list[dict[str, Any]]:
    options = ["--device", "cpu", "--score", "0", "--out", str(out)]
    assert main(["predict", str(weights), *options, *map(str, arguments)]) == code
    return json.loads((out / "predictions.json").read_text())


def test_a_video_gives_an_entry_for_each_frame_and_an_annotated_video(
    weights: Path, clip: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    content = predict(weights, tmp_path / "out", clip)
    assert f"{clip}: 6 frames (up to 0.2 s), frames with objects: " in capsys.readouterr().out
    assert [entry["frame"] for entry in content] == list(range(6))
    np.testing.assert_allclose([entry["time"] for entry in content], np.arange(6) / 25)
    assert {(entry["file"], entry["annotated"]) for entry in content} == {(str(clip), "clip.mp4")}
    assert_documented("predict: videos", content)
    detector = groupdetr.Detector(weights, "cpu")
    with av.open(str(tmp_path / "out/clip.mp4")) as container:
        stream = container.streams.video[0]
        assert (stream.width, stream.height, stream.average_rate) == (64, 48, 25)
        shown = [frame.to_image() for frame in container.decode(stream)]
    for entry, frame, image in zip(content, VideoReader(clip), shown):
        (result,) = detector.predict(frame.image, score=0)
        boxes = [detection["box"] for detection in entry["detections"]]
        np.testing.assert_allclose(boxes, result.boxes, atol=1e-2)
        difference = np.asarray(image).astype(int) - np.asarray(result.draw())
        assert np.abs(difference).mean() < 12  # Thin lines are blurred by the compression.


def test_the_further_files_have_a_folder_for_each_video(
    weights: Path, clip: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    Image.new("RGB", (40, 30)).save(tmp_path / "clip.jpg")
    options = ["--save-txt", "--save-json", "--save-crops"]
    content = predict(weights, out, tmp_path / "clip.jpg", clip, *options)
    assert [entry["annotated"] for entry in content] == ["clip.jpg"] + 6 * ["clip-2.mp4"]
    labels = {str(path.relative_to(out / "labels")) for path in (out / "labels").rglob("*.txt")}
    assert labels == {"clip.txt"} | {f"clip-2/{index:06d}.txt" for index in range(6)}
    num_crops = len(list((out / "crops").glob("*/clip-2/000003-*.jpg")))
    assert num_crops == len(content[4]["detections"])
    results = json.loads((out / "coco_results.json").read_text())
    assert {row["image_id"] for row in results} == {"clip"} | {
        f"clip-2/{index:06d}" for index in range(6)
    }
    # What an earlier prediction of the video has found is removed, and nothing else.
    options = ["--save-txt", "--save-crops", "--score", "1", "--limit", "2"]
    predict(weights, out, tmp_path / "clip.jpg", clip, *options)
    assert not list((out / "labels/clip-2").iterdir())
    assert not list((out / "crops").glob("*/clip-2/*"))
    (out / "labels/clip-2/000001.txt").write_text("0 0.5 0.5 0.1 0.1\n")
    predict(weights, out, clip, "--save-txt")  # This one is called clip.
    capsys.readouterr()
    arguments = ["predict", str(weights), str(tmp_path / "clip.jpg"), str(clip), "--save-txt"]
    assert main([*arguments, "--out", str(out)]) == 2
    assert "000001.txt" in capsys.readouterr().err


def test_a_folder_has_images_and_videos_and_never_its_own_output(
    weights: Path, clip: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    Image.new("RGB", (40, 30)).save(tmp_path / "photo.png")
    for _ in range(2):
        content = predict(weights, tmp_path / "out", tmp_path)
        assert [entry["file"] for entry in content] == [str(clip)] * 6 + [
            str(tmp_path / "photo.png")
        ]
    assert "1 annotated video of an earlier run" in capsys.readouterr().out


def test_without_pyav_the_videos_of_a_folder_are_left_out_and_a_named_one_is_refused(
    weights: Path,
    clip: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    Image.new("RGB", (40, 30)).save(tmp_path / "photo.png")
    monkeypatch.setitem(sys.modules, "av", None)
    (entry,) = predict(weights, tmp_path / "out", tmp_path)
    assert entry["file"] == str(tmp_path / "photo.png")
    assert "1 video (they need pip install 'groupdetr[video]')" in capsys.readouterr().out
    for argument in (str(clip), "0", "http://127.0.0.1/a.mp4"):
        assert main(["predict", str(weights), argument, "--out", str(tmp_path / "b")]) == 2
        assert "pip install 'groupdetr[video]'" in capsys.readouterr().err
    assert not (tmp_path / "b").exists()


def test_of_a_video_that_was_cut_off_the_beginning_is_kept_and_the_end_is_said(
    weights: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = write_video(tmp_path / "clip.mp4", 100, index_first=True)
    content = path.read_bytes()
    path.write_bytes(content[: len(content) * 7 // 10])
    entries = predict(weights, tmp_path / "out", path, code=3)
    assert "the file ends too early: " in capsys.readouterr().err
    assert 5 < len(entries) < 95
    assert len(list(VideoReader(tmp_path / "out/clip.mp4"))) == len(entries)


def test_a_video_without_frames_does_not_end_the_others(
    weights: Path, clip: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "broken.mp4").write_bytes(clip.read_bytes()[:400])
    entries = predict(weights, tmp_path / "out", tmp_path / "broken.mp4", clip, code=3)
    assert "1 of 2 inputs could not be read" in capsys.readouterr().err
    assert len(entries) == 6
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"clip.mp4", "predictions.json"}


def test_files_of_the_user_are_not_replaced(
    weights: Path, clip: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    content = clip.read_bytes()
    assert main(["predict", str(weights), str(clip), "--out", str(tmp_path)]) == 2
    assert "would be replaced" in capsys.readouterr().err
    detector = groupdetr.Detector(weights, "cpu")
    with pytest.raises(UsageError, match="would replace the original video"):
        next(detector.video(clip, out=clip))
    with pytest.raises(UsageError, match="would be replaced"):
        next(detector.video(clip, out=write_video(tmp_path / "mine.mp4", 2)))
    assert clip.read_bytes() == content


@pytest.mark.parametrize("options", [{}, {"batch": 4}, {"limit": 3}, {"show_groups": True}])
def test_a_detector_yields_the_results_of_a_video_while_it_is_read(
    options: dict[str, Any], weights: Path, clip: Path, tmp_path: Path
) -> None:
    detector = groupdetr.Detector(weights, "cpu")
    results = list(detector.video(clip, 0, out=tmp_path / "new/annotated.mp4", **options))
    assert [result.frame for result in results] == list(range(options.get("limit", 6)))
    assert results[2].time == pytest.approx(0.08)
    assert results[2].to_coco()[0]["image_id"] == f"{clip}/000002"
    assert (results[0].groups is not None) == ("show_groups" in options)
    assert len(list(VideoReader(tmp_path / "new/annotated.mp4"))) == len(results)
    frames = [frame.image for frame in VideoReader(clip)]
    for result, expected in zip(results, detector.predict(frames, score=0)):
        torch.testing.assert_close(result.detections.boxes, expected.detections.boxes)


def test_an_iterator_that_is_closed_early_leaves_a_complete_video(
    weights: Path, clip: Path, tmp_path: Path
) -> None:
    results = groupdetr.Detector(weights, "cpu").video(clip, out=tmp_path / "out.mp4")
    next(results)
    next(results)
    results.close()  # type: ignore[attr-defined]
    assert len(list(VideoReader(tmp_path / "out.mp4"))) in (1, 2)


def test_what_is_no_video_is_refused_by_what_it_is(weights: Path, tmp_path: Path) -> None:
    detector = groupdetr.Detector(weights, "cpu")
    (tmp_path / "a.mp4").write_text("text")
    for source, error in [
        (tmp_path / "a.mp4", DataError),
        (tmp_path / "gone.mp4", DataError),
        ("rtsp://192.168.0.7/stream1", DataError),
    ]:
        with pytest.raises(error):
            list(detector.video(source, out=tmp_path / "out.mp4"))
    with pytest.raises(UsageError, match="an annotated video is an MP4 file"):
        list(detector.video(write_video(tmp_path / "b.mp4", 2), out=tmp_path / "b.gif"))
    assert not (tmp_path / "out.mp4").exists()


@pytest.fixture
def base(tmp_path: Path) -> Iterator[str]:
    """The address of a server of the files in ``tmp_path``."""

    class Handler(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *_: object) -> None:
            pass

    server = http.server.ThreadingHTTPServer(
        ("127.0.0.1", 0), partial(Handler, directory=str(tmp_path))
    )
    server.daemon_threads = True
    threading.Thread(target=partial(server.serve_forever, 0.05), daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()


def test_images_and_videos_at_addresses_are_named_after_them(
    weights: Path, clip: Path, base: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    Image.new("RGB", (40, 30)).save(tmp_path / "a photo.png")
    addresses = [f"{base}/a%20photo.png?size=2", f"{base}/clip.mp4", f"{base}/gone.jpg"]
    content = predict(weights, tmp_path / "out", *addresses, code=3)
    assert "the server answers 404" in capsys.readouterr().err
    assert [(entry["file"], entry["annotated"]) for entry in content] == [
        (addresses[0], "a photo.png"),
        *[(addresses[1], "clip.mp4")] * 6,
    ]
    assert_documented("predict", content[:1])
    detector = groupdetr.Detector(weights, "cpu")
    assert detector.predict(addresses[0])[0].source == addresses[0]
    assert len(list(detector.video(addresses[1]))) == 6


@needs_test_pattern
def test_a_camera_is_recorded_until_a_limit_or_until_ctrl_c(
    weights: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(cameras, "camera_source", lambda *_: PATTERN)
    content = predict(weights, tmp_path / "out", 0, "--limit", 3)
    assert [entry["frame"] for entry in content] == [0, 1, 2]
    assert {(entry["file"], entry["annotated"]) for entry in content} == {
        ("camera:0", "camera-0.mp4")
    }
    assert len(list(VideoReader(tmp_path / "out/camera-0.mp4"))) == 3

    # Ctrl-C after the fourth frame: all of them are kept, and the command ends as it should.
    frames = VideoReader.__iter__

    def interrupted(reader: VideoReader) -> Iterator[Any]:
        for frame in frames(reader):
            if frame.index == 4:
                signal.raise_signal(signal.SIGINT)
            yield frame

    monkeypatch.setattr(VideoReader, "__iter__", interrupted)
    content = predict(weights, tmp_path / "out", "camera:front door")
    assert 1 <= len(content) <= 6
    assert len(list(frames(VideoReader(tmp_path / "out/camera-front door.mp4")))) == len(content)
    assert "Ctrl-C ends the recording" in capsys.readouterr().out


def test_ctrl_c_in_a_video_keeps_what_there_is_and_ends_with_its_code(
    weights: Path, clip: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    frames = VideoReader.__iter__

    def interrupted(reader: VideoReader) -> Iterator[Any]:
        for frame in frames(reader):
            if frame.index == 3:
                signal.raise_signal(signal.SIGINT)
            yield frame

    monkeypatch.setattr(VideoReader, "__iter__", interrupted)
    content = predict(weights, tmp_path / "out", clip, code=130)
    assert [entry["frame"] for entry in content] == [0, 1, 2]
    assert len(list(frames(VideoReader(tmp_path / "out/clip.mp4")))) == 3


def test_a_second_ctrl_c_ends_at_once() -> None:
    with stop_on_interrupt() as stop:
        signal.raise_signal(signal.SIGINT)
        assert stop.is_set()
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_a_limit_is_for_videos_alone(
    weights: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    Image.new("RGB", (40, 30)).save(tmp_path / "a.png")
    arguments = ["predict", str(weights), str(tmp_path / "a.png"), "--limit", "3"]
    assert main([*arguments, "--out", str(tmp_path / "out")]) == 2
    assert "--limit is the number of frames of a video" in capsys.readouterr().err
