"""Every image file becomes RGB in the orientation of its annotations, or an error that names it."""

import base64
import errno
import itertools
import os
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from groupdetr.data import image_decoding
from groupdetr.data.findings import RefusedError
from groupdetr.data.image_decoding import check_image, image_size, load_image, load_pixels
from groupdetr.errors import DataError

RAMP = np.tile(np.linspace(0, 255, 64, dtype=np.uint8), (48, 1))  # [48,64]
ORIENTATION = 0x0112


def save(image, path, **options):
    image.save(path, **options)
    return path


def code(path, size=(64, 48)):
    with pytest.raises(RefusedError) as caught:
        check_image(path, size)
    return caught.value.finding.code


@pytest.mark.parametrize("mode", ["1", "LA", "P", "CMYK", "YCbCr", "I"])
def test_every_mode_becomes_rgb(mode, tmp_path):
    image = Image.fromarray(RAMP).convert(mode)
    loaded = load_image(save(image, tmp_path / "x.tif"), (64, 48))
    assert loaded.mode == "RGB"
    assert loaded.size == (64, 48)
    dithered = 16 if mode == "1" else 2
    assert abs(np.asarray(loaded).mean() - RAMP.mean()) <= dithered


def test_sixteen_bits_and_floats_are_scaled_by_their_range_and_not_clipped_at_255(tmp_path):
    values = (RAMP.astype(np.uint16) * 257) // 2
    loaded = load_image(save(Image.fromarray(values), tmp_path / "x.png"))
    assert np.abs(np.asarray(loaded)[..., 0] - RAMP / 2).max() <= 1
    loaded = load_image(save(Image.fromarray((RAMP / 255).astype(np.float32)), tmp_path / "x.tif"))
    assert np.array_equal(np.asarray(loaded)[..., 0], RAMP)


def test_transparent_pixels_are_white_unless_the_whole_image_is_transparent(tmp_path):
    pixels = np.zeros((48, 64, 4), dtype=np.uint8)
    pixels[:, :32] = (255, 0, 0, 255)
    loaded = np.asarray(load_image(save(Image.fromarray(pixels), tmp_path / "x.png")))
    assert (loaded[:, :32] == (255, 0, 0)).all()
    assert (loaded[:, 32:] == 255).all()
    palette = Image.fromarray(RAMP).convert("P")
    loaded = load_image(save(palette, tmp_path / "x.png", transparency=0))
    assert (np.asarray(loaded)[:, 0] == 255).all()
    everywhere = Image.fromarray(np.dstack([RAMP, RAMP, RAMP, np.zeros_like(RAMP)]))
    loaded = load_image(save(everywhere, tmp_path / "x.png"))
    assert np.array_equal(np.asarray(loaded)[..., 0], RAMP)


def test_the_first_frame_of_an_animation_is_loaded(tmp_path):
    frames = [Image.new("RGB", (64, 48), colour) for colour in ("red", "blue")]
    path = save(frames[0], tmp_path / "x.gif", save_all=True, append_images=frames[1:])
    assert load_image(path).getpixel((0, 0)) == (255, 0, 0)


def oriented(path, orientation, size=(64, 48)):
    exif = Image.Exif()
    exif[ORIENTATION] = orientation
    return save(Image.fromarray(RAMP).resize(size), path, exif=exif)


def test_the_exif_orientation_is_applied_unless_the_recorded_size_is_that_of_the_stored_image(
    tmp_path,
):
    path = oriented(tmp_path / "x.jpg", 6)
    assert load_image(path).size == image_size(path) == (48, 64)
    upside_down = np.asarray(load_image(oriented(tmp_path / "y.jpg", 3)))
    assert upside_down[0, 0, 0] > upside_down[0, -1, 0]
    assert load_image(path, (48, 64)).size == (48, 64)
    assert load_image(path, (64, 48)).size == (64, 48)
    assert check_image(path, (48, 64)) == "exif-rotated"
    assert check_image(path, (64, 48)) == ""
    # Where the size does not tell, the orientation is ignored and reported.
    assert check_image(tmp_path / "y.jpg", (64, 48)) == "exif-ambiguous"
    assert check_image(oriented(tmp_path / "z.jpg", 6, (50, 50)), (50, 50)) == "exif-ambiguous"


@pytest.mark.parametrize("compression", [None, "tiff_lzw"])
def test_a_tiff_is_rotated_once_and_not_scrambled(compression, tmp_path):
    path = save(
        Image.fromarray(RAMP),
        tmp_path / "x.tif",
        tiffinfo={ORIENTATION: 6},
        compression=compression,
    )
    assert image_size(path) == (48, 64)
    assert np.array_equal(np.asarray(load_image(path))[..., 0], np.rot90(RAMP, -1))
    assert np.array_equal(np.asarray(load_image(path, (48, 64)))[..., 0], np.rot90(RAMP, -1))


COLOURS = np.random.default_rng(0).integers(0, 255, (47, 63, 3), dtype=np.uint8)  # of odd sizes


@pytest.fixture(params=["Pillow only", "with simplejpeg"])
def decoder(request, monkeypatch):
    if request.param == "Pillow only":
        monkeypatch.setattr(image_decoding, "decode_jpeg", None)
    elif not image_decoding.decode_jpeg:
        pytest.skip("simplejpeg is not installed: pip install simplejpeg")
    return request.param


def decoded_by_pillow(path):
    with Image.open(path) as image:
        return np.asarray(image.convert("RGB"))


@pytest.mark.usefixtures("decoder")
@pytest.mark.parametrize("kind", ["4:4:4", "4:2:0", "progressive", "keep_rgb"])
def test_pixels_of_a_jpeg_are_those_of_pillow(kind, tmp_path):
    options = {"subsampling": kind} if ":" in kind else {kind: True}
    sizes = [(47, 63), (1, 1), (1, 40), (33, 2), (64, 48)]
    for quality, (height, width) in itertools.product((30, 95), sizes):
        noise = np.random.default_rng(height).integers(0, 255, (height, width, 3), dtype=np.uint8)
        path = save(Image.fromarray(noise), tmp_path / "x.jpg", quality=quality, **options)
        pixels = load_pixels(path, (width, height))
        case = (quality, height, width)
        assert np.array_equal(pixels, decoded_by_pillow(path)), case
        assert np.array_equal(pixels, np.asarray(load_image(path, (width, height)))), case


@pytest.mark.usefixtures("decoder")
@pytest.mark.parametrize("mode", ["L", "CMYK"])
def test_pixels_of_a_jpeg_that_is_not_rgb_are_those_of_pillow(mode, tmp_path):
    path = save(Image.fromarray(COLOURS).convert(mode), tmp_path / "x.jpg")
    assert np.array_equal(load_pixels(path, (63, 47)), decoded_by_pillow(path))


@pytest.mark.usefixtures("decoder")
def test_pixels_of_a_jpeg_are_rotated_if_the_recorded_size_requires_it(tmp_path):
    exif = Image.Exif()
    exif[ORIENTATION] = 6
    path = save(Image.fromarray(COLOURS), tmp_path / "x.jpg", exif=exif)
    assert np.array_equal(load_pixels(path, (63, 47)), decoded_by_pillow(path))
    assert np.array_equal(load_pixels(path, (47, 63)), np.rot90(decoded_by_pillow(path), -1))


@pytest.mark.usefixtures("decoder")
def test_pixels_of_real_images_are_those_of_pillow(real_data):
    for name in ("tiny_coco", "bccd", "raccoon"):
        for path in sorted((real_data / name / "images").iterdir()):
            pixels = decoded_by_pillow(path)
            assert np.array_equal(load_pixels(path, pixels.shape[1::-1]), pixels)


@pytest.mark.usefixtures("decoder")
def test_a_broken_jpeg_is_the_same_error_with_both_decoders(tmp_path):
    path = save(Image.fromarray(COLOURS), tmp_path / "x.jpg")
    with pytest.raises(DataError, match="63 x 47"):
        load_pixels(path, (47, 63))
    path.write_bytes(path.read_bytes()[: path.stat().st_size * 3 // 4])
    with pytest.raises(RefusedError) as caught:
        load_pixels(path, (63, 47))
    assert caught.value.finding.code == code(path, (63, 47)) == "truncated-image"


@pytest.mark.usefixtures("decoder")
def test_a_jpeg_with_stray_bytes_is_decoded_as_by_pillow(tmp_path):
    path = save(Image.fromarray(COLOURS), tmp_path / "x.jpg")
    raw = path.read_bytes()
    first_pixels = raw.index(b"\xff\xda")
    path.write_bytes(raw[:first_pixels] + b"stray" + raw[first_pixels:])
    assert np.array_equal(load_pixels(path, (63, 47)), decoded_by_pillow(path))


def test_simplejpeg_decodes_ordinary_jpegs_only(tmp_path, monkeypatch):
    calls = []
    monkeypatch.setattr(
        image_decoding,
        "decode_jpeg",
        lambda raw, strict: calls.append((raw[:2], strict)) or COLOURS,
    )
    for mode, extension, size in (
        ("RGB", "jpg", (63, 47)),
        ("L", "jpg", (63, 47)),
        ("RGB", "png", (63, 47)),
    ):
        load_pixels(save(Image.fromarray(COLOURS).convert(mode), tmp_path / f"x.{extension}"), size)
    assert calls == [(b"\xff\xd8", True)]


@pytest.mark.usefixtures("decoder")
@pytest.mark.parametrize("extension", ["jpg", "png"])
def test_pixels_can_be_written(extension, tmp_path):
    pixels = load_pixels(save(Image.fromarray(COLOURS), tmp_path / f"x.{extension}"), (63, 47))
    pixels[:] = 0
    assert pixels.flags.c_contiguous


@pytest.mark.parametrize("size", [None, (63, 47)])
def test_a_png_with_a_broken_byte_is_an_error(size, tmp_path):
    path = save(Image.fromarray(COLOURS), tmp_path / "x.png")
    raw = bytearray(path.read_bytes())
    raw[len(raw) // 2] ^= 255
    path.write_bytes(raw)
    assert code(path, (63, 47)) == "unreadable-image"
    with pytest.raises(DataError, match=r"x\.png"):
        load_image(path, size)


def test_a_wrong_recorded_size_is_an_error(tmp_path):
    path = save(Image.fromarray(RAMP), tmp_path / "x.png")
    assert code(path, (640, 480)) == "size-mismatch"
    with pytest.raises(DataError, match="64 x 48"):
        load_image(path, (640, 480))


@pytest.mark.parametrize("extension", ["jpg", "png", "gif", "tif"])
def test_a_truncated_file_is_an_error_and_not_filled_with_grey(extension, tmp_path):
    noise = np.random.default_rng(0).integers(0, 255, (48, 64, 3), dtype=np.uint8)
    path = save(Image.fromarray(noise), tmp_path / f"x.{extension}")
    path.write_bytes(path.read_bytes()[: path.stat().st_size * 3 // 4])
    assert code(path) == "truncated-image"
    with pytest.raises(DataError, match=f"x.{extension}"):
        load_image(path)


def test_files_that_are_no_images_are_reported_by_their_kind(tmp_path):
    (tmp_path / "text.jpg").write_text("404 not found")
    (tmp_path / "empty.jpg").touch()
    (tmp_path / "folder.jpg").mkdir()
    (tmp_path / "broken.jpg").symlink_to(tmp_path / "nowhere")
    assert code(tmp_path / "text.jpg") == "not-an-image"
    assert code(tmp_path / "empty.jpg") == "empty-file"
    assert code(tmp_path / "folder.jpg") == "not-a-file"
    assert code(tmp_path / "broken.jpg") == code(tmp_path / "none.jpg") == "missing-file"
    assert code(tmp_path / "text.jpg" / "x.jpg") == "missing-file"


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no FIFOs on this system")
def test_a_fifo_does_not_block(tmp_path):
    os.mkfifo(tmp_path / "x.jpg")
    assert code(tmp_path / "x.jpg") == "not-a-file"


def test_postscript_never_reaches_an_interpreter(tmp_path):
    (tmp_path / "x.jpg").write_bytes(
        b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 64 48\n%%EndComments\nshowpage\n"
    )
    assert code(tmp_path / "x.jpg") == "not-an-image"


def test_a_decompression_bomb_is_refused_by_its_header(tmp_path, monkeypatch):
    path = save(Image.new("1", (64, 48)), tmp_path / "x.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    assert code(path) == "image-too-large"


def test_files_are_closed(tmp_path):
    path = save(Image.fromarray(RAMP), tmp_path / "x.png")
    (tmp_path / "bad.png").write_bytes(path.read_bytes()[:60])
    if not Path("/proc/self/fd").exists():
        pytest.skip("this system has no /proc")
    loaded = [load_image(path) for _ in range(5)]
    for _ in range(5):
        code(tmp_path / "bad.png")
    # Other threads may open and close files of their own at the same time.
    open_files = set()
    for descriptor in os.listdir("/proc/self/fd"):
        with suppress(FileNotFoundError):
            open_files.add(os.readlink(f"/proc/self/fd/{descriptor}"))
    assert not open_files & {str(path), str(tmp_path / "bad.png")}
    assert len(loaded) == 5


# 16 x 8 pixels, blue at the left and red at the right, as pillow-heif 1.8 wrote it.
HEIC = base64.b64decode(
    b"AAAAHGZ0eXBoZWljAAAAAG1pZjFoZWljbWlhZgAAAXxtZXRhAAAAAAAAACFoZGxyAAAAAAAAAABwaWN0AAAAAAAA"
    b"AAAAAAAAAAAAACJpbG9jAAAAAERAAAEAAQAAAAABoAABAAAAAAAAAIEAAAAjaWluZgAAAAAAAQAAABVpbmZlAgAA"
    b"AAABAABodmMxAAAAAA5waXRtAAAAAAABAAAA/GlwcnAAAADcaXBjbwAAAHVodmNDAQNwAAAAkAAAAAAAHvAA/P34"
    b"+AAADwNgAAEAGEABDAH//wNwAAADAJAAAAMAAAMAHroCQGEAAQApQgEBA3AAAAMAkAAAAwAAAwAeoCCBBZbqrprm"
    b"4CGgwIAAAAyAAAADAIRiAAEABkQBwXPBiQAAABNjb2xybmNseAABAA0ABoAAAAAUaXNwZQAAAAAAAABAAAAAQAAA"
    b"AChjbGFwAAAAEAAAAAEAAAAIAAAAAf///9AAAAAC////yAAAAAIAAAAQcGl4aQAAAAADCAgIAAAAGGlwbWEAAAAA"
    b"AAAAAQABBYECAwWEAAAAiW1kYXQAAAB9KAGvBPIapleA8SM8Irv6Ldev7Iv/9PLAOZZR/8qtm+o2bHpI832QP/yV"
    b"JAe2v4oprAbkdOGMFuI8efX+j+v5WWWIeG02rUuydrSIQzfrl1hdzpoBw/UTncHOxY6tydEnJdgNzH8MjQ+KZ/Rr"
    b"NR2XQLkqi/fhIH7Fpw43aEA="
)


def test_heif_is_read_with_pi_heif(tmp_path):
    pytest.importorskip("pi_heif")
    path = tmp_path / "photo.heic"
    path.write_bytes(HEIC)
    assert check_image(path, (16, 8)) == ""
    for pixels in (load_pixels(path, (16, 8)), np.asarray(load_image(path))):
        assert np.abs(pixels[4, 2] - np.array([20, 30, 200])).max() < 25
        assert np.abs(pixels[4, 13] - np.array([200, 30, 40])).max() < 25


def test_heif_without_pi_heif_is_refused_with_its_extra(tmp_path, monkeypatch):
    path = tmp_path / "photo.heic"
    path.write_bytes(HEIC)
    monkeypatch.setattr(image_decoding, "_formats", lambda: ("JPEG", "PNG"))
    with pytest.raises(RefusedError, match="pi-heif is not installed") as caught:
        load_image(path)
    assert "groupdetr[heif]" in caught.value.remedy


@pytest.mark.parametrize(
    ("name", "content", "expected", "words"),
    [
        ("._a.jpg", b"\x00\x05\x16\x07\x00\x02Mac OS X", "not-an-image", "beside 'a.jpg'"),
        ("a.jpg", b"version https://git-lfs.github.com/spec/v1\n", "lfs-pointer", "Git LFS"),
        ("a.jpg", b"<html>", "not-an-image", "known format"),
    ],
)
def test_what_is_no_image_is_told_for_what_it_is(name, content, expected, words, tmp_path):
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(RefusedError, match=words) as caught:
        load_image(path)
    assert caught.value.finding.code == expected


@pytest.mark.parametrize(
    ("function", "number"), [("stat", errno.EACCES), ("open", errno.EIO), ("open", errno.EMFILE)]
)
def test_a_file_that_the_system_cannot_read_is_not_called_broken(
    function, number, tmp_path, monkeypatch
):
    """A remedy such as "copy the image again" would mislead."""
    path = save(Image.new("RGB", (8, 8)), tmp_path / "x.png")

    def fail(*_, **__):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(Path, function, fail)
    with pytest.raises(RefusedError) as caught:
        load_image(path)
    assert caught.value.finding.code == "unreadable-file"
    assert os.strerror(number) in caught.value.what


def test_a_file_that_vanishes_while_it_is_opened_is_missing(tmp_path, monkeypatch):
    path = save(Image.new("RGB", (8, 8)), tmp_path / "x.png")
    monkeypatch.setattr(Path, "open", lambda *_, **__: (_ for _ in ()).throw(FileNotFoundError()))
    with pytest.raises(RefusedError) as caught:
        load_image(path)
    assert caught.value.finding.code == "missing-file"
