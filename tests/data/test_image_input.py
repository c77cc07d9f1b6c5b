"""The same image as a file, a PIL image, an array and a tensor gives the same pixels."""

from __future__ import annotations

import io
import os
import struct
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image

from groupdetr.data.findings import RefusedError
from groupdetr.data.image_decoding import check_image, load_pixels
from groupdetr.data.image_input import is_one_image, to_rgb
from groupdetr.errors import GroupDETRError, UsageError

RANDOM = np.random.default_rng(0)
COLOURS = RANDOM.integers(0, 256, (30, 40, 4), dtype=np.uint8)  # [30,40], red to opacity
GREY = COLOURS[..., 0]
UINT16 = RANDOM.integers(0, 65536, (30, 40), dtype=np.uint16)
UNIT = RANDOM.random((30, 40), dtype=np.float32)


def transparent_palette() -> Image.Image:
    image = Image.fromarray(COLOURS[..., :3]).convert("P")
    image.info["transparency"] = 3
    return image


# Mode -> (image, ending of a file format that keeps the mode)
IMAGES: dict[str, tuple[Image.Image, str]] = {
    "1": (Image.fromarray(GREY).convert("1"), ".png"),
    "L": (Image.fromarray(GREY), ".png"),
    "LA": (Image.fromarray(np.ascontiguousarray(COLOURS[..., :2])), ".png"),
    "P": (Image.fromarray(COLOURS[..., :3]).convert("P"), ".png"),
    "P with transparency": (transparent_palette(), ".png"),
    "RGB": (Image.fromarray(COLOURS[..., :3]), ".png"),
    "RGBA": (Image.fromarray(COLOURS), ".png"),
    "CMYK": (Image.fromarray(COLOURS[..., :3]).convert("CMYK"), ".tif"),
    "LAB": (Image.fromarray(COLOURS[..., :3]).convert("LAB"), ".tif"),
    "I;16": (Image.fromarray(UINT16), ".png"),
    "I": (Image.fromarray(UINT16.astype(np.int32)), ".tif"),
    "F in 0..1": (Image.fromarray(UNIT), ".tif"),
    "F in 0..255": (Image.fromarray(255 * UNIT), ".tif"),
    "F in 0..65535": (Image.fromarray(65535 * UNIT), ".tif"),
}
# The arrays of these modes do not tell the mode.
WITHOUT_ARRAY = {"P", "P with transparency", "CMYK", "LAB"}


def to_tensor(array: NDArray[Any]) -> torch.Tensor:
    return torch.from_numpy(array if array.ndim == 2 else array.transpose(2, 0, 1).copy())


@pytest.mark.parametrize("mode", IMAGES)
def test_every_mode_is_the_same_through_all_doors(mode: str, tmp_path: Path) -> None:
    image, ending = IMAGES[mode]
    path = tmp_path / f"image{ending}"
    image.save(path)
    expected = np.asarray(to_rgb(path))
    with Image.open(path) as opened:
        assert opened.mode == mode.split()[0], "the file format keeps the mode"
        doors: dict[str, Any] = {"an opened file": opened, "PIL": image}
        if mode not in WITHOUT_ARRAY:
            array = np.asarray(image)
            doors |= {"array": array, "tensor": to_tensor(array.copy())}
        for door, value in doors.items():
            np.testing.assert_array_equal(np.asarray(to_rgb(value)), expected, err_msg=door)
    # Training and evaluation read the file, and the check accepts it.
    np.testing.assert_array_equal(load_pixels(path, image.size), expected)
    assert check_image(path, image.size) == ""


@pytest.mark.parametrize("ending", [".jpg", ".png", ".tif", ".webp"])
def test_an_opened_file_is_rotated_as_the_file_is(ending: str, tmp_path: Path) -> None:
    for orientation in range(1, 9):
        exif = Image.Exif()
        exif[0x0112] = orientation
        path = tmp_path / f"{orientation}{ending}"
        Image.fromarray(COLOURS[..., :3]).save(path, exif=exif)
        expected = np.asarray(to_rgb(path))
        assert expected.shape[:2] == ((40, 30) if orientation >= 5 else (30, 40))
        with Image.open(path) as opened:
            np.testing.assert_array_equal(np.asarray(to_rgb(opened)), expected)


def write_png_of_16_bits(path: Path, array: NDArray[np.uint16]) -> None:
    """Write [H,W,3] as a PNG file, which Pillow cannot."""
    height, width, _ = array.shape

    def chunk(name: bytes, content: bytes) -> bytes:
        checksum = zlib.crc32(name + content)
        return struct.pack(">I", len(content)) + name + content + struct.pack(">I", checksum)

    header = struct.pack(">IIBBBBB", width, height, 16, 2, 0, 0, 0)
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in array)
    chunks = [chunk(b"IHDR", header), chunk(b"IDAT", zlib.compress(rows)), chunk(b"IEND", b"")]
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + b"".join(chunks))


def test_sixteen_bits_of_several_channels_are_those_of_a_file(tmp_path: Path) -> None:
    array = RANDOM.integers(0, 65536, (30, 40, 3), dtype=np.uint16)
    path = tmp_path / "image.png"
    write_png_of_16_bits(path, array)
    np.testing.assert_array_equal(np.asarray(to_rgb(array)), np.asarray(to_rgb(path)))


CONVERSIONS: list[Callable[[NDArray[np.uint8]], Any]] = [
    lambda array: array.astype(np.int64),
    lambda array: array / 255,
    lambda array: (array / 255).astype(np.float16).astype(np.float32),
    lambda array: array.astype(np.float64),
    lambda array: array[..., ::-1][..., ::-1],
    np.asfortranarray,
    lambda array: torch.from_numpy(array).permute(2, 0, 1) / 255,
    lambda array: (torch.from_numpy(array).permute(2, 0, 1) / 255).requires_grad_(),
]


def test_types_and_layouts_of_memory_do_not_matter() -> None:
    array = np.ascontiguousarray(COLOURS[..., :3])
    for convert in CONVERSIONS:
        np.testing.assert_array_equal(np.asarray(to_rgb(convert(array))), array)


def test_a_path_may_be_of_bytes(tmp_path: Path) -> None:
    Image.fromarray(GREY).save(tmp_path / "grey.png")
    (entry,) = os.scandir(os.fsencode(tmp_path))
    assert np.array_equal(np.asarray(to_rgb(entry))[..., 0], GREY)


@pytest.mark.parametrize("array", [UNIT - np.float32(1e-6), UNIT * np.float32(1.0005)])
def test_values_just_below_black_or_above_white_do_not_matter(array: NDArray[np.float32]) -> None:
    """Interpolation and rounding make such values. They do not turn the image black."""
    seen = np.asarray(to_rgb(array)).astype(int)
    assert np.abs(seen[..., 0] - 255 * UNIT).max() <= 1


def test_the_image_of_a_result_is_a_copy() -> None:
    array = np.zeros((8, 8, 3), dtype=np.uint8)
    image = Image.fromarray(array.copy())
    from_array, from_image = to_rgb(array), to_rgb(image)
    array[:] = 255
    image.paste("white", (0, 0, 8, 8))
    assert from_array.getextrema() == from_image.getextrema() == ((0, 0),) * 3


def with_value(value: float) -> NDArray[np.float32]:
    array = UNIT.copy()
    array[3, 4] = value
    return array


@pytest.mark.parametrize(
    "array", [with_value(np.nan), with_value(np.inf), with_value(-0.5), with_value(1.5)]
)
def test_values_without_a_known_white_are_refused_through_all_doors(
    array: NDArray[np.float32], tmp_path: Path
) -> None:
    path = tmp_path / "image.tif"
    Image.fromarray(array).save(path)
    for value in (array, torch.from_numpy(array), Image.fromarray(array)):
        with pytest.raises(UsageError) as raised:
            to_rgb(value)
        assert "normalisation" in raised.value.remedy
    for read in (
        to_rgb,
        lambda path: load_pixels(path, (40, 30)),
        lambda path: check_image(path, (40, 30)),
    ):
        with pytest.raises(RefusedError) as refused:
            read(path)
        assert refused.value.finding.code == "value-range"


@pytest.mark.parametrize(
    ("value", "remedy"),
    [
        (np.zeros((3, 120, 160), np.uint8), "array.transpose(1, 2, 0)"),
        (np.zeros((120, 160, 5), np.uint8), "array[..., :3]"),
        (torch.zeros(120, 160, 3, dtype=torch.uint8), "tensor.permute(2, 0, 1)"),
        (torch.zeros(5, 120, 160, dtype=torch.uint8), "tensor[:3]"),
        (np.zeros((2, 120, 160, 3), np.uint8), "a list"),
        (torch.zeros(2, 3, 120, 160), "a list"),
        (np.zeros((0, 0, 3), np.uint8), "array [H,W,3]"),
        (torch.zeros(3, 0, 10), "array [H,W,3]"),
        (Image.new("RGB", (0, 5)), "array [H,W,3]"),
        (np.zeros(12, np.uint8), "array [H,W,3]"),
        (np.float32(1), "array [H,W,3]"),
        (np.array([["a"]]), "array [H,W,3]"),
        (np.zeros((4, 4), np.complex64), "array [H,W,3]"),
        (torch.zeros(3, 8, 8, device="meta"), "array [H,W,3]"),
        (b"\xff\xd8", "io.BytesIO"),
        (io.BytesIO(), "PIL.Image.open(file)"),
        (None, "cv2.imread"),
        ("", "a path"),
        ({"image": np.zeros((8, 8), np.uint8)}, "array [H,W,3]"),
        (torch.nested.nested_tensor([torch.zeros(8)]), "array [H,W,3]"),
        (np.array([[-1, 255]]), "0 to 255"),
        ([[0, 1], [2, 3]], "array [H,W,3]"),
        (7, "array [H,W,3]"),
    ],
    ids=lambda value: type(value).__name__ if not isinstance(value, str) else "",
)
def test_what_is_not_an_image_is_refused_with_what_to_pass(value: Any, remedy: str) -> None:
    with pytest.raises(UsageError) as raised:
        to_rgb(value)
    assert remedy in raised.value.remedy


def test_a_pil_image_of_a_broken_file_is_an_error_that_names_it(tmp_path: Path) -> None:
    path = tmp_path / "image.png"
    Image.fromarray(COLOURS).save(path)
    path.write_bytes(path.read_bytes()[:200])
    with Image.open(path) as opened, pytest.raises(GroupDETRError, match=r"image\.png"):
        to_rgb(opened)


def test_one_image_is_told_from_several() -> None:
    assert is_one_image(Path("a.jpg"))
    assert is_one_image(torch.zeros(2, 3, 8, 8))
    assert is_one_image(None)
    assert is_one_image(io.BytesIO())
    assert is_one_image({"image": None})
    assert not is_one_image([None])
    assert not is_one_image(iter(["a.jpg"]))
