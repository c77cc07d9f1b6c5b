"""Results: how they are shown in a notebook and on the screen."""

from __future__ import annotations

import io
import os
from pathlib import Path

import pytest
import torch
from PIL import Image, ImageShow

from groupdetr.errors import UsageError
from groupdetr.structures.detections import Detections
from groupdetr.tasks.detection2d.result import Result


@pytest.fixture
def result() -> Result:
    """Two detections in an image of 1500 x 600 pixels."""
    detections = Detections(
        torch.tensor([0.9, 0.4]),
        torch.tensor([1, 0]),
        torch.tensor([[10.0, 20.0, 300.0, 400.0], [0.0, 0.0, 50.0, 50.0]]),
    )
    return Result(Image.new("RGB", (1500, 600)), detections, [(7, "cat"), (3, "dog")])


def test_a_notebook_gets_the_annotated_image_at_most_1024_pixels_wide(result: Result) -> None:
    image = Image.open(io.BytesIO(result._repr_png_()))
    assert image.format == "PNG"
    assert image.size == (1024, 410)
    assert max(high for _, high in image.getextrema()) > 0, "boxes are drawn on the black image"


def test_the_text_of_a_result_is_short(result: Result) -> None:
    assert repr([result]) == "[<Result: 1 dog, 1 cat>]"


def test_names_and_ids_are_those_of_the_labels(result: Result) -> None:
    assert (result.names, result.ids) == (["dog", "cat"], [3, 7])
    assert result.captions == ["dog 0.90", "cat 0.40"]
    assert len(result) == 2


def test_show_on_a_machine_without_a_screen_is_an_error_that_names_save(
    result: Result, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.platform", "linux")
    for name in ("DISPLAY", "WAYLAND_DISPLAY"):
        monkeypatch.delenv(name, raising=False)
    with pytest.raises(UsageError, match="no screen") as raised:
        result.show()
    assert "result.save(" in raised.value.remedy


@pytest.mark.parametrize("has_viewer", [True, False])
def test_show_opens_the_annotated_image_in_the_viewer_of_the_system(
    result: Result, has_viewer: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened: list[Image.Image] = []

    class Viewer(ImageShow.Viewer):
        def show(self, image: Image.Image, **options: object) -> int:
            opened.append(image)
            return 1

    monkeypatch.setenv("DISPLAY", ":0")
    monkeypatch.setattr(ImageShow, "_viewers", [Viewer()] if has_viewer else [])
    if has_viewer:
        result.show()
        (image,) = opened
        assert image.tobytes() == result.draw().tobytes()
    else:
        with pytest.raises(UsageError, match="no program that shows images"):
            result.show()


def test_an_annotated_image_is_replaced_as_a_whole_and_does_not_wait_for_the_disk(
    result: Result, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    file = tmp_path / "annotated.jpg"
    file.write_bytes(b"former")
    written_before_it_is_replaced = []
    replace = Path.replace

    def record(draft: Path, target: Path) -> Path:
        assert target.read_bytes() == b"former"
        written_before_it_is_replaced.append(draft.read_bytes())
        return replace(draft, target)

    monkeypatch.setattr(Path, "replace", record)
    monkeypatch.setattr(os, "fsync", lambda _: pytest.fail("the disk is waited for"))
    result.save(file)
    assert [file.read_bytes()] == written_before_it_is_replaced
    assert list(tmp_path.iterdir()) == [file]
    with Image.open(file) as image:
        assert image.size == result.image.size
